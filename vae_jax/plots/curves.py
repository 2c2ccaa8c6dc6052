"""Curves of a run's metrics."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from vae_jax.plots import contents, scales

_MAX_COLUMNS = 3
_MARKERS = "os^vDPX*<>"
_FEW = 30  # points of a curve that each have a marker; of more they hide the others


def training_curves(
    rows: Sequence[Mapping[str, Any]],
    *,
    panels: Mapping[str, Sequence[str]],
    labels: Mapping[str, str] | None = None,
    x: str = "epoch",
    chosen: float | None = None,
    title: str | None = None,
) -> Figure:
    """One panel for each quantity, with its curves over the course of a run.

    The vertical axis shows where the curves end up: where the first quarter of the run
    would more than triple its range, that part is cut off and the panel says so. Rows
    that lack a name, or hold None, NaN or an infinity, leave that point out.

    Args:
        rows: what `journal.read` gives: one dict for each point of x.
        panels: the label of each panel's vertical axis, with its unit, to the names in
            the rows that it shows, as {"bound (nats per example)": ["bound"]}.
        labels: what the legends call a name, where not by its words.
        x: the name of the horizontal axis in the rows.
        chosen: where on it the parameters are from that are reported: a dotted line.
        title: above all panels.

    Raises:
        ValueError: no panels.
    """
    contents.check_some(panels=panels)
    columns = min(_MAX_COLUMNS, len(panels))
    if len(panels) == 4:
        columns = 2  # two lines without an empty cell
    lines = -(-len(panels) // columns)
    figure = Figure(
        figsize=(max(5.0, 4.2 * columns), 3.2 * lines + 0.4 * bool(title)),
        dpi=120,
        layout="constrained",
    )
    for place, (label, names) in enumerate(panels.items(), start=1):
        axes = figure.add_subplot(lines, columns, place)
        axes.set_xlabel(x.replace("_", " "))
        axes.set_ylabel(label, fontsize="small")
        axes.grid(alpha=0.25)
        if chosen is not None:
            style = {"color": "0.45", "linestyle": ":", "linewidth": 1.2}
            axes.axvline(chosen, label=f"chosen: {x} {chosen:g}", **style)
        words = {name: name.replace("_", " ") for name in names} | dict(labels or {})
        _panel(axes, {words[name]: _points(rows, x, name) for name in names})
    if title:
        figure.suptitle(title)
    return figure


def series(
    panels: Mapping[str, Mapping[str, tuple[Sequence[float], Sequence[float]]]],
    *,
    x_label: str,
    y_label: str,
    log: str = "",
) -> Figure:
    """Named curves of y against x, in panels side by side.

    Args:
        panels: the title of each panel to its curves: name -> (x, y), the same names in
            each. Values that are not finite are left out, and on a logarithmic axis
            those not positive.
        x_label: of every panel, with its unit.
        y_label: as x_label.
        log: the logarithmic axes: "", "x", "y" or "xy".

    Raises:
        ValueError: no panels.
    """
    contents.check_some(panels=panels)
    figure = Figure(
        figsize=(2.2 + 4.4 * len(panels), 4.0), dpi=120, layout="constrained"
    )
    for place, (title, curves) in enumerate(panels.items(), start=1):
        axes = figure.add_subplot(1, len(panels), place)
        axes.set(xlabel=x_label, ylabel=y_label, title=title)
        axes.grid(alpha=0.25)
        for i, (name, (x, y)) in enumerate(curves.items()):
            points = np.array([x, y], np.float64)
            finite = np.isfinite(points).all(0)
            for row, axis in zip(points, "xy", strict=True):
                finite &= (row > 0.0) if axis in log else True
            marker = _MARKERS[i % len(_MARKERS)] if finite.sum() <= _FEW else None
            style = {"marker": marker, "markersize": 4.0}
            dashes = "-" if i < 10 else "--"  # the colors repeat after ten
            axes.plot(
                *points[:, finite], dashes, color=f"C{i % 10}", label=name, **style
            )
        scales.logarithmic(axes, x="x" in log, y="y" in log)
        places = np.unique([x for xs, _ in curves.values() for x in xs])
        if "x" not in log and len(places) == 1:
            axes.set_xticks(places)
        elif "x" not in log and np.array_equal(places, np.round(places)):
            axes.locator_params(axis="x", integer=True)  # no ticks between counts
        elif "x" not in log:
            axes.locator_params(axis="x", nbins=6)  # labels of many digits are wide
    handles, labels = figure.axes[0].get_legend_handles_labels()
    figure.legend(
        handles, labels, loc="outside right upper", fontsize="x-small", frameon=False
    )
    return figure


def train_and_test(
    panels: Mapping[
        str, Mapping[str, tuple[Sequence[float], Sequence[float], Sequence[float]]]
    ],
    *,
    x_label: str,
    y_label: str,
) -> Figure:
    """What was measured on the training and test data, in panels side by side.

    Training is dashed and test solid, each name has one color. x is logarithmic, and
    all panels share the vertical axis, which shows where the curves end up: where the
    first quarter of log x would more than triple its range, that part is cut off and
    the first panel says so. Values that are not finite, or at x <= 0, are left out.

    Args:
        panels: the title of each panel to its curves: name -> (x, train, test), the
            same names in each.
        x_label: of every panel, with its unit.
        y_label: as x_label.

    Raises:
        ValueError: no panels.
    """
    contents.check_some(panels=panels)
    figure = Figure(
        figsize=(2.2 + 3.2 * len(panels), 3.8), dpi=120, layout="constrained"
    )
    first, *others = figure.subplots(1, len(panels), sharey=True, squeeze=False)[0]
    series_drawn = []
    for axes, (title, curves) in zip([first, *others], panels.items(), strict=True):
        axes.set(xlabel=x_label, title=title)
        axes.grid(alpha=0.25)
        for i, (name, (x, *measured)) in enumerate(curves.items()):
            styles = zip(("train", "test"), ("--", "-"), measured, strict=True)
            for split, dashes, y in styles:
                points = np.array([x, y], np.float64)
                points = points[:, np.isfinite(points).all(0) & (points[0] > 0.0)]
                style = {"marker": _MARKERS[i % len(_MARKERS)], "markersize": 3.0}
                axes.plot(
                    *points,
                    dashes,
                    color=f"C{i % 10}",
                    label=f"{name}, {split}",
                    **style,
                )
                series_drawn.append(np.stack([np.log(points[0]), points[1]], axis=1))
        scales.logarithmic(axes, x=True)
    first.set_ylabel(y_label)
    series_drawn = [points for points in series_drawn if len(points)]
    limits = _settled_limits(series_drawn) if series_drawn else None
    if limits is not None:
        first.set_ylim(*limits)
        first.set_title("start not shown", fontsize="x-small", loc="right")
    handles, labels = first.get_legend_handles_labels()
    figure.legend(
        handles,
        labels,
        loc="outside right upper",
        fontsize="x-small",
        frameon=False,
        handlelength=3.5,  # so that dashes are seen as such
    )
    return figure


def _points(rows: Sequence[Mapping[str, Any]], x: str, name: str) -> np.ndarray:
    """The finite points of one curve, [n, 2], in the order of the rows."""
    pairs = [(row.get(x), row.get(name)) for row in rows]
    points = np.array([p for p in pairs if None not in p], np.float64).reshape(-1, 2)
    return points[np.isfinite(points).all(1)]


def _panel(axes: Axes, curves: Mapping[str, np.ndarray]) -> None:
    series_drawn = {name: points for name, points in curves.items() if len(points)}
    if not series_drawn:
        axes.text(0.5, 0.5, "no values", transform=axes.transAxes, ha="center")
        return
    for name, points in series_drawn.items():
        marker = "." if len(points) <= _FEW else None
        axes.plot(
            points[:, 0],
            points[:, 1],
            marker=marker,
            linewidth=1.4,
            label=name,
        )
    places = np.unique(
        np.concatenate([points[:, 0] for points in series_drawn.values()])
    )
    if len(places) > 1:
        axes.locator_params(axis="x", integer=True)
    else:
        axes.set_xticks(places)
    values = np.concatenate([points[:, 1] for points in series_drawn.values()])
    if np.array_equal(values, np.round(values)):
        axes.locator_params(axis="y", integer=True, min_n_ticks=1)  # counts
    axes.ticklabel_format(useOffset=False)
    if len(axes.lines) > 1:
        axes.legend(fontsize="small", frameon=False)
    limits = _settled_limits(list(series_drawn.values()))
    if limits is not None:
        axes.set_ylim(*limits)
        axes.set_title("start not shown", fontsize="small", color="0.45", loc="right")


_FEWEST = 3  # places that a curve must have after the start that is cut off


def _settled_limits(curves: Sequence[np.ndarray]) -> tuple[float, float] | None:
    """Limits that show all but the first quarter, or None where those show it too.

    The highest and lowest hundredth of the rest are no reason to widen the limits, and
    changes under a twentieth of the value are no reason to narrow them. Nothing far
    beyond the greatest and least value is shown.
    """
    points = np.concatenate(curves)
    first, last = points[:, 0].min(), points[:, 0].max()
    is_late = points[:, 0] >= first + 0.25 * (last - first)
    if len(np.unique(points[is_late, 0])) < _FEWEST:
        return None
    late = points[is_late, 1]
    low, middle, high = np.percentile(late, [1.0, 50.0, 99.0])
    whole = np.ptp(points[:, 1])
    change = max(high - low, 0.05 * abs(middle))
    span = max(change, 0.005 * whole)
    if whole <= 3.0 * span:
        return None
    margin, beyond = 0.5 * (span - (high - low)) + 0.1 * span, 0.35 * change
    return (
        max(low - margin, points[:, 1].min() - beyond),
        min(high + margin, points[:, 1].max() + beyond),
    )
