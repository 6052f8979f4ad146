#!/usr/bin/env python3
"""Checks tools/onnx_prepend_normalize.py: same results as normalising outside, all else untouched, mistakes refused.

Exits 1 on a failure, 77 where onnx, numpy or onnxruntime is missing.
"""
import os
import pathlib
import resource
import subprocess
import sys
import tempfile

try:
    import numpy as np
    import onnx
    import onnxruntime
    from onnx import TensorProto, helper, numpy_helper
except ImportError as missing:
    print(f"skipped: {missing}")
    sys.exit(77)

TOOL = pathlib.Path(__file__).resolve().parent.parent.parent / "tools" / "onnx_prepend_normalize.py"
MEAN, STD = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]
MARK = ".normalize"
# What onnxruntime 1.20 and newer read; the newest opset that a released one reads is found by trying.
OPSETS = {7: 3, 9: 4, 13: 7, 17: 8, 21: 10}
rng = np.random.RandomState(1)


def model(elem=TensorProto.FLOAT, shape=("N", 3, 8, 8), opset=17, name="image", extra=(), noted=False):
    """Conv 3 -> 4 and Relu over input `name`; `extra` are more inputs, which nobody reads."""
    weight = numpy_helper.from_array(
        rng.standard_normal((4, 3, 3, 3)).astype(helper.tensor_dtype_to_np_dtype(elem)), "weight")
    nodes = [helper.make_node("Conv", [name, "weight"], ["c"], name="conv", pads=[1, 1, 1, 1]),
             helper.make_node("Relu", ["c"], ["y"], name="relu")]
    ports = [helper.make_tensor_value_info(name, elem, shape), *extra]
    if OPSETS.get(opset, 8) < 4:  # there weights are inputs too
        ports.append(helper.make_tensor_value_info("weight", elem, weight.dims))
    out = helper.make_tensor_value_info("y", elem, ["N", 4, "h", "w"])
    graph = helper.make_graph(nodes, "g", ports, [out], [weight], doc_string="a text")
    if noted:
        graph.value_info.append(helper.make_tensor_value_info("c", elem, ["N", 4, "h", "w"]))
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=OPSETS.get(opset, 8),
                             producer_name="someone", producer_version="7")
    made.metadata_props.add(key="labels", value="cat,dog")
    return made


def tool(*words, code=0, says=(), limit=None):
    """Runs the tool; `limit` is the largest file it may write. A mistake must be one sentence."""
    def prepare():
        if limit is not None:
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
    done = subprocess.run([sys.executable, "-B", TOOL, *map(str, words)], capture_output=True, text=True, preexec_fn=prepare)
    said = done.stdout + done.stderr
    assert done.returncode == code, f"{words}: exit code {done.returncode}, wanted {code}: {said}"
    assert code == 0 or len(done.stderr.splitlines()) == 1, f"{words}: not one line: {said}"
    for part in [says] if isinstance(says, str) else says:
        assert part in said, f"{words}: does not say {part!r}: {said}"
    return done


def prepended(folder, original, *options):
    """Writes `original`, runs the tool on it, returns the result and checks that it is valid."""
    onnx.save(original, folder / "in.onnx")
    tool(folder / "in.onnx", folder / "out.onnx", *options)
    result = onnx.load(folder / "out.onnx")
    onnx.checker.check_model(result, full_check=True)
    return result


def session(made):
    return onnxruntime.InferenceSession(made.SerializeToString(), providers=["CPUExecutionProvider"])


def check_same_results(folder, original, layout, size, mean=MEAN, std=STD, scale=255.0, options=()):
    """uint8 through the result against the same pixels normalised in numpy through the original."""
    result = prepended(folder, original, "--layout", layout, *options)
    pixels = rng.randint(0, 256, (3, *size, 3)).astype(np.uint8)
    given = np.ascontiguousarray(pixels.transpose(0, 3, 1, 2)) if layout == "NCHW" else pixels
    half = original.graph.input[0].type.tensor_type.elem_type == TensorProto.FLOAT16
    floats = ((pixels / scale - mean) / std).transpose(0, 3, 1, 2).astype(np.float16 if half else np.float32)
    name = original.graph.input[0].name
    want = session(original).run(None, {name: floats})[0]
    got = session(result).run(None, {name: given})[0]
    assert got.shape == want.shape and got.dtype == want.dtype, (got.shape, got.dtype, want.shape, want.dtype)
    worst = np.abs(got.astype(np.float64) - want).max() / np.abs(want).max()
    assert worst <= (2e-3 if half else 2e-6), f"{layout} {'fp16' if half else 'fp32'} {size}: differs by {worst:.2g}"
    return result


def check_untouched(original, result):
    """Without the new nodes, their notes and the new input, the result is the original, byte for byte."""
    name = original.graph.input[0].name
    kept = onnx.ModelProto()
    kept.CopyFrom(result)
    kept.graph.input[0].type.CopyFrom(original.graph.input[0].type)
    nodes = [node for node in kept.graph.node if not node.name.startswith(name + MARK)]
    infos = [info for info in kept.graph.value_info if not info.name.startswith(name + MARK)]
    del kept.graph.node[:], kept.graph.value_info[:]
    kept.graph.node.extend(nodes)
    kept.graph.value_info.extend(infos)
    for node in kept.graph.node:
        node.input[:] = [name if each == name + MARK else each for each in node.input]
    assert kept.SerializeToString(deterministic=True) == original.SerializeToString(deterministic=True), \
        "more of the model has changed than its input"


def dims(port):
    return [d.dim_param or d.dim_value for d in port.type.tensor_type.shape.dim]


def check_results(folder):
    for elem in (TensorProto.FLOAT, TensorProto.FLOAT16):
        for layout, shape in (("NHWC", ["N", 8, 8, 3]), ("NCHW", ["N", 3, 8, 8])):
            original = model(elem, noted=True)
            result = check_same_results(folder, original, layout, (8, 8))
            assert dims(result.graph.input[0]) == shape, dims(result.graph.input[0])
            assert result.graph.input[0].type.tensor_type.elem_type == TensorProto.UINT8
            check_untouched(original, result)
            free = model(elem, ("batch", 3, "height", "width"))
            for size in ((5, 17), (32, 9)):
                check_same_results(folder, free, layout, size)
    other = ([0.5, 0.25, 0.125], [0.5, 2, 1], 127.5)
    check_same_results(folder, model(), "NHWC", (8, 8), *other,
                       options=("--mean", "0.5,0.25,0.125", "--std", "0.5,2,1", "--scale", "127.5"))


def newest_opset():
    """The newest opset that both packages here know."""
    for opset in range(onnx.defs.onnx_opset_version(), 21, -1):
        OPSETS[opset] = 10
        try:
            session(model(opset=opset))
            return opset
        except Exception:  # onnxruntime has no class of its own for it
            del OPSETS[opset]
    return max(OPSETS)


def check_opsets(folder):
    newest = newest_opset()
    for opset in OPSETS:
        original = model(opset=opset)
        result = check_same_results(folder, original, "NHWC", (8, 8))
        assert result.ir_version == original.ir_version
        check_untouched(original, result)
    print(f"opsets {min(OPSETS)} to {newest}, onnx {onnx.__version__}, onnxruntime {onnxruntime.__version__}")


def check_notes(folder):
    """Shapes inside the graph are noted where they were, by inference's own judgement, and not elsewhere."""
    result = prepended(folder, model(TensorProto.FLOAT16, noted=True))
    assert sum(MARK in info.name for info in result.graph.value_info) == 5, result.graph.value_info
    onnx.shape_inference.infer_shapes(result, check_type=True, strict_mode=True)
    assert not prepended(folder, model()).graph.value_info


def check_inner_graphs(folder):
    """A branch that reads the input from outside reads the normalised one."""
    image = helper.make_tensor_value_info("image", TensorProto.FLOAT, ["N", 3, 2, 2])
    flag = helper.make_tensor_value_info("flag", TensorProto.BOOL, [])
    branches = {
        kind: helper.make_graph([helper.make_node(op, ["image"], [kind])], kind, [],
                                [helper.make_tensor_value_info(kind, TensorProto.FLOAT, None)])
        for kind, op in (("then_branch", "Neg"), ("else_branch", "Identity"))}
    graph = helper.make_graph([helper.make_node("If", ["flag"], ["y"], **branches)], "g", [image, flag],
                              [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", 3, 2, 2])])
    result = prepended(folder, helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8))
    pixels = rng.randint(0, 256, (2, 2, 2, 3)).astype(np.uint8)
    want = -((pixels / 255 - MEAN) / STD).transpose(0, 3, 1, 2)
    got = session(result).run(None, {"image": pixels, "flag": np.array(True)})[0]
    assert np.allclose(got, want, atol=1e-5), np.abs(got - want).max()


def check_chosen_input(folder):
    """Of several images one is named; then the other. A free channel axis becomes that of the mean."""
    second = helper.make_tensor_value_info("other", TensorProto.FLOAT, ["N", 3, 4, 4])
    onnx.save(model(extra=[second]), folder / "two.onnx")
    tool(folder / "two.onnx", folder / "x.onnx", code=2, says=("--input", "image float32 [N,3,8,8]", "other float32"))
    tool(folder / "two.onnx", folder / "x.onnx", "--input", "other")
    tool(folder / "x.onnx", folder / "both.onnx", says="image uint8 [N,8,8,3]")
    onnx.checker.check_model(onnx.load(folder / "both.onnx"), full_check=True)
    result = prepended(folder, model(shape=("N", "C", 8, 8)))
    assert dims(result.graph.input[0]) == ["N", 8, 8, 3], dims(result.graph.input[0])


def check_external_weights(folder):
    """They stay where they are, unread; the result must stand beside them."""
    onnx.save(model(), folder / "big.onnx", save_as_external_data=True, location="big.data", size_threshold=0)
    before = (folder / "big.data").read_bytes()
    tool(folder / "big.onnx", folder / "big-u8.onnx")
    onnxruntime.InferenceSession(folder / "big-u8.onnx", providers=["CPUExecutionProvider"])
    (folder / "elsewhere").mkdir()
    tool(folder / "big.onnx", folder / "elsewhere" / "x.onnx", code=2, says=("big.data", "same folder"))
    tool(folder / "big.onnx", folder / "big.data", code=2, says="weights")
    assert (folder / "big.data").read_bytes() == before
    (folder / "big.data").unlink()
    tool(folder / "big.onnx", folder / "unread.onnx")


def check_refusals(folder):
    target = folder / "none.onnx"
    target.write_bytes(b"what was there")

    def refused(says, made, *options):
        path = folder / "bad.onnx"
        path.write_bytes(made if isinstance(made, bytes) else made.SerializeToString())
        tool(path, target, *options, code=2, says=says)

    refused("uint8 already", prepended(folder, model()), "--input", "image")
    refused("image uint8 [N,8,8,3]", prepended(folder, model()))
    refused("four axes", model(shape=("N", 3, 8)), "--input", "image")
    refused("image float32 [N,3,8]", model(shape=("N", 3, 8)))
    refused("neither", model(TensorProto.DOUBLE), "--input", "image")
    refused("3 channels", model(), "--mean", "0.5", "--std", "0.5")
    refused("8 channels", model(shape=("N", 8, 8, 3)))
    refused("image.normalize.scaled", model(extra=[
        helper.make_tensor_value_info("image.normalize.scaled", TensorProto.FLOAT, [1])]))
    refused("opset 6", model(opset=6))
    refused("no input nobody", model(), "--input", "nobody")
    refused("no input weight", model(opset=7), "--input", "weight")
    refused("--std has 2", model(), "--std", "1,2")
    refused("not 0", model(), "--std", "1,0,1")
    refused("not 0", model(), "--scale", "0")
    refused("--scale", model(), "--scale", "many")
    refused("--mean", model(), "--mean", "1,nan,1")
    refused("--layout", model(), "--layout", "HWCN")
    refused("not an ONNX model", b"rubbish")
    refused("no graph", b"")
    through = model()
    through.graph.output.append(through.graph.input[0])
    refused("also an output", through)
    foreign = model()
    foreign.opset_import[0].domain = "some.where"
    refused("no standard operators", foreign)
    tool(folder / "missing.onnx", target, code=2, says="No such file")
    tool(folder / "in.onnx", folder / "in.onnx", code=2, says="the model itself")
    tool(folder / "in.onnx", folder, code=2, says="not a regular file")
    tool(folder / "in.onnx", code=2, says="OUT.onnx")
    assert target.read_bytes() == b"what was there"


def check_failed_write(folder):
    """What was under the name before is there after a write that fails, and nothing beside it."""
    onnx.save(model(), folder / "in.onnx")
    target = folder / "full.onnx"
    target.write_bytes(b"what was there")
    names = sorted(os.listdir(folder))
    tool(folder / "in.onnx", target, code=1, says="File too large", limit=100)
    tool(folder / "in.onnx", folder / "no" / "where.onnx", code=1, says="No such file")
    assert target.read_bytes() == b"what was there"
    assert sorted(os.listdir(folder)) == names, os.listdir(folder)


def main():
    for check in (check_results, check_opsets, check_notes, check_inner_graphs, check_chosen_input,
                  check_external_weights, check_refusals, check_failed_write):
        with tempfile.TemporaryDirectory(prefix="dpinfer-prepend-") as folder:
            check(pathlib.Path(folder))
            left = [path for path in pathlib.Path(folder).rglob("*.part")]
            assert not left, f"{check.__name__} leaves {left}"
    print("ok")


if __name__ == "__main__":
    main()
