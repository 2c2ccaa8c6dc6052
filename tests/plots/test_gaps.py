import matplotlib
import numpy as np
import pytest

from vae_jax.plots import gaps

X = np.array([0, 10, 100, 1000])
LOG_P = np.array([-5.0, -4.0, -3.5, -3.0])
GAP = np.array([3.0, 1.0, 0.4, 0.3])


def test_a_sandwich_shades_the_gap_and_draws_it_below():
    figure = gaps.sandwich(
        {"a": (X, LOG_P, LOG_P - GAP, GAP), "b": (X, LOG_P, LOG_P - GAP, 2.0 * GAP)},
        x_label="steps",
        y_label="nats",
    )
    figure.canvas.draw()
    upper_a, upper_b, lower_a, _ = figure.axes
    assert upper_a.get_title() == "a"
    log_p, bound, together = (line.get_ydata() for line in upper_a.lines)
    np.testing.assert_array_equal(log_p, LOG_P)
    np.testing.assert_array_equal(bound, LOG_P - GAP)
    np.testing.assert_allclose(np.asarray(together, float), LOG_P)
    assert len(upper_a.collections) == 1
    off = np.asarray(upper_b.lines[2].get_ydata(), float)
    np.testing.assert_allclose(off, LOG_P + GAP)
    np.testing.assert_array_equal(lower_a.lines[0].get_ydata(), GAP)
    assert lower_a.get_yscale() == "log"
    assert {"0.5", "1", "2"} <= {t.get_text() for t in lower_a.get_yticklabels()}
    assert lower_a.get_xlabel() == "steps"


def test_a_start_far_below_is_cut_off_and_said_so():
    bound = LOG_P - GAP
    bound[0] = -1000.0
    figure = gaps.sandwich({"a": (X, LOG_P, bound, GAP)}, x_label="x", y_label="y")
    axes = figure.axes[0]
    assert axes.get_title(loc="right") == "start not shown"
    low, high = axes.get_ylim()
    assert -20.0 < low < bound[1:].min()
    assert high > LOG_P.max()


def test_seeds_become_a_mean_and_a_band_of_one_color():
    y = np.array([[1.0, 2.0, 3.0, 4.0], [3.0, 2.0, 5.0, 8.0]])
    figure = gaps.seeds(
        {"one": {"k = 1": (X, y), "k = 5": (X, 2.0 * y)}, "two": {"k = 5": (X, y)}},
        x_label="steps",
        y_label="nats",
        log=("two",),
    )
    figure.canvas.draw()
    one, two = figure.axes
    np.testing.assert_array_equal(one.lines[0].get_ydata(), [2.0, 2.0, 4.0, 6.0])
    assert one.lines[1].get_color() == two.lines[0].get_color() == "C1"
    assert (one.get_yscale(), two.get_yscale()) == ("linear", "log")
    assert not any("times" in t.get_text() for t in two.get_yticklabels(which="both"))
    low = one.collections[0].get_paths()[0].vertices
    assert {1.0, 3.0, 8.0} <= set(np.asarray(low)[:, 1])
    texts = [text.get_text() for text in figure.legends[0].get_texts()]
    assert texts == ["k = 1", "k = 5"]


def test_an_optimum_is_marked_and_named():
    x = np.linspace(0.0, 1.0, 5)
    curve = x, -((x - 0.5) ** 2), 0.5
    figure = gaps.optima({"log p": curve, "bound": curve}, x_label="s", y_label="nats")
    figure.canvas.draw()
    legend = figure.axes[0].get_legend()
    assert legend is not None
    texts = [text.get_text() for text in legend.get_texts()]
    assert texts == ["log p, greatest at 0.500", "bound, greatest at 0.500"]
    assert len(figure.axes[0].lines) == 4


def test_figures_do_not_touch_the_global_state_of_matplotlib():
    before = dict(matplotlib.rcParams)
    gaps.optima({"a": (X, X, 10.0)}, x_label="x", y_label="y")
    assert dict(matplotlib.rcParams) == before


def test_what_cannot_be_drawn_is_refused():
    for draw in (gaps.sandwich, gaps.seeds, gaps.optima):
        with pytest.raises(ValueError, match="must hold at least one"):
            draw({}, x_label="x", y_label="y")
    with pytest.raises(ValueError, match=r"log names no panel.*b"):
        gaps.seeds({"a": {"k": (X, X[None])}}, x_label="x", y_label="y", log=("b",))


def test_stacked_bars_lie_end_to_end_and_show_their_sum():
    bars = {"a": (1.0, 2.0), "b": (0.5, 0.25)}
    figure = gaps.stacked(bars, parts=("first", "second"), x_label="nats")
    figure.canvas.draw()
    axes = figure.axes[0]
    first, second = axes.containers
    assert [bar.get_width() for bar in first] == [1.0, 0.5]
    assert [bar.get_x() for bar in second] == [1.0, 0.5]
    assert [text.get_text().strip() for text in axes.texts] == ["3.00", "0.75"]
    assert axes.get_xlabel() == "nats"
    with pytest.raises(ValueError, match="needs 1 parts"):
        gaps.stacked(bars, parts=("first",), x_label="nats")
