import numpy as np
import pytest

from vae_jax.plots import rates


def test_each_model_has_a_curve_and_its_points_in_its_color():
    distortion, rate = np.array([9.0, 4.0, 2.0]), np.array([0.5, 3.0, 8.0])
    figure = rates.curves(
        {"a": (distortion, rate), "b": (distortion + 1.0, rate)},
        at_one={"a": (4.0, 3.0)},
        encoders={"a": (4.5, 3.5), "b": (5.5, 3.5)},
        x_label="distortion (nats)",
    )
    figure.canvas.draw()
    (axes,) = figure.axes
    first, star, cross, second, other_cross, *legend = axes.lines
    np.testing.assert_array_equal(first.get_xdata(), distortion)
    np.testing.assert_array_equal(second.get_ydata(), rate)
    assert [line.get_marker() for line in (star, cross, other_cross)] == ["*", "x", "x"]
    np.testing.assert_array_equal(cross.get_xydata(), [[4.5, 3.5]])
    assert first.get_color() == star.get_color() == cross.get_color()
    assert second.get_color() == other_cross.get_color() != first.get_color()
    named = axes.get_legend()
    assert named is not None
    said = [text.get_text() for text in named.get_texts()]
    assert said == ["a", "b", "beta = 1", "encoder"]
    assert len(legend) == 2


def test_no_models_are_refused():
    with pytest.raises(ValueError, match="models must hold at least one"):
        rates.curves({}, at_one={}, encoders={}, x_label="d")
