"""Pictures of many images: tiles of one canvas, each pixel a whole number of dots."""

from collections.abc import Sequence

import matplotlib
import numpy as np
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

SEPARATOR = (0.40, 0.54, 0.72)
"""Red, green and blue between images, and where a value is missing: no shade of gray,
so that white strokes end where their image does."""

_DPI = 100
_TILE_DOTS = 84  # what the longer side of an image is enlarged to, at most
_CANVAS_DOTS = 1200  # and the longer side of all of them
_TITLE_POINTS = 11
_TITLE_DOTS = 34
_MARGIN_DOTS = 8
_FRAME_DOTS = 4  # of the separators' color around all of them
_BLANK = np.nan  # what is drawn in the separators' color
_TOLERANCE = 1e-3  # of black to white, within which nothing is said to be cut


def grid(
    images: np.ndarray,
    *,
    num_columns: int,
    title: str | None = None,
    padding: int = 1,
    limits: tuple[float, float] = (0.0, 1.0),
) -> Figure:
    """Images in rows, read from left to right.

    Args:
        images: [N, H, W], or [N, H, W, C] with one or three channels.
        num_columns: images in a row; fewer if there are fewer.
        title: above the picture.
        padding: pixels between images.
        limits: the values of black and white. The title says them where they are not 0
            and 1, or where values beyond them are cut.

    Raises:
        ValueError: another shape, no images, integers above 1 without limits, or a
            number out of range.
    """
    images = _checked("images", images, num_axes=1, limits=limits)
    _check_layout(num_columns, padding)
    tiles = _rows(images, min(num_columns, len(images)))
    gaps = [padding] * len(tiles), [padding] * tiles.shape[1]
    return _figure(tiles, *gaps, title=title, limits=limits)


def pairs(
    originals: np.ndarray,
    reconstructions: np.ndarray,
    *,
    num_columns: int,
    title: str | None = None,
    padding: int = 1,
    limits: tuple[float, float] = (0.0, 1.0),
) -> Figure:
    """Originals, each above its reconstruction, in pairs of rows set apart.

    Args:
        originals: [N, H, W] or [N, H, W, C], as in `grid`.
        reconstructions: the same shape.
        num_columns: images in a row; fewer if there are fewer.
        title: above the picture.
        padding: pixels between images; three times as many between pairs of rows.
        limits: the values of black and white, as in `grid`.

    Raises:
        ValueError: as in `grid`, or the two differ in shape.
    """
    if np.shape(originals) != np.shape(reconstructions):
        raise ValueError(
            f"originals {np.shape(originals)} and reconstructions "
            f"{np.shape(reconstructions)} differ in shape"
        )
    above = _checked("originals", originals, num_axes=1, limits=limits)
    below = _checked("reconstructions", reconstructions, num_axes=1, limits=limits)
    _check_layout(num_columns, padding)
    columns = min(num_columns, len(above))
    tiles = np.stack([_rows(above, columns), _rows(below, columns)], axis=1)
    tiles = tiles.reshape(-1, *tiles.shape[2:])
    gaps = [padding, 3 * padding] * (len(tiles) // 2), [padding] * columns
    return _figure(tiles, *gaps, title=title, limits=limits)


def groups(
    parts: Sequence[np.ndarray],
    *,
    title: str | None = None,
    padding: int = 1,
    limits: tuple[float, float] = (0.0, 1.0),
) -> Figure:
    """Columns of images in groups set apart, such as an image and what is made of it.

    Args:
        parts: groups from left to right, [R, C, H, W] or [R, C, H, W, 1 or 3] each; row
            0 is at the top.
        title: above the picture.
        padding: pixels between images; four times as many between groups.
        limits: the values of black and white, as in `grid`.

    Raises:
        ValueError: as in `grid`, no groups, or groups of different images or rows.
    """
    if not parts:
        raise ValueError("parts must hold at least one group of images")
    _check_layout(1, padding)
    tiles = [_checked("parts", part, num_axes=2, limits=limits) for part in parts]
    shapes = {(len(part), *part.shape[2:]) for part in tiles}
    if len(shapes) > 1:
        raise ValueError(f"parts differ in their rows or images: {sorted(shapes)}")
    columns = [
        gap for part in tiles for gap in [padding] * (part.shape[1] - 1) + [4 * padding]
    ]
    whole = np.concatenate(tiles, axis=1)
    gaps = [padding] * len(whole), columns
    return _figure(whole, *gaps, title=title, limits=limits)


def manifold(
    images: np.ndarray,
    *,
    title: str | None = None,
    limits: tuple[float, float] = (0.0, 1.0),
) -> Figure:
    """A sheet of images without gaps, where neighbors are meant to be alike.

    Args:
        images: [R, C, H, W], or [R, C, H, W, 1 or 3]; row 0 is at the top.
        title: above the picture.
        limits: the values of black and white, as in `grid`.

    Raises:
        ValueError: another shape, no images, or integers above 1 without limits.
    """
    tiles = _checked("images", images, num_axes=2, limits=limits)
    gaps = [0] * len(tiles), [0] * tiles.shape[1]
    return _figure(tiles, *gaps, title=title, limits=limits)


def scale_note(canvas: np.ndarray, limits: tuple[float, float]) -> str:
    """What black and white are, where that is not 0 and 1 or values are cut at them.

    Args:
        canvas: values that are black at 0 and white at 1; those beyond are cut.
        limits: what 0 and 1 stand for.
    """
    beyond = bool(((canvas < -_TOLERANCE) | (canvas > 1.0 + _TOLERANCE)).any())
    if limits == (0.0, 1.0) and not beyond:
        return ""
    return f"black {limits[0]:g}, white {limits[1]:g}" + ", cut beyond" * beyond


def _checked(
    name: str, images: np.ndarray, *, num_axes: int, limits: tuple[float, float]
) -> np.ndarray:
    """Images as floats, 0 for black and 1 for white, without an axis of one channel."""
    low, high = limits
    if not low < high:
        raise ValueError(f"limits must be black's value, then white's, got {limits}")
    images = np.asarray(images)
    image_axes = images.ndim - num_axes
    if image_axes == 3 and images.shape[-1] == 1:
        images = images[..., 0]
    elif image_axes != 2 and not (image_axes == 3 and images.shape[-1] == 3):
        before = "N, " if num_axes == 1 else "R, C, "
        raise ValueError(
            f"{name} must be [{before}H, W] or [{before}H, W, 1 or 3] to be drawn, "
            f"got shape {images.shape}"
        )
    if images.size == 0:
        raise ValueError(f"{name} of shape {images.shape} have nothing to draw")
    unscaled = limits == (0.0, 1.0) and np.issubdtype(images.dtype, np.integer)
    if unscaled and images.max() > 1:
        raise ValueError(
            f"{name} hold integers to {images.max()}: scale them to [0, 1], or give "
            "limits"
        )
    return (images.astype(np.float32) - low) / (high - low)


def _check_layout(num_columns: int, padding: int) -> None:
    if num_columns < 1:
        raise ValueError(f"num_columns must be at least 1, got {num_columns}")
    if padding < 0:
        raise ValueError(f"padding must not be negative, got {padding}")


def _rows(images: np.ndarray, num_columns: int) -> np.ndarray:
    """[N, H, W, ...] -> [R, num_columns, H, W, ...], blanks at the end."""
    blank = np.full((-len(images) % num_columns, *images.shape[1:]), _BLANK, np.float32)
    filled = np.concatenate([images, blank])
    return filled.reshape(-1, num_columns, *images.shape[1:])


def _canvas(
    tiles: np.ndarray, row_gaps: list[int], column_gaps: list[int]
) -> np.ndarray:
    """[R, C, H, W, ...] -> one image, gaps below each row and right of each column."""
    num_rows, num_columns, height, width = tiles.shape[:4]
    tops = np.cumsum([0] + [height + gap for gap in row_gaps])
    lefts = np.cumsum([0] + [width + gap for gap in column_gaps])
    size = tops[-1] - row_gaps[-1], lefts[-1] - column_gaps[-1]
    canvas = np.full((*size, *tiles.shape[4:]), _BLANK, np.float32)
    for r in range(num_rows):
        for c in range(num_columns):
            rows, columns = slice(tops[r], None), slice(lefts[c], None)
            canvas[rows, columns][:height, :width] = tiles[r, c]
    return canvas


def _figure(
    tiles: np.ndarray,
    row_gaps: list[int],
    column_gaps: list[int],
    *,
    title: str | None,
    limits: tuple[float, float],
) -> Figure:
    """A figure in which every pixel of the canvas is a square of whole dots."""
    canvas, tile = _canvas(tiles, row_gaps, column_gaps), max(tiles.shape[2:4])
    title = "; ".join(filter(None, (title, scale_note(canvas, limits))))
    canvas = np.clip(canvas, 0.0, 1.0)
    if canvas.ndim == 3:
        canvas = np.where(np.isnan(canvas), SEPARATOR, canvas)
    scale = max(1, min(_TILE_DOTS // tile, _CANVAS_DOTS // max(canvas.shape[:2])))
    height, width = canvas.shape[0] * scale, canvas.shape[1] * scale
    top, title_width = _MARGIN_DOTS, 0
    if title:  # a letter is about 0.6 of its height; a point is 1/72 inch
        top = _TITLE_DOTS
        title_width = round(0.6 * len(title) * _TITLE_POINTS * _DPI / 72)
    left = _MARGIN_DOTS + max(0, (title_width - width) // 2)
    total_height, total_width = height + top + _MARGIN_DOTS, width + 2 * left
    figure = Figure(figsize=(total_width / _DPI, total_height / _DPI), dpi=_DPI)
    axes = figure.add_axes(
        (
            left / total_width,
            _MARGIN_DOTS / total_height,
            width / total_width,
            height / total_height,
        )
    )
    frame = (
        (left - _FRAME_DOTS) / total_width,
        (_MARGIN_DOTS - _FRAME_DOTS) / total_height,
    )
    whole = width + 2 * _FRAME_DOTS, height + 2 * _FRAME_DOTS
    figure.add_artist(
        Rectangle(
            frame,
            whole[0] / total_width,
            whole[1] / total_height,
            facecolor=SEPARATOR,
            linewidth=0.0,
            antialiased=False,
            zorder=-1.0,
        )
    )
    shades = matplotlib.colormaps["gray"].with_extremes(bad=SEPARATOR)
    axes.imshow(canvas, cmap=shades, vmin=0.0, vmax=1.0, interpolation="nearest")
    axes.set_axis_off()
    if title:
        figure.suptitle(
            title, y=1.0 - 0.5 * top / total_height, va="center", size=_TITLE_POINTS
        )
    return figure
