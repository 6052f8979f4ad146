#!/usr/bin/env python3
"""Checks the models and data that ship: exits 1 on a failure, 77 where onnx or numpy is missing.

With onnxruntime present it also measures the accuracy of models/digits.onnx.
"""
import hashlib
import os
import subprocess
import sys
import tempfile

try:
    import numpy as np
    import onnx
except ImportError as missing:
    print("skipped: {}".format(missing))
    sys.exit(77)

ROOT = os.path.normpath(os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", ".."))
DIGITS = os.path.join(ROOT, "data", "digits")
MODEL = os.path.join(ROOT, "models", "digits.onnx")
HOLD_OUT = 5
WANTED_ACCURACY = 0.97
FILES = {
    "images.npy": ((1797, 8, 8), 16,
                   "88e52eb3e11cb9cc0130dc8fc4b6256aa919b3275fec17e6c2f880e1ae8d34ae"),
    "labels.npy": ((1797,), 9,
                   "03ec0343bca84958ae3df825f252a3680415fa07fccb1ed1125ed521c13169e5"),
}


def equal(what, got, wanted):
    """Raises an AssertionError that shows both values."""
    assert got == wanted, "{}: got {!r}, wanted {!r}".format(what, got, wanted)


def read(path):
    with open(path, "rb") as file:
        return file.read()


def make(folder, file, *arguments):
    """Runs make_model.py and returns the bytes it wrote."""
    path = os.path.join(folder, file)
    subprocess.run(
        [sys.executable, "-B", os.path.join(ROOT, "tools", "make_model.py"),
         arguments[0], path, *arguments[1:]],
        check=True, stdout=subprocess.DEVNULL)
    return read(path)


def dims(value):
    """A graph input's or output's shape: numbers, or names where dynamic."""
    return [d.dim_param or d.dim_value for d in value.type.tensor_type.shape.dim]


def check_digits_data():
    for name, (shape, largest, sha256) in FILES.items():
        path = os.path.join(DIGITS, name)
        equal(name + " sha256", hashlib.sha256(read(path)).hexdigest(), sha256)
        values = np.load(path, allow_pickle=False)
        equal(name + " shape", values.shape, shape)
        equal(name + " dtype", values.dtype, np.dtype(np.uint8))
        equal(name + " C order", values.flags.c_contiguous, True)
        equal(name + " range", (values.min(), values.max()), (0, largest))


def check_digits_model():
    model = onnx.load(MODEL)
    onnx.checker.check_model(model, full_check=True)
    equal("opset", model.opset_import[0].version, 17)
    assert model.ir_version <= 9, "IR version {} is too new".format(model.ir_version)
    assert os.path.getsize(MODEL) < 1 << 20, "digits.onnx is over 1 MB"
    image, logits = model.graph.input[0], model.graph.output[0]
    equal("input", (image.name, dims(image)), ("image", ["N", 8, 8]))
    equal("input type", image.type.tensor_type.elem_type, onnx.TensorProto.UINT8)
    equal("output", (logits.name, dims(logits)), ("logits", ["N", 10]))


def check_digits_accuracy():
    try:
        import onnxruntime
    except ImportError:
        print("no onnxruntime: accuracy not measured")
        return
    session = onnxruntime.InferenceSession(MODEL, providers=["CPUExecutionProvider"])
    images = np.load(os.path.join(DIGITS, "images.npy"))
    labels = np.load(os.path.join(DIGITS, "labels.npy"))
    logits = session.run(None, {"image": images})[0]
    equal("logits", (logits.shape, logits.dtype), ((len(images), 10), np.dtype(np.float32)))
    right = logits.argmax(1) == labels
    held = right[::HOLD_OUT]
    print("digits.onnx, onnxruntime {}: held out {}/{} = {:.2f} %, all {}/{} = {:.2f} %".format(
        onnxruntime.__version__, held.sum(), len(held), 100 * held.mean(),
        right.sum(), len(right), 100 * right.mean()))
    assert held.mean() >= WANTED_ACCURACY, "held-out accuracy {}".format(held.mean())


def check_same_bytes(folder):
    """Equal arguments give equal bytes, others give others."""
    first = make(folder, "a.onnx", "mlp")
    equal("mlp twice", make(folder, "b.onnx", "mlp") == first, True)
    equal("mlp by its defaults spelt out",
          make(folder, "c.onnx", "mlp", "--layers", "64,32,10", "--dtype", "fp32",
               "--batch", "dynamic", "--seed", "1") == first, True)
    for other in (("--seed", "2"), ("--batch", "4"), ("--dtype", "fp16"), ("--layers", "64,10")):
        equal("mlp with {} {}".format(*other),
              make(folder, "d.onnx", "mlp", *other) == first, False)


def check_shapes(folder):
    model = onnx.load_from_string(make(folder, "m.onnx", "mlp", "--batch", "4"))
    equal("fixed batch", dims(model.graph.input[0]), [4, 64])
    model = onnx.load_from_string(make(folder, "m.onnx", "encoder"))
    equal("encoder inputs", [(i.name, dims(i)) for i in model.graph.input],
          [("ids", ["N", "S"]), ("mask", ["N", "S"])])
    model = onnx.load_from_string(
        make(folder, "m.onnx", "identity", "--shape", "2,5", "--elem", "int16"))
    equal("identity", (dims(model.graph.output[0]),
                       model.graph.output[0].type.tensor_type.elem_type),
          (["N", 2, 5], onnx.TensorProto.INT16))


def check_external_weights(folder):
    """--external: the same weights, in a file beside the model."""
    whole = onnx.load_from_string(make(folder, "whole.onnx", "mlp"))
    make(folder, "split.onnx", "mlp", "--external")
    equal("weights file", os.path.exists(os.path.join(folder, "split.onnx.data")), True)
    split = onnx.load(os.path.join(folder, "split.onnx"))
    for a, b in zip(whole.graph.initializer, split.graph.initializer):
        equal(a.name, onnx.numpy_helper.to_array(b).tobytes(),
              onnx.numpy_helper.to_array(a).tobytes())


def main():
    check_digits_data()
    check_digits_model()
    check_digits_accuracy()
    with tempfile.TemporaryDirectory() as folder:
        check_same_bytes(folder)
        check_shapes(folder)
        check_external_weights(folder)
    print("ok")


if __name__ == "__main__":
    main()
