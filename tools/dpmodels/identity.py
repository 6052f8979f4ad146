"""y = x for any ONNX element type: x [N,*shape] -> y [N,*shape].

The opset and IR version are the oldest that know the type: 17 and 8, 19 and 9
for the 8-bit floats, 21 and 10 for the 4-bit integers (two to a byte).
"""
from onnx import TensorProto

from .builder import Graph

ELEMS = {
    "bool": "BOOL", "uint8": "UINT8", "int8": "INT8", "uint16": "UINT16", "int16": "INT16",
    "uint32": "UINT32", "int32": "INT32", "uint64": "UINT64", "int64": "INT64",
    "fp16": "FLOAT16", "bf16": "BFLOAT16", "fp32": "FLOAT", "fp64": "DOUBLE",
    "complex64": "COMPLEX64", "complex128": "COMPLEX128",
    "fp8e4m3fn": "FLOAT8E4M3FN", "fp8e4m3fnuz": "FLOAT8E4M3FNUZ",
    "fp8e5m2": "FLOAT8E5M2", "fp8e5m2fnuz": "FLOAT8E5M2FNUZ",
    "uint4": "UINT4", "int4": "INT4", "string": "STRING",
}


def build(args):
    """args: elem (a key of ELEMS), shape (of one row), batch (int or None)."""
    graph = Graph("identity", args.batch, getattr(TensorProto, ELEMS[args.elem]))
    if args.elem.startswith("fp8"):
        graph.opset, graph.ir_version = 19, 9
    elif args.elem.endswith("int4"):
        graph.opset, graph.ir_version = 21, 10
    graph.node("Identity", [graph.input("x", args.shape)], "y")
    graph.output("y", args.shape)
    return graph.model()
