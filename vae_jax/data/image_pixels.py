"""The pixels of one image file, as bytes of gray or color.

Only the formats of FORMATS are tried, whatever a file's name says. Of files of several
images the first is read; color profiles are not applied.
"""

import contextlib
import io
import math
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF", "PPM")
SUFFIXES = (
    *(".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff"),
    *(".ppm", ".pgm", ".pbm", ".pnm"),
)

MAX_PIXELS = 1 << 26
"""The most pixels of an image that is decoded: 8192 x 8192."""

_ORIENTATION = 0x0112  # the EXIF tag; from 5 on, height and width change places
_FILTER = Image.Resampling.LANCZOS


class Header(NamedTuple):
    """What an image is, known without decoding it; the size is that after rotation.

    Attributes:
        is_color: whether it has more than shades of gray.
        height: rows.
        width: columns.
    """

    is_color: bool
    height: int
    width: int


def header(content: bytes) -> Header:
    """The header of an image file.

    An image is gray if its mode says so, or its palette has no colors; gray pixels of
    an image in color are color.

    Raises:
        ValueError: empty, of another format, damaged, or of too many pixels.
    """
    with _opened(content) as image:
        width, height = image.size
        # Pillow turns a TIFF's size itself. The others are asked where it matters
        # alone, as a PNG is decoded to find the entry.
        can_lie = width != height and image.format != "TIFF"
        if can_lie and image.getexif().get(_ORIENTATION) in range(5, 9):
            width, height = height, width
        return Header(_is_color(image), height, width)


def decode(content: bytes, *, image_size: int | None, color: bool) -> np.ndarray:
    """The pixels of an image file, uint8 [H, W], or [H, W, 3] with `color`.

    The image is turned as its EXIF entry says; of 16 bits the upper 8 are kept;
    transparent pixels lie on white (but not the one color that a PNG of 16 bits may
    name as such); color becomes gray by its luma (ITU-R 601-2). With an `image_size` S
    the largest square in the middle (of an odd remainder the upper or left one) is
    scaled to [S, S] by Pillow's Lanczos filter.

    Raises:
        ValueError: as `header`, or pixels that are no integers of at most 16 bits.
    """
    with _opened(content) as image:
        turned = _on_white(_eight_bits(ImageOps.exif_transpose(image)))
        shades = turned.convert("RGB" if color else "L")
        if image_size is not None:
            side = min(shades.size)
            left, top = ((length - side) // 2 for length in shades.size)
            square = shades.crop((left, top, left + side, top + side))
            shades = square.resize((image_size, image_size), _FILTER)
        return np.array(shades)


@contextlib.contextmanager
def _opened(content: bytes) -> Iterator[Image.Image]:
    """An image that is not decoded yet; whatever goes wrong inside is a ValueError."""
    if not content:
        raise ValueError("it is empty")
    try:
        with Image.open(io.BytesIO(content), formats=FORMATS) as image:
            if math.prod(image.size) > MAX_PIXELS:
                width, height = image.size
                raise ValueError(
                    f"its {width} x {height} pixels are more than the {MAX_PIXELS} "
                    "that are decoded"
                )
            yield image
    except UnidentifiedImageError as error:  # whose message is an address in memory
        formats = ", ".join(FORMATS)
        raise ValueError(f"its content is none of {formats}") from error
    except Exception as error:  # Pillow raises nearly anything at damaged content
        reason = " ".join(str(error).split()) or type(error).__name__
        raise ValueError(reason) from error


def _is_color(image: Image.Image) -> bool:
    if image.mode in ("P", "PA"):
        palette = np.array(image.getpalette("RGB") or (), np.uint8).reshape(-1, 3)
        return bool((palette != palette[:, :1]).any())
    gray = image.mode in ("1", "L", "LA", "La", "I", "F")
    return not (gray or image.mode.startswith("I;16"))


def _eight_bits(image: Image.Image) -> Image.Image:
    """The image with the upper 8 of 16 bits; Pillow itself does so to color."""
    if image.mode == "F":
        raise ValueError("its pixels are floats: store them as npz:PATH")
    if not image.mode.startswith("I"):
        return image
    values = np.asarray(image)
    if values.min() < 0 or values.max() > 65535:
        raise ValueError(
            f"its pixels are integers from {values.min()} to {values.max()}, and 16 "
            "bits are read: store them as npz:PATH"
        )
    upper = (values >> 8).astype(np.uint8)
    upper[values == image.info.get("transparency", -1)] = 255  # white, as `_on_white`
    return Image.fromarray(upper)


def _on_white(image: Image.Image) -> Image.Image:
    if not image.has_transparency_data:
        return image
    layer = image.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", layer.size, "white"), layer)
