"""The figures of the AEVB paper, drawn from tiny runs."""

import dataclasses
import json
import math
import os
import pathlib
import signal
import statistics
import types
from typing import Any

import jax
import numpy as np
import pytest

from experiments import bound_curves, manifold, marginal_likelihood
from experiments.command import cli, report
from experiments.measures import pictures
from experiments.runs import comparison, fit
from tests.tiny import metrics
from vae_jax.plots import curves
from vae_jax.training import journal

pytestmark = pytest.mark.uses_optax

FLAGS = pathlib.Path(cli.__file__).parents[1] / "flags"
SCRIPTS = {
    "bound_curves": bound_curves,
    "manifold": manifold,
    "marginal_likelihood": marginal_likelihood,
}
RUN_FLAGS = "--hidden=4 --eval_samples=2 --eval_every=1000"
SMALL = bound_curves.Config(
    run_flags=RUN_FLAGS, latents=(2,), points=2, eval_samples=2, num_train_images=50
)


def read(path: pathlib.Path):
    return json.loads(path.read_text())


def points_without_times(path: pathlib.Path) -> list[dict]:
    points = read(path / bound_curves.CURVE)["points"]
    return [{k: v for k, v in point.items() if k != "seconds"} for point in points]


@pytest.fixture(scope="module")
def compared(tmp_path_factory):
    """One tiny comparison, in one go."""
    path = tmp_path_factory.mktemp("figures") / "whole"
    config = dataclasses.replace(SMALL, workdir=str(path), num_epochs=4)
    with jax.numpy_dtype_promotion("standard"):
        assert bound_curves.main(config) == 0
    return path


# Flags


def test_the_manifold_takes_up_what_the_curves_have_trained():
    for name in ("mnist", "frey_face"):
        first, second = (
            SCRIPTS[script].train_configs(
                cli.parse(
                    SCRIPTS[script].Config,
                    ["figure", f"--flagfile={FLAGS / script / name}.flags"],
                )
            )
            for script in ("bound_curves", "manifold")
        )
        shared = [run for run in second if run in first]
        assert len(shared) >= 3


def test_runs_differ_in_algorithm_and_latents_alone():
    flagfile = str(FLAGS / "train" / "aevb_mnist.flags")
    flags = comparison.ComparisonFlags(run_flagfile=flagfile, run_flags="--seed=3")
    shared = flags.base()
    results = comparison.runs(
        shared,
        workdir="w",
        data_dir="d",
        algorithms=["aevb", "wake_sleep"],
        latents=[3, 5],
        num_epochs=0,
    )
    assert [run.workdir for run in results] == [
        *("w/aevb_3", "w/wake_sleep_3", "w/aevb_5", "w/wake_sleep_5"),
    ]
    assert {run.num_epochs for run in results} == {360}
    assert {(run.seed, run.optimizer) for run in results} == {(3, "adagrad")}


def test_flags_of_wake_sleep_reach_its_runs_alone():
    config = SCRIPTS["bound_curves"].Config(
        workdir="w", run_flags="--seed=3", wake_sleep_flags="--init=normal_0.01"
    )
    results = SCRIPTS["bound_curves"].train_configs(config)
    assert [run.algorithm for run in results[:3]] == ["aevb", "wake_sleep", "aevb"]
    for run in results:
        wanted = "normal_0.01" if run.algorithm == "wake_sleep" else "glorot"
        assert (run.init, run.seed) == (wanted, 3)


@pytest.mark.parametrize(
    ("script", "flag", "said"),
    [
        ("bound_curves", "--points=0", "--points must be positive"),
        ("bound_curves", "--eval_samples=0", "--eval_samples must be positive"),
        ("bound_curves", "--num_epochs=-1", "--num_epochs must not be negative"),
        ("bound_curves", "--num_train_images=-1", "--num_train_images must not be"),
        ("bound_curves", "--latents=", "--latents must hold at least one"),
        ("bound_curves", "--latents=0", "--num_latents must be positive"),
        ("bound_curves", "--algorithms=aevb,sleep", "--algorithm=sleep is unknown"),
        ("bound_curves", "--run_flagfile=no.flags", "no.flags"),
        ("bound_curves", "--run_flags=--hiden=3", "hiden"),
        ("bound_curves", "--run_flags=--num_latents=3", "--num_latents is set by"),
        ("bound_curves", "--run_flags='", "--run_flags=': No closing quotation"),
        ("bound_curves", "--run_flags=--early_stopping=9", "--early_stopping=9"),
        ("marginal_likelihood", "--samples=0", "--samples must be positive"),
        ("marginal_likelihood", "--hmc_leapfrog=0", "--hmc_leapfrog must be positive"),
        ("marginal_likelihood", "--hmc_samples=3", "do not span --num_latents=3"),
        ("marginal_likelihood", "--train_sizes=", "--train_sizes must hold"),
        ("marginal_likelihood", "--algorithms=em", "--algorithm=em is unknown"),
        (
            "marginal_likelihood",
            "--run_flags=--posterior=bernoulli --estimator=vimco",
            "not --posterior=bernoulli",
        ),
        (
            "marginal_likelihood",
            "--run_flags=--ladder=3,2",
            "not --ladder",
        ),
        ("bound_curves", "--run_flags=--num_seeds=2", "train one by one"),
        ("manifold", "--run_flags=--sweep=beta=1,2", "train one by one"),
        ("manifold", "--run_flags=--condition=labels", "are of x alone, not of --cond"),
        ("manifold", "--run_flags=--prior=vamp --estimator=iwae", "not --prior=vamp"),
        (
            "manifold",
            "--run_flags=--ladder=3,2",
            "has no effect with --ladder=3,2",
        ),
        ("manifold", "--latents=3,4", "--latents must hold 2"),
        ("manifold", "--manifold_size=0", "--manifold_size must be positive"),
        ("manifold", "--num_epochs=-1", "--num_epochs must not be negative"),
        ("manifold", "--run_flags=--algorithm=rws", "--algorithm is set by"),
        (
            "manifold",
            "--run_flags=--posterior=bernoulli --estimator=vimco",
            "no plane to draw",
        ),
    ],
)
def test_a_bad_flag_of_a_figure_is_named(script, flag, said):
    with pytest.raises(cli.UsageError, match=said):
        cli.parse(SCRIPTS[script].Config, ["figure", flag])


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"num_train_images": 1001}, "--num_train_images=1001 is more than the 1000"),
        ({"run_flags": "--binarization=none"}, "no likelihood to bound"),
        ({"run_flags": "--dataset=nosuch"}, "nosuch"),
    ],
)
def test_data_without_both_bounds_are_refused_before_the_work(tmp_path, changes, said):
    config = dataclasses.replace(SMALL, workdir=str(tmp_path / "w"), **changes)
    with pytest.raises(cli.UsageError, match=said):
        bound_curves.main(config)
    assert not list((tmp_path / "w").iterdir())


def test_monte_carlo_em_without_its_sizes_fits_nothing():
    flags = ["--algorithms=mcem", "--train_sizes=200"]
    with pytest.raises(cli.UsageError, match="mcem fits --mcem_train_sizes alone"):
        cli.parse(marginal_likelihood.Config, ["figure", *flags])


def test_a_cross_entropy_is_no_marginal_likelihood(tmp_path):
    flags = "--binarization=none"
    config = marginal_likelihood.Config(workdir=str(tmp_path), run_flags=flags)
    with pytest.raises(cli.UsageError, match="no likelihood to bound"):
        marginal_likelihood.main(config)


@pytest.mark.parametrize("content", ['{"eval_samples": 2, "poi', "[1, 2]"])
def test_a_damaged_file_of_points_is_one_line(tmp_path, content):
    (tmp_path / "points.json").write_text(content)
    with pytest.raises(cli.UsageError, match=r"points\.json .*: remove it"):
        report.read_json(tmp_path / "points.json")
    flags = {"a": 1}
    with pytest.raises(cli.UsageError, match="remove it"):
        report.cached(tmp_path / "points.json", flags, lambda: None)


@pytest.mark.parametrize("script", list(SCRIPTS.values()))
def test_a_workdir_that_is_a_file_is_refused(tmp_path, script):
    (tmp_path / "file").write_text("")
    with pytest.raises(cli.UsageError, match="file"):
        script.main(script.Config(workdir=str(tmp_path / "file")))


# bound_curves


def test_the_points_are_even_in_the_logarithm_and_end_with_the_last_epoch():
    assert comparison.epochs_measured(1, points=4) == [1]
    assert comparison.epochs_measured(100, points=2) == [1, 3, 10, 32, 100]
    results = comparison.epochs_measured(360, points=4)
    assert results == [1, 2, 3, 6, 10, 18, 32, 56, 100, 178, 316, 360]
    assert set(results) <= {360, *comparison.epochs_measured(5000, points=4)}


@pytest.mark.slow
def test_a_comparison_measures_both_splits_at_each_point(compared):
    result = read(compared / "bound_curves.json")
    assert [row["algorithm"] for row in result["runs"]] == ["aevb", "wake_sleep"]
    assert result["min_log_std"] is None
    assert result["protocol"]["split_sizes"]["test"] == 447
    for row in result["runs"]:
        assert [point["epoch"] for point in row["curve"]] == [1, 3, 4]
        assert [point["samples"] for point in row["curve"]] == [1000, 3000, 4000]
        last = row["curve"][-1]
        assert {k: row[k] for k in last} == last
        np.testing.assert_allclose(
            last["train_minus_test"], last["train_bound"] - last["test_bound"]
        )
        assert last["test_bound"] > row["curve"][0]["test_bound"]
        assert last["test_standard_error"] > 0.0
        assert last["seconds"] > row["curve"][0]["seconds"]
    assert (compared / "bound_curves.png").stat().st_size > 0


@pytest.mark.slow
def test_an_interrupted_and_extended_comparison_ends_with_the_same_points(
    compared, tmp_path, monkeypatch, capsys
):
    config = dataclasses.replace(SMALL, workdir=str(tmp_path))
    bound_curves.main(dataclasses.replace(config, num_epochs=1))
    config = dataclasses.replace(config, num_epochs=4)
    unbroken, calls = fit.fit, []

    def interrupted(run, saved, received, **rest):
        calls.append(run.config.num_epochs)
        if calls == [3, 4]:  # a signal within the second stretch of the first run
            os.kill(os.getpid(), signal.SIGINT)
        return unbroken(run, saved, received, **rest)

    monkeypatch.setattr(fit, "fit", interrupted)
    with pytest.raises(SystemExit) as stopped:
        bound_curves.main(config)
    assert stopped.value.code == 130
    said = "SIGINT: saved at step 30; the same command continues"
    assert said in capsys.readouterr().out
    assert [p["epoch"] for p in points_without_times(tmp_path / "aevb_2")] == [1, 3]
    calls.append(0)  # no further signal
    assert bound_curves.main(config) == 0
    assert calls[3:] == [4, 3, 4], "what was measured is not trained again"
    for name in ("aevb_2", "wake_sleep_2"):
        whole = points_without_times(compared / name)
        assert points_without_times(tmp_path / name) == whole
        assert metrics(str(tmp_path / name)) == metrics(str(compared / name))
    done = points_without_times(tmp_path / "aevb_2"), len(calls)
    assert bound_curves.main(config) == 0
    assert (points_without_times(tmp_path / "aevb_2"), len(calls)) == done
    with pytest.raises(cli.UsageError, match="--eval_samples=2, 3 now"):
        bound_curves.main(dataclasses.replace(config, eval_samples=3))


def test_a_density_is_stated_with_the_bound_on_its_log_std():
    flags = "--likelihood=normal_per_pixel_std --binarization=none --min_std=0.05"
    config = dataclasses.replace(SMALL, run_flags=flags)
    stated = bound_curves.about(config, bound_curves.train_configs(config)[0])
    assert stated["min_log_std"] == math.log(0.05)
    assert stated["protocol"]["quantity"] == "log-density"


# marginal_likelihood


@pytest.mark.slow
def test_the_marginal_likelihood_is_estimated_twice_at_each_point(tmp_path, capsys):
    config = marginal_likelihood.Config(
        workdir=str(tmp_path),
        run_flags=RUN_FLAGS + " --batch_size=10",
        num_latents=2,
        train_sizes=(30,),
        mcem_train_sizes=(30,),
        algorithms=("aevb", "mcem"),
        samples=60,
        mcem_samples=30,
        points=1,
        num_images=4,
        hmc_samples=20,
        hmc_warmup=20,
        hmc_starts=20,
        importance_samples=20,
    )
    assert marginal_likelihood.main(config) == 0
    rows = read(tmp_path / "marginal_likelihood.json")["runs"]
    assert [(row["algorithm"], row["samples"]) for row in rows] == [
        ("aevb", 60),
        ("mcem", 30),
    ]
    for row in rows:
        assert row["num_train"] == 30
        for split in ("train", "test"):
            apart = row[f"{split}_hmc_density"] - row[f"{split}_importance"]
            assert abs(apart) < 2.0  # few draws, but of the same quantity
    assert (tmp_path / "marginal_likelihood.png").stat().st_size > 0
    assert "log p(x) at the last point" in capsys.readouterr().out
    with pytest.raises(
        cli.UsageError, match="--num_images=40 is more than the 30 train rows of digits"
    ):
        marginal_likelihood.main(dataclasses.replace(config, num_images=40))


# manifold


@pytest.mark.slow
def test_the_manifold_takes_up_a_run_and_draws_it(compared, capsys):
    config = manifold.Config(
        workdir=str(compared),
        run_flags=RUN_FLAGS,
        latents=(2,),
        num_epochs=4,
        manifold_size=3,
    )
    assert manifold.main(config) == 0
    assert "aevb_2 from step 40" in capsys.readouterr().out
    assert np.load(compared / "manifold.npz")["mean"].shape == (3, 3, 8, 8)
    samples = np.load(compared / "samples.npz")
    assert {name: samples[name].shape for name in samples} == {"mean_2": (100, 8, 8)}
    (result,) = read(compared / "manifold.json")["runs"].values()
    assert np.isfinite(result["elbo"])
    for name in ("manifold.png", "samples.png"):
        assert (compared / name).stat().st_size > 0


@pytest.mark.slow
@pytest.mark.parametrize(("early_stopping", "chosen"), [(0, None), (5, 3.0)])
def test_the_curves_of_a_run_mark_the_epoch_that_early_stopping_took(
    tmp_path, monkeypatch, early_stopping, chosen
):
    log = journal.open(tmp_path, resume_step=None)
    for epoch in range(1, 9):
        log.write({"step": 10 * epoch, "epoch": epoch, "elbo": -9.0, "valid_elbo": -9})
    log.close()
    trained: Any = types.SimpleNamespace(
        step=30,
        config=types.SimpleNamespace(
            early_stopping=early_stopping, gradient="sgvb_a", num_samples=1
        ),
        data=types.SimpleNamespace(labeled=lambda row: {"elbo": row.popitem()}),
    )
    marks = []

    def draw(rows, *, chosen, **how):
        marks.append(chosen)
        return curves.training_curves(rows, chosen=chosen, **how)

    monkeypatch.setattr(pictures, "curves", types.SimpleNamespace(training_curves=draw))
    pictures.draw_curves(trained, tmp_path)
    assert marks == [chosen]
    assert (tmp_path / "training_curves.png").exists()


@pytest.mark.parametrize(
    ("reported", "panels"),
    [
        ({"valid_kl", "kl_z1"}, {}),
        ({"valid_active_units"}, {"active units": ["valid_active_units"]}),
        (
            {f"valid_{name}_z{i}" for name in ("kl", "active_units") for i in (1, 2)},
            {
                "KL of each layer, nats per example": ["valid_kl_z1", "valid_kl_z2"],
                "active units": ["valid_active_units_z1", "valid_active_units_z2"],
            },
        ),
    ],
)
def test_the_curves_of_a_run_show_what_its_layers_hold(reported, panels):
    assert pictures._of_latents(reported) == panels


def test_the_manifold_is_at_quantiles_and_the_second_latent_rises_upward():
    generative = types.SimpleNamespace(mean_observation=lambda params, z: z)
    trained: Any = types.SimpleNamespace(
        model=types.SimpleNamespace(generative=generative), params=()
    )
    z = pictures.manifold(trained, size=4)["mean"]
    quantiles = [statistics.NormalDist().inv_cdf((i + 0.5) / 4) for i in range(4)]
    np.testing.assert_allclose(z[..., 0], [quantiles] * 4, rtol=1e-5)
    np.testing.assert_allclose(z[..., 1].T, [quantiles[::-1]] * 4, rtol=1e-5)
