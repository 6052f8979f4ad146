"""How images become rows."""

from __future__ import annotations

import ctypes
import os
from dataclasses import dataclass
from typing import Optional, Tuple, Union

from . import _c

Numbers = Union[float, Tuple[float, float, float]]
Size = Union[int, Tuple[int, int]]


@dataclass(frozen=True)
class Preprocess:
    """How the images of a :meth:`Session.run` become rows; what is None follows the recipe and the model's input.

    Attributes:
        recipe: "imagenet", "clip" or "none"; None: "imagenet" for uint8 inputs, needed for others (or scale, mean, std).
        resize: pixels of the shorter side, or (height, width).
        crop: what is cut out of the centre, for inputs whose size is free.
        mean, std: of the channels as they stand in the row, one number or three: (pixel * scale - mean) / std.
        scale: of pixels 0 to 255.
        layout: "nchw" or "nhwc", where the input's shape does not tell.
        interpolation: "bilinear" or "bicubic".
        color: "rgb" or "bgr".
        member: suffix of the image among a tar's samples.
        max_pixels, max_image_bytes: beyond them an image is a bad row.
    """

    recipe: Optional[str] = None
    resize: Optional[Size] = None
    crop: Optional[Size] = None
    mean: Optional[Numbers] = None
    std: Optional[Numbers] = None
    scale: Optional[float] = None
    layout: Optional[str] = None
    interpolation: Optional[str] = None
    color: Optional[str] = None
    member: Optional[str] = None
    max_pixels: int = 0
    max_image_bytes: int = 0

    def _as_struct(self) -> _c.CPreprocess:
        p = _c.CPreprocess(struct_size=ctypes.sizeof(_c.CPreprocess), scale=self.scale or 0)
        for name in ("recipe", "layout", "interpolation", "color", "member"):
            value = getattr(self, name)
            setattr(p, name, None if value is None else os.fsencode(value))
        for name in ("resize", "crop"):
            value = getattr(self, name)
            if value is not None:
                getattr(p, name)[:] = (value, 0) if isinstance(value, int) else tuple(value)
        for name in ("mean", "std"):
            value = getattr(self, name)
            if value is not None:
                setattr(p, name, (ctypes.c_double * 3)(*([value] * 3 if isinstance(value, (int, float)) else value)))
        p.max_pixels, p.max_image_bytes = self.max_pixels, self.max_image_bytes
        return p
