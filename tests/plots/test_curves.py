import itertools

import matplotlib
import numpy as np
import pytest

from vae_jax.plots import curves

PANELS = {
    "bound (nats per example)": ["train_bound", "valid_bound"],
    "KL (nats per example)": ["kl"],
    "gradient norm": ["gradient_norm"],
    "examples per second": ["examples_per_second"],
}


def make_rows(num_rows):
    """A run whose bound falls from -500 to about -20."""
    generator = np.random.default_rng(0)
    return [
        {
            "step": 10 * epoch,
            "epoch": epoch,
            "train_bound": -20.0 - 480.0 * np.exp(-epoch) + generator.normal(),
            "kl": 7.0,
        }
        for epoch in range(num_rows)
    ]


def test_every_panel_holds_its_curves_with_labels_and_units():
    rows = make_rows(40)
    for row in rows[::4]:
        row["valid_bound"] = row["train_bound"] - 2.0
    figure = curves.training_curves(rows, panels=PANELS, title="digits")
    assert [axes.get_ylabel() for axes in figure.axes] == list(PANELS)
    assert {axes.get_xlabel() for axes in figure.axes} == {"epoch"}
    assert figure.get_suptitle() == "digits"
    train, valid = figure.axes[0].lines
    np.testing.assert_array_equal(train.get_ydata(), [r["train_bound"] for r in rows])
    np.testing.assert_array_equal(valid.get_xdata(), range(0, 40, 4))
    legend = figure.axes[0].get_legend()
    assert legend is not None
    assert [t.get_text() for t in legend.get_texts()] == ["train bound", "valid bound"]
    labels = {"valid_bound": "the ELBO"}
    figure = curves.training_curves(rows, panels=PANELS, labels=labels)
    legend = figure.axes[0].get_legend()
    assert legend is not None
    assert [t.get_text() for t in legend.get_texts()] == ["train bound", "the ELBO"]


@pytest.mark.parametrize(
    ("num_panels", "grid"), [(1, (1, 1)), (3, (1, 3)), (4, (2, 2)), (5, (2, 3))]
)
def test_panels_leave_few_cells_empty(num_panels, grid):
    panels = {f"panel {i}": ["kl"] for i in range(num_panels)}
    figure = curves.training_curves(make_rows(3), panels=panels)
    place = figure.axes[0].get_subplotspec()
    assert place is not None
    assert place.get_geometry()[:2] == grid


def test_every_panel_marks_the_chosen_epoch():
    panels = {name: PANELS[name] for name in list(PANELS)[:2]}
    figure = curves.training_curves(make_rows(40), panels=panels, chosen=12.0)
    for axes in figure.axes:
        np.testing.assert_array_equal(axes.lines[0].get_xdata(), [12.0, 12.0])
        legend = axes.get_legend()
        assert legend is not None
        assert "chosen: epoch 12" in [t.get_text() for t in legend.get_texts()]


def test_missing_and_non_finite_values_are_left_out():
    rows = make_rows(6)
    rows[1]["kl"], rows[2]["kl"], rows[3]["kl"] = None, float("nan"), float("inf")
    del rows[4]["kl"]
    figure = curves.training_curves(rows, panels=PANELS, x="step")
    np.testing.assert_array_equal(figure.axes[1].lines[0].get_xdata(), [0, 50])
    figure.canvas.draw()


@pytest.mark.parametrize("num_rows", [0, 1, 2])
def test_a_run_that_has_hardly_begun_can_be_drawn(num_rows):
    figure = curves.training_curves(make_rows(num_rows), panels=PANELS)
    figure.canvas.draw()
    assert len(figure.axes[0].lines) == min(num_rows, 1)
    assert figure.axes[2].texts[0].get_text() == "no values"


def test_the_limits_show_where_the_run_ends_up():
    axes = curves.training_curves(make_rows(100), panels=PANELS).axes[0]
    low, high = axes.get_ylim()
    assert -30.0 < low < -20.0 < high < -10.0
    assert axes.get_title(loc="right") == "start not shown"


def test_two_points_are_both_shown():
    rows = [{"epoch": e, "kl": value} for e, value in enumerate([900.0, 7.0])]
    axes = curves.training_curves(rows, panels={"KL": ["kl"]}).axes[0]
    assert axes.get_title(loc="right") == ""
    assert axes.get_ylim()[1] > 900.0


def test_a_flat_end_does_not_narrow_the_limits_to_nothing():
    rows = [{"epoch": e, "kl": 7.0 * (1.0 - np.exp(-e))} for e in range(100)]
    low, high = curves.training_curves(rows, panels={"KL": ["kl"]}).axes[0].get_ylim()
    assert low < 6.9
    assert high > 7.1


def test_a_curve_without_a_steep_start_is_shown_whole():
    rows = [{"epoch": e, "kl": float(e)} for e in range(100)]
    axes = curves.training_curves(rows, panels={"KL": ["kl"]}).axes[0]
    low, high = axes.get_ylim()
    assert low <= 0.0
    assert high >= 99.0
    assert axes.get_title(loc="right") == ""


@pytest.mark.parametrize("counts", [[16.0, 15.0, 16.0], [8.0, 8.0, 8.0]])
def test_counts_have_whole_ticks_at_their_side(counts):
    rows = [{"epoch": e, "units": count} for e, count in enumerate(counts)]
    axes = curves.training_curves(rows, panels={"units": ["units"]}).axes[0]
    ticks = axes.get_yticks()
    np.testing.assert_array_equal(ticks, np.round(ticks))


def test_no_panels_is_an_error():
    with pytest.raises(ValueError, match="panels"):
        curves.training_curves(make_rows(3), panels={})


def test_drawing_leaves_no_global_state():
    before = matplotlib.get_backend()
    curves.training_curves(make_rows(3), panels=PANELS)
    assert matplotlib.get_backend() == before


# series


def test_each_series_is_drawn_on_the_axes_it_asks_for():
    panels = {
        "theta": {"a": ([1, 10], [0.5, 2.0]), "b": ([1, 10, 100], [1.0, -1.0, 3.0])},
        "phi": {"a": ([1, 10], [np.nan, 2.0])},
    }
    figure = curves.series(panels, x_label="K", y_label="SNR", log="xy")
    figure.canvas.draw()
    theta, phi = figure.axes
    assert [theta.get_title(), phi.get_title()] == ["theta", "phi"]
    assert {theta.get_xscale(), theta.get_yscale()} == {"log"}
    np.testing.assert_array_equal(theta.lines[1].get_xdata(), [1, 100])
    np.testing.assert_array_equal(phi.lines[0].get_ydata(), [2.0])
    plain = curves.series(panels, x_label="K", y_label="SNR").axes[0]
    assert plain.get_xscale() == "linear"
    np.testing.assert_array_equal(plain.lines[1].get_ydata(), [1.0, -1.0, 3.0])


@pytest.mark.parametrize(("step", "whole"), [(1.0, True), (0.25, False)])
def test_counts_have_no_ticks_between_them(step, whole):
    x = [10.0, 10.0 + step, 10.0 + 2.0 * step]
    figure = curves.series({"": {"a": (x, x)}}, x_label="iteration", y_label="nats")
    ticks = figure.axes[0].get_xticks()
    assert np.array_equal(ticks, np.round(ticks)) == whole


def test_labels_of_small_seconds_do_not_overlap():
    x = [0.005, 0.0232]
    figure = curves.series({"": {"a" * 20: (x, x)}}, x_label="s", y_label="nats")
    figure.draw_without_rendering()
    low, high = figure.axes[0].get_xlim()
    ticks = [
        t for t in figure.axes[0].xaxis.get_major_ticks() if low < t.get_loc() < high
    ]
    boxes = [tick.label1.get_window_extent() for tick in ticks]
    assert len(boxes) >= 3
    assert all(a.x1 + 3.0 < b.x0 for a, b in itertools.pairwise(boxes))


def test_a_single_place_has_one_tick():
    curve = {"a": ([1], [2.0]), "b": ([1], [3.0])}
    figure = curves.series({"": curve}, x_label="epoch", y_label="nats")
    np.testing.assert_array_equal(figure.axes[0].get_xticks(), [1.0])


def test_series_without_panels_are_refused():
    with pytest.raises(ValueError, match="must hold at least one"):
        curves.series({}, x_label="K", y_label="SNR")


# train_and_test


def test_train_is_dashed_and_test_solid_in_one_color():
    bounds = ([1, 10, 100], [-9.0, -8.0, -7.0], [-9.5, np.nan, -8.0])
    panels = {
        "N_z = 2": {"aevb": bounds, "wake_sleep": bounds},
        "N_z = 5": {"aevb": bounds, "wake_sleep": bounds},
    }
    figure = curves.train_and_test(panels, x_label="samples", y_label="nats")
    figure.canvas.draw()
    first, second = figure.axes
    assert [first.get_title(), second.get_title()] == list(panels)
    assert {axes.get_xscale() for axes in figure.axes} == {"log"}
    assert first.get_ylim() == second.get_ylim()
    train, test, other, _ = first.lines
    assert (train.get_linestyle(), test.get_linestyle()) == ("--", "-")
    assert train.get_color() == test.get_color() != other.get_color()
    np.testing.assert_array_equal(test.get_xdata(), [1, 100])
    np.testing.assert_array_equal(train.get_ydata(), [-9.0, -8.0, -7.0])
    (legend,) = figure.legends
    assert [text.get_text() for text in legend.get_texts()][:2] == [
        *("aevb, train", "aevb, test"),
    ]


def test_a_steep_start_is_cut_off_and_said():
    x = [10.0**i for i in range(5)]
    bounds = (x, [-1e3, -14.0, -12.0, -11.0, -10.0], [-1e3, -15.0, -13.0, -12.0, -11.0])
    figure = curves.train_and_test({"": {"a": bounds}}, x_label="x", y_label="y")
    assert -25.0 < figure.axes[0].get_ylim()[0] < -15.0
    assert figure.axes[0].get_title(loc="right") == "start not shown"


def test_a_start_far_below_leaves_no_room_above_the_end():
    x = [10.0**i for i in range(7)]
    curve = [-4e5, -100.0, 500.0, 800.0, 1000.0, 1200.0, 1300.0]
    panels = {"": {"a": (x, curve, curve)}}
    figure = curves.train_and_test(panels, x_label="x", y_label="y")
    low, high = figure.axes[0].get_ylim()
    assert -2500.0 < low < 500.0
    assert 1300.0 < high < 1700.0


def test_train_and_test_without_panels_or_values():
    with pytest.raises(ValueError, match="must hold at least one"):
        curves.train_and_test({}, x_label="x", y_label="y")
    empty = ([1.0], [np.nan], [np.inf])
    curves.train_and_test({"": {"a": empty}}, x_label="x", y_label="y").canvas.draw()


def test_markers_of_many_points_do_not_hide_other_curves():
    few, many = ([*map(float, range(number))] for number in (10, 300))
    figure = curves.series(
        {"": {"a": (few, few), "b": (many, many)}}, x_label="x", y_label="y"
    )
    assert [line.get_marker() for line in figure.axes[0].lines] == ["o", "None"]
