"""Image codecs for one frame: JPEG, progressive JPEG, WebP with a quality; WebP and PNG without loss."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from testbed.inference.codecs.base import Array, Codec, Encoded, one, shape_of
from testbed.inference.codecs.tensor import pixel_bound, pixels_of

QUALITY = 75
_LARGEST_SIDE = {"JPEG": 65_500, "WEBP": 16_383, "PNG": 65_536}


class Image(Codec):
    """One frame (1, C, H, W), C 1 or 3, values 0..1, as an image file. Grey frames become grey JPEG or PNG files."""

    kind = "image"
    rate = "by content"
    slow = True

    def __init__(self, name: str, file_format: str, description: str, *, exact: bool = False, **options: Any) -> None:
        self.name, self.description, self._format, self._options = name, description, file_format, options
        self._exact = exact
        self.bound = "1/510, plus what is clipped at 0 and 1" if exact else "none promised"

    def encode(self, array: NDArray[np.float32]) -> Encoded:
        from PIL import Image as Pillow

        if reason := self.misfit(array.shape):
            raise ValueError(reason)
        pixels = pixels_of(array[0], self.name).transpose(1, 2, 0)  # (H, W, C)
        buffer = io.BytesIO()
        Pillow.fromarray(pixels[:, :, 0] if pixels.shape[2] == 1 else pixels).save(buffer, self._format, **self._options)
        return Encoded([np.frombuffer(buffer.getvalue(), np.uint8)], {"shape": list(array.shape)})

    def decode(self, arrays: Sequence[Array], params: Mapping[str, Any]) -> NDArray[np.float32]:
        from PIL import Image as Pillow

        shape = shape_of(params)
        if reason := self.misfit(shape):
            raise ValueError(reason)
        try:
            with Pillow.open(io.BytesIO(one(arrays, np.uint8).tobytes()), formats=[self._format]) as image:
                if image.size != (shape[3], shape[2]):  # known from the header, before any pixel is unpacked
                    raise ValueError(f"{self.name} image of {image.size} is not of shape {shape}")
                pixels = np.asarray(image.convert("L" if shape[1] == 1 else "RGB"), np.float32)
        except (OSError, SyntaxError, MemoryError, Pillow.DecompressionBombError) as error:
            raise ValueError(f"not {self.name} data: {error}") from None
        frame = pixels[None] if shape[1] == 1 else pixels.transpose(2, 0, 1)  # (C, H, W)
        return np.ascontiguousarray(frame[None] / np.float32(255))

    def error_bound(self, array: NDArray[np.float32]) -> float:
        return pixel_bound(array) if self._exact else float("inf")

    def misfit(self, shape: Sequence[int]) -> str | None:
        if len(shape) != 4 or shape[0] != 1 or shape[1] not in (1, 3):
            return f"{self.name} encodes frames of shape (1, 1 or 3, H, W), not {tuple(shape)}"
        largest = _LARGEST_SIDE[self._format]
        return f"{self.name} has sides of at most {largest} pixels" if max(shape[2:]) > largest else None


# family -> largest quality; JPEG's tables degenerate above 95
QUALITIES: Mapping[str, int] = {"jpeg": 95, "jpeg-progressive": 95, "webp": 100}
LOSSLESS_IMAGES = ("webp-lossless", "png")


def image_codec(family: str, quality: int | None = None) -> Image:
    """The image codec of a family, with quality 75 unless another is given."""
    name = family if quality is None else f"{family}-{quality}"
    level = QUALITY if quality is None else quality
    if family == "jpeg":
        return Image(name, "JPEG", f"baseline JPEG of quality {level}, colours at half resolution", quality=level)
    if family == "jpeg-progressive":
        return Image(name, "JPEG", f"JPEG of quality {level} in scans from coarse to fine, colours at half resolution",
                     quality=level, progressive=True)
    if family == "webp":
        return Image(name, "WEBP", f"lossy WebP of quality {level}", quality=level)
    if family == "webp-lossless":
        return Image(name, "WEBP", "WebP without loss over the 8-bit frame", exact=True, lossless=True)
    return Image(name, "PNG", "PNG over the 8-bit frame", exact=True)
