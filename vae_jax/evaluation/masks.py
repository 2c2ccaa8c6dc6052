"""Which entries of one observation are hidden: key -> mask [*X], True where hidden.

An image is [H, W] or [H, W, C]; all channels of a pixel are hidden together, but for
`random_fraction`, which draws entries.
"""

from collections.abc import Callable
from typing import TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from vae_jax import numerics
from vae_jax.types import PRNGKey

Mask: TypeAlias = Callable[[PRNGKey], Bool[Array, "*X"]]
"""key -> True where hidden; without chance in it, the same for every key."""

SIDES = ("left", "right", "top", "bottom")


def half(x_shape: tuple[int, ...], *, side: str) -> Mask:
    """Hides one half of an image; of an odd number of rows or columns, the smaller.

    Raises:
        ValueError: if x_shape is no image's or side is none of `SIDES`.
    """
    height, width = _image(x_shape)
    if side not in SIDES:
        raise ValueError(f"side must be one of {', '.join(SIDES)}, got {side!r}")
    row, column = jnp.arange(height), jnp.arange(width)
    hidden = {
        "left": jnp.broadcast_to((column < width // 2)[None], (height, width)),
        "right": jnp.broadcast_to((column >= (width + 1) // 2)[None], (height, width)),
        "top": jnp.broadcast_to((row < height // 2)[:, None], (height, width)),
        "bottom": jnp.broadcast_to(
            (row >= (height + 1) // 2)[:, None], (height, width)
        ),
    }[side]

    def mask(key: PRNGKey) -> Bool[Array, "*X"]:
        del key
        return _over_channels(hidden, x_shape)

    return mask


def block(x_shape: tuple[int, ...], *, height: int, width: int) -> Mask:
    """Hides one rectangle of an image, anywhere in it with equal probability.

    Raises:
        ValueError: if x_shape is no image's or the rectangle is not inside of it.
    """
    rows, columns = _image(x_shape)
    if not (1 <= height <= rows and 1 <= width <= columns):
        raise ValueError(
            f"a block of height={height} and width={width} is not inside of an image "
            f"of {rows} x {columns}"
        )

    def mask(key: PRNGKey) -> Bool[Array, "*X"]:
        key_top, key_left = jax.random.split(key)
        top = jax.random.randint(key_top, (), 0, rows - height + 1)
        left = jax.random.randint(key_left, (), 0, columns - width + 1)
        row, column = jnp.arange(rows) - top, jnp.arange(columns) - left
        inside_rows = (row >= 0) & (row < height)
        inside_columns = (column >= 0) & (column < width)
        hidden = inside_rows[:, None] & inside_columns[None]
        return _over_channels(hidden, x_shape)

    return mask


def random_fraction(x_shape: tuple[int, ...], *, fraction: float) -> Mask:
    """Hides each entry with probability `fraction`, independently of all others.

    At 0 nothing is hidden and at 1 everything.

    Raises:
        ValueError: if fraction does not lie in [0, 1].
    """
    numerics.check_in("[0, 1]", fraction=fraction)

    def mask(key: PRNGKey) -> Bool[Array, "*X"]:
        # A uniform draw may be 0 and is never 1.
        return jax.random.uniform(key, x_shape) < fraction

    return mask


def checked(stored: np.ndarray, shape: tuple[int, ...]) -> Bool[np.ndarray, "N *X"]:
    """A mask that was stored, of one image or of each of the N, for images of [N, *X].

    Raises:
        ValueError: for entries other than 0 and 1, another shape, or nothing hidden.
    """
    if stored.dtype != bool and not np.isin(stored, (0, 1)).all():
        raise ValueError(f"{stored.dtype} that are not all 0 or 1 are no mask")
    if stored.shape not in (shape, shape[1:]):
        raise ValueError(
            f"a mask of shape {stored.shape} does not fit observations of shape "
            f"{shape[1:]}, {shape[0]} of them"
        )
    if not stored.any():
        raise ValueError("the mask hides nothing")
    return np.broadcast_to(stored.astype(bool), shape)


def of_images(key: PRNGKey, mask: Mask, *, num_images: int) -> Bool[Array, "N *X"]:
    """A mask for each of N images, drawn by fold_in(key, n)."""
    keys = jax.vmap(jax.random.fold_in, (None, 0))(key, jnp.arange(num_images))
    return jax.vmap(mask)(keys)


def hide(x: Float[Array, "*X"], mask: Bool[Array, "*X"]) -> Float[Array, "*X"]:
    """x with NaN where the mask is True.

    Raises:
        ValueError: if the mask has not the shape of x.
    """
    if mask.shape != x.shape:
        raise ValueError(
            f"a mask of shape {mask.shape} does not fit an observation of shape "
            f"{x.shape}"
        )
    return jnp.where(mask, jnp.nan, x)


def _image(x_shape: tuple[int, ...]) -> tuple[int, int]:
    if len(x_shape) not in (2, 3):
        raise ValueError(f"x_shape must be [H, W] or [H, W, C], got {x_shape}")
    return x_shape[0], x_shape[1]


def _over_channels(hidden: Bool[Array, "H W"], x_shape: tuple[int, ...]) -> Array:
    if len(x_shape) == 2:
        return hidden
    return jnp.broadcast_to(hidden[..., None], x_shape)
