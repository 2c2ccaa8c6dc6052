"""Gaussian mixtures and other densities of two features."""

from collections.abc import Mapping

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from vae_jax.plots import contents

_WIDTH = 3.2  # of a panel, inches


def responsibilities(
    x: np.ndarray,
    frames: Mapping[str, tuple[np.ndarray, np.ndarray, np.ndarray]],
) -> Figure:
    """Points colored by the component that answers for them, a panel for each frame.

    A point's color is the mean of the components' colors under its responsibilities.
    Ellipses are two standard deviations wide in every direction.

    Args:
        x: points [N, 2].
        frames: title -> responsibilities [N, K], means [K, 2], covariances [K, 2, 2].

    Raises:
        ValueError: no frames, or points that are not [N, 2].
    """
    contents.check_some(frames=frames)
    _check(x)
    figure = Figure(
        figsize=(_WIDTH * len(frames), _WIDTH + 0.3), dpi=120, layout="constrained"
    )
    circle = np.linspace(0.0, 2.0 * np.pi, 100)
    circle = np.stack([np.cos(circle), np.sin(circle)])
    for place, (title, (shares, means, covariances)) in enumerate(frames.items(), 1):
        axes = figure.add_subplot(1, len(frames), place)
        colors = _colors(shares.shape[1])
        mixed = np.clip(shares @ colors, 0.0, 1.0)
        axes.scatter(*x.T, c=mixed, s=6.0, linewidths=0.0)
        for mean, covariance, color in zip(means, covariances, colors, strict=True):
            values, vectors = np.linalg.eigh(covariance)
            ellipse = (vectors * 2.0 * np.sqrt(values)) @ circle + mean[:, None]
            axes.plot(*ellipse, color=color * 0.7, linewidth=1.2)
            axes.plot(*mean, "+", color=color * 0.5)
        _frame(axes, x, title)
    return figure


def densities(
    x: np.ndarray,
    panels: Mapping[str, np.ndarray],
    *,
    extent: tuple[float, float, float, float],
) -> Figure:
    """Densities on a grid of the plane, side by side on one color scale.

    The scale ends at the 99.5th percentile of all panels, so that a narrow peak of one
    does not blacken the others. The points are drawn over them.

    Args:
        x: points [N, 2].
        panels: title -> density [rows of the second feature, columns of the first].
        extent: least and greatest of the first feature, then of the second.

    Raises:
        ValueError: no panels, or points that are not [N, 2].
    """
    contents.check_some(panels=panels)
    _check(x)
    figure = Figure(
        figsize=(_WIDTH * len(panels) + 0.8, _WIDTH + 0.4),
        dpi=120,
        layout="constrained",
    )
    top = np.percentile(np.stack([np.asarray(grid) for grid in panels.values()]), 99.5)
    image = None
    for place, (title, grid) in enumerate(panels.items(), 1):
        axes = figure.add_subplot(1, len(panels), place)
        image = axes.imshow(
            grid, origin="lower", extent=extent, vmin=0.0, vmax=top, cmap="magma"
        )
        axes.scatter(*x.T, c="white", s=2.0, alpha=0.35, linewidths=0.0)
        axes.set(xlim=extent[:2], ylim=extent[2:], aspect="auto")
        axes.set_title(title, fontsize="small")
    assert image is not None
    figure.colorbar(image, ax=figure.axes, label="p(x)", extend="max")
    return figure


def _check(x: np.ndarray) -> None:
    if x.ndim != 2 or x.shape[1] != 2:
        raise ValueError(f"points must be [N, 2], got {x.shape}")


def _colors(count: int) -> np.ndarray:
    """RGB [K, 3] of evenly spaced hues, of one brightness."""
    turns = np.arange(count)[:, None] / count + np.array([0.0, 1 / 3, 2 / 3])
    return 0.5 + 0.42 * np.cos(2.0 * np.pi * turns)


def _frame(axes: Axes, x: np.ndarray, title: str) -> None:
    low, high = x.min(0), x.max(0)
    margin = 0.08 * np.maximum(high - low, 1e-12)
    axes.set_xlim(low[0] - margin[0], high[0] + margin[0])
    axes.set_ylim(low[1] - margin[1], high[1] + margin[1])
    axes.set_title(title, fontsize="small")
