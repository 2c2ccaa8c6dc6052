"""`train --start_from`: a run that goes on from another's parameters."""

import dataclasses
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments import train
from experiments.command import cli
from experiments.runs import fit, rundir, runs, trained_runs
from tests.tiny import metrics, tiny
from vae_jax.training import checkpoints

pytestmark = pytest.mark.uses_optax


def _untrained(path, **flags):
    """A run with a checkpoint of parameters that no other seed has, and these."""
    run = runs.build(tiny(path, **flags))
    rundir.claim(run.config)
    saved = runs.initial(run)
    checkpoints.save(run.workdir / rundir.CHECKPOINTS, 0, saved)
    return saved


def _started(path, **flags):
    run = fit.claim(tiny(path, **flags))
    return run, fit.restore(run)


def _assert_equal(tree, other):
    jax.tree.map(np.testing.assert_array_equal, tree, other)


def test_it_starts_from_what_evaluate_takes_there(tmp_path, capsys):
    there = _untrained(tmp_path / "there", average_decay=0.9, seed=1)
    average = jax.tree.map(lambda x: x + 1.0, there.parameters)
    inner = there.run.inner._replace(average=average)
    moved = there._replace(run=there.run._replace(inner=inner))
    checkpoints.save(tmp_path / "there" / rundir.CHECKPOINTS, 0, moved)
    flags = {"start_from": str(tmp_path / "there"), "estimator": "iwae"}
    run, saved = _started(tmp_path / "here", average_decay=0.5, **flags)
    _assert_equal(saved.run.inner.params, average)
    _assert_equal(saved.parameters, average)  # its own moving average starts there
    _assert_equal(saved.best, average)
    assert saved.step == 0
    assert np.isneginf(saved.best_bound)
    said = f"starting from {tmp_path / 'there'}, step 0, average weights"
    assert said in capsys.readouterr().out

    # The state is saved: what became of the other run no longer matters.
    shutil.rmtree(tmp_path / "there")
    again, continued = _started(tmp_path / "here", average_decay=0.5, **flags)
    _assert_equal(continued.run.inner.params, average)
    assert again.start is None
    assert run.start is not None


def test_of_a_run_that_stops_early_it_starts_from_the_best(tmp_path, capsys):
    there = _untrained(tmp_path / "there", early_stopping=5)
    best = jax.tree.map(lambda x: x + 1.0, there.best)
    moved = there._replace(
        best=best, best_step=jnp.int32(3), run=there.run._replace(step=jnp.int32(9))
    )
    checkpoints.save(tmp_path / "there" / rundir.CHECKPOINTS, 9, moved)
    _, saved = _started(tmp_path / "here", start_from=str(tmp_path / "there"))
    _assert_equal(saved.parameters, best)
    assert "there, step 3, best weights" in capsys.readouterr().out


def test_a_run_that_stops_early_and_was_not_validated_has_no_best_yet(tmp_path):
    _untrained(tmp_path / "there", early_stopping=5)
    config = tiny(tmp_path / "here", start_from=str(tmp_path / "there"))
    with pytest.raises(cli.UsageError, match="this run took none yet"):
        fit.claim(config)
    with pytest.raises(cli.UsageError, match="this run took none yet"):
        trained_runs.load(str(tmp_path / "there"), checkpoint="auto")


@pytest.mark.parametrize("num_there", [1, 2])
def test_runs_together_start_from_one_or_from_as_many(tmp_path, num_there):
    there = _untrained(tmp_path / "there", num_seeds=num_there)
    flags = {"start_from": str(tmp_path / "there"), "num_seeds": 2, "seed": 5}
    _, saved = _started(tmp_path / "here", **flags)
    axis = (2,) if num_there == 1 else ()
    expected = jax.tree.map(
        lambda x: jnp.broadcast_to(x, axis + x.shape), there.parameters
    )
    _assert_equal(saved.parameters, expected)


def test_a_run_that_ends_is_tuned_by_another_bound(tmp_path):
    assert train.main(tiny(tmp_path / "there", num_epochs=1)) == 0
    config = tiny(
        tmp_path / "here",
        start_from=str(tmp_path / "there"),
        estimator="dreg",
        num_samples=3,
        learning_rate=1e-4,
        num_epochs=1,
    )
    assert train.main(config) == 0
    last, first = (metrics(str(tmp_path / name)) for name in ("there", "here"))
    assert first[0]["valid_bound"] > last[-1]["valid_bound"]
    trained_runs.load(config.workdir, checkpoint="auto")


@pytest.mark.parametrize(
    ("there", "here", "said"),
    [
        ({}, {"hidden": (9,)}, r"another model: params.*float32\[8\].* float32\[9\]"),
        (
            {"prior": "normal_mixture", "estimator": "sgvb_a"},
            {},
            r"another model: params.* there, and nothing here",
        ),
        ({"num_seeds": 2}, {}, r"holds 2 runs, and here are 1: --num_seeds=2 starts"),
        ({"num_seeds": 2}, {"num_seeds": 3}, "holds 2 runs, and here are 3"),
    ],
)
def test_what_does_not_fit_is_refused_before_anything_is_written(
    tmp_path, there, here, said
):
    _untrained(tmp_path / "there", **there)
    config = tiny(tmp_path / "here", start_from=str(tmp_path / "there"), **here)
    with pytest.raises(cli.UsageError, match=said):
        fit.claim(config)
    assert not (tmp_path / "here").exists()


def test_a_folder_without_a_trained_run_is_refused(tmp_path):
    config = tiny(tmp_path / "here", start_from=str(tmp_path / "there"))
    with pytest.raises(cli.UsageError, match="there holds no run"):
        fit.claim(config)
    rundir.claim(tiny(tmp_path / "there"))
    with pytest.raises(cli.UsageError, match="holds no checkpoint yet"):
        fit.claim(config)


@pytest.mark.parametrize(
    ("name", "value", "usual"),
    [("init", "normal_0.1", "glorot"), ("init_bias", "data", "none")],
)
def test_flags_of_fresh_parameters_are_refused(tmp_path, name, value, usual):
    config = tiny(tmp_path, start_from="runs/digits")
    with pytest.raises(ValueError, match=f"--{name}={value} is of .*--{name}={usual}$"):
        dataclasses.replace(config, **{name: value}).refuse()
