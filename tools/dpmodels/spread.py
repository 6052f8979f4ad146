"""ResNet-18 for small images, whose classes spread: for comparisons of the best class.

input [N,3,64,64] -> logits [N,100]; 11.2 M parameters, 0.15 G multiply-adds a row.

A random network gives nearly all inputs a few classes, or decides between them by
less than rounding. This one is made for the rows of make_spread_rows.py: class k
is their pattern k, and the classifier is the nearest pattern in the features
of the random trunk, whitened as linear discriminant analysis does.

Over the 2,000 rows of seed 1, seen with ONNX Runtime 1.32 on a CPU: all 100 classes
are the best of some row, the commonest of 3.6 %; the median margin of best over
second is 0.20 of the largest |logit|. The best class stays the same in 99.95 % of the
rows with every tensor rounded to fp16 (largest error 0.0012 of that logit; keeping
sums in fp16 as well doubles errors), in 99.5 % with bf16 (0.010). So 99 % is within
reach of any engine in fp16, and out of reach of one that gets something wrong.
"""
import make_spread_rows
import numpy as np

from . import npops
from .calibrated import BRANCH_GAMMA, STAT_BITS, CalibratedNet

STAGES = ((64, 2, 1), (128, 2, 2), (256, 2, 2), (512, 2, 2))  # width, blocks, stride
CLASSES = make_spread_rows.PATTERNS
# What the statistics are taken from, besides one image of each pattern: rows of
# a seed far from those that tests take.
CALIBRATION_ROWS = 156
CALIBRATION_SEED = 10 ** 6
# The principal directions of the features that the classifier looks at; in the
# others rounding is too large a part of what differs.
DIRECTIONS = 96
SPREAD = 2.0  # the standard deviation of all logits


def _block(net, x, name, width, stride):
    """Two 3x3 convolutions, plus the input (projected where its shape differs)."""
    y = net.conv(x, name + ".conv1", width, 3, stride, 1)
    y = net.relu(net.bn(y, name + ".bn1"), name + ".relu1")
    y = net.conv(y, name + ".conv2", width, 3, 1, 1)
    y = net.bn(y, name + ".bn2", BRANCH_GAMMA)
    if stride != 1 or x.channels != width:
        x = net.conv(x, name + ".down", width, 1, stride)
        x = net.bn(x, name + ".down_bn")
    return net.relu(net.add(x, y, name + ".add"), name)


def _images(seed):
    """float64 [CLASSES + CALIBRATION_ROWS,3,64,64]; image k < CLASSES is pattern k alone."""
    patterns = [make_spread_rows.pattern_image(k) for k in range(CLASSES)]
    rows = make_spread_rows.images((CALIBRATION_SEED + seed) % 2 ** 32, CALIBRATION_ROWS)
    values = make_spread_rows.normalise(np.concatenate([patterns, rows]))
    return np.ascontiguousarray(values.transpose(0, 3, 1, 2), np.float64)


def _classifier(net, x):
    """logits[k] = p_k . v - p_k . p_k / 2 (largest for the nearest p), scaled and centred.

    v are the features, p_k those of pattern k; both less the mean, in DIRECTIONS
    directions that are scaled to unit variance.
    """
    mean = x.data.mean(axis=0)
    _, sizes, directions = np.linalg.svd(x.data - mean, full_matrices=False)
    whiten = directions[:DIRECTIONS].T * (np.sqrt(len(x.data)) / sizes[:DIRECTIONS])
    patterns = (x.data[:CLASSES] - mean) @ whiten
    w = patterns @ whiten.T
    bias = -0.5 * np.sum(patterns ** 2, axis=1) - w @ mean
    logits = x.data @ w.T + bias
    scale = SPREAD / logits.std()
    net.graph.weight("fc.weight", npops.round_bits(scale * w, STAT_BITS))
    net.graph.weight("fc.bias", npops.round_bits(scale * (bias - logits.mean()), STAT_BITS))
    net.graph.node("Gemm", [x.name, "fc.weight", "fc.bias"], "logits", transB=1)
    net.graph.output("logits", [CLASSES])
    return net.graph.model()


def build(args):
    """args: batch (int or None), dtype (fp32, fp16), seed."""
    net = CalibratedNet("spread", args.batch, args.dtype, args.seed,
                        side=make_spread_rows.SIZE, images=_images(args.seed))
    x = net.conv(net.input, "conv1", 64, 7, 2, 3)
    x = net.relu(net.bn(x, "bn1"), "relu1")
    x = net.maxpool(x, "maxpool", 3, 2, 1)
    for stage, (width, blocks, stride) in enumerate(STAGES, 1):
        for block in range(blocks):
            name = "layer{}.{}".format(stage, block)
            x = _block(net, x, name, width, stride if block == 0 else 1)
    return _classifier(net, net.features(x))
