from typing import Any

import numpy as np

from vae_jax.plots import estimates

CURVES = {
    "prior": ([1.0, 10.0, 100.0], [-90.0, -12.0, -10.5], [5.0, 1.0, 0.2]),
    "annealed": ([10.0, 100.0], [-10.6, -10.1], [0.2, 0.1]),
}


def test_each_panel_has_its_curves_and_the_exact_value_where_there_is_one():
    figure = estimates.estimates(
        {"known": CURVES, "unknown": {"prior": CURVES["prior"]}},
        exact={"known": -10.0},
        x_label="samples",
        y_label="nats",
    )
    known, unknown = figure.axes
    assert [axes.get_title() for axes in figure.axes] == ["known", "unknown"]
    assert len(known.containers) == 2
    line: Any = known.containers[0][0]
    np.testing.assert_array_equal(line.get_ydata(), CURVES["prior"][1])
    lines = [line for line in known.lines if line.get_label() == "exact"]
    np.testing.assert_array_equal(lines[0].get_ydata(), -10.0)
    assert not [line for line in unknown.lines if line.get_label() == "exact"]
    assert known.get_xscale() == "log"
    figure.canvas.draw()


def test_an_estimate_far_below_does_not_hide_the_others():
    figure = estimates.estimates(
        {"a": CURVES}, exact={}, x_label="samples", y_label="nats"
    )
    low, high = figure.axes[0].get_ylim()
    assert low > -20.0
    assert high > -10.1


def test_one_method_has_one_color_in_all_panels():
    figure = estimates.estimates(
        {"a": CURVES, "b": {"annealed": CURVES["annealed"]}},
        exact={},
        x_label="samples",
        y_label="nats",
    )
    first, second = figure.axes
    assert first.containers[1][0].get_color() == second.containers[0][0].get_color()
