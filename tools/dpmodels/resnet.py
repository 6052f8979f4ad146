"""ResNet-50 v1.5: the stride of a stage's first block is in its 3x3 convolution.

input [N,3,224,224] -> logits [N,1000]; 25.6 M parameters, 4.1 G multiply-adds a row.
"""
from .calibrated import BRANCH_GAMMA, CalibratedNet

STAGES = ((64, 3, 1), (128, 4, 2), (256, 6, 2), (512, 3, 2))  # width, blocks, stride
EXPANSION = 4


def _bottleneck(net, x, name, width, stride):
    """1x1 down, 3x3, 1x1 up, plus the input (projected where its shape differs)."""
    y = net.conv(x, name + ".conv1", width, 1)
    y = net.relu(net.bn(y, name + ".bn1"), name + ".relu1")
    y = net.conv(y, name + ".conv2", width, 3, stride, 1)
    y = net.relu(net.bn(y, name + ".bn2"), name + ".relu2")
    y = net.conv(y, name + ".conv3", width * EXPANSION, 1)
    y = net.bn(y, name + ".bn3", BRANCH_GAMMA)
    if stride != 1 or x.channels != width * EXPANSION:
        x = net.conv(x, name + ".down", width * EXPANSION, 1, stride)
        x = net.bn(x, name + ".down_bn")
    return net.relu(net.add(x, y, name + ".add"), name)


def build(args):
    """args: batch (int or None), dtype (fp32, fp16), seed."""
    net = CalibratedNet("resnet50", args.batch, args.dtype, args.seed)
    x = net.conv(net.input, "conv1", 64, 7, 2, 3)
    x = net.relu(net.bn(x, "bn1"), "relu1")
    x = net.maxpool(x, "maxpool", 3, 2, 1)
    for stage, (width, blocks, stride) in enumerate(STAGES, 1):
        for block in range(blocks):
            name = "layer{}.{}".format(stage, block)
            x = _bottleneck(net, x, name, width, stride if block == 0 else 1)
    return net.classifier(net.features(x))
