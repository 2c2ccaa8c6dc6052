"""Estimates of log p(x) beside each other: evaluate's flag, run in process."""

import dataclasses
import json
import subprocess
import sys
from typing import Any

import jax
import numpy as np
import pytest

from experiments import evaluate, train
from experiments.benchmark import importance_sampling as benchmark
from experiments.command import cli
from experiments.evidence import cases
from experiments.evidence import command as evidence
from experiments.measures import evidence as estimates
from tests.tiny import FLAGS, TINY

pytestmark = [pytest.mark.uses_optax, pytest.mark.slow]

FEW: dict[str, Any] = {
    "eval_samples": 2,
    "importance_samples": 50,
    "num_temperatures": 6,
    "num_chains": 2,
    "num_leapfrog": 2,
    "num_simulated": 3,
    "hmc_samples": 12,
    "num_images": 3,
}


def _few(workdir, *methods, **flags):
    """An evaluation by these methods, with what they read of FEW."""
    read = {
        flag: value
        for flag, value in FEW.items()
        if {*estimates.READERS.get(flag, ("is",))} & {"is", *methods}
    }
    return evaluate.Config(workdir, evidence=methods, **(read | flags))


def test_evaluate_puts_the_estimators_side_by_side(tmp_path, capsys):
    workdir = str(tmp_path / "run")
    assert train.main(dataclasses.replace(TINY, workdir=workdir)) == 0
    config = _few(workdir, "is", "ais", "bdmc", "hmc_density")
    assert evaluate.main(config) == 0
    result = json.loads(
        (tmp_path / "run" / "evaluation_test_3_images.json").read_text()
    )
    evidence = result["evidence"]
    assert list(evidence) == ["is", "ais", "bdmc", "hmc_density"]
    assert evidence["is"]["log_p"] == result["log_p"]
    for name in ("ais", "hmc_density"):
        figures = evidence[name]
        assert 0.0 < figures["acceptance"] <= 1.0
        difference = figures["log_p"] - evidence["is"]["log_p"]
        np.testing.assert_allclose(figures["above_is"], difference, atol=1e-5)
        assert abs(difference) < 2.0
    both = evidence["bdmc"]
    np.testing.assert_allclose(both["gap"], both["upper"] - both["lower"], atol=1e-5)
    assert both["num_simulated"] == 3
    assert "warning, is: the effective" not in capsys.readouterr().out
    again = evaluate.evaluate(_few(workdir, "ais", base="q"))
    assert again["evidence"]["ais"]["log_p"] != evidence["ais"]["log_p"]
    assert "log_p" not in again


def test_binary_latents_are_annealed_by_gibbs_updates(tmp_path):
    workdir = str(tmp_path / "run")
    config = dataclasses.replace(
        TINY, workdir=workdir, posterior="bernoulli", estimator="vimco", num_samples=2
    )
    assert train.main(config) == 0
    evidence = evaluate.evaluate(_few(workdir, "is", "ais", "bdmc"))["evidence"]
    assert abs(evidence["ais"]["above_is"]) < 2.0
    with pytest.raises(cli.UsageError, match="hmc_density needs latents that are any"):
        evaluate.evaluate(_few(workdir, "hmc_density"))


@pytest.mark.parametrize(
    ("flag", "said"),
    [
        ("--evidence=is,aiz", "aiz"),
        ("--num_temperatures=0", "--num_temperatures must be positive"),
        ("--num_chains=-1", "--num_chains must be positive"),
        ("--schedule=cubic", "schedule"),
        ("--num_chains=4", "--num_chains has no effect with --evidence=is: it is read"),
        ("--hmc_samples=20", "it is read by hmc_density"),
    ],
)
def test_a_bad_flag_of_the_estimators_is_named(flag, said):
    with pytest.raises(cli.UsageError, match=said):
        cli.parse(evaluate.Config, ["evaluate", flag])


@pytest.fixture(scope="module")
def compared(tmp_path_factory):
    """One tiny comparison of every part, with its folder."""
    folder = tmp_path_factory.mktemp("evidence")
    flagfile = folder / "digits.flags"
    flagfile.write_text(
        "--hidden=8\n--num_latents=2\n--num_epochs=2\n--eval_samples=2\n"
    )
    config = evidence.Config(
        workdir=str(folder / "out"),
        samples=(20, 100),
        temperatures=(4,),
        num_repeats=3,
        num_bits=4,
        binary_epochs=2,
        digits_flagfile=str(flagfile),
        num_images=2,
        bias_repeats=2000,
    )
    with jax.numpy_dtype_promotion("standard"):
        assert evidence.main(config) == 0
    return folder / "out", json.loads((folder / "out" / "evidence.json").read_text())


def test_every_estimator_is_measured_at_every_budget_and_drawn(compared):
    folder, result = compared
    assert result["linear"]["exact"] is not None
    assert result["binary"]["exact"] is not None
    assert result["digits"]["exact"] is None
    for part in ("linear", "binary", "digits"):
        for rows in result[part]["methods"].values():
            count = len(rows["budget"])
            assert count > 0
            for name in ("decodings", "seconds", "mean", "spread"):
                assert len(rows[name]) == count
                assert np.isfinite(rows[name]).all()
    names = set(result["linear"]["methods"])
    assert {"prior", "AIS", "reverse AIS", "HMC density"} <= names
    for name in ("evidence_against_decodings", "evidence_against_seconds", "bias"):
        assert (folder / f"{name}.png").read_bytes().startswith(b"\x89PNG")


def test_the_bias_of_log_p_hat_falls_as_its_law_and_p_hat_has_none(compared):
    rows = compared[1]["bias"]
    ratio, error = np.array(rows["ratio"]), np.array(rows["ratio_error"])
    assert (np.abs(ratio - 1.0) < 5.0 * error).all()
    late = np.array(rows["num_samples"]) >= 10
    distance = np.array(rows["bias"])[late] - np.array(rows["law"])[late]
    # The law's variance is itself an estimate, good to about a tenth here.
    slack = 5.0 * np.array(rows["bias_error"])[late] - 0.2 * np.array(rows["law"])[late]
    assert (np.abs(distance) < slack).all()


@pytest.mark.parametrize(
    ("flag", "said"),
    [
        ("--parts=linear,cubic", "cubic"),
        ("--samples=0", "--samples"),
        ("--samples=750", "--samples above 500 must be a multiple of it, got 750"),
        ("--temperatures=", "--temperatures must hold at least one item"),
        ("--num_bits=0", "--num_bits"),
        ("--bias_repeats=1", "--bias_repeats"),
    ],
)
def test_a_bad_flag_of_the_comparison_is_named(flag, said):
    with pytest.raises(cli.UsageError, match=said):
        cli.parse(evidence.Config, ["evidence", flag])


def test_the_benchmark_of_importance_sampling_measures_memory_and_speed(tmp_path):
    path = tmp_path / "speed.json"
    flags = (
        "--num_images=4 --num_samples=20 --num_latents=2 --hidden=8 --num_timed=2 "
        f"--num_rounds=2 --dataset=digits --contenders=ours --output={path}"
    )
    # In a process of its own: this one's peak may lie behind it.
    command = [sys.executable, "-m", benchmark.__name__, *flags.split()]
    subprocess.run(command, cwd=FLAGS.parent.parent, check=True)
    result = json.loads(path.read_text())
    assert result["peak_beyond_imports_mib"] > 0.0
    assert {len(times) for times in result["seconds"].values()} == {2}
    assert min(min(times) for times in result["seconds"].values()) > 0.0


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        ("--binarization=none", "no likelihood to bound"),
        ("--posterior=bernoulli\n--estimator=vimco\n--num_samples=2", "real latents"),
        ("--num_seeds=2", "real latents"),
        ("", "--num_images=1000 is more than the 447 test rows"),
    ],
)
def test_a_model_of_no_comparison_is_refused_before_it_is_trained(
    tmp_path, flags, said
):
    flagfile = tmp_path / "digits.flags"
    flagfile.write_text(f"--dataset=digits\n{flags}\n")
    config = evidence.Config(
        workdir=str(tmp_path), digits_flagfile=str(flagfile), num_images=1000
    )
    with pytest.raises(cli.UsageError, match=said):
        cases.digits(config)
    assert not (tmp_path / "digits").exists()
