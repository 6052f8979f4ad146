"""The other half of test_npy_numpy.c. `write FOLDER`: arrays as numpy itself writes them. `check FOLDER`: what a sink
wrote is what numpy reads. Exits with 77 where there is no numpy."""
import pathlib
import sys
import warnings

try:
    import numpy as np
except ImportError:
    sys.exit(77)

NAMES = "bool int8 uint8 int16 uint16 int32 uint32 int64 uint64 float16 float32 float64".split()
SHAPE = (3, 2, 5)


def values(name):
    """Element i is i % 2 for bool, else i - 3 where the dtype has negative numbers, else i."""
    i = np.arange(30)
    return (i % 2 if name == "bool" else i if name.startswith("u") else i - 3).astype(name).reshape(SHAPE)


def save(path, array, version=None):
    with open(path, "wb") as file, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about versions that older readers lack
        np.lib.format.write_array(file, array, version=version)


def write(folder):
    for name in NAMES:
        for version in (1, 2, 3):
            save(folder / f"{name}-{version}.npy", values(name), (version, 0))
    a = values("float32")
    good = {"row": a[:1], "none": a[:0], "column": np.asfortranarray(a.reshape(30, 1)), "flat": a.reshape(30),
            "noncontiguous": a[::2], "deep": a.reshape(3, 1, 1, 2, 1, 1, 1, 5), "big-bytes": values("uint8").astype(">u1")}
    bad = {"scalar": a[0, 0, 0], "fortran": np.asfortranarray(a), "big-endian": a.astype(">f4"),
           "complex": a.astype("c8"), "text": a.astype("U5"), "bytes": a.astype("S4"), "date": a.astype("M8[ns]"),
           "object": np.array([None, 1]), "structured": np.zeros(3, [("x", "<f4"), ("y", "<i2")]),
           "deeper": a.reshape(3, 1, 1, 1, 1, 1, 1, 1, 10), "long-double": a.astype("longdouble")}
    for name, array in good.items():
        save(folder / f"good-{name}.npy", array)
    for name, array in bad.items():
        save(folder / f"bad-{name}.npy", array)
    np.savez(folder / "bad-archive.npz", a)
    (folder / "bad-archive.npz").rename(folder / "bad-archive.npy")


def check(folder):
    for name in NAMES + ["bfloat16"]:
        array = np.load(folder / f"own-{name}.npy")
        if name == "bfloat16":  # the upper halves of float32, as uint16
            assert array.dtype == "<u2"
            array = (array.astype("<u4") << 16).view("<f4")
            name = "float32"
        assert array.dtype == name and array.flags.c_contiguous, (name, array.dtype)
        np.testing.assert_array_equal(array, values(name), name)
    for rank in range(1, 9):
        assert np.load(folder / f"own-rank{rank}.npy", mmap_mode="r").shape == (4, 1, 2, 1, 2, 1, 2, 1)[:rank]


{"write": write, "check": check}[sys.argv[1]](pathlib.Path(sys.argv[2]))
