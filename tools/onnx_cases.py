#!/usr/bin/env python3
"""Exports the ONNX standard's own backend test cases that work row by row.

  onnx_cases.py FOLDER

Needs the packages onnx and numpy. A case is taken when every operator of its
model is on the list below, its first input and all its outputs share axis 0 as
rows, and the standard's reference implementation gives each row alone the same
result as among the others. FOLDER (made whole or not at all) then holds

  index.txt          what is there, in lines: case, in, out (see write_case)
  NAME/model.onnx    the case as it stands: its number of rows is fixed
  NAME/rows.onnx     the same with a free number of rows, where it has several
  NAME/*.bin         inputs and expected outputs, raw, in C order

Inputs without the rows (weights, scales, axes) are marked `whole`: they are the
same for every row, so a caller gives them as broadcast.
"""
import collections
import os
import shutil
import sys
import tempfile
import warnings

EXIT_SKIP = 77
FORMAT = "dpinfer-onnx-cases 1"

try:
    import numpy as np
    import onnx
    from onnx import numpy_helper
    from onnx.backend.test.case.node import collect_testcases
    from onnx.backend.test.loader import load_model_tests
    from onnx.reference import ReferenceEvaluator
except ImportError as missing:
    print("onnx_cases.py: {}: install the Python packages onnx and numpy".format(missing),
          file=sys.stderr)
    sys.exit(EXIT_SKIP)

# Input 0 has the rows, the others are parameters. An axis that is the rows' own is found by trying.
FIRST = set("""
Abs Acos Acosh Asin Asinh Atan Atanh BitwiseNot Cast CastLike Ceil Celu Cos Cosh Elu Erf Exp Floor Gelu HardSigmoid
HardSwish Identity IsInf IsNaN LeakyRelu Log Mish Neg Not Reciprocal Relu Round Selu Shrink Sigmoid Sign Sin Sinh
Softplus Softsign Sqrt Swish Tan Tanh ThresholdedRelu Clip Dropout
ArgMax ArgMin CumProd CumSum Hardmax LogSoftmax LpNormalization LRN Softmax TopK
ReduceL1 ReduceL2 ReduceLogSum ReduceLogSumExp ReduceMax ReduceMean ReduceMin ReduceProd ReduceSum ReduceSumSquare
AveragePool GlobalAveragePool GlobalMaxPool LpPool MaxPool
BatchNormalization GroupNormalization InstanceNormalization LayerNormalization MeanVarianceNormalization
RMSNormalization
Conv ConvInteger ConvTranspose QLinearConv Gemm
CenterCropPad Col2Im DepthToSpace Flatten Gather Pad Reshape Resize Slice SpaceToDepth Split Squeeze Tile Transpose
Trilu Unsqueeze Upsample Det DFT OneHot
DequantizeLinear QuantizeLinear Constant
""".split())

# Every input of the largest rank has the rows; those of a lower rank are the same for all rows.
EACH = set("""
Add And BitShift BitwiseAnd BitwiseOr BitwiseXor Div Equal Greater GreaterOrEqual Less LessOrEqual Max Mean Min Mod Mul
Or Pow PRelu Sub Sum Where Xor
Concat GatherElements GatherND GridSample MatMul MatMulInteger RotaryEmbedding Attention
""".split())

DTYPES = set("""bool int8 uint8 int16 uint16 int32 uint32 int64 uint64
float16 bfloat16 float32 float64""".split())

Case = collections.namedtuple("Case", "name model inputs outputs rtol atol")


def node_cases():
    """The cases for single operators; the package makes them when asked."""
    for case in collect_testcases(None):
        if "_expanded" not in case.name and case.data_sets:
            inputs, outputs = case.data_sets[0]
            yield Case(case.name, case.model, list(inputs), list(outputs), case.rtol, case.atol)


def stored_arrays(folder, kind):
    """KIND_0.pb, KIND_1.pb, ... of a folder as arrays."""
    arrays = []
    while os.path.exists(os.path.join(folder, "{}_{}.pb".format(kind, len(arrays)))):
        tensor = onnx.TensorProto()
        with open(os.path.join(folder, "{}_{}.pb".format(kind, len(arrays))), "rb") as f:
            tensor.ParseFromString(f.read())
        arrays.append(numpy_helper.to_array(tensor))
    return arrays


def stored_cases():
    """The cases that the package carries as files: small models that PyTorch has exported."""
    for kind in ("pytorch-operator", "pytorch-converted"):
        for case in load_model_tests(kind=kind):
            data = os.path.join(case.model_dir, "test_data_set_0")
            model = onnx.load(os.path.join(case.model_dir, "model.onnx"))
            yield Case(case.name, model, stored_arrays(data, "input"), stored_arrays(data, "output"),
                       case.rtol, case.atol)


class Unfit(Exception):
    """Why a case is not exported; a few words, for the count at the end."""


def ports(case):
    """(names of real inputs, names of outputs) after checking that all are plain tensors."""
    graph = case.model.graph
    stored = {tensor.name for tensor in graph.initializer}
    names = [port.name for port in graph.input if port.name not in stored]
    outputs = [port.name for port in graph.output]
    arrays = case.inputs + case.outputs
    if len(names) != len(case.inputs) or len(outputs) != len(case.outputs):
        raise Unfit("optional ports are left out")
    if not all(isinstance(a, np.ndarray) and a.dtype.name in DTYPES for a in arrays):
        raise Unfit("not dense tensors of a known dtype")
    if any(set(name) & set(" \t\n") or not name for name in names + outputs):
        raise Unfit("a port's name has blanks")
    return names, outputs


def row_inputs(case):
    """Which inputs have the rows, as a list of bool, and how many rows there are."""
    kinds = {node.op_type for node in case.model.graph.node}
    domains = {node.domain for node in case.model.graph.node}
    if domains - {"", "ai.onnx"} or not kinds or not kinds <= FIRST | EACH:
        raise Unfit("an operator that is not on the list")
    if not case.inputs:
        raise Unfit("no input")
    rank = max(a.ndim for a in case.inputs)
    if kinds & EACH:
        first = next(a for a in case.inputs if a.ndim == rank)
        rows = first.shape[0] if rank else 0
        having = [a.ndim == rank and rank > 0 and a.shape[0] == rows for a in case.inputs]
    else:
        rows = case.inputs[0].shape[0] if case.inputs[0].ndim else 0
        having = [i == 0 for i in range(len(case.inputs))]
    if rows < 1 or any(a.ndim < 1 or a.shape[0] != rows for a in case.outputs):
        raise Unfit("axis 0 of an output is not the rows")
    if any(a.size == 0 or a.ndim > 8 for a in case.inputs + case.outputs):
        raise Unfit("an empty tensor, or one of more than 8 axes")
    return having, rows


def with_free_rows(model, names):
    """A copy whose ports `names` have N for axis 0."""
    free = onnx.ModelProto()
    free.CopyFrom(model)
    del free.graph.value_info[:]
    for port in list(free.graph.input) + list(free.graph.output):
        if port.name in names:
            port.type.tensor_type.shape.dim[0].dim_param = "N"
    return free


def same(case, got, want):
    """Whether the reference's values agree; NaN equals NaN."""
    if got.shape != want.shape or got.dtype != want.dtype:
        return False
    if want.dtype == bool:
        return bool((got == want).all())
    return np.allclose(got.astype(np.float64), want.astype(np.float64), case.rtol, max(case.atol, 1e-5),
                       equal_nan=True)


def check_rows(case, free, names, having, rows):
    """Raises Unfit unless every row alone gives what it gives among the others."""
    reference = ReferenceEvaluator(free)
    for row in range(rows):
        feed = {name: a[row:row + 1] if has else a for name, a, has in zip(names, case.inputs, having)}
        try:
            results = reference.run(None, feed)
        except Exception:  # whatever the reference raises: it says nothing about this case
            raise Unfit("the reference cannot compute a single row") from None
        if not all(same(case, np.asarray(got), want[row:row + 1]) for got, want in zip(results, case.outputs)):
            raise Unfit("rows depend on each other")


def write_array(folder, word, name, a, extra):
    """One line of the index; the data goes to a file of its own."""
    path = "{}-{}.bin".format(word, extra[0])
    with open(os.path.join(folder, path), "wb") as f:
        f.write(np.ascontiguousarray(a).tobytes())
    return " ".join([word, name, a.dtype.name, extra[1], path, str(a.ndim)] + [str(n) for n in a.shape])


def write_case(root, case, names, outputs, having, rows, free):
    """Writes a case's files. Returns its lines of the index:

      case NAME ROWS HAS_ROWS_MODEL RTOL ATOL
      in   NAME DTYPE rows|whole FILE RANK AXIS...
      out  NAME DTYPE rows FILE RANK AXIS...
    """
    folder = os.path.join(root, case.name)
    os.mkdir(folder)
    onnx.save(case.model, os.path.join(folder, "model.onnx"))
    if free:
        onnx.save(free, os.path.join(folder, "rows.onnx"))
    lines = ["case {} {} {:d} {:g} {:g}".format(case.name, rows, free is not None, case.rtol, case.atol)]
    for i, (name, a, has) in enumerate(zip(names, case.inputs, having)):
        lines.append(write_array(folder, "in", name, a, (i, "rows" if has else "whole")))
    for i, (name, a) in enumerate(zip(outputs, case.outputs)):
        lines.append(write_array(folder, "out", name, a, (i, "rows")))
    return lines


def export(root):
    """Writes all fit cases below `root`; returns the lines of the index and counts of what was left out."""
    lines, left_out, seen = [], collections.Counter(), set()
    for source in (node_cases, stored_cases):
        for case in source():
            try:
                names, outputs = ports(case)
                having, rows = row_inputs(case)
                if case.name in seen:
                    raise Unfit("its name is taken")
                free = None
                if rows > 1:
                    free = with_free_rows(case.model,
                                          {n for n, has in zip(names, having) if has} | set(outputs))
                    check_rows(case, free, names, having, rows)
                lines += write_case(root, case, names, outputs, having, rows, free)
                seen.add(case.name)
            except Unfit as reason:
                left_out[str(reason)] += 1
    return lines, left_out


def main(argv):
    if len(argv) != 2 or argv[1].startswith("-"):
        print(__doc__, file=sys.stdout if argv[1:] in (["-h"], ["--help"]) else sys.stderr)
        return 0 if argv[1:] in (["-h"], ["--help"]) else 2
    target = os.path.abspath(argv[1])
    stamp = "# {}, onnx {}".format(FORMAT, onnx.__version__)
    try:
        with open(os.path.join(target, "index.txt")) as f:
            if f.readline().strip() == stamp:
                return 0
    except OSError:
        pass
    warnings.simplefilter("ignore")
    np.seterr(all="ignore")
    os.makedirs(os.path.dirname(target), exist_ok=True)
    root = tempfile.mkdtemp(prefix="onnx-cases-", dir=os.path.dirname(target))
    try:
        lines, left_out = export(root)
        with open(os.path.join(root, "index.txt"), "w") as f:
            f.write("\n".join([stamp] + lines) + "\n")
        os.chmod(root, 0o755)
        shutil.rmtree(target, ignore_errors=True)
        os.rename(root, target)
    except OSError as error:
        # Another process may have been quicker; then its folder is as good.
        if not os.path.exists(os.path.join(target, "index.txt")):
            print("onnx_cases.py: {}: {}".format(target, error), file=sys.stderr)
            return 1
        return 0
    finally:
        shutil.rmtree(root, ignore_errors=True)
    taken = sum(line.startswith("case ") for line in lines)
    print("{} cases, left out: {}".format(
        taken, ", ".join("{} {}".format(n, why) for why, n in left_out.most_common())))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv))
