import numpy as np
import pytest
from matplotlib.collections import LineCollection

from vae_jax.plots import completions, images

ORANGE = (0.90, 0.45, 0.10)


def _images(*shape):
    return np.random.default_rng(0).random(shape)


def _pictures(figure):
    return [np.asarray(axes.images[0].get_array()) for axes in figure.axes]


def test_hidden_pixels_are_orange_and_the_others_gray_as_they_were():
    original, hidden = _images(2, 4, 3), np.zeros((2, 4, 3), bool)
    hidden[1, :2] = True
    first, _ = _pictures(
        completions.table(original, hidden, {"a": _images(2, 1, 4, 3)})
    )
    assert first.shape == (9, 7, 3)  # a pixel between rows and columns
    np.testing.assert_allclose(first[:4, :3], np.repeat(original[0][..., None], 3, -1))
    np.testing.assert_allclose(first[:4, 4:7], first[:4, :3])
    np.testing.assert_allclose(first[5:7, 4:7], np.broadcast_to(ORANGE, (2, 3, 3)))
    np.testing.assert_allclose(first[7:, 4:7], first[7:, :3])


def test_each_group_has_a_title_and_its_images_in_order():
    groups = {"one": _images(2, 3, 4, 4), "two": _images(2, 1, 4, 4)}
    figure = completions.table(_images(2, 4, 4), np.zeros((2, 4, 4), bool), groups)
    titles = [axes.get_title() for axes in figure.axes]
    assert titles == ["original, observed", "one", "two"]
    _, one, two = _pictures(figure)
    assert one.shape == (9, 14, 3)
    np.testing.assert_allclose(one[5:, 5:9, 0], groups["one"][1, 1])
    np.testing.assert_allclose(two[:4, :, 1], groups["two"][0, 0])


def test_colored_images_are_drawn_in_color_and_what_is_no_number_as_separators():
    original = _images(1, 2, 2, 3)
    original[0, 0, 0] = np.nan
    hidden = np.zeros(original.shape, bool)
    hidden[0, 1, 1, 2] = True  # of one channel
    (first,) = _pictures(completions.table(original, hidden, {}))
    np.testing.assert_allclose(first[0, 0], images.SEPARATOR)
    np.testing.assert_allclose(first[:, 2], np.tile(images.SEPARATOR, (2, 1)))
    np.testing.assert_allclose(first[0, 1], original[0, 0, 1])
    np.testing.assert_allclose(first[1, 4], ORANGE)


@pytest.mark.parametrize(
    ("original", "hidden", "groups", "message"),
    [
        (_images(2, 4), np.zeros((2, 4), bool), {}, "originals must be"),
        (_images(0, 4, 4), np.zeros((0, 4, 4), bool), {}, "nothing to draw"),
        (_images(2, 4, 4), np.zeros((2, 4, 3), bool), {}, "differ in shape"),
        (
            _images(2, 4, 4),
            np.zeros((2, 4, 4), bool),
            {"a": _images(3, 1, 4, 4)},
            "a: completions of 3 images beside 2",
        ),
    ],
)
def test_what_cannot_be_drawn_is_refused(original, hidden, groups, message):
    with pytest.raises(ValueError, match=message):
        completions.table(original, hidden, groups)


def test_limits_are_black_and_white_and_a_line_says_them():
    original, hidden = _images(2, 4, 4), np.zeros((2, 4, 4), bool)
    figure = completions.table(8.0 * original - 4.0, hidden, {}, limits=(-4.0, 4.0))
    np.testing.assert_allclose(_pictures(figure)[0][:4, :4, 0], original[0])
    assert [text.get_text() for text in figure.texts] == ["black -4, white 4"]
    cut = completions.table(original, hidden, {"a": 2.0 * original[:, None]})
    assert [text.get_text() for text in cut.texts] == ["black 0, white 1, cut beyond"]
    cut.canvas.draw()
    note, images = cut.texts[0].get_window_extent(), cut.axes[0].get_window_extent()
    assert 0.0 <= note.y0 < note.y1 < images.y0
    assert not completions.table(original, hidden, {}).texts


def test_intervals_stand_above_what_was_hidden_and_those_that_miss_it_are_red():
    exact, point = np.array([1.0, 2.0, 3.0]), np.array([1.5, 2.0, 2.5])
    cells = completions.Cells(exact, point, point - 0.2, point + 0.7)
    figure = completions.intervals({f"column {i}": cells for i in range(13)})
    figure.canvas.draw()
    assert len(figure.axes) == 12
    axes = figure.axes[0]
    assert axes.get_title() == "column 0"
    inside, missed, diagonal = (line.get_xydata() for line in axes.lines)
    np.testing.assert_array_equal(inside, [[2.0, 2.0], [3.0, 2.5]])
    np.testing.assert_array_equal(missed, [[1.0, 1.5]])
    np.testing.assert_array_equal(diagonal, [[1.0, 1.0], [3.0, 3.0]])
    parts = [part for part in axes.collections if isinstance(part, LineCollection)]
    bars = [bar for part in parts for bar in part.get_segments()]
    np.testing.assert_allclose(bars[0], [[2.0, 1.8], [2.0, 2.7]])
    with pytest.raises(ValueError, match="at least one column of hidden cells"):
        completions.intervals({})
