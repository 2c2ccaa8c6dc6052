"""What evaluators of a trained model give of rows, block by block."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from experiments.measures import evidence, measure
from experiments.runs import runs, trained_runs
from tests.tiny import tiny
from vae_jax.estimators import sgvb
from vae_jax.evaluation import weights

pytestmark = pytest.mark.uses_optax


@pytest.fixture
def trained(tmp_path):
    """An untrained model of digits."""
    run = runs.build(tiny(tmp_path))
    return trained_runs.of_run(run, runs.initial(run), checkpoint="last")


def _bounds(trained, num_rows, *, batches_a_block=100):
    data = trained_runs.rows(trained, split="test", num_images=num_rows)
    estimate = sgvb.elbo(trained.model, num_samples=2)
    return measure.of_rows(
        jax.random.key(0),
        trained,
        estimate,
        data,
        num_decoded=2,
        at_once=6,
        batches_a_block=batches_a_block,
    )


@pytest.mark.parametrize("num_rows", [3, 7, 12])
def test_an_evaluation_in_blocks_is_that_in_one(trained, num_rows):
    whole = _bounds(trained, num_rows)
    assert whole.shape == (num_rows,)
    in_blocks = _bounds(trained, num_rows, batches_a_block=1)
    np.testing.assert_allclose(in_blocks, whole, rtol=1e-6)


def test_a_long_evaluation_tells_how_far_it_is(trained, monkeypatch, capsys):
    _bounds(trained, 12, batches_a_block=1)
    assert capsys.readouterr().err == ""
    monkeypatch.setattr(measure, "SILENT_SECONDS", 0.0)
    _bounds(trained, 12)  # in one block, which has nothing to tell
    assert capsys.readouterr().err == ""
    _bounds(trained, 12, batches_a_block=1)
    assert capsys.readouterr().err.splitlines() == ["row 3/12", "row 12/12"]


def test_a_standard_error_is_that_of_a_mean():
    values = np.array([3.0, -1.0, 4.0, 1.0, 5.0, -9.0])
    np.testing.assert_allclose(measure.standard_error(values), stats.sem(values))
    assert np.isnan(measure.standard_error(values[:1]))


def test_the_sampling_error_of_a_mean_is_that_of_independent_rows(trained, monkeypatch):
    log_p, errors = jnp.array([-8.0, -9.0]), jnp.array([0.3, 0.4])
    of_each = weights.LogEvidence(log_p, errors, jnp.full(2, 50.0), jnp.zeros(2))
    monkeypatch.setattr(measure, "of_rows", lambda *args, **flags: of_each)
    rows = trained_runs.rows(trained, split="test", num_images=2)
    figures = evidence.importance_sampling(
        jax.random.key(0), trained, rows, num_samples=100
    ).figures
    assert figures["log_p"] == -8.5
    np.testing.assert_allclose(figures["log_p_sampling_error"], 0.25, rtol=1e-6)
    np.testing.assert_allclose(figures["log_p_standard_error"], 0.5)
