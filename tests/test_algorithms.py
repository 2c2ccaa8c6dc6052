"""`train --algorithm`: every way of fitting goes through the same loop and files."""

import json

import jax
import numpy as np
import pytest

from experiments import evaluate, train
from experiments.configuration import Config
from tests.test_experiments import metrics, tiny

pytestmark = pytest.mark.uses_optax
WAYS = {
    "wake_sleep": {},
    "mcem": {"num_leapfrog": 3, "weight_decay": 1.0},
    "vem": {"e_steps": 3, "posterior": "full_normal"},
    "full_vb": {"weight_decay": 1.0, "estimator": "sgvb_a"},
}
REPORTED = {  # by each row, beside what every row holds
    "wake_sleep": {"bound", "kl", "reconstruction", "valid_bound"},
    "mcem": {"log_joint", "acceptance", "energy_error", "step_size"},
    "vem": {"bound", "starting_bound", "valid_bound"},
    "full_vb": {"bound", "kl", "kl_theta", "valid_bound"},
}


def _config(folder, algorithm, **changes):
    flags = {"algorithm": algorithm, "num_epochs": 2} | WAYS[algorithm] | changes
    return tiny(folder, **flags)


@pytest.mark.parametrize("algorithm", WAYS)
def test_it_writes_the_same_files_and_reports_what_it_has(tmp_path, algorithm):
    config = _config(tmp_path / "run", algorithm)
    assert train.main(config) == 0
    rows = metrics(config.workdir)
    assert all(REPORTED[algorithm] <= set(row) for row in rows)
    if algorithm == "mcem":  # it has no q to take a bound with
        assert not any("bound" in name or "kl" in name for name in rows[0])
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    assert np.isfinite([result["elbo"], result["kl"]]).all()
    for name in ("training_curves.png", "samples.png", "reconstructions.png"):
        assert (tmp_path / "run" / name).exists()
    if algorithm == "mcem":
        which = {"num_images": 5, "eval_samples": 20, "importance_samples": 20}
        found = evaluate.evaluate(evaluate.Config(workdir=config.workdir, **which))
        assert found["elbo"] < found["log_p"] + 1.0
        assert "active_units" not in found  # its q is no product over latents


def test_reweighted_wake_sleep_has_its_customary_name():
    named = Config(algorithm="rws", num_samples=3, sleep_share=0.5)
    assert named.gradient == "reweighted_wake_sleep"


@pytest.mark.parametrize("algorithm", ["mcem", "vem", "full_vb"])
def test_an_extended_run_ends_bit_for_bit_as_an_unbroken_one(tmp_path, algorithm):
    ends = []
    for name, epochs in (("whole", (2,)), ("parts", (1, 2))):
        for num_epochs in epochs:
            config = _config(tmp_path / name, algorithm, num_epochs=num_epochs)
            run = train.claim(config)
            saved = train.fit(run, train.restore(run), [], started=0.0)
        ends.append(jax.tree.map(jax.numpy.copy, saved.run.inner))
    jax.tree.map(np.testing.assert_array_equal, *ends)
