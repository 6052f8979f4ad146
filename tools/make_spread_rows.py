#!/usr/bin/env python3
"""Writes images that a random network tells apart, as rows of a .npy file; judges the answers to them.

  make_spread_rows.py ROWS.npy [--rows 2000] [--size 64] [--layout NHWC|NCHW] [--dtype uint8|float32] [--seed 1]
  make_spread_rows.py --judge LOGITS.npy [OTHER.npy]

Independent random pixels all look the same after a network's pooling. These rows differ in structure: a picture is a
colour, smooth random parts of 2, 4 and 8 cells a side and a small random tile repeated all over. A row shows one of 100
pictures that are the same for every seed, the patterns, and over it a picture of its own of any strength from nothing to
the pattern's: so there are classes, easy rows and hard ones. Row i depends on the seed and i alone, so fewer rows are the
first of more rows; all is integer arithmetic, so every machine makes the same bytes. The file is written row by row (any
count fits into memory) and gets its name when whole.

uint8 is the pixels; float32 is the same pixels normalised by ImageNet's mean and standard deviation. A top-1 agreement:

  make_model.py spread spread.onnx                          takes [N,3,64,64] float32
  onnx_prepend_normalize.py spread.onnx spread-u8.onnx      takes [N,64,64,3] uint8
  make_spread_rows.py rows.npy --layout NCHW --dtype float32
  make_spread_rows.py rows-u8.npy
  dpinfer run spread.onnx --input rows.npy --output a.npy; ... --output b.npy    in the two precisions to compare
  make_spread_rows.py --judge a.npy b.npy

--judge prints, for logits [N,CLASSES], how many classes are the best of some row, the share of the commonest, the
margin between best and second over the largest |logit|, and with OTHER.npy how many best classes agree and how far the
logits are apart. Needs numpy alone. Exit codes: 0 done, 1 not written or not read, 2 a mistake.
"""
import argparse
import functools
import os
import sys

import numpy as np

MEAN = np.array([0.485, 0.456, 0.406])
STD = np.array([0.229, 0.224, 0.225])
SIZE = 64
CELLS = (2, 4, 8)  # of the smooth parts, a side
TILES = (2, 3, 4, 6, 8)  # pixels a side of the repeated part
PATTERNS = 100
PATTERN_KEY = (7, 7)  # rows have keys of two words, patterns of three
WHOLE = 256  # the strength 1
LEAST = 128  # of a part of a picture; faint pictures would all be alike


def smooth(grid, size):
    """[g+1,g+1,3] integers -> [size,size,3]: bilinear between them, in fixed point."""
    cells = len(grid) - 1
    place = (np.arange(size) * cells * 256) // size
    cell, part = place >> 8, place & 255
    rows = grid[cell] * (256 - part)[:, None, None] + grid[cell + 1] * part[:, None, None]
    part = part[None, :, None]
    return (rows[:, cell] * (256 - part) + rows[:, cell + 1] * part) >> 16


def structure(rng, size):
    """A random picture around 0: int32 [size,size,3]."""
    total = np.tile(rng.randint(-96, 97, 3, dtype=np.int32), (size, size, 1))
    for cells in CELLS:
        grid = rng.randint(-128, 128, (cells + 1, cells + 1, 3), dtype=np.int32)
        total += (smooth(grid, size) * rng.randint(LEAST, WHOLE + 1)) >> 8
    side = TILES[rng.randint(len(TILES))]
    tile = (rng.randint(-128, 128, (side, side, 3), dtype=np.int32) * rng.randint(LEAST, WHOLE + 1)) >> 8
    repeats = -(-size // side)
    return total + np.tile(tile, (repeats, repeats, 1))[:size, :size]


@functools.lru_cache(maxsize=PATTERNS)
def pattern(index, size):
    """Pattern `index`, the same for every seed: int32 [size,size,3] around 0."""
    return structure(np.random.RandomState([*PATTERN_KEY, index]), size)


def pixels(values):
    """Integers around 0 -> uint8 around 128."""
    return np.clip(values + 128, 0, 255).astype(np.uint8)


def pattern_image(index, size=SIZE):
    """Pattern `index` alone: uint8 [size,size,3]."""
    return pixels(pattern(index, size))


def image(seed, row, size=SIZE):
    """Row `row` of seed `seed`: uint8 [size,size,3]."""
    rng = np.random.RandomState([seed, row])
    shown = pattern(rng.randint(PATTERNS), size)
    own = (structure(rng, size) * rng.randint(WHOLE + 1)) >> 8
    return pixels(shown + own)


def normalise(pixels):
    """uint8 [...,3] -> float32: ImageNet's mean and standard deviation."""
    return ((pixels / 255.0 - MEAN) / STD).astype(np.float32)


def images(seed, count, size=SIZE):
    """Rows 0 to count-1: uint8 [count,size,size,3]."""
    return np.stack([image(seed, row, size) for row in range(count)])


def write(args):
    """The file as the arguments want it, row by row."""
    shape = (args.size, args.size, 3) if args.layout == "NHWC" else (3, args.size, args.size)
    part = f"{args.out}.{os.getpid()}.part"
    try:
        with open(part, "wb") as file:
            header = {"descr": np.dtype(args.dtype).newbyteorder("<").str, "fortran_order": False,
                      "shape": (args.rows, *shape)}
            np.lib.format.write_array_header_1_0(file, header)
            for row in range(args.rows):
                values = image(args.seed, row, args.size)
                if args.dtype == "float32":
                    values = normalise(values).astype("<f4")
                file.write((values if args.layout == "NHWC" else values.transpose(2, 0, 1)).tobytes())
        os.replace(part, args.out)
    finally:
        if os.path.exists(part):
            os.remove(part)
    print(f"{args.out}: {args.dtype} {[args.rows, *shape]}")


def top1(logits):
    """The best class of each row; of equal ones the first, of NaN none (-1)."""
    return np.where(np.isnan(logits).any(axis=1), -1, logits.argmax(axis=1))


def judge(paths):
    """Prints the figures that the module's text names."""
    loaded = [np.load(path, allow_pickle=False) for path in paths]
    if any(a.ndim != 2 or a.shape != loaded[0].shape or a.shape[1] < 2 or not len(a) for a in loaded):
        raise ValueError(f"not logits [N,CLASSES] of one shape: {', '.join(str(a.shape) for a in loaded)}")
    logits = loaded[0].astype(np.float64)
    best, largest = top1(logits), np.abs(logits).max()
    counts = np.unique(best, return_counts=True)[1]
    two = np.partition(logits, -2, axis=1)[:, -2:]
    margin = (two[:, 1] - two[:, 0]) / largest
    print(f"rows {len(logits)}, classes {logits.shape[1]}, of which best somewhere {len(counts)}, "
          f"commonest {counts.max() / len(logits):.2%} of the rows")
    print(f"margin of best over second / max |y| = {largest:.4g}: median {np.median(margin):.4f}, "
          f"first percentile {np.percentile(margin, 1):.5f}")
    if len(loaded) == 2:
        other = loaded[1].astype(np.float64)
        same = best == top1(other)
        error = np.abs(other - logits) / largest
        print(f"top-1 agreement {same.mean():.4f} ({(~same).sum()} differ), error / max |y|: "
              f"largest {error.max():.5f}, root mean square {np.sqrt(np.mean(error ** 2)):.6f}")


def whole(smallest, largest):
    """A parser of integers in smallest..largest."""
    def parse(text):
        if not smallest <= int(text) <= largest:
            raise argparse.ArgumentTypeError(f"{text} is not in {smallest}..{largest}")
        return int(text)
    parse.__name__ = "number"
    return parse


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", nargs="?", metavar="ROWS.npy")
    parser.add_argument("--rows", type=whole(0, 1 << 40), default=2000)
    parser.add_argument("--size", type=whole(1, 4096), default=SIZE, help="height and width in pixels")
    parser.add_argument("--layout", choices=("NHWC", "NCHW"), default="NHWC")
    parser.add_argument("--dtype", choices=("uint8", "float32"), default="uint8")
    parser.add_argument("--seed", type=whole(0, 2 ** 32 - 1), default=1)
    parser.add_argument("--judge", nargs="+", metavar="LOGITS.npy")
    args = parser.parse_args()
    if (args.out is None) == (args.judge is None) or len(args.judge or []) > 2:
        parser.error("give ROWS.npy, or --judge with one or two files")
    try:
        if args.judge:
            judge(args.judge)
        else:
            write(args)
    except OSError as error:
        print(f"make_spread_rows.py: {args.out or error.filename}: {error.strerror}", file=sys.stderr)
        return 1
    except ValueError as error:
        print(f"make_spread_rows.py: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
