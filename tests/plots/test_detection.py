import numpy as np
import pytest

from vae_jax.plots import detection


def test_curves_are_drawn_above_the_diagonal_of_chance():
    first, second = np.array([0.0, 0.1, 1.0]), np.array([0.0, 0.8, 1.0])
    figure = detection.roc_curves({"elbo": (first, second), "kl": (second, first)})
    figure.canvas.draw()
    chance, elbo, kl = figure.axes[0].lines
    np.testing.assert_array_equal(chance.get_xdata(), chance.get_ydata())
    np.testing.assert_array_equal(elbo.get_xydata(), np.stack([first, second], axis=1))
    np.testing.assert_array_equal(kl.get_xydata(), np.stack([second, first], axis=1))
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["elbo", "kl"]


def test_histograms_are_of_each_kind_and_hold_what_lies_beyond():
    rows = np.arange(1000.0)
    kinds = {"test": rows, "input": np.append(rows + 500.0, [np.inf, 1e9])}
    same = {"test": np.ones(3), "input": np.ones(2)}
    figure = detection.histograms({"elbo": kinds, "kl": same}, thresholds={"elbo": 900})
    figure.canvas.draw()
    first, second = figure.axes
    assert (first.get_title(), second.get_title()) == ("elbo", "kl")
    assert first.get_xlim()[1] < 2000.0
    for axes in figure.axes:
        for bars in axes.containers:
            area = sum(bar.get_height() * bar.get_width() for bar in bars)
            np.testing.assert_allclose(area, 1.0)
    (line,) = first.lines
    np.testing.assert_array_equal(line.get_xdata(), [900.0, 900.0])
    assert not second.lines


def test_a_threshold_beyond_the_bins_is_in_its_place_or_told_with_an_arrow():
    kinds = {"test": np.linspace(0.0, 1.0, 1001)}
    thresholds = {"near": 1.8, "below": -0.7, "far": 40.0, "under": -40.0}
    panels = dict.fromkeys(thresholds, kinds)
    figure = detection.histograms(panels, thresholds=thresholds)
    figure.canvas.draw()
    near, below, far, under = figure.axes
    for axes, threshold in ((near, 1.8), (below, -0.7)):
        (line,) = axes.lines
        np.testing.assert_array_equal(line.get_xdata(), [threshold] * 2)
        boxes = [
            bar.get_path().get_extents(bar.get_transform()) for bar in axes.patches
        ]
        (at,) = axes.transData.transform([(threshold, 0.0)])[:, 0]
        assert min(box.x0 for box in boxes) < at < max(box.x1 for box in boxes)
        assert not axes.texts
    for axes, said in ((far, "threshold 40 →"), (under, "← threshold -40")):
        assert not axes.lines
        assert [text.get_text() for text in axes.texts] == [said]
        low, high = axes.get_xlim()
        assert high - low < 2.0


def test_nothing_to_draw_is_refused():
    with pytest.raises(ValueError, match="curves must hold"):
        detection.roc_curves({})
    with pytest.raises(ValueError, match="panels must hold"):
        detection.histograms({}, thresholds={})
