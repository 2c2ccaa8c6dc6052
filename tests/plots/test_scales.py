import itertools

import pytest
from matplotlib.figure import Figure

from vae_jax.plots import scales


def labels(axis):
    """Texts of the ticks in view and the boxes they take, in order."""
    low, high = axis.get_view_interval()
    axis.figure.draw_without_rendering()
    ticks = [
        tick
        for tick in axis.get_major_ticks() + axis.get_minor_ticks()
        if low <= tick.get_loc() <= high and tick.label1.get_text()
    ]
    ticks.sort(key=lambda tick: tick.get_loc())
    results = [tick.label1 for tick in ticks]
    return [t.get_text() for t in results], [t.get_window_extent() for t in results]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("low", "high"),
    [
        *((30, 600), (60, 600), (1e3, 4e3), (600, 900), (1, 8), (1, 1e7)),
        *((2e5, 9e6), (1.2e3, 99e3), (0.0029, 0.009)),
    ],
)
def test_labels_of_a_logarithmic_axis_do_not_overlap(low, high):
    figure = Figure(figsize=(3.4, 3.0), dpi=120, layout="constrained")
    axes = figure.add_subplot()
    axes.plot([low, high], [low, high])
    scales.logarithmic(axes, x=True, y=True)
    assert {axes.get_xscale(), axes.get_yscale()} == {"log"}
    texts, boxes = labels(axes.xaxis)
    assert len(texts) >= 2
    for left, right in itertools.pairwise(boxes):
        assert left.x1 < right.x0, texts
    _, boxes = labels(axes.yaxis)
    for below, above in itertools.pairwise(boxes):
        assert below.y1 < above.y0


def test_only_the_axis_that_is_asked_for_is_logarithmic():
    axes = Figure().add_subplot()
    axes.plot([1800.0, 22e3], [1.0, 2.0])
    scales.logarithmic(axes, x=True)
    assert (axes.get_xscale(), axes.get_yscale()) == ("log", "linear")
    texts, _ = labels(axes.xaxis)
    assert texts == ["2000", "5000", "10k", "20k"]


def test_axes_without_data_can_be_drawn():
    figure = Figure()
    scales.logarithmic(figure.add_subplot(), x=True, y=True)
    figure.draw_without_rendering()
