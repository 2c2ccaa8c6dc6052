"""The moving average of the weights, measured beside them, and which one is used."""

import json

import numpy as np
import pytest

from experiments import evaluate, reconstruct, train
from experiments.command import cli
from experiments.export import cards
from experiments.export import command as export
from experiments.generate import command as generate
from experiments.measures import measure, validation
from experiments.runs import fit, runs, trained_runs
from tests.tiny import metrics, tiny

pytestmark = pytest.mark.uses_optax


@pytest.fixture(scope="module")
def averaged(tmp_path_factory):
    """A run that keeps an average far from its weights."""
    folder = tmp_path_factory.mktemp("averaged")
    config = tiny(folder, learning_rate=0.01, average_decay=0.95, progress=True)
    assert train.main(config) == 0
    return config


def _saved(config):
    run = runs.build(config)
    return run, fit.restore(run)


@pytest.mark.slow
def test_validation_and_the_tests_bound_are_of_the_average_and_of_the_raw_weights(
    averaged,
):
    run, saved = _saved(averaged)
    validate, row = validation.build(run), metrics(averaged.workdir)[-1]
    assert validate is not None
    key = runs.fold_in(run.keys.evaluation, saved.run.step)
    of_average, of_raw = (
        validate(key, weights)
        for weights in (saved.run.inner.average, saved.run.inner.params)
    )
    assert row["valid_bound"] == pytest.approx(of_average["bound"], abs=1e-4)
    assert row["valid_raw_bound"] == pytest.approx(of_raw["bound"], abs=1e-4)
    assert row["valid_raw_kl"] == pytest.approx(of_raw["kl"], abs=1e-4)
    assert abs(row["valid_bound"] - row["valid_raw_bound"]) > 0.1
    best = max(row["valid_bound"] for row in metrics(averaged.workdir))
    assert float(saved.best_bound) == pytest.approx(best, abs=1e-4)

    result = json.loads((averaged.directory() / "result.json").read_text())
    assert result["protocol"]["weights"] == "average"
    for weights, numbers in (("average", result), ("raw", result["raw"])):
        (trained,) = trained_runs.load(
            averaged.workdir, checkpoint="last", weights=weights
        )
        key = runs.fold_in(run.keys.evaluation, 0)
        size = averaged.eval_samples
        elbo = measure.bound(key, trained, split="test", num_samples=size)["elbo"]
        assert numbers["elbo"] == pytest.approx(elbo, abs=1e-4)
    assert abs(result["elbo"] - result["raw"]["elbo"]) > 0.1


@pytest.mark.slow
def test_each_command_says_which_weights_it_used(averaged, capsys):
    folder = {"workdir": averaged.workdir}
    for weights, used in (("auto", "average"), ("raw", "raw")):
        flags = {**folder, "weights": weights}
        commands = (
            (evaluate, evaluate.Config(**flags, importance_samples=10)),
            (reconstruct, reconstruct.Config(**flags, num=2)),
            (generate, generate.Config(**flags, num=2)),
            (export, export.Config(**flags)),
        )
        for module, config in commands:
            capsys.readouterr()
            assert module.main(config) == 0
            assert f"weights={used}" in capsys.readouterr().out
    names = ("evaluation_test.json", "evaluation_test_raw.json")
    average, raw = (json.loads((averaged.directory() / n).read_text()) for n in names)
    assert (average["protocol"]["weights"], raw["protocol"]["weights"]) == (
        "average",
        "raw",
    )
    assert abs(average["elbo"] - raw["elbo"]) > 0.1

    _, saved = _saved(averaged)
    for name, expected, measured in (
        ("model", saved.run.inner.average, average),
        ("model_raw", saved.run.inner.params, raw),
    ):
        path = averaged.directory() / f"{name}.safetensors"
        _, params = cards.load_model(path)
        leaf = params.generative["decoder"]["output"]["kernel"]
        np.testing.assert_array_equal(
            leaf, expected.generative["decoder"]["output"]["kernel"]
        )
        card = json.loads(export.described(str(path)))
        assert card["protocol"]["weights"] == measured["protocol"]["weights"]
        (evaluation,) = [v for k, v in card["results"].items() if "evaluation" in k]
        assert evaluation["elbo"] == measured["elbo"]


@pytest.mark.slow
def test_weights_that_a_run_does_not_keep_are_refused(averaged, tmp_path):
    with pytest.raises(cli.UsageError, match="--weights=raw goes with --checkpoint=la"):
        trained_runs.load(averaged.workdir, checkpoint="best", weights="raw")
    (best,) = trained_runs.load(averaged.workdir, checkpoint="best")
    assert best.weights == "average"

    plain = tiny(tmp_path, num_epochs=1)
    assert train.main(plain) == 0
    (row,) = metrics(plain.workdir)
    assert not [name for name in row if "raw" in name]
    result = json.loads((plain.directory() / "result.json").read_text())
    assert result["protocol"]["weights"] == "raw"
    assert "raw" not in result
    (trained,) = trained_runs.load(plain.workdir, checkpoint="best", weights="raw")
    assert trained.weights == "raw"
    with pytest.raises(
        cli.UsageError, match="--weights=average needs a run that keeps"
    ):
        trained_runs.load(plain.workdir, checkpoint="last", weights="average")


@pytest.mark.slow
def test_runs_together_are_measured_in_both_ways_too(tmp_path):
    config = tiny(tmp_path, num_seeds=2, learning_rate=0.01, average_decay=0.95)
    assert train.main(config) == 0
    row = metrics(config.workdir)[-1]
    assert len(row["each_valid_raw_bound"]) == 2
    assert row["valid_raw_bound"] != row["valid_bound"]
    result = json.loads((tmp_path / "result.json").read_text())
    for one, other in zip(result["runs"], result["raw"]["runs"], strict=True):
        assert abs(one["elbo"] - other["elbo"]) > 0.1
