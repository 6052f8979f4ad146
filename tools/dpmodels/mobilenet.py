"""MobileNetV2, width 1.0.

input [N,3,224,224] -> logits [N,1000]; 3.5 M parameters, 0.3 G multiply-adds a row.
"""
from .calibrated import BRANCH_GAMMA, CalibratedNet

# expansion, output channels, repeats, stride of the first
BLOCKS = ((1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2),
          (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1))

# The mean before each ReLU6. With 0 half of the values are cut off and small
# errors grow five times as much (bf16: 11 % of the maximum logit; with 1: 7 %).
BETA = 1.0


def _conv_bn_relu6(net, x, name, out, k, stride=1, depthwise=False):
    y = net.conv(x, name + ".conv", out, k, stride, k // 2, depthwise)
    return net.relu6(net.bn(y, name + ".bn", beta=BETA), name)


def _inverted_residual(net, x, name, expansion, out, stride):
    """1x1 up, 3x3 depthwise, linear 1x1 down; plus the input where shapes agree."""
    hidden = x.channels * expansion
    y = x
    if expansion != 1:
        y = _conv_bn_relu6(net, y, name + ".up", hidden, 1)
    y = _conv_bn_relu6(net, y, name + ".dw", hidden, 3, stride, depthwise=True)
    residual = stride == 1 and x.channels == out
    y = net.conv(y, name + ".down.conv", out, 1)
    y = net.bn(y, name + ".down", BRANCH_GAMMA if residual else 1.0)
    if residual:
        y = net.add(x, y, name + ".add")
    return y


def build(args):
    """args: batch (int or None), dtype (fp32, fp16), seed."""
    net = CalibratedNet("mobilenetv2", args.batch, args.dtype, args.seed)
    x = _conv_bn_relu6(net, net.input, "stem", 32, 3, 2)
    index = 0
    for expansion, out, repeats, first_stride in BLOCKS:
        for repeat in range(repeats):
            stride = first_stride if repeat == 0 else 1
            x = _inverted_residual(net, x, "block{}".format(index), expansion, out, stride)
            index += 1
    x = _conv_bn_relu6(net, x, "last", 1280, 1)
    return net.classifier(net.features(x))
