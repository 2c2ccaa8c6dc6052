"""Holes of tables: what is removed, what may be seen of it, and what is scored."""

import json

import numpy as np
import pytest

from experiments import imputation


def test_cells_are_removed_by_number_and_units_are_of_those_that_are_left():
    x = np.random.default_rng(0).normal(3.0, 2.0, size=(60, 4))
    holes = imputation.removed(x, fraction=0.25, seed=1)
    assert holes.hidden.sum() == np.isnan(holes.partial).sum() == 60
    np.testing.assert_allclose(np.nanmean(holes.partial, 0), 0.0, atol=1e-12)
    np.testing.assert_allclose(np.nanstd(holes.partial, 0), 1.0, rtol=1e-12)
    other = imputation.removed(np.where(holes.hidden, 1e6, x), fraction=0.25, seed=1)
    np.testing.assert_array_equal(other.partial, holes.partial)
    again = imputation.removed(x, fraction=0.25, seed=2)
    assert (again.hidden != holes.hidden).any()


def test_removed_cells_alone_are_scored():
    x = np.zeros((2, 2))
    holes = imputation.Holes(x, np.array([[True, False], [True, False]]))
    value, inside = (
        np.array([[3.0, 9.0], [4.0, 9.0]]),
        np.array([[1.0, -9], [-1.0, -9]]),
    )
    filled = imputation.Filled(value, (-inside, 2.0 + 0.0 * inside))
    score = imputation.score("a", 0.5, "b", [holes], [filled])
    np.testing.assert_allclose(score.error, [np.sqrt(12.5)])
    assert score.coverage == [0.5]
    assert (
        imputation.score("a", 0.5, "b", [holes], [filled._replace(ends=None)])[4]
        is None
    )


@pytest.mark.slow
@pytest.mark.uses_optax
def test_a_table_of_one_factor_is_filled_nearly_as_well_as_its_law_allows():
    """Columns z + e, of the known E[x_mis | x_obs]."""
    rng = np.random.default_rng(0)
    many = []
    for seed in (0, 1):
        x = rng.normal(size=(400, 1)) + 0.5 * rng.normal(size=(400, 5))
        many.append(imputation.removed(x, fraction=0.3, seed=seed))
    exact = []
    for holes in many:
        seen = ~holes.hidden
        num_seen = seen.sum(1, keepdims=True)
        total = np.where(seen, holes.x, 0.0).sum(1, keepdims=True)
        mean = np.broadcast_to(total / (num_seen + 0.25), holes.x.shape)
        exact.append(imputation.Filled(mean, None))
    config = imputation.Config(num_latents=2, hidden=(32,), num_epochs=100)
    parts = "factor", 0.3
    vae = imputation.score(*parts, "VAE", many, imputation.by_vae(config, many))
    best = imputation.score(*parts, "exact", many, exact)
    usual = [imputation.by_mean(holes, 0) for holes in many]
    worst = imputation.score(*parts, "mean", many, usual)
    np.testing.assert_allclose(vae.error, best.error, rtol=0.03)
    assert np.mean(vae.error) < 0.7 * np.mean(worst.error)
    assert vae.coverage is not None
    assert abs(np.mean(vae.coverage) - 0.9) < 0.05


@pytest.mark.slow
@pytest.mark.uses_optax
def test_every_method_fills_the_same_cells_of_a_table(tmp_path, capsys):
    config = imputation.Config(
        workdir=str(tmp_path),
        tables=("iris",),
        fractions=(0.2,),
        num_seeds=2,
        num_epochs=5,
        importance_samples=50,
    )
    assert imputation.main(config) == 0
    said = capsys.readouterr().out
    assert said.endswith("imputation.json, .txt\n")
    rows = json.loads((tmp_path / "imputation.json").read_text())["scores"]
    assert [row["method"] for row in rows] == [*imputation.METHODS, "VAE"]
    for row in rows:
        assert len(row["error"]) == 2
        assert f"{np.mean(row['error']):.3f}" in said
    assert rows[1]["coverage"] is None
