"""A multilayer perceptron: input [N,first] -> output [N,last], ReLU between layers."""
import numpy as np

from .builder import FLOATS, Graph


def build(args):
    """args: layers (widths, 2 or more), batch (int or None), dtype, seed."""
    rng = np.random.RandomState(args.seed)
    graph = Graph("mlp", args.batch, FLOATS[args.dtype])
    x = graph.input("input", [args.layers[0]])
    last = len(args.layers) - 2
    for i, (fan_in, width) in enumerate(zip(args.layers, args.layers[1:])):
        w = rng.standard_normal((width, fan_in)) * np.sqrt(2.0 / fan_in)
        names = [graph.weight("fc{}.weight".format(i), w),
                 graph.weight("fc{}.bias".format(i), 0.1 * rng.standard_normal(width))]
        out = "output" if i == last else "fc{}".format(i)
        x = graph.node("Gemm", [x, *names], out, transB=1)
        if i != last:
            x = graph.node("Relu", [x], "relu{}".format(i))
    graph.output("output", [args.layers[-1]])
    return graph.model()
