"""Images whose factors are known: one sprite, as a function of its factors.

A sprite has a shape, a scale, an orientation and a place, the factors of Matthey et al.
2017 (dSprites); the images here are computed, are none of that data set's, and go by no
other name. A pixel is of the sprite where its center is inside.
"""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

SHAPES = ("square", "ellipse", "heart")
"""By their value of the factor `shape`."""

RADIUS = 0.49
"""Of the circle around the largest sprite, as a share of half the image's side."""

_HEART = 1.43  # radius of the circle around the heart in its own coordinates
_ROWS = 4096  # that are computed at once


class Grid(NamedTuple):
    """Every combination of the values of some factors, the last varying fastest.

    Attributes:
        side: pixels.
        sizes: how many values each factor has, by name.
    """

    side: int
    sizes: dict[str, int]

    @property
    def num_images(self) -> int:
        """How many combinations there are."""
        return math.prod(self.sizes.values())

    def factors(self, index: np.ndarray) -> np.ndarray:
        """The values int32 [N, F] of the combinations of these numbers [N]."""
        values = np.unravel_index(index, tuple(self.sizes.values()))
        return np.stack(values, axis=-1).astype(np.int32)


_PLACES = {"x": 8, "y": 8}
GRIDS = {
    "sprites": Grid(16, {"shape": 3, "scale": 4, "orientation": 8, **_PLACES}),
    "sprites:64": Grid(
        64, {"shape": 3, "scale": 6, "orientation": 40, "x": 32, "y": 32}
    ),
    "sprites:color": Grid(
        16,
        {"hue": 4, "background": 3, "shape": 3, "scale": 2, "orientation": 4} | _PLACES,
    ),
}
"""By the name of the data set."""


def image(grid: Grid, values: Int[Array, " F"]) -> Float[Array, "*X"]:
    """The image [H, W] of zeros and ones, or [H, W, 3] of shades, at these factors.

    Scales go evenly from 1/2 to 1 and orientations around the circle, its end left out;
    places are a pixel apart, around the middle. Hues go around the circle of saturated
    colors, backgrounds are shades of gray from 0 to 1/2.
    """
    of = _by_name(grid, values)
    inside = jnp.where(sprite(grid, values), 1.0, 0.0)
    if "hue" not in of:
        return inside
    thirds = jnp.array([0.0, 1.0, 2.0]) / 3.0
    hue = of["hue"] / grid.sizes["hue"]
    distance = jnp.abs((hue - thirds + 0.5) % 1.0 - 0.5)  # from red, green and blue
    color = jnp.clip(2.0 - 6.0 * distance, 0.0, 1.0)
    shade = 0.5 * of["background"] / max(grid.sizes["background"] - 1, 1)
    inside = inside[..., None]
    return inside * color[None, None] + (1.0 - inside) * shade


def sprite(grid: Grid, values: Int[Array, " F"]) -> Bool[Array, "H W"]:
    """Which pixels [H, W] have their centers inside the sprite."""
    of = _by_name(grid, values)
    line = jnp.arange(grid.side, dtype=float) - (grid.side - 1) / 2.0
    x = line - (of["x"] - (grid.sizes["x"] - 1) / 2.0)
    y = line - (of["y"] - (grid.sizes["y"] - 1) / 2.0)
    angle = 2.0 * math.pi * of["orientation"] / grid.sizes["orientation"]
    scale = 0.5 + 0.5 * of["scale"] / max(grid.sizes["scale"] - 1, 1)
    unit = RADIUS * grid.side / 2.0 * scale  # pixels of the circle's radius
    cos, sin = jnp.cos(angle) / unit, jnp.sin(angle) / unit
    u = cos * x[None, :] + sin * y[:, None]
    v = cos * y[:, None] - sin * x[None, :]
    square = jnp.maximum(jnp.abs(u), jnp.abs(v)) <= math.sqrt(0.5)
    ellipse = u**2 + 4.0 * v**2 <= 1.0
    a, b = _HEART * u, -_HEART * v  # rows run downward
    heart = (a**2 + b**2 - 1.0) ** 3 - a**2 * b**3 <= 0.0
    shape = of["shape"].astype(int)
    return jnp.stack([square, ellipse, heart])[shape]


def _by_name(grid: Grid, values: Int[Array, " F"]) -> dict[str, Float[Array, ""]]:
    return dict(zip(grid.sizes, values.astype(float), strict=True))


def images(grid: Grid, factors: np.ndarray) -> np.ndarray:
    """Images uint8 [N, H, W] of 0 and 1, or [N, H, W, 3] of 0..255, of [N, F]."""
    top = 255.0 if "hue" in grid.sizes else 1.0

    @jax.jit
    def computed(values: Int[Array, "N F"]) -> Array:
        shades = jax.vmap(lambda row: image(grid, row))(values)
        return jnp.round(top * shades).astype(jnp.uint8)

    parts = range(0, len(factors), _ROWS)
    return np.concatenate([computed(factors[i : i + _ROWS]) for i in parts])


def rows(name: str) -> tuple[np.ndarray, np.ndarray]:
    """Every image of a grid and its factors int32 [N, F], permuted once and for all."""
    grid = GRIDS[name]
    order = np.random.default_rng(0).permutation(grid.num_images)
    factors = grid.factors(order)
    return images(grid, factors), factors
