"""The scripts about EM, run in process with tiny configurations."""

import dataclasses
import json
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.benchmark import em as benchmark
from experiments.command import cli
from experiments.em import command as em
from vae_jax.types import Params

pytestmark = pytest.mark.uses_optax


def read(path):
    return json.loads(path.read_text())


@pytest.mark.parametrize(
    "changes",
    [
        {"num_rows": 60, "num_steps": 4, "max_components": 2, "decoder_steps": 2},
        {
            "dataset": "digits",
            "num_features": 3,
            "covariance": "spherical",
            "num_steps": 3,
            "max_components": 0,
            "decoder_steps": 0,
        },
    ],
)
@pytest.mark.slow
def test_em_compares_writes_and_draws(tmp_path, capsys, changes):
    config = em.Config(workdir=str(tmp_path), num_starts=2, **changes)
    assert em.main(config) == 0
    assert "from one start: scikit-learn" in capsys.readouterr().out
    result = read(tmp_path / "em.json")
    log_p = np.array(result["log_p"])
    assert log_p.shape == (config.num_steps,)
    np.testing.assert_allclose(result["bound_after_e_step"], log_p, rtol=1e-10)
    after = np.array(result["bound_after_m_step"])
    assert (log_p <= after).all()
    assert (after[:-1] <= log_p[1:]).all()
    same = result["same_start"]
    np.testing.assert_allclose(same["ours"], same["scikit_learn"], atol=1e-4)
    assert all(0.0 <= value <= 1.0 for value in result["clusters"].values())
    pictures = {"sandwich.png", "responsibilities.png"}
    if config.max_components:
        assert result["against_k"]["num_components"] == [1, 2]
        pictures.add("components.png")
    if config.decoder_steps:
        assert len(result["densities"]) == 3
        pictures.add("densities.png")
    assert {path.name for path in tmp_path.glob("*.png")} == pictures


def test_the_later_iterations_are_drawn_less_where_they_end():
    """Else the ticks hold an offset of many digits, which lies on the title."""
    log_p = -2.6110211 - 1e-6 / np.arange(1.0, 13.0)
    info = types.SimpleNamespace(
        log_p=log_p, bound_after_e_step=log_p, bound_after_m_step=log_p + 1e-8
    )
    first, later = em.sandwich(info).axes
    np.testing.assert_array_equal(first.lines[0].get_ydata(), log_p[:11])
    np.testing.assert_array_equal(later.lines[0].get_xdata(), [10, 11])
    np.testing.assert_array_equal(
        later.lines[0].get_ydata(), [log_p[10] - log_p[11], 0]
    )
    np.testing.assert_array_equal(later.lines[1].get_xdata(), [10, 10, 11, 11, 12])


@pytest.mark.slow
def test_agreement_with_the_labels_is_whole_where_clusters_are_apart():
    with jax.enable_x64(True):
        params = Params(
            {
                "logits": jnp.log(jnp.array([0.25, 0.75])),
                "mean": jnp.array([[10.0, 0.0], [-10.0, 0.0]]),
                "log_std": jnp.zeros(2),
            },
            (),
        )
        x = jnp.array([[10.0, 1.0], [-9.0, 0.0], [-10.0, 2.0], [-11.0, 1.0]])
        got = em.agreement(params, np.asarray(x), np.array([1, 0, 0, 0]))
    assert got["accuracy"] == got["adjusted_rand"] == 1.0
    np.testing.assert_allclose(got["normalized_mutual_information"], 1.0)
    # Between: 0.25 * 0.75 * 20^2 = 75; within: 2.
    np.testing.assert_allclose(got["variance_explained"], 75 / 77, rtol=1e-9)


@pytest.mark.slow
def test_the_benchmark_of_em_measures_three_and_writes(tmp_path, capsys):
    path = tmp_path / "em.json"
    config = benchmark.Config(
        num_rows=120,
        num_features=2,
        num_components=2,
        num_steps=2,
        num_rounds=2,
        output=str(path),
    )
    assert benchmark.main(config) == 0
    assert "gmm.em float32 / scikit-learn" in capsys.readouterr().out
    result = read(path)
    assert len(result["seconds"]) == 3
    assert all(min(seconds) > 0.0 for seconds in result["seconds"].values())
    ours = ("gmm.em float64", "gmm.em float32")
    assert set(result["ratios"]) == {f"{name} / {benchmark.PEER}" for name in ours}


def test_a_workdir_that_is_a_file_is_refused_before_the_work(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(cli.UsageError, match="file"):
        em.main(em.Config(workdir=str(tmp_path / "file")))


@pytest.mark.slow
def test_fewer_rows_than_components_is_a_one_line_error(tmp_path):
    config = em.Config(workdir=str(tmp_path), num_rows=3, num_components=4)
    with pytest.raises(cli.UsageError, match="3 rows, fewer than num_components=4"):
        em.main(config)
    with pytest.raises(cli.UsageError, match="--max_components=8 is more than the 5"):
        em.main(dataclasses.replace(config, num_rows=5))


@pytest.mark.parametrize(
    ("script", "changes", "message"),
    [
        (em, {"num_components": 0}, "--num_components must be positive, got 0"),
        (em, {"max_components": -1}, "--max_components must not be negative"),
        (em, {"num_features": 1}, "--num_features must be 2 or more, got 1"),
        (em, {"num_features": 65}, "--num_features must be at most 64, got 65"),
        (em, {"min_variance": 0.0}, "--min_variance must be positive, got 0.0"),
        (benchmark, {"num_rounds": 0}, "--num_rounds must be positive, got 0"),
    ],
)
def test_numbers_that_make_no_experiment_are_refused(script, changes, message):
    with pytest.raises(ValueError, match=message):
        script.Config(**changes)
