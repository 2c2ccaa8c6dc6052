from typing import Any

import numpy as np
import pytest
from matplotlib.colors import to_rgb

from vae_jax.plots import latents

CODES = np.random.default_rng(0).normal(size=(40, 2))
LABELS = np.arange(40) % 4
NAMES: Any = {"x_label": "z_1", "y_label": "z_2"}


def test_points_have_the_color_that_the_legend_gives_their_label():
    figure = latents.scatter(CODES, LABELS * 3, **NAMES, title="digits")
    (axes,) = figure.axes
    (points,) = axes.collections
    samples = np.asarray(points.get_offsets())
    faces = np.asarray(points.get_facecolor())[:, :3]  # pyright: ignore
    legend = axes.get_legend()
    assert legend is not None
    assert [text.get_text() for text in legend.get_texts()] == ["0", "3", "6", "9"]
    of_label = [to_rgb(line.get_color()) for line in axes.lines]
    for code, label in zip(CODES, LABELS, strict=True):
        (at,) = np.flatnonzero((samples == code).all(1))
        np.testing.assert_allclose(faces[at], of_label[label])
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("z_1", "z_2")
    assert axes.get_title() == "digits"
    assert axes.get_aspect() == 1.0
    figure.canvas.draw()


def test_points_at_one_place_lie_side_by_side_around_it():
    codes = np.repeat([[0.0, 0.0], [0.0, 1.0], [1.0, 0.0]], (30, 9, 1), axis=0)
    (axes,) = latents.scatter(codes, np.arange(40) % 4, **NAMES, title="codes").axes
    points = np.asarray(axes.collections[0].get_offsets())
    apart = np.linalg.norm(points[:, None] - points[None], axis=-1)
    assert apart[~np.eye(40, dtype=bool)].min() > 0.005
    assert (
        np.linalg.norm(points[:, None] - codes[None], axis=-1).min(axis=1).max() < 0.1
    )
    assert (points == [1.0, 0.0]).all(1).any()
    assert axes.get_title() == "codes; those at one place lie around it"


def test_many_labels_are_a_color_bar_and_none_one_color():
    figure = latents.scatter(CODES, np.arange(40), **NAMES)
    assert [axes.get_ylabel() for axes in figure.axes] == ["z_2", "label"]
    (axes,) = latents.scatter(CODES, None, **NAMES).axes
    assert axes.get_legend() is None
    colors = np.asarray(axes.collections[0].get_facecolor())  # pyright: ignore
    assert len(np.unique(colors, axis=0)) == 1


@pytest.mark.parametrize("labels", [None, LABELS, np.arange(40)])
def test_a_histogram_holds_every_row(labels):
    (axes,) = latents.histogram(CODES[:, 0], labels, x_label="z_1").axes
    shown = 4 if labels is LABELS else 1
    assert len(axes.containers) == shown
    heights = sum(bar.get_height() for bars in axes.containers for bar in bars)
    assert heights == 40  # a stacked bar's height is its own
    assert (axes.get_legend() is not None) == (labels is LABELS)


@pytest.mark.slow
def test_equal_codes_are_drawn():
    latents.scatter(np.zeros((5, 2)), np.arange(5), **NAMES).canvas.draw()
    latents.histogram(np.zeros(5), np.arange(5), x_label="z").canvas.draw()


def test_what_cannot_be_drawn_is_refused():
    for codes in (CODES[:, :1], CODES[:0], CODES[0]):
        with pytest.raises(ValueError, match=r"codes must be \[N, 2\]"):
            latents.scatter(codes, None, **NAMES)
    with pytest.raises(ValueError, match=r"codes must be \[N\]"):
        latents.histogram(CODES, None, x_label="z")
    with pytest.raises(ValueError, match=r"each of 40 codes, got shape \(3,\)"):
        latents.scatter(CODES, LABELS[:3], **NAMES)
