#!/usr/bin/env python3
"""Trains the digit classifier models/digits.onnx: numpy does the training, onnx writes the graph.

image uint8 [N,8,8] (values 0..16) -> logits float32 [N,10]

Cast and scale to 0..1, two 3x3 convolutions (16 and 32 channels) with ReLU,
2x2 max pooling, one hidden layer of 64. Every fifth row (0, 5, 10, ...) of
data/digits is held out and never trained on; the accuracy on them is printed.
Seeded: the same machine and numpy give the same file.

  train_digits.py [OUT.onnx] [--epochs 40] [--seed 1]
"""
import argparse
import os

import numpy as np
from onnx import TensorProto

from dpmodels.builder import Graph, save

ROOT = os.path.normpath(os.path.join(os.path.dirname(os.path.abspath(__file__)), ".."))
HOLD_OUT = 5
MAX_PIXEL = 16.0
BATCH = 32
RATE = 2e-3
DECAY = 1e-4


def columns(x):
    """x [N,C,H,W] -> [N,H,W,C*9]: the 3x3 neighbourhoods, zero outside."""
    padded = np.pad(x, ((0, 0), (0, 0), (1, 1), (1, 1)))
    views = np.lib.stride_tricks.sliding_window_view(padded, (3, 3), axis=(2, 3))
    n, c, h, w = x.shape
    return views.transpose(0, 2, 3, 1, 4, 5).reshape(n, h, w, c * 9)


def conv(x, weight, bias):
    """x [N,C,H,W], weight [M,C,3,3] -> ([N,M,H,W], columns of x)."""
    cols = columns(x)
    y = cols @ weight.reshape(len(weight), -1).T + bias
    return y.transpose(0, 3, 1, 2), cols


def conv_back(grad, cols, weight):
    """grad [N,M,H,W] -> gradients of x, weight and bias."""
    m, c = weight.shape[:2]
    flat = grad.transpose(0, 2, 3, 1).reshape(-1, m)
    dweight = (flat.T @ cols.reshape(len(flat), -1)).reshape(weight.shape)
    turned = weight[:, :, ::-1, ::-1].transpose(1, 0, 2, 3)
    dx, _ = conv(grad, turned, np.zeros(c))
    return dx, dweight, flat.sum(0)


def pool(x):
    """2x2 max pooling: [N,C,8,8] -> ([N,C,4,4], mask of the winners)."""
    blocks = x.reshape(*x.shape[:2], x.shape[2] // 2, 2, x.shape[3] // 2, 2)
    best = blocks.max(axis=(3, 5), keepdims=True)
    return best[:, :, :, 0, :, 0], blocks == best


def initial(rng):
    """He-initialised weights by name, float64."""
    def he(*shape):
        return rng.standard_normal(shape) * np.sqrt(2.0 / np.prod(shape[1:]))
    return {
        "conv1.weight": he(16, 1, 3, 3), "conv1.bias": np.zeros(16),
        "conv2.weight": he(32, 16, 3, 3), "conv2.bias": np.zeros(32),
        "fc1.weight": he(64, 512), "fc1.bias": np.zeros(64),
        "fc2.weight": he(10, 64), "fc2.bias": np.zeros(10),
    }


def forward(p, images):
    """images uint8 [N,8,8] -> (logits [N,10], what the way back needs)."""
    x = images[:, None].astype(np.float64) / MAX_PIXEL
    a1, cols1 = conv(x, p["conv1.weight"], p["conv1.bias"])
    h1 = np.maximum(a1, 0)
    a2, cols2 = conv(h1, p["conv2.weight"], p["conv2.bias"])
    h2 = np.maximum(a2, 0)
    pooled, winners = pool(h2)
    flat = pooled.reshape(len(x), -1)
    h3 = np.maximum(flat @ p["fc1.weight"].T + p["fc1.bias"], 0)
    logits = h3 @ p["fc2.weight"].T + p["fc2.bias"]
    return logits, (cols1, h1, cols2, h2, winners, flat, h3)


def gradients(p, images, labels):
    """Gradients of the mean cross-entropy, by name."""
    logits, (cols1, h1, cols2, h2, winners, flat, h3) = forward(p, images)
    e = np.exp(logits - logits.max(1, keepdims=True))
    d = e / e.sum(1, keepdims=True)
    d[np.arange(len(labels)), labels] -= 1
    d /= len(labels)
    g = {"fc2.weight": d.T @ h3, "fc2.bias": d.sum(0)}
    d = (d @ p["fc2.weight"]) * (h3 > 0)
    g["fc1.weight"], g["fc1.bias"] = d.T @ flat, d.sum(0)
    d = (d @ p["fc1.weight"]).reshape(*h2.shape[:2], 4, 1, 4, 1)
    d = (d * winners).reshape(h2.shape) * (h2 > 0)
    d, g["conv2.weight"], g["conv2.bias"] = conv_back(d, cols2, p["conv2.weight"])
    _, g["conv1.weight"], g["conv1.bias"] = conv_back(d * (h1 > 0), cols1, p["conv1.weight"])
    return g


def train(images, labels, epochs, rng):
    """Adam with a cosine rate; returns the weights by name."""
    p = initial(rng)
    first = {k: np.zeros_like(v) for k, v in p.items()}
    second = {k: np.zeros_like(v) for k, v in p.items()}
    step, steps = 0, epochs * -(-len(images) // BATCH)
    for _ in range(epochs):
        order = rng.permutation(len(images))
        for start in range(0, len(order), BATCH):
            rows = order[start:start + BATCH]
            step += 1
            rate = RATE * 0.5 * (1 + np.cos(np.pi * step / steps))
            for name, g in gradients(p, images[rows], labels[rows]).items():
                first[name] += 0.1 * (g - first[name])
                second[name] += 0.001 * (g * g - second[name])
                move = first[name] / (1 - 0.9 ** step)
                size = np.sqrt(second[name] / (1 - 0.999 ** step)) + 1e-8
                p[name] -= rate * (move / size + DECAY * p[name])
    return p


def write(p, path):
    """The ONNX graph around the weights."""
    g = Graph("digits")
    for name, values in p.items():
        g.weight(name, values)
    x = g.node("Cast", [g.input("image", [8, 8], TensorProto.UINT8)], "pixels",
               to=TensorProto.FLOAT)
    x = g.node("Mul", [x, g.weight("scale", np.array(1 / MAX_PIXEL))], "scaled")
    x = g.node("Unsqueeze", [x, g.ints("channel_axis", [1])], "channels")
    for i in ("1", "2"):
        x = g.node("Conv", [x, "conv" + i + ".weight", "conv" + i + ".bias"], "conv" + i,
                   kernel_shape=[3, 3], pads=[1] * 4)
        x = g.node("Relu", [x], "conv" + i + ".relu")
    x = g.node("MaxPool", [x], "pool", kernel_shape=[2, 2], strides=[2, 2])
    x = g.node("Flatten", [x], "flat", axis=1)
    x = g.node("Relu", [g.node("Gemm", [x, "fc1.weight", "fc1.bias"], "fc1", transB=1)], "hidden")
    g.node("Gemm", [x, "fc2.weight", "fc2.bias"], "logits", transB=1)
    g.output("logits", [10])
    save(g.model(), path)


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", nargs="?", default=os.path.join(ROOT, "models", "digits.onnx"))
    parser.add_argument("--epochs", type=int, default=40)
    parser.add_argument("--seed", type=int, default=1)
    args = parser.parse_args()
    images = np.load(os.path.join(ROOT, "data", "digits", "images.npy"))
    labels = np.load(os.path.join(ROOT, "data", "digits", "labels.npy"))
    held = np.arange(len(images)) % HOLD_OUT == 0
    p = train(images[~held], labels[~held], args.epochs, np.random.RandomState(args.seed))
    right = forward(p, images)[0].argmax(1) == labels
    for what, rows in (("trained on", ~held), ("held out", held)):
        print("{}: {} of {} rows right, {:.2f} %".format(
            what, right[rows].sum(), rows.sum(), 100 * right[rows].mean()))
    write(p, args.out)
    print("{}: {} bytes".format(args.out, os.path.getsize(args.out)))


if __name__ == "__main__":
    main()
