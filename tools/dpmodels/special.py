"""Tiny models that each try one rule of the runtime."""
import numpy as np
from onnx import TensorProto

from .builder import FLOATS, Graph

WIDTH = 8


def build_batch_softmax(args):
    """x [N,8] -> y [N,8] = softmax over axis 0: every row depends on all the others."""
    graph = Graph("batch_softmax", args.batch, FLOATS[args.dtype])
    x = graph.input("x", [WIDTH])
    graph.node("Softmax", [x], "y", axis=0)
    graph.output("y", [WIDTH])
    return graph.model()


def build_nonzero(args):
    """x [N,8] -> y int64 [K,2], the places of the K elements that are not zero."""
    graph = Graph("nonzero", args.batch, FLOATS[args.dtype])
    x = graph.input("x", [WIDTH])
    graph.node("Transpose", [graph.node("NonZero", [x], "places")], "y", perm=[1, 0])
    graph.output("y", [2], TensorProto.INT64, first_dim="K")
    return graph.model()


def build_multi(args):
    """x fp32 [N,4] and k int64 [N,3] -> sum fp32 [N,4], positive bool [N,4], total int64 [N].

    total[n] = k[n,0] + k[n,1] + k[n,2]; sum = x + total, column by column;
    positive = sum > 0.
    """
    graph = Graph("multi", args.batch)
    x = graph.input("x", [4])
    k = graph.input("k", [3], TensorProto.INT64)
    axis = graph.ints("axis", [1])
    total = graph.node("ReduceSum", [k, axis], "total", keepdims=0)
    column = graph.node("Unsqueeze", [total, axis], "total.column")
    offset = graph.node("Cast", [column], "total.float", to=TensorProto.FLOAT)
    result = graph.node("Add", [x, offset], "sum")
    graph.node("Greater", [result, graph.weight("zero", np.array(0.0))], "positive")
    graph.output("sum", [4])
    graph.output("positive", [4], TensorProto.BOOL)
    graph.output("total", [], TensorProto.INT64)
    return graph.model()


def build_pool(args):
    """x [N,32,64] -> y [N,64], the sum over the middle axis.

    Rows are independent, but ONNX Runtime (seen in 1.20 and 1.32, CPU) adds up
    in another order for one row than for several: the last bits of a row depend
    on the size of its slice. A real case for slices of one fixed size.
    """
    graph = Graph("pool", args.batch, FLOATS[args.dtype])
    x = graph.input("x", [32, 64])
    graph.node("ReduceSum", [x, graph.ints("axis", [1])], "y", keepdims=0)
    graph.output("y", [64])
    return graph.model()


def build_unsupported(args):
    """x [N,8] -> y [N,8] by an operator that no engine has: Nonexistent of domain dpinfer.test.

    A valid model all the same, so that an engine's refusal names the operator.
    """
    graph = Graph("unsupported", args.batch, FLOATS[args.dtype])
    graph.domains = ["dpinfer.test"]
    x = graph.node("Relu", [graph.input("x", [WIDTH])], "relu")
    graph.node("Nonexistent", [x], "y", domain="dpinfer.test")
    graph.output("y", [WIDTH])
    return graph.model()
