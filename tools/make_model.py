#!/usr/bin/env python3
"""Writes a test or benchmark model as ONNX.

Needs the packages onnx and numpy, no weights from anywhere: they are drawn from
--seed. The same arguments give the same bytes. See dpmodels/ for shapes.

  make_model.py resnet50 resnet50.onnx
  make_model.py mobilenetv2 mobilenetv2-b8.onnx --batch 8 --dtype fp16
  make_model.py mlp mlp.onnx --layers 64,32,10
  make_model.py identity identity.onnx --shape 3,4 --elem int16
  make_model.py spread spread.onnx              best classes that tell: make_spread_rows.py
  make_model.py unsupported unsupported.onnx    an operator that no engine has

ResNet-50 that takes uint8 pixels [N,224,224,3], a quarter of the bytes of fp32:

  make_model.py resnet50 resnet50.onnx
  onnx_prepend_normalize.py resnet50.onnx resnet50-u8.onnx
"""
import argparse
import os
import sys

EXIT_SKIP = 77

try:
    import dpmodels
    from dpmodels.builder import save
    from dpmodels.identity import ELEMS
except ImportError as missing:
    print("make_model.py: {}: install the Python packages onnx and numpy".format(missing),
          file=sys.stderr)
    sys.exit(EXIT_SKIP)


def sizes(text):
    """'3,4' -> [3, 4]; '' -> [] (rows of one element)."""
    values = [int(part) for part in text.split(",")] if text else []
    if any(value < 1 for value in values):
        raise argparse.ArgumentTypeError("sizes must be 1 or more: " + text)
    return values


def batch(text):
    """'dynamic' -> None, otherwise a number of rows."""
    if text == "dynamic":
        return None
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError("the batch must be 1 or more, or 'dynamic': " + text)
    return value


def parse(argv):
    """The arguments; ends the program with exit code 2 where they make no sense."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", choices=sorted(dpmodels.MODELS))
    parser.add_argument("out", metavar="OUT.onnx")
    parser.add_argument("--batch", type=batch, default=None, metavar="ROWS|dynamic")
    parser.add_argument("--dtype", help="element type of inputs, weights and outputs")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--layers", type=sizes, default=[64, 32, 10], help="mlp: widths")
    parser.add_argument("--shape", type=sizes, default=[3, 4], help="identity: shape of a row")
    parser.add_argument("--elem", choices=sorted(ELEMS), default="fp32",
                        help="identity: element type")
    parser.add_argument("--external", action="store_true",
                        help="put the weights into OUT.onnx.data")
    args = parser.parse_args(argv)
    dtypes = dpmodels.MODELS[args.name][1]
    args.dtype = args.dtype or dtypes[0]
    if args.dtype not in dtypes:
        parser.error("{} can be written as {}, not as {}".format(
            args.name, ", ".join(dtypes), args.dtype))
    if len(args.layers) < 2:
        parser.error("--layers needs two widths or more")
    return args


def main(argv):
    args = parse(argv)
    model = dpmodels.MODELS[args.name][0](args)
    try:
        save(model, args.out, args.external)
    except OSError as error:
        print("make_model.py: {}: {}".format(args.out, error.strerror), file=sys.stderr)
        return 1
    print("{}: {} bytes".format(args.out, os.path.getsize(args.out)))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
