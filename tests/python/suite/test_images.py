"""Images through a session: the pixels of a row, what is left out, and folders that workers may not read."""
import os
import pathlib
import struct
import zlib

import dpinfer
import numpy as np
import pytest

MODEL = "input x uint8 N 8 8 3\noutput y float32 N 4\n"

if not (pathlib.Path(os.environ.get("DPI_BUILD", ".")) / "dpinfer-images.so").exists():
    pytest.skip("built without libvips", allow_module_level=True)


def png(pixels):
    def chunk(name, data):
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    height, width, _ = pixels.shape
    body = b"".join(b"\0" + row.tobytes() for row in pixels)
    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(body)) + chunk(b"IEND", b"")


@pytest.fixture
def photos(tmp_path):
    folder = tmp_path / "photos"
    folder.mkdir()
    pixels = np.random.default_rng(0).integers(0, 256, (6, 8, 8, 3)).astype(np.uint8)
    for i, one in enumerate(pixels):
        (folder / f"{i}.png").write_bytes(png(one))
    np.save(tmp_path / "rows.npy", pixels)
    (tmp_path / "m.sim").write_text(MODEL)
    return tmp_path


def test_rows_of_a_folder(photos):
    with dpinfer.Session(photos / "m.sim", devices="sim:0*2", data_folders=[photos / "photos"]) as s:
        s.run([str(photos / "rows.npy")], [str(photos / "want.npy")])
        assert s.run([str(photos / "photos")], [str(photos / "got.npy")], preprocess="none") == 6
        how = dpinfer.Preprocess(resize=(8, 8), max_pixels=64)
        s.run([str(photos / "photos")], [str(photos / "same.npy")], preprocess=how, loader_threads=2)
        with pytest.raises(dpinfer.ArgumentError, match="recipe"):
            s.run([str(photos / "photos")], [str(photos / "no.npy")], preprocess="imagenot")
    want = np.load(photos / "want.npy")
    assert (np.load(photos / "got.npy") == want).all() and (np.load(photos / "same.npy") == want).all()


def test_bad_images(photos):
    (photos / "photos/2.png").write_bytes(b"")
    for skip in (False, True):
        with dpinfer.Session(photos / "m.sim", devices="sim:0", data_folders=[photos / "photos"],
                             on_bad_row="skip" if skip else "fail") as s:
            with pytest.raises(dpinfer.BadRows if skip else dpinfer.DataError):
                s.run([str(photos / "photos")], [str(photos / f"{skip}.npy")], preprocess="none")
    got = np.load(photos / "True.npy")
    assert np.isnan(got[2]).all() and not np.isnan(got[[0, 1, 3, 4, 5]]).any()


def test_a_folder_that_was_not_named(photos):
    with dpinfer.Session(photos / "m.sim", devices="sim:0") as s:
        try:
            s.run([str(photos / "photos")], [str(photos / "out.npy")], preprocess="none")
        except dpinfer.ArgumentError as error:
            assert "data_folders" in str(error)  # a kernel with Landlock
