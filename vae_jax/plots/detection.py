"""How well a score tells two kinds of rows apart."""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from vae_jax.plots import contents

_MAX_COLUMNS = 4
_NUM_BINS = 50
_TAIL = 0.5  # percent of the rows on either side that the bins need not reach
_MARGIN = 0.05  # of their width, that the bins reach beyond a threshold


def roc_curves(curves: Mapping[str, tuple[np.ndarray, np.ndarray]]) -> Figure:
    """Share of outliers flagged against share of inliers flagged, and the diagonal.

    Args:
        curves: name -> both shares of each threshold, of inliers first.

    Raises:
        ValueError: no curves.
    """
    contents.check_some(curves=curves)
    figure = Figure(figsize=(6.4, 4.4), dpi=120, layout="constrained")
    axes = figure.add_subplot()
    axes.plot([0.0, 1.0], [0.0, 1.0], color="0.7", linewidth=1.0)
    for i, (name, (of_inliers, of_outliers)) in enumerate(curves.items()):
        dashes = "-" if i < 10 else "--"  # the colors repeat after ten
        style: dict[str, Any] = {"color": f"C{i % 10}", "linewidth": 1.4}
        axes.plot(of_inliers, of_outliers, dashes, label=name, **style)
    axes.set(
        xlabel="share of inliers flagged",
        ylabel="share of outliers flagged",
        aspect="equal",
    )
    axes.grid(alpha=0.25)
    figure.legend(loc="outside right upper", fontsize="x-small", frameon=False)
    return figure


def histograms(
    panels: Mapping[str, Mapping[str, np.ndarray]],
    *,
    thresholds: Mapping[str, float],
) -> Figure:
    """The scores of kinds of rows, each kind with an area of one, in a panel a score.

    The bins reach over all but the outermost half of a percent of each kind, and over a
    threshold that is not further from them than they are wide; what lies beyond is in
    the outermost bins, and a threshold there is told with an arrow.

    Args:
        panels: score -> kind of rows -> scores [N], the same kinds in each.
        thresholds: of the scores that have one, above which rows are flagged: a line.

    Raises:
        ValueError: no panels.
    """
    contents.check_some(panels=panels)
    columns = min(_MAX_COLUMNS, len(panels))
    lines = -(-len(panels) // columns)
    figure = Figure(
        figsize=(max(5.0, 3.2 * columns), 2.6 * lines + 0.3),
        dpi=120,
        layout="constrained",
    )
    for place, (score, kinds) in enumerate(panels.items(), start=1):
        axes = figure.add_subplot(lines, columns, place)
        finite = {kind: x[np.isfinite(x)] for kind, x in kinds.items()}
        ends = [
            np.percentile(x, [_TAIL, 100 - _TAIL]) for x in finite.values() if x.size
        ]
        low, high = np.min(ends, initial=np.inf), np.max(ends, initial=-np.inf)
        if not low < high:
            low, high = (low - 0.5, low + 0.5) if low == high else (0.0, 1.0)
        threshold = thresholds.get(score, math.nan)
        low, high = _over_threshold(low, high, threshold)
        bins = np.linspace(low, high, _NUM_BINS + 1)
        for i, (kind, x) in enumerate(kinds.items()):
            axes.hist(
                np.clip(x[~np.isnan(x)], low, high),
                bins=bins.tolist(),
                density=True,
                alpha=0.5,
                color=f"C{i}",
                label=kind,
            )
        if low <= threshold <= high:
            axes.axvline(threshold, color="0.3", linestyle=":", linewidth=1.2)
        elif not math.isnan(threshold):
            _tell_beyond(axes, threshold, above=threshold > high)
        axes.set_title(score, fontsize="small")
        axes.set_yticks([])
        axes.tick_params(labelsize="x-small")
        axes.locator_params(axis="x", nbins=5)
    handles, labels = figure.axes[0].get_legend_handles_labels()
    figure.legend(
        handles, labels, loc="outside upper center", ncols=len(labels), frameon=False
    )
    return figure


def _over_threshold(low: float, high: float, threshold: float) -> tuple[float, float]:
    """The ends of the bins, or those that reach over a threshold that is near."""
    width = high - low
    if high < threshold <= high + width:
        return low, threshold + _MARGIN * width  # what is flagged lies behind the line
    if low - width <= threshold < low:
        return threshold - _MARGIN * width, high
    return low, high


def _tell_beyond(axes: Axes, threshold: float, *, above: bool) -> None:
    said = f"threshold {threshold:.4g}"
    axes.text(
        0.98 if above else 0.02,
        0.96,
        f"{said} →" if above else f"← {said}",
        transform=axes.transAxes,
        ha="right" if above else "left",
        va="top",
        fontsize="x-small",
        color="0.3",
    )
