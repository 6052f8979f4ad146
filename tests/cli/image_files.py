"""Images and tars for the tests, and what torchvision's resize makes of them; no image library but libvips by its C names."""
import ctypes
import ctypes.util
import io
import struct
import tarfile
import zlib

import numpy


def png(pixels, *, interlaced=False):
    """A PNG of uint8 or uint16 pixels [H,W,C] (C of 1 to 4); `interlaced` sets the flag alone and is no valid file."""
    height, width, channels = pixels.shape
    kind = {1: 0, 2: 4, 3: 2, 4: 6}[channels]
    depth = 8 * pixels.itemsize
    rows = pixels.astype(pixels.dtype.newbyteorder(">")).reshape(height, -1)
    body = b"".join(b"\0" + row.tobytes() for row in rows)
    return png_of_parts(width, height, depth, kind, zlib.compress(body, 1), interlaced)


def png_of_parts(width, height, depth, kind, body, interlaced=False):
    def chunk(name, data):
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    head = struct.pack(">IIBBBBB", width, height, depth, kind, 0, 0, interlaced)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", body) + chunk(b"IEND", b"")


def photo(height, width, seed, channels=3):
    """Smooth shapes with edges and a little noise: more like a photograph than noise is."""
    chance = numpy.random.default_rng(seed)
    y, x = numpy.mgrid[0:height, 0:width]
    out = numpy.zeros((height, width, channels))
    for c in range(channels):
        for _ in range(6):
            a, b, phase = chance.uniform(-0.06, 0.06), chance.uniform(-0.06, 0.06), chance.uniform(0, 6)
            out[:, :, c] += chance.uniform(10, 30) * numpy.sin(a * x + b * y + phase)
        top, left = chance.integers(0, height // 2), chance.integers(0, width // 2)
        out[top : top + height // 3, left : left + width // 3, c] += 60
    return numpy.clip(out + 110 + chance.normal(0, 2, out.shape), 0, 255).astype(numpy.uint8)


def _weights(size, to, bicubic):
    """Pillow's filters: as wide as the reduction, centred on the area of an output pixel."""
    scale = size / to
    stretch = max(scale, 1)
    support = (2 if bicubic else 1) * stretch
    matrix = numpy.zeros((to, size))
    for i in range(to):
        centre = (i + 0.5) * scale
        first, last = max(int(centre - support + 0.5), 0), min(int(centre + support + 0.5), size)
        at = abs((numpy.arange(first, last) - centre + 0.5) / stretch)
        if bicubic:
            near = ((1.5 * at - 2.5) * at) * at + 1
            far = ((-0.5 * at + 2.5) * at - 4) * at + 2
            weight = numpy.where(at < 1, near, numpy.where(at < 2, far, 0))
        else:
            weight = numpy.maximum(1 - at, 0)
        matrix[i, first:last] = weight / weight.sum()
    return matrix


def resized(pixels, height, width, bicubic=False):
    """torchvision.transforms.Resize of a PIL image: across, rounded, then down, rounded."""
    across = numpy.einsum("xw,hwc->hxc", _weights(pixels.shape[1], width, bicubic), pixels.astype(float))
    across = numpy.clip(numpy.floor(across + 0.5), 0, 255)
    down = numpy.einsum("yh,hxc->yxc", _weights(pixels.shape[0], height, bicubic), across)
    return numpy.clip(numpy.floor(down + 0.5), 0, 255).astype(numpy.uint8)


def resize_and_crop(pixels, resize, crop, bicubic=False):
    """torchvision's Resize(resize) and CenterCrop(crop)."""
    height, width = pixels.shape[:2]
    size = (resize * height // width, resize) if width <= height else (resize, resize * width // height)
    out = resized(pixels, *size, bicubic)
    top, left = round((size[0] - crop) / 2), round((size[1] - crop) / 2)
    return out[top : top + crop, left : left + crop]


class Vips:
    """Writes JPEG, WebP and TIFF; None where there is no libvips."""

    def __init__(self):
        name = ctypes.util.find_library("vips") or "libvips.so.42"
        self.library = ctypes.CDLL(name)
        self.library.vips_image_new_from_memory_copy.restype = ctypes.c_void_p
        self.library.vips_image_new_from_memory_copy.argtypes = [ctypes.c_char_p, ctypes.c_size_t, *[ctypes.c_int] * 4]
        if self.library.vips_init(b"tests"):
            raise OSError("libvips does not start")

    def write(self, pixels, path, cmyk=False, orientation=None):
        height, width, channels = pixels.shape
        lib = self.library
        image = lib.vips_image_new_from_memory_copy(pixels.tobytes(), pixels.nbytes, width, height, channels,
                                                    0 if pixels.itemsize == 1 else 2)
        kind = 15 if cmyk else 22 if channels >= 3 else 1
        out = ctypes.c_void_p()
        lib.vips_copy(ctypes.c_void_p(image), ctypes.byref(out), b"interpretation", ctypes.c_int(kind), ctypes.c_void_p())
        if orientation:
            lib.vips_image_set_int(out, b"orientation", ctypes.c_int(orientation))
        assert lib.vips_image_write_to_file(out, str(path).encode(), ctypes.c_void_p()) == 0, path


def vips():
    try:
        return Vips()
    except OSError:
        return None


def by_libarchive(data, how):
    """`data` compressed by "zstd" or "lz4"."""
    library = ctypes.CDLL(ctypes.util.find_library("archive") or "libarchive.so.13")
    for name in ("archive_write_new", "archive_entry_new"):
        getattr(library, name).restype = ctypes.c_void_p
    a, entry, used = ctypes.c_void_p(library.archive_write_new()), ctypes.c_void_p(library.archive_entry_new()), ctypes.c_size_t()
    out = ctypes.create_string_buffer(len(data) + 65536)
    assert getattr(library, f"archive_write_add_filter_{how}")(a) == 0, how
    library.archive_write_set_format_raw(a)
    library.archive_write_set_bytes_in_last_block(a, 1)
    library.archive_write_open_memory(a, out, ctypes.c_size_t(len(out)), ctypes.byref(used))
    library.archive_entry_set_filetype(entry, 0o100000)
    library.archive_write_header(a, entry)
    library.archive_write_data.restype = ctypes.c_ssize_t
    assert library.archive_write_data(a, data, ctypes.c_size_t(len(data))) == len(data)
    library.archive_write_close(a)
    return out.raw[: used.value]


def tar(members):
    """An uncompressed tar of (name, bytes) pairs; where each one's content begins."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.GNU_FORMAT) as archive:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return out.getvalue()
