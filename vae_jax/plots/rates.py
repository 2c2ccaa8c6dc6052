"""Rate-distortion curves of several models."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from vae_jax.plots import contents

_MARKERS = "os^vDP"


def curves(
    models: Mapping[str, tuple[np.ndarray, np.ndarray]],
    *,
    at_one: Mapping[str, tuple[float, float]],
    encoders: Mapping[str, tuple[float, float]],
    x_label: str,
) -> Figure:
    """Rate against distortion, a curve for each model, and single points beside it.

    Args:
        models: name -> distortions and rates [B].
        at_one: distortion and rate at beta = 1 of the models that have one: a star.
        encoders: distortion and rate of the encoders of models: a cross.
        x_label: the distortion, with its unit.

    Raises:
        ValueError: no models.
    """
    contents.check_some(models=models)
    figure = Figure(figsize=(7.4, 4.4), dpi=120, layout="constrained")
    axes = figure.add_subplot()
    point: dict[str, Any] = {"linestyle": "", "markersize": 11.0, "zorder": 3.0}
    for i, (name, (distortion, rate)) in enumerate(models.items()):
        color, marker = f"C{i % 10}", _MARKERS[i % len(_MARKERS)]
        style = {"marker": marker, "markersize": 3.5, "linewidth": 1.4}
        axes.plot(distortion, rate, color=color, label=name, **style)
        if name in at_one:
            axes.plot(*at_one[name], marker="*", color=color, **point)
        if name in encoders:
            axes.plot(*encoders[name], marker="x", color=color, **point)
    if at_one:
        axes.plot([], [], marker="*", color="0.4", label="beta = 1", **point)
    if encoders:
        axes.plot([], [], marker="x", color="0.4", label="encoder", **point)
    axes.set(xlabel=x_label, ylabel="rate (nats)")
    axes.grid(alpha=0.25)
    axes.legend(fontsize="small", frameon=False)
    return figure
