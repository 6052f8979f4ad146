"""A network that is written and run at the same time.

Random weights alone make a poor network: values vanish or explode, and the top
class hardly depends on the input. Here each layer emits its ONNX nodes and also
computes its output in numpy on a few random images; BatchNormalization takes
the mean and variance it sees there, and the classifier is centred on the
features it sees.
"""
import numpy as np

from . import npops
from .builder import FLOATS, Graph

EPSILON = 1e-5
STAT_BITS = 16
# What the branches of residual blocks are scaled by, as in trained networks.
# With 1.0 the network is chaotic: 0.1 % of noise on the input moved ResNet-50's
# logits by 12 % and bf16 arithmetic by 50 % of their maximum; with 0.2 by 0.7 % and 6 %.
BRANCH_GAMMA = 0.2
CLASSES = 1000


def calibration_images(rng, count, size):
    """float64 [6*count,3,size,size]: `count` each of six kinds of image.

    White noise of N(0,1), N(0,0.1), U(0,1) and U(-1,1); then N(0,1) and U(0,1)
    as 8x8 patches of one colour (real pictures have large areas).
    """
    shape = (count, 3, size, size)
    small = (count, 3, -(-size // 8), -(-size // 8))

    def patches(values):
        return values.repeat(8, axis=2).repeat(8, axis=3)[:, :, :size, :size]

    return np.concatenate([
        rng.standard_normal(shape),
        0.1 * rng.standard_normal(shape),
        rng.random_sample(shape),
        2 * rng.random_sample(shape) - 1,
        patches(rng.standard_normal(small)),
        patches(rng.random_sample(small)),
    ])


class Value:
    """A tensor in both worlds: its name in the graph, its numbers in numpy."""

    def __init__(self, name, data):
        self.name = name
        self.data = data

    @property
    def channels(self):
        return self.data.shape[1]


class CalibratedNet:
    """Builds an image classifier layer by layer; see the module's text.

    Input `input` [N,3,side,side], output `logits`, both of `dtype`. `images`
    float64 [K,3,any,any] are what it is calibrated on; by default
    `calibration_images`, which alone suit `classifier`.
    """

    def __init__(self, name, batch, dtype, seed, per_kind=2, size=224, side=224, images=None):
        self.graph = Graph(name, batch, FLOATS[dtype])
        self.rng = np.random.RandomState(seed)
        self.per_kind = per_kind
        self.graph.input("input", [3, side, side])
        if images is None:
            images = calibration_images(self.rng, per_kind, size)
        self.input = Value("input", images)

    def conv(self, x, name, out, k, stride=1, pad=0, depthwise=False):
        """Conv without bias, He-initialised by fan-in."""
        fan_in = k * k * (1 if depthwise else x.channels)
        shape = (out, 1 if depthwise else x.channels, k, k)
        w = (self.rng.standard_normal(shape) * np.sqrt(2.0 / fan_in)).astype(np.float32)
        self.graph.weight(name + ".weight", w)
        self.graph.node("Conv", [x.name, name + ".weight"], name, kernel_shape=[k, k],
                        strides=[stride, stride], pads=[pad] * 4,
                        group=out if depthwise else 1)
        run = npops.depthwise2d if depthwise else npops.conv2d
        return Value(name, run(x.data, w.astype(np.float64), stride, pad))

    def bn(self, x, name, gamma=1.0, beta=0.0):
        """BatchNormalization with the statistics of this very input.

        Its output has about mean `beta` and standard deviation `gamma`.
        """
        c = x.channels
        scale = (gamma * (1 + 0.1 * self.rng.standard_normal(c))).astype(np.float32)
        bias = (beta + 0.1 * self.rng.standard_normal(c)).astype(np.float32)
        mean = npops.round_bits(x.data.mean(axis=(0, 2, 3)), STAT_BITS)
        var = npops.round_bits(x.data.var(axis=(0, 2, 3)), STAT_BITS)
        names = [name + s for s in (".scale", ".bias", ".mean", ".var")]
        for full, values in zip(names, (scale, bias, mean, var)):
            self.graph.weight(full, values)
        self.graph.node("BatchNormalization", [x.name, *names], name, epsilon=EPSILON)
        factor = scale / np.sqrt(var + EPSILON)
        shift = bias - mean * factor
        column = (1, c, 1, 1)
        return Value(name, x.data * factor.reshape(column) + shift.reshape(column))

    def relu(self, x, name):
        self.graph.node("Relu", [x.name], name)
        return Value(name, np.maximum(x.data, 0))

    def relu6(self, x, name):
        """Clip to [0,6]; the two limits are shared by all."""
        limits = ["relu6.min", "relu6.max"]
        if not any(w.name == limits[0] for w in self.graph.weights):
            self.graph.weight(limits[0], np.array(0.0))
            self.graph.weight(limits[1], np.array(6.0))
        self.graph.node("Clip", [x.name, *limits], name)
        return Value(name, np.clip(x.data, 0, 6))

    def add(self, a, b, name):
        self.graph.node("Add", [a.name, b.name], name)
        return Value(name, a.data + b.data)

    def maxpool(self, x, name, k, stride, pad):
        self.graph.node("MaxPool", [x.name], name, kernel_shape=[k, k],
                        strides=[stride, stride], pads=[pad] * 4)
        return Value(name, npops.maxpool2d(x.data, k, stride, pad))

    def features(self, x):
        """Global average pooling and Flatten: [N,C,H,W] -> [N,C]."""
        self.graph.node("GlobalAveragePool", [x.name], "pool")
        self.graph.node("Flatten", ["pool"], "features", axis=1)
        return Value("features", x.data.mean(axis=(2, 3)))

    def classifier(self, x, spread=2.0):
        """The last Gemm: centred and scaled for logits that tell inputs apart.

        White-noise images have nearly equal pooled features, whatever their
        pixels, so a plain random classifier gives them all one class. The rows
        of this one are orthogonal to the mean feature of each kind of
        calibration image; what is left is each image's own deviation, scaled
        so that the logits have a standard deviation of `spread`.
        """
        w = self.rng.standard_normal((CLASSES, x.channels))
        kinds = x.data.reshape(-1, self.per_kind, x.channels)
        basis, _ = np.linalg.qr(kinds.mean(axis=1).T)
        w -= (w @ basis) @ basis.T
        deviation = (kinds - kinds.mean(axis=1, keepdims=True)).reshape(-1, x.channels)
        w *= spread / np.sqrt(np.mean((deviation @ w.T) ** 2))
        bias = 0.1 * self.rng.standard_normal(CLASSES)
        self.graph.weight("fc.weight", npops.round_bits(w, STAT_BITS))
        self.graph.weight("fc.bias", bias)
        self.graph.node("Gemm", [x.name, "fc.weight", "fc.bias"], "logits", transB=1)
        self.graph.output("logits", [CLASSES])
        return self.graph.model()
