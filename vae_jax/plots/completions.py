"""Pictures of completed rows: what there was, what was seen, what was made of it."""

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
from matplotlib.figure import Figure

from vae_jax.plots import images as grids

_DPI = 100
_TILE_DOTS = 84  # what the longer side of an image is enlarged to, about
_HIDDEN = (0.90, 0.45, 0.10)  # orange: no shade of gray, nor the separators' color
_TITLE_INCHES = 0.3
_NOTE_INCHES = 0.25  # below, for what black and white are


_MOST_PANELS = 12
_PANEL_COLUMNS = 4
_MISSED = "C3"  # red: an interval without the truth


class Cells(NamedTuple):
    """Numbers that were hidden, and what was put in their place.

    Attributes:
        exact: what they were.
        point: what each is completed with.
        low: end of its interval.
        high: its other end.
    """

    exact: np.ndarray
    point: np.ndarray
    low: np.ndarray
    high: np.ndarray


def table(
    originals: np.ndarray,
    hidden: np.ndarray,
    groups: Mapping[str, np.ndarray],
    *,
    limits: tuple[float, float] = (0.0, 1.0),
) -> Figure:
    """A row for each image: the original, what is observed of it, and completions.

    Hidden pixels of the second column are orange.

    Args:
        originals: [N, H, W], or [N, H, W, 3].
        hidden: bool, of the same shape; a pixel is orange where any channel is hidden.
        groups: by their title, images [N, M, *] side by side, all of them of one shape
            but for M.
        limits: the values of black and white; a line below says them, as in
            `images.grid`.

    Raises:
        ValueError: another shape, or no images.
    """
    original = _colored("originals", originals, 1, limits)
    if np.shape(hidden) != np.shape(originals):
        raise ValueError(
            f"originals {np.shape(originals)} and hidden {np.shape(hidden)} differ in "
            "shape"
        )
    orange = np.reshape(hidden, (*original.shape[:3], -1)).any(axis=-1, keepdims=True)
    observed = np.where(orange, np.asarray(_HIDDEN), original)
    panels = {"original, observed": np.stack([original, observed], axis=1)}
    for title, images in groups.items():
        panels[title] = _colored(title, images, 2, limits)
        if panels[title].shape[0] != len(original):
            raise ValueError(
                f"{title}: completions of {panels[title].shape[0]} images beside "
                f"{len(original)} originals"
            )
    canvases = {title: _canvas(tiles) for title, tiles in panels.items()}
    figure = _figure(canvases, tile=max(original.shape[1:3]))
    everything = np.concatenate([canvas.ravel() for canvas in canvases.values()])
    if note := grids.scale_note(everything, limits):
        figure.text(0.5, 0.0, note, ha="center", va="bottom", size=8)
    return figure


def intervals(panels: Mapping[str, Cells]) -> Figure:
    """Each hidden number's interval and point above what it was, a panel a column.

    Points on the diagonal are right; intervals that miss it are red. The first twelve
    panels are drawn.

    Args:
        panels: by the name of a column.

    Raises:
        ValueError: no panels, or one without cells.
    """
    if not panels or any(not len(cells.exact) for cells in panels.values()):
        raise ValueError("panels must hold at least one column of hidden cells")
    shown = list(panels.items())[:_MOST_PANELS]
    columns = min(_PANEL_COLUMNS, len(shown))
    lines = -(-len(shown) // columns)
    size = (max(3.4, 2.9 * columns), 2.7 * lines)
    figure = Figure(figsize=size, dpi=120, layout="constrained")
    for place, (name, (exact, point, low, high)) in enumerate(shown, start=1):
        axes = figure.add_subplot(lines, columns, place)
        is_missed = (exact < low) | (exact > high)
        for cells, color in ((~is_missed, "C0"), (is_missed, _MISSED)):
            axes.vlines(
                exact[cells], low[cells], high[cells], color=color, alpha=0.5, lw=1.0
            )
            axes.plot(exact[cells], point[cells], ".", color=color, markersize=4)
        ends = [exact.min(), exact.max()]
        axes.plot(ends, ends, color="0.6", linewidth=1.0, zorder=0)
        axes.set_title(name, fontsize="small")
        axes.tick_params(labelsize="x-small")
        axes.locator_params(nbins=5)
        if (place - 1) % columns == 0:
            axes.set_ylabel("completed", fontsize="x-small")
        if place > len(shown) - columns:
            axes.set_xlabel("hidden", fontsize="x-small")
    return figure


def _colored(
    name: str, images: np.ndarray, num_axes: int, limits: tuple[float, float]
) -> np.ndarray:
    """Images as red, green and blue, 0 for black and 1 for white; NaN as separators."""
    images = np.asarray(images, np.float64)
    image_axes = images.ndim - num_axes
    if image_axes == 2:
        images = np.repeat(images[..., None], 3, axis=-1)
    elif image_axes != 3 or images.shape[-1] != 3:
        raise ValueError(
            f"{name} must be [..., H, W] or [..., H, W, 3], got {images.shape}"
        )
    if images.size == 0:
        raise ValueError(f"{name} of shape {images.shape} have nothing to draw")
    scaled = (images - limits[0]) / (limits[1] - limits[0])
    return np.where(np.isnan(scaled), grids.SEPARATOR, scaled)


def _canvas(tiles: np.ndarray) -> np.ndarray:
    """[N, M, H, W, 3] -> one image, a pixel between neighbors."""
    padded = np.pad(
        tiles, ((0, 0), (0, 0), (0, 1), (0, 1), (0, 0)), constant_values=np.nan
    )
    rows, columns, height, width, _ = padded.shape
    whole = padded.transpose(0, 2, 1, 3, 4).reshape(rows * height, columns * width, 3)
    return np.where(np.isnan(whole[:-1, :-1]), grids.SEPARATOR, whole[:-1, :-1])


def _figure(canvases: Mapping[str, np.ndarray], *, tile: int) -> Figure:
    """The canvases side by side below their titles, at one scale."""
    scale = max(1, _TILE_DOTS // tile) / _DPI  # inches of a pixel
    gap = 0.15
    widths = [scale * canvas.shape[1] for canvas in canvases.values()]
    height = scale * next(iter(canvases.values())).shape[0]
    total_height = height + _TITLE_INCHES + _NOTE_INCHES
    total = sum(widths) + gap * (len(widths) + 1), total_height
    figure = Figure(figsize=total, dpi=_DPI)
    left = gap
    for (title, canvas), width in zip(canvases.items(), widths, strict=True):
        place = (
            left / total[0],
            _NOTE_INCHES / total[1],
            width / total[0],
            height / total[1],
        )
        axes = figure.add_axes(place)
        axes.imshow(
            np.clip(canvas, 0.0, 1.0), vmin=0.0, vmax=1.0, interpolation="nearest"
        )
        axes.set(xticks=[], yticks=[])
        for spine in axes.spines.values():
            spine.set(color=grids.SEPARATOR, linewidth=3.0)
        axes.set_title(title, size=9)
        left += width + gap
    return figure
