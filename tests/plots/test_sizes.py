import numpy as np
import pytest

from vae_jax.plots import sizes


def test_each_way_has_a_dot_at_its_size_from_the_top_down():
    figure = sizes.dots(
        {"the file": 0.2, "a part": 0.19, "gzip": 0.35},
        marked=("the file",),
        x_label="b",
    )
    figure.canvas.draw()
    (axes,) = figure.axes
    places = np.concatenate([line.get_xydata() for line in axes.lines])
    np.testing.assert_array_equal(places, [[0.2, 0], [0.19, 1], [0.35, 2]])
    low, high = axes.get_ylim()
    assert low > high  # the first lies on top
    said = [text.get_text() for text in axes.get_yticklabels()]
    assert said == ["the file", "a part", "gzip"]
    assert [text.get_text() for text in axes.texts] == ["0.2", "0.19", "0.35"]
    first, second, third = (line.get_color() for line in axes.lines)
    assert first != second == third
    assert axes.get_xscale() == "log"


@pytest.mark.parametrize("greatest", [9.0, 600.0])
def test_the_scale_has_plain_numbers(greatest):
    figure = sizes.dots({"a": 3.5, "b": greatest}, x_label="b")
    figure.canvas.draw()
    (axes,) = figure.axes
    said = [text.get_text() for text in axes.get_xticklabels(which="both")]
    assert len([text for text in said if float(text or 0.0)]) >= 2


@pytest.mark.parametrize("wrong", [{}, {"a": 0.0}, {"a": 1.0, "b": float("nan")}])
def test_what_is_no_size_is_refused(wrong):
    with pytest.raises(ValueError, match="sizes must be positive"):
        sizes.dots(wrong, x_label="b")
