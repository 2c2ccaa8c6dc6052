"""The latent space: codes as points of a plane or a line, colored by label."""

import matplotlib
import numpy as np
from matplotlib import colors
from matplotlib.figure import Figure

_PALETTES = "tab10", "tab20"  # of up to ten and up to twenty labels
_MAX_NAMED = 20
_STEP, _WIDEST = 0.008, 0.05  # between points at one place, and around it: of the span


def scatter(
    codes: np.ndarray,
    labels: np.ndarray | None,
    *,
    x_label: str,
    y_label: str,
    title: str | None = None,
) -> Figure:
    """Codes as points of a plane, each in the color of its label.

    Both axes have one scale. Up to twenty labels are named in a legend, more are read
    from a color bar. Points are drawn in random order, so that no label hides another;
    those at one place lie side by side around it, and the title says so.

    Args:
        codes: [N, 2].
        labels: [N] integers, or None: one color for all.
        x_label: what the first column is.
        y_label: what the second is.
        title: above the picture.

    Raises:
        ValueError: codes that are not [N, 2], no codes, or labels of another number.
    """
    codes = np.asarray(codes)
    if codes.ndim != 2 or codes.shape[1] != 2 or not len(codes):
        raise ValueError(f"codes must be [N, 2], got {codes.shape}")
    _check_labels(codes, labels)
    figure = Figure(figsize=(6.4, 5.6), dpi=120, layout="constrained")
    axes = figure.add_subplot()
    size = float(np.clip(2e4 / len(codes), 4.0, 16.0))  # square points
    style = {"s": size, "alpha": 0.7, "linewidths": 0.0}
    order = np.random.default_rng(0).permutation(len(codes))
    points = _side_by_side(codes[order])
    if not np.array_equal(points, codes[order]):
        title = "; ".join(filter(None, (title, "those at one place lie around it")))
    if labels is None:
        axes.scatter(*points.T, color="C0", **style)
    elif len(classes := np.unique(labels)) <= _MAX_NAMED:
        palette = _colors(len(classes))
        mixed = palette[np.searchsorted(classes, labels[order])]
        axes.scatter(*points.T, c=mixed, **style)
        for label, color in zip(classes, palette, strict=True):
            axes.plot([], [], "o", color=color, markersize=5.0, label=str(label))
        axes.legend(
            title="label", fontsize="small", loc="center left", bbox_to_anchor=(1, 0.5)
        )
    else:
        points_of_labels = axes.scatter(
            *points.T, c=labels[order], cmap="viridis", **style
        )
        figure.colorbar(points_of_labels, ax=axes, label="label")
    axes.set(xlabel=x_label, ylabel=y_label, aspect="equal", adjustable="datalim")
    axes.grid(alpha=0.2)
    if title:
        axes.set_title(title, fontsize="medium")
    return figure


def histogram(
    codes: np.ndarray,
    labels: np.ndarray | None,
    *,
    x_label: str,
    title: str | None = None,
) -> Figure:
    """Codes of one latent as a histogram, stacked by label.

    Args:
        codes: [N].
        labels: [N] integers, or None; more than twenty are not told apart.
        x_label: what the codes are.
        title: above the picture.

    Raises:
        ValueError: codes that are not [N], no codes, or labels of another number.
    """
    codes = np.asarray(codes)
    if codes.ndim != 1 or not len(codes):
        raise ValueError(f"codes must be [N], got {codes.shape}")
    _check_labels(codes, labels)
    figure = Figure(figsize=(6.4, 3.6), dpi=120, layout="constrained")
    axes = figure.add_subplot()
    classes = np.unique(labels) if labels is not None else np.zeros(0)
    if 0 < len(classes) <= _MAX_NAMED:
        axes.hist(
            [codes[labels == label] for label in classes],
            bins=60,
            stacked=True,
            color=list(map(colors.to_hex, _colors(len(classes)))),
            label=[str(label) for label in classes],
        )
        axes.legend(title="label", fontsize="x-small")
    else:
        axes.hist(codes, bins=60)
    axes.set(xlabel=x_label, ylabel="rows")
    if title:
        axes.set_title(title, fontsize="medium")
    return figure


def _side_by_side(points: np.ndarray) -> np.ndarray:
    """Points [N, 2], those at one place spread over a disk of area as their number."""
    span = float(np.ptp(points, axis=0).max()) or 1.0
    _, place, counts = np.unique(
        np.round(points / span, 5), axis=0, return_inverse=True, return_counts=True
    )
    place = place.ravel()
    order = np.argsort(place, kind="stable")
    rank = np.empty(len(points))  # of each among those at its place
    rank[order] = np.arange(len(points)) - np.repeat(np.cumsum(counts) - counts, counts)
    step = span * min(_STEP, _WIDEST / np.sqrt(counts.max()))
    angle = rank * np.pi * (3.0 - np.sqrt(5.0))  # a sunflower's seeds: evenly apart
    radius = step * np.sqrt(rank)
    return points + radius[:, None] * np.stack([np.cos(angle), np.sin(angle)], axis=1)


def _check_labels(codes: np.ndarray, labels: np.ndarray | None) -> None:
    if labels is not None and np.shape(labels) != (len(codes),):
        raise ValueError(
            f"labels must be one for each of {len(codes)} codes, got shape "
            f"{np.shape(labels)}"
        )


def _colors(count: int) -> np.ndarray:
    """RGBA [K, 4], apart from each other as far as they go."""
    palette = matplotlib.colormaps[_PALETTES[count > 10]]
    return np.asarray(palette(np.arange(count)))
