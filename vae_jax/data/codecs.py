"""Sizes of images under lossless codecs, for a model's bits per dimension."""

import io
import zlib
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

import numpy as np
from PIL import Image

from vae_jax.data import image_files


def _file(kind: str, **settings: Any) -> Callable[[np.ndarray], int]:
    def size(image: np.ndarray) -> int:
        file = io.BytesIO()
        Image.fromarray(image).save(file, kind, **settings)
        return file.tell()

    return size


CODECS: Mapping[str, Callable[[np.ndarray], int]] = MappingProxyType(
    {
        "png": _file("PNG", optimize=True),
        "webp": _file("WEBP", lossless=True),
        "zlib": lambda image: len(zlib.compress(image.tobytes(), level=9)),
    }
)
"""Image -> bytes of a file of it alone, header and all."""


def sizes(images: np.ndarray, codec: str) -> np.ndarray:
    """Bytes [N] that a codec makes of each image by itself.

    Args:
        images: [N, H, W] or [N, H, W, 3], uint8; or bool, [N, H, W], of which PNG makes
            files of bits.
        codec: one of CODECS.

    Raises:
        ValueError: another codec, shape or dtype.
    """
    if codec not in CODECS:
        raise ValueError(f"codec={codec!r}: choose one of {', '.join(CODECS)}")
    is_color = images.ndim == 4 and images.shape[3] == 3
    of_bytes = images.dtype == np.uint8 and (images.ndim == 3 or is_color)
    if not of_bytes and not (images.dtype == bool and images.ndim == 3):
        raise ValueError(
            f"images are {images.dtype} of shape {images.shape}: give bytes of [N, H, "
            "W] or [N, H, W, 3], or bits of [N, H, W]"
        )
    made: list[int] = []
    image_files.in_threads(
        CODECS[codec], [*images], lambda image, size: made.append(size), doing=codec
    )
    return np.array(made, np.int64)
