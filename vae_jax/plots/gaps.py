"""log p(x), a bound below it and the gap between them; curves of several seeds."""

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from vae_jax.plots import contents, scales

_MARKERS = "os^vDPX*<>"


def sandwich(
    panels: Mapping[str, tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]],
    *,
    x_label: str,
    y_label: str,
) -> Figure:
    """log p(x) above a bound, and below them the gap, measured by itself, as a curve.

    The upper panels shade what lies between log p(x) and the bound; dots stand at the
    bound plus the gap, so that they lie on log p(x) where the three fit together. The
    gap has a logarithmic axis of its own below.

    Args:
        panels: the title of each column to x, log p(x), bound and gap, each [T]. On the
            axis of x zero is kept beside the logarithms.
        x_label: of every column, with its unit.
        y_label: the unit of the rest.

    Raises:
        ValueError: no panels.
    """
    contents.check_some(panels=panels)
    figure = Figure(
        figsize=(1.8 + 3.6 * len(panels), 5.6), dpi=120, layout="constrained"
    )
    axes = figure.subplots(
        2, len(panels), squeeze=False, sharex="col", height_ratios=(3, 2)
    )
    for column, (title, (x, log_p, bound, gap)) in enumerate(panels.items()):
        upper, lower = axes[:, column]
        upper.fill_between(x, bound, log_p, color="C1", alpha=0.2)
        upper.plot(x, log_p, color="C0", label="log p(x)")
        upper.plot(x, bound, color="C1", label="ELBO")
        together = np.asarray(bound) + np.asarray(gap)
        upper.plot(x, together, ".", color="C3", label="ELBO + KL")
        lower.plot(x, gap, ".-", color="C3", label="KL(q || posterior)")
        lower.set_xlabel(x_label)
        scales.logarithmic(lower, y=True)
        _limits(upper, np.asarray(log_p), np.asarray(bound))
        upper.set_title(title, fontsize="medium")
        for part in (upper, lower):
            _steps(part, x)
    axes[0, 0].set_ylabel(y_label)
    axes[1, 0].set_ylabel(y_label)
    axes[0, -1].legend(fontsize="x-small", loc="lower right")
    axes[1, -1].legend(fontsize="x-small", loc="best")
    return figure


def seeds(
    panels: Mapping[str, Mapping[str, tuple[np.ndarray, np.ndarray]]],
    *,
    x_label: str,
    y_label: str,
    log: Sequence[str] = (),
) -> Figure:
    """Curves of several seeds: their mean, and a band from the least to the greatest.

    Args:
        panels: the title of each panel to its curves: name -> x [T], y [S, T] of S
            seeds. A name has one color in all panels. On the axis of x zero is kept
            beside the logarithms.
        x_label: of every panel, with its unit.
        y_label: as x_label.
        log: titles of the panels whose y is logarithmic.

    Raises:
        ValueError: no panels, or a title in `log` that is none of them.
    """
    contents.check_some(panels=panels)
    if not set(log) <= set(panels):
        raise ValueError(f"log names no panel: {sorted(set(log) - set(panels))}")
    names = list(dict.fromkeys(name for curves in panels.values() for name in curves))
    figure = Figure(
        figsize=(2.2 + 3.8 * len(panels), 4.0), dpi=120, layout="constrained"
    )
    handles = {}
    for place, (title, curves) in enumerate(panels.items(), start=1):
        axes = figure.add_subplot(1, len(panels), place)
        axes.set_title(title, fontsize="medium")
        axes.set(xlabel=x_label, ylabel=y_label if place == 1 else "")
        for name, (x, y) in curves.items():
            i = names.index(name)
            style = {"marker": _MARKERS[i % len(_MARKERS)], "markersize": 3.5}
            mean = np.mean(y, axis=0)
            (line,) = axes.plot(x, mean, color=f"C{i % 10}", **style)
            axes.fill_between(
                x, np.min(y, 0), np.max(y, 0), color=f"C{i % 10}", alpha=0.15, lw=0.0
            )
            handles.setdefault(name, line)
            _steps(axes, x)
        scales.logarithmic(axes, y=title in log)
    figure.legend(
        handles.values(),
        handles.keys(),
        loc="outside right upper",
        fontsize="x-small",
        frameon=False,
    )
    return figure


def optima(
    curves: Mapping[str, tuple[np.ndarray, np.ndarray, float]],
    *,
    x_label: str,
    y_label: str,
) -> Figure:
    """Curves over one parameter, a line down from the greatest value of each.

    Args:
        curves: name -> x [T], y [T], and the x of the greatest y.
        x_label: with its unit.
        y_label: as x_label.

    Raises:
        ValueError: no curves.
    """
    contents.check_some(curves=curves)
    figure = Figure(figsize=(6.4, 4.2), dpi=120, layout="constrained")
    axes = figure.add_subplot()
    axes.set(xlabel=x_label, ylabel=y_label)
    axes.grid(alpha=0.25)
    for i, (name, (x, y, best)) in enumerate(curves.items()):
        dashes = "-" if i % 2 == 0 else "--"  # one curve may lie on another
        label = f"{name}, greatest at {best:.3f}"
        axes.plot(x, y, dashes, color=f"C{i}", label=label, lw=2.0 - 0.3 * i)
        axes.axvline(best, color=f"C{i}", ls=":", lw=1.0)
    axes.legend(fontsize="small")
    return figure


def stacked(
    bars: Mapping[str, Sequence[float]], *, parts: Sequence[str], x_label: str
) -> Figure:
    """Horizontal bars, the parts of a sum one after the other, its value at the end.

    Args:
        bars: the name of each to its parts; a part below zero starts from the left end.
        parts: the name of each part.
        x_label: of the sum, with its unit.

    Raises:
        ValueError: no bars, or one with another number of parts.
    """
    contents.check_some(bars=bars)
    if any(len(values) != len(parts) for values in bars.values()):
        raise ValueError(f"each bar needs {len(parts)} parts, as many as names")
    figure = Figure(
        figsize=(6.4, 1.4 + 0.42 * len(bars)), dpi=120, layout="constrained"
    )
    axes, names = figure.add_subplot(), list(bars)
    values = np.array([bars[name] for name in names])
    ends = np.cumsum(values, axis=1)
    for i, part in enumerate(parts):
        axes.barh(
            names,
            values[:, i],
            left=ends[:, i] - values[:, i],
            color=f"C{i}",
            label=part,
        )
    for place, total in enumerate(ends[:, -1]):
        axes.text(total, place, f" {total:.2f}", va="center", fontsize="small")
    axes.invert_yaxis()
    axes.margins(x=0.12)
    axes.set_xlabel(x_label)
    figure.legend(loc="outside upper center", ncols=len(parts), frameon=False)
    return figure


def _steps(axes: Axes, x: np.ndarray) -> None:
    """x from zero on, then in logarithms of its first step."""
    positive = np.asarray(x)[np.asarray(x) > 0]
    if len(positive):
        axes.set_xscale("symlog", linthresh=positive.min(), linscale=0.4)
        axes.set_xlim(left=-0.2 * positive.min())
    axes.grid(alpha=0.25)


def _limits(axes: Axes, log_p: np.ndarray, bound: np.ndarray) -> None:
    """Cuts a start far below off, where it would flatten all that follows."""
    late = bound[len(bound) // 2 :]
    top = max(log_p.max(), bound.max())
    span = max(top - late.min(), np.ptp(log_p), 1e-9)
    if top - bound.min() > 4.0 * span:
        axes.set_ylim(top - 3.0 * span, top + 0.3 * span)
        axes.set_title("start not shown", fontsize="x-small", loc="right", color="0.4")
