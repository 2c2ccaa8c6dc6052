"""Logarithmic axes whose labels can be read."""

import numpy as np
from matplotlib import ticker
from matplotlib.axes import Axes

SUBS = (1.0, 2.0, 5.0)


def logarithmic(axes: Axes, *, x: bool = False, y: bool = False) -> None:
    """Makes axes logarithmic on which the data are drawn.

    Over two decades or more powers of ten have labels; over fewer 1, 2 and 5 times
    those, in full or as 20k or 2M, and round numbers where fewer than two of these are
    in view. Labels between these would overlap.
    """
    if x:
        axes.set_xscale("log")
    if y:
        axes.set_yscale("log")
    for axis in [axes.xaxis] * x + [axes.yaxis] * y:
        low, high = axis.get_view_interval()
        if high < 100.0 * low:
            powers = 10.0 ** np.arange(np.floor(np.log10(low)), np.log10(high) + 1.0)
            marks = np.outer(powers, SUBS)
            num_in_view = ((low <= marks) & (marks <= high)).sum()
            axis.set_major_locator(
                ticker.LogLocator(subs=SUBS)
                if num_in_view >= 2
                else ticker.MaxNLocator(4, steps=[1, 2, 5, 10])
            )
            axis.set_major_formatter(lambda value, place: _label(value))
        axis.set_minor_formatter(ticker.NullFormatter())


def _label(value: float) -> str:
    if value < 1e4:
        return f"{value:g}"
    return ticker.EngFormatter(sep="").format_eng(value)
