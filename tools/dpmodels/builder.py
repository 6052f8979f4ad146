"""Writes ONNX graphs: a small builder over onnx.helper.

Every model is opset 17 and IR version 8 unless its element type is newer, so
that onnxruntime 1.20 and OpenVINO 2025.0 read it. Nothing here depends on the
time, the machine or hash order: equal calls give equal bytes.
"""
import os

import numpy as np
import onnx
from onnx import TensorProto, helper

OPSET = 17
IR_VERSION = 8
BATCH_DIM = "N"

# --dtype NAME of the floating-point models.
FLOATS = {
    "fp32": TensorProto.FLOAT,
    "fp16": TensorProto.FLOAT16,
    "fp64": TensorProto.DOUBLE,
    "bf16": TensorProto.BFLOAT16,
}

_NUMPY_TYPES = {
    TensorProto.FLOAT: "<f4",
    TensorProto.FLOAT16: "<f2",
    TensorProto.DOUBLE: "<f8",
    TensorProto.INT64: "<i8",
    TensorProto.BOOL: "|b1",
}


def bf16_bits(values):
    """The uint16 bit patterns of `values` in bfloat16, rounded to nearest even (no NaN)."""
    bits = np.asarray(values, "<f4").view("<u4").astype(np.uint64)
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype("<u2")


def tensor(name, values, elem):
    """A TensorProto of ONNX element type `elem` with the raw bytes of `values`."""
    values = np.asarray(values)
    if elem == TensorProto.BFLOAT16:
        raw = bf16_bits(values)
    else:
        raw = np.ascontiguousarray(values.astype(_NUMPY_TYPES[elem]))
    return helper.make_tensor(name, elem, values.shape, raw.tobytes(), raw=True)


class Graph:
    """Nodes, initializers, inputs and outputs of one model in the making.

    `batch` is a number or None for the dynamic axis "N"; `elem` is the ONNX
    element type that weights get when none is named.
    """

    def __init__(self, name, batch=None, elem=TensorProto.FLOAT):
        self.name = name
        self.batch = BATCH_DIM if batch is None else batch
        self.elem = elem
        self.opset = OPSET
        self.ir_version = IR_VERSION
        self.domains = []  # of operators that are not the standard's; version 1 of each
        self.nodes, self.weights, self.inputs, self.outputs = [], [], [], []

    def input(self, name, row_shape, elem=None):
        """Declares input `name` of shape [batch, *row_shape]; returns its name."""
        shape = [self.batch, *row_shape]
        self.inputs.append(helper.make_tensor_value_info(name, elem or self.elem, shape))
        return name

    def output(self, name, row_shape, elem=None, first_dim=None):
        """Declares output `name` of shape [first_dim or batch, *row_shape]."""
        shape = [first_dim or self.batch, *row_shape]
        self.outputs.append(helper.make_tensor_value_info(name, elem or self.elem, shape))

    def weight(self, name, values, elem=None):
        """Adds initializer `name`; returns its name."""
        self.weights.append(tensor(name, values, elem or self.elem))
        return name

    def ints(self, name, values):
        """Adds an int64 initializer (shapes, axes, indices); returns its name."""
        return self.weight(name, np.array(values, np.int64), TensorProto.INT64)

    def node(self, op, inputs, out, **attributes):
        """Adds a node that writes one tensor named `out`; returns that name."""
        self.nodes.append(helper.make_node(op, inputs, [out], name="node_" + out, **attributes))
        return out

    def model(self):
        """The finished and checked ModelProto."""
        graph = helper.make_graph(self.nodes, self.name, self.inputs, self.outputs, self.weights)
        model = helper.make_model(
            graph,
            opset_imports=[helper.make_opsetid("", self.opset),
                           *(helper.make_opsetid(domain, 1) for domain in self.domains)],
            producer_name="dpinfer",
            ir_version=self.ir_version,
        )
        onnx.checker.check_model(model, full_check=True)
        return model


def save(model, path, external=False):
    """Writes `model` to `path`, under its final name only when it is whole.

    With `external` every weight of 1 KiB and more goes to `path`.data, which
    the model names relative to itself.
    """
    if external:
        data = os.path.basename(path) + ".data"
        _move_weights_out(model, os.path.join(os.path.dirname(path), data), data)
    _write_whole(path, model.SerializeToString(deterministic=True))


def _move_weights_out(model, path, location, threshold=1024):
    """Moves large initializers of `model` to the file `path`, each at a 64-byte boundary."""
    blob = bytearray()
    for weight in model.graph.initializer:
        if len(weight.raw_data) < threshold:
            continue
        blob.extend(b"\0" * (-len(blob) % 64))
        entries = {"location": location, "offset": len(blob), "length": len(weight.raw_data)}
        blob.extend(weight.raw_data)
        weight.ClearField("raw_data")
        weight.data_location = TensorProto.EXTERNAL
        for key, value in entries.items():
            weight.external_data.add(key=key, value=str(value))
    _write_whole(path, bytes(blob))


def _write_whole(path, content):
    part = "{}.{}.part".format(path, os.getpid())
    try:
        with open(part, "wb") as file:
            file.write(content)
        os.replace(part, path)
    finally:
        if os.path.exists(part):
            os.remove(part)
