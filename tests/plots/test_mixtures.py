from typing import Any

import numpy as np
import pytest

from vae_jax.plots import mixtures

X = np.random.default_rng(0).normal(size=(30, 2))
SHARES = np.eye(3)[np.arange(30) % 3]
MEANS = np.array([[0.0, 0.0], [1.0, 1.0], [-1.0, 0.5]])
COVARIANCES = np.tile(np.diag([4.0, 0.25]), (3, 1, 1))


def test_every_frame_shows_points_means_and_two_sigma_ellipses():
    frames = {
        "start": (SHARES, MEANS, COVARIANCES),
        "end": (SHARES, MEANS, COVARIANCES),
    }
    figure = mixtures.responsibilities(X, frames)
    assert [axes.get_title() for axes in figure.axes] == list(frames)
    for axes in figure.axes:
        (points,) = axes.collections
        np.testing.assert_array_equal(points.get_offsets(), X)
        ellipses = [np.asarray(line.get_xydata()) for line in axes.lines]
        ellipses = [points for points in ellipses if len(points) > 1]
        for ellipse, mean in zip(ellipses, MEANS, strict=True):
            reach = np.abs(ellipse - mean).max(0)
            np.testing.assert_allclose(reach, [4.0, 1.0], rtol=2e-3)
    figure.canvas.draw()


def test_an_undecided_point_has_the_mean_of_the_colors():
    frames = {"a": (np.vstack([SHARES[:29], np.full(3, 1 / 3)]), MEANS, COVARIANCES)}
    (points,) = mixtures.responsibilities(X, frames).axes[0].collections
    samples: Any = points.get_facecolor()
    colors = np.asarray(samples)
    np.testing.assert_allclose(colors[29], colors[:3].mean(0), rtol=1e-6)
    assert len(np.unique(colors[:3], axis=0)) == 3


def test_densities_share_one_scale_and_put_rows_along_the_second_feature():
    grid = np.zeros((4, 5))
    grid[3, 0] = 1.0  # the upper left corner
    figure = mixtures.densities(X, {"a": grid, "b": 0 * grid}, extent=(0, 5, 0, 4))
    first, second = (axes.images[0] for axes in figure.axes[:2])
    assert first.get_clim() == second.get_clim()
    assert first.origin == "lower"
    assert tuple(first.get_extent()) == (0, 5, 0, 4)
    figure.canvas.draw()


@pytest.mark.parametrize("x", [X[0], X[:, :1]])
def test_points_that_are_not_of_the_plane_are_refused(x):
    with pytest.raises(ValueError, match=r"points must be \[N, 2\]"):
        mixtures.densities(x, {"a": np.zeros((2, 2))}, extent=(0, 1, 0, 1))


def test_a_figure_without_panels_is_refused():
    with pytest.raises(ValueError, match="must hold at least one"):
        mixtures.responsibilities(X, {})
    with pytest.raises(ValueError, match="must hold at least one"):
        mixtures.densities(X, {}, extent=(0, 1, 0, 1))
