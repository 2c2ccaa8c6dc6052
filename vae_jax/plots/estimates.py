"""Estimates of one number against what they cost."""

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.figure import Figure

from vae_jax.plots import scales

Curve = tuple[Sequence[float], Sequence[float], Sequence[float]]


def estimates(
    panels: Mapping[str, Mapping[str, Curve]],
    *,
    exact: Mapping[str, float],
    x_label: str,
    y_label: str,
) -> Figure:
    """Means with their spread over repeats, in panels side by side.

    The horizontal axis is logarithmic. The vertical one shows the upper end of the
    values: what lies more than ten times the distance of the better half from the
    highest value below it is cut off.

    Args:
        panels: the title of each panel to its curves: name -> (x, mean, spread).
        exact: the title of a panel to the value that is drawn as a line; panels
            without one are left out.
        x_label: of all panels.
        y_label: of the first panel.
    """
    names = list(dict.fromkeys(name for curves in panels.values() for name in curves))
    figure = Figure(figsize=(5.2 * len(panels), 3.8), layout="constrained")
    axes = figure.subplots(1, len(panels), squeeze=False)[0]
    for axis, (title, curves) in zip(axes, panels.items(), strict=True):
        for name, (x, mean, spread) in curves.items():
            axis.errorbar(
                x,
                mean,
                yerr=spread,
                color=f"C{names.index(name)}",
                marker=".",
                capsize=2,
                linewidth=1.3,
                label=name,
            )
        if title in exact:
            axis.axhline(exact[title], color="k", linewidth=0.9, label="exact")
        means = np.concatenate([np.ravel(mean) for _, mean, _ in curves.values()])
        low, high = _limits(means[np.isfinite(means)])
        axis.set_ylim(low, high)
        scales.logarithmic(axis, x=True)
        axis.set_title(title)
        axis.set_xlabel(x_label)
        axis.legend(fontsize="small")
    axes[0].set_ylabel(y_label)
    return figure


def _limits(means: np.ndarray) -> tuple[float, float]:
    top, middle = means.max(), np.median(means)
    reach = max(min(top - means.min(), 10.0 * (top - middle)), 1e-3)
    return top - 1.1 * reach, top + 0.3 * reach
