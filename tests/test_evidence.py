"""Estimates of log p(x) beside each other: evaluate's flag, run in process."""

import dataclasses
import json

import numpy as np
import pytest

from experiments import cli, evaluate, train
from tests.test_experiments import TINY

pytestmark = [pytest.mark.uses_optax, pytest.mark.slow]

FEW = {
    "eval_samples": 2,
    "importance_samples": 50,
    "num_temperatures": 6,
    "num_chains": 2,
    "num_leapfrog": 2,
    "num_simulated": 3,
    "hmc_samples": 12,
    "num_images": 3,
}


def test_evaluate_puts_the_estimators_side_by_side(tmp_path, capsys):
    workdir = str(tmp_path / "run")
    assert train.main(dataclasses.replace(TINY, workdir=workdir)) == 0
    config = evaluate.Config(workdir, evidence="is,ais,bdmc,hmc_density", **FEW)
    assert evaluate.main(config) == 0
    result = json.loads((tmp_path / "run" / "evaluation_test.json").read_text())
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
    again = evaluate.evaluate(dataclasses.replace(config, evidence="ais", base="q"))
    assert again["evidence"]["ais"]["log_p"] != evidence["ais"]["log_p"]
    assert "log_p" not in again


def test_binary_latents_are_annealed_by_gibbs_updates(tmp_path):
    workdir = str(tmp_path / "run")
    config = dataclasses.replace(
        TINY, workdir=workdir, posterior="bernoulli", estimator="vimco", num_samples=2
    )
    assert train.main(config) == 0
    asked = evaluate.Config(workdir, evidence="is,ais,bdmc", **FEW)
    evidence = evaluate.evaluate(asked)["evidence"]
    assert abs(evidence["ais"]["above_is"]) < 2.0
    with pytest.raises(cli.UsageError, match="hmc_density needs real latents"):
        evaluate.evaluate(dataclasses.replace(asked, evidence="hmc_density"))


@pytest.mark.parametrize(
    ("flag", "said"),
    [
        ("--evidence=is,aiz", "aiz"),
        ("--num_temperatures=0", "--num_temperatures must be positive"),
        ("--num_chains=-1", "--num_chains must be positive"),
        ("--schedule=cubic", "schedule"),
    ],
)
def test_a_bad_flag_of_the_estimators_is_named(flag, said):
    with pytest.raises(cli.UsageError, match=said):
        cli.parse(evaluate.Config, ["evaluate", flag])
