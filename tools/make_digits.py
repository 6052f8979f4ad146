#!/usr/bin/env python3
"""Writes data/digits/images.npy and labels.npy from scikit-learn's copy of the data.

images.npy: uint8 [1797,8,8], C order, values 0..16; labels.npy: uint8 [1797],
values 0..9. Needs scikit-learn and numpy; the written files ship with dpinfer,
so this is only for checking them. See data/digits/README.md for their origin.

  make_digits.py [FOLDER]
"""
import os
import sys

import numpy as np

DEFAULT = os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "data", "digits")


def save(path, values):
    """Writes a version 1.0 .npy file."""
    with open(path, "wb") as file:
        np.lib.format.write_array(file, values, version=(1, 0), allow_pickle=False)
    print("{}: {} {}".format(path, values.dtype, values.shape))


def main(folder):
    from sklearn.datasets import load_digits

    digits = load_digits()
    images = np.ascontiguousarray(digits.images.astype(np.uint8))
    assert np.array_equal(images, digits.images), "the data is not whole numbers in 0..255"
    os.makedirs(folder, exist_ok=True)
    save(os.path.join(folder, "images.npy"), images)
    save(os.path.join(folder, "labels.npy"), digits.target.astype(np.uint8))


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else os.path.normpath(DEFAULT))
