"""What evaluators of a trained model give of rows, block by block."""

import jax
import numpy as np
import pytest

from experiments.measures import measure
from experiments.runs import runs, trained_runs
from tests.tiny import tiny
from vae_jax.estimators import sgvb

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
