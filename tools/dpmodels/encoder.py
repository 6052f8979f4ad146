"""A small transformer encoder for sequences of any length up to MAX_LENGTH.

ids int64 [N,S], mask int64 [N,S] (0 = padding) -> output [N,HIDDEN]: the mean
of the last layer over the positions that the mask keeps, 0 where it keeps none.
Any int64 is a valid id (taken modulo VOCABULARY). Rows are independent.
"""
import numpy as np
from onnx import TensorProto

from .builder import FLOATS, Graph

LAYERS, HIDDEN, HEADS, FEED_FORWARD = 2, 64, 4, 256
VOCABULARY, MAX_LENGTH = 1000, 512
LENGTH_DIM = "S"


class _Encoder:
    """The parts of the graph; tensors are [N,S,HIDDEN] unless said otherwise."""

    def __init__(self, args):
        self.rng = np.random.RandomState(args.seed)
        self.g = Graph("encoder", args.batch, FLOATS[args.dtype])
        self.split = self.g.ints("shape.split", [0, 0, HEADS, HIDDEN // HEADS])
        self.merge = self.g.ints("shape.merge", [0, 0, HIDDEN])

    def dense(self, x, name, fan_in, width):
        """x [N,S,fan_in] -> [N,S,width]."""
        w = self.rng.standard_normal((fan_in, width)) / np.sqrt(fan_in)
        self.g.weight(name + ".weight", w)
        self.g.weight(name + ".bias", 0.1 * self.rng.standard_normal(width))
        product = self.g.node("MatMul", [x, name + ".weight"], name + ".product")
        return self.g.node("Add", [product, name + ".bias"], name)

    def norm(self, x, name):
        self.g.weight(name + ".scale", 1 + 0.1 * self.rng.standard_normal(HIDDEN))
        self.g.weight(name + ".bias", 0.1 * self.rng.standard_normal(HIDDEN))
        return self.g.node("LayerNormalization", [x, name + ".scale", name + ".bias"],
                           name, axis=-1, epsilon=1e-5)

    def embed(self, ids):
        """ids int64 [N,S] -> token plus position embedding."""
        g = self.g
        g.weight("tokens", self.rng.standard_normal((VOCABULARY, HIDDEN)))
        g.weight("positions", self.rng.standard_normal((MAX_LENGTH, HIDDEN)))
        index = g.node("Mod", [ids, g.ints("vocabulary", VOCABULARY)], "ids.valid")
        token = g.node("Gather", ["tokens", index], "embed.token", axis=0)
        length = g.node("Shape", [ids], "length", start=1, end=2)
        position = g.node("Slice", ["positions", g.ints("zero", [0]), length], "embed.position")
        return self.norm(g.node("Add", [token, position], "embed.sum"), "embed")

    def heads(self, x, name, perm):
        """x -> its heads, [N,HEADS,S,width] or as `perm` says."""
        split = self.g.node("Reshape", [x, self.split], name + ".split")
        return self.g.node("Transpose", [split], name + ".heads", perm=perm)

    def attention(self, x, name, penalty):
        """Self-attention; `penalty` [N,1,1,S] is added to every query's scores."""
        g = self.g
        q = self.heads(self.dense(x, name + ".q", HIDDEN, HIDDEN), name + ".q", [0, 2, 1, 3])
        k = self.heads(self.dense(x, name + ".k", HIDDEN, HIDDEN), name + ".k", [0, 2, 3, 1])
        v = self.heads(self.dense(x, name + ".v", HIDDEN, HIDDEN), name + ".v", [0, 2, 1, 3])
        scores = g.node("MatMul", [q, k], name + ".dot")
        scores = g.node("Mul", [scores, "attention.scale"], name + ".scaled")
        scores = g.node("Add", [scores, penalty], name + ".masked")
        weights = g.node("Softmax", [scores], name + ".softmax", axis=-1)
        mixed = g.node("MatMul", [weights, v], name + ".mixed")
        mixed = g.node("Transpose", [mixed], name + ".gathered", perm=[0, 2, 1, 3])
        mixed = g.node("Reshape", [mixed, self.merge], name + ".merged")
        return self.dense(mixed, name + ".out", HIDDEN, HIDDEN)

    def layer(self, x, name, penalty):
        """One post-norm layer: attention, then a ReLU feed-forward net."""
        g = self.g
        y = self.attention(x, name + ".attention", penalty)
        x = self.norm(g.node("Add", [x, y], name + ".add1"), name + ".norm1")
        y = self.dense(x, name + ".up", HIDDEN, FEED_FORWARD)
        y = self.dense(g.node("Relu", [y], name + ".relu"), name + ".down", FEED_FORWARD, HIDDEN)
        return self.norm(g.node("Add", [x, y], name + ".add2"), name + ".norm2")

    def keep(self, mask):
        """mask int64 [N,S] -> 1 where it is not zero, 0 elsewhere, as floats."""
        wanted = self.g.node("Cast", [mask], "keep.bool", to=TensorProto.BOOL)
        return self.g.node("Cast", [wanted], "keep", to=self.g.elem)

    def penalty(self, keep):
        """keep [N,S] -> [N,1,1,S]: 0 where kept, -10000 (fits fp16) where not."""
        g = self.g
        g.weight("attention.scale", np.array(1 / np.sqrt(HIDDEN // HEADS)))
        missing = g.node("Sub", [keep, g.weight("one", np.array(1.0))], "missing")
        scaled = g.node("Mul", [missing, g.weight("ten_thousand", np.array(1e4))], "penalty")
        return g.node("Unsqueeze", [scaled, g.ints("axes.heads", [1, 2])], "penalty.heads")

    def pool(self, x, keep):
        """The mean over kept positions -> output [N,HIDDEN].

        The sum is a matrix product, not ReduceSum, whose bits depend on the
        number of rows in ONNX Runtime (see special.build_pool).
        """
        g = self.g
        weights = g.node("Unsqueeze", [keep, g.ints("axis.query", [1])], "keep.query")
        total = g.node("MatMul", [weights, x], "kept")
        total = g.node("Squeeze", [total, "axis.query"], "kept.sum")
        count = g.node("ReduceSum", [keep, "axis.query"], "kept.count", keepdims=1)
        count = g.node("Max", [count, "one"], "kept.divisor")
        return g.node("Div", [total, count], "output")


def build(args):
    """args: batch (int or None), dtype (fp32, fp16), seed."""
    net = _Encoder(args)
    ids = net.g.input("ids", [LENGTH_DIM], TensorProto.INT64)
    mask = net.g.input("mask", [LENGTH_DIM], TensorProto.INT64)
    keep = net.keep(mask)
    penalty = net.penalty(keep)
    x = net.embed(ids)
    for i in range(LAYERS):
        x = net.layer(x, "layer{}".format(i), penalty)
    net.pool(x, keep)
    net.g.output("output", [HIDDEN])
    return net.g.model()
