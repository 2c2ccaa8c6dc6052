"""`train --algorithm`: every way of fitting goes through the same loop and files."""

import json
import pathlib

import jax
import numpy as np
import pytest

from experiments import em_to_vae, evaluate, train
from experiments.choices.config import Config
from experiments.command import cli
from experiments.measures import validation
from experiments.runs import fit
from tests.tiny import metrics, tiny

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
@pytest.mark.slow
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
        which = evaluate.Config(
            workdir=config.workdir,
            num_images=5,
            eval_samples=20,
            importance_samples=20,
        )
        results = evaluate.evaluate(which)
        assert results["elbo"] < results["log_p"] + 1.0
        assert "active_units" not in results  # its q is no product over latents


def test_reweighted_wake_sleep_has_its_customary_name():
    named = Config(algorithm="rws", num_samples=3, sleep_share=0.5)
    assert named.gradient == "reweighted_wake_sleep"


@pytest.mark.parametrize("algorithm", ["mcem", "vem", "full_vb"])
@pytest.mark.slow
def test_an_extended_run_ends_bit_for_bit_as_an_unbroken_one(tmp_path, algorithm):
    ends = []
    for name, epochs in (("whole", (2,)), ("parts", (1, 2))):
        inner = None
        for num_epochs in epochs:
            config = _config(tmp_path / name, algorithm, num_epochs=num_epochs)
            run = fit.claim(config)
            inner = fit.fit(
                run, fit.restore(run), [], started=0.0, validate=validation.build(run)
            ).run.inner
        ends.append(inner)
    jax.tree.map(np.testing.assert_array_equal, *ends)


# experiments.em_to_vae

FLAG_FILES = sorted(
    (pathlib.Path(__file__).parent.parent).glob("experiments/flags/em_to_vae/*.flags")
)


@pytest.mark.parametrize("path", FLAG_FILES, ids=lambda path: path.stem)
def test_the_flag_files_of_em_to_vae_parse(path):
    config = cli.parse(em_to_vae.Config, ["em_to_vae", f"--flagfile={path}"])
    assert em_to_vae.points(config)[-1] == config.num_epochs


@pytest.mark.slow
def test_em_to_vae_measures_each_method_and_keeps_what_is_done(tmp_path, capsys):
    config = em_to_vae.Config(
        workdir=str(tmp_path / "run"),
        methods=("em", "wake_sleep"),
        hidden=(4,),
        num_epochs=2,
        num_points=2,
        num_nodes=5,
        check_nodes=8,
        num_images=10,
        eval_samples=3,
    )
    assert em_to_vae.main(config) == 0
    result = json.loads((tmp_path / "run" / "em_to_vae.json").read_text())["methods"]
    assert (tmp_path / "run" / "em_to_vae.png").exists()
    for curve in result.values():
        assert curve["epoch"] == [1, 2]
        log_p, elbo = np.array(curve["test_log_p"]), np.array(curve["test_elbo"])
        np.testing.assert_allclose(curve["test_gap"], log_p - elbo, atol=1e-9)
        assert 0.0 < curve["grid_change"] < 1.0
    assert result["em"]["train_gap"] == [0.0, 0.0]
    started = (tmp_path / "run" / "em.json").stat().st_mtime_ns
    em_to_vae.main(config)
    assert (tmp_path / "run" / "em.json").stat().st_mtime_ns == started
    assert "wake_sleep" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"methods": ("em", "gibbs")}, "gibbs is unknown; known: em, mcem"),
        ({"num_points": 0}, "--num_points must be positive"),
        ({"check_nodes": 0}, "--check_nodes must be 2 or more, got 0"),
        ({"num_nodes": 1}, "--num_nodes must be 2 or more, got 1"),
        ({"batch_size": 0}, "--batch_size must be positive, got 0"),
        ({"num_updates": 0}, "--num_updates must be positive"),
    ],
)
def test_what_em_to_vae_cannot_compare_is_named(changes, message):
    with pytest.raises(ValueError, match=message):
        em_to_vae.Config(**changes)


def test_more_images_than_rows_is_a_clear_error(tmp_path):
    config = em_to_vae.Config(workdir=str(tmp_path), num_images=10_000)
    with pytest.raises(cli.UsageError, match="--num_images=10000"):
        em_to_vae.main(config)
