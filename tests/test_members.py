"""Runs that train together: many seeds, or a sweep, in one program."""

import dataclasses
import json

import jax
import numpy as np
import pytest

from experiments import evaluate, train
from experiments.choices import sweep
from experiments.choices.config import Config
from experiments.command import cli
from experiments.export import cards
from experiments.generate import command as generate
from experiments.measures import validation
from experiments.runs import fit, runs, trained_runs
from tests.tiny import tiny
from vae_jax.training import journal

pytestmark = pytest.mark.uses_optax


def hundred_steps(path, **flags):
    """The digits run, stopped after a hundred steps of Adam at 1e-3."""
    return tiny(path, num_epochs=10, learning_rate=1e-3, progress=False, **flags)


def fitted(config):
    run = fit.claim(config)
    return run, fit.fit(
        run, fit.restore(run), [], started=0.0, validate=validation.build(run)
    )


def assert_equal_runs(together, alone, *, index, bounds, path):
    """The asked-for closeness: weights within 1e-5, bounds within 1e-4 nats."""
    got = runs.one_of(together.run.inner.params, index)
    for x, y in zip(
        jax.tree.leaves(got), jax.tree.leaves(alone.run.inner.params), strict=True
    ):
        np.testing.assert_allclose(x, y, rtol=0.0, atol=1e-5)
    rows = journal.read(path)
    for row, (bound, valid) in zip(rows, bounds, strict=True):
        assert abs(row["bound"] - bound[index]) < 1e-4
        assert abs(row["valid_bound"] - valid[index]) < 1e-4
    np.testing.assert_allclose(
        together.best_bound[index], alone.best_bound, rtol=0.0, atol=1e-4
    )
    assert together.best_step[index] == alone.best_step


@pytest.mark.slow
@pytest.mark.parametrize(
    "network", [{}, {"network": "resnet", "width": 2, "num_blocks": 1}]
)
def test_each_seed_is_the_run_of_its_seed_alone(tmp_path, network):
    config = hundred_steps(tmp_path / "together", num_seeds=3, seed=4, **network)
    _, together = fitted(config)
    assert together.step == 100
    rows = journal.read(config.workdir)
    bounds = [(row["each_bound"], row["each_valid_bound"]) for row in rows]
    for i in range(3):
        alone = hundred_steps(tmp_path / f"seed_{4 + i}", seed=4 + i, **network)
        _, saved = fitted(alone)
        assert_equal_runs(together, saved, index=i, bounds=bounds, path=alone.workdir)
    samples = np.array(rows[-1]["each_bound"])
    assert rows[-1]["bound"] == pytest.approx(samples.mean())
    assert rows[-1]["bound_std"] == pytest.approx(samples.std(ddof=1))
    assert np.ptp(samples) > 0.01  # they are different runs


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "values", "flags"),
    [
        ("learning_rate", (3e-4, 3e-3), {"schedule": "cosine"}),
        ("learning_rate", (3e-4, 3e-3), {"optimizer": "adagrad"}),
        ("beta", (0.5, 2.0), {}),
        ("kl_warmup", (0, 8), {}),
    ],
)
def test_each_value_of_a_sweep_is_the_run_of_that_value(tmp_path, name, values, flags):
    listed = ",".join(map(str, values))
    config = hundred_steps(tmp_path / "together", sweep=f"{name}={listed}")
    config = dataclasses.replace(config, num_epochs=3, **flags)
    _, together = fitted(config)
    rows = journal.read(config.workdir)
    bounds = [(row["each_bound"], row["each_valid_bound"]) for row in rows]
    for i, value in enumerate(values):
        separate = dataclasses.replace(
            config, workdir=str(tmp_path / f"alone_{i}"), sweep="", **{name: value}
        )
        _, saved = fitted(separate)
        assert_equal_runs(
            together, saved, index=i, bounds=bounds, path=separate.workdir
        )
    assert np.ptp(bounds[-1][0]) > 0.01


@pytest.mark.slow
def test_runs_together_resume_bit_for_bit_and_are_evaluated_together(tmp_path, capsys):
    whole = tiny(tmp_path / "whole", num_seeds=2, sweep="beta=1,4", num_epochs=4)
    assert train.main(whole) == 0
    halves = dataclasses.replace(whole, workdir=str(tmp_path / "halves"))
    assert train.main(dataclasses.replace(halves, num_epochs=2)) == 0
    assert train.main(halves) == 0
    for x, y in zip(*(map(jax.tree.leaves, map(_saved, (whole, halves)))), strict=True):
        np.testing.assert_array_equal(_bits(x), _bits(y))

    said = capsys.readouterr().out
    assert "beta=1, 2 seeds" in said
    assert "beta=4, 2 seeds" in said
    result = json.loads((tmp_path / "whole" / "result.json").read_text())
    assert [run["name"] for run in result["runs"]] == [
        *("beta=1, seed=0", "beta=1, seed=1", "beta=4, seed=0", "beta=4, seed=1"),
    ]
    assert result["over_seeds"][0]["kl"] > result["over_seeds"][1]["kl"]

    config = evaluate.Config(
        workdir=whole.workdir, eval_samples=2, importance_samples=10
    )
    assert evaluate.main(config) == 0
    said = capsys.readouterr().out
    assert "  std " in said
    seen = json.loads((tmp_path / "whole" / "evaluation_test.json").read_text())
    for number, run in enumerate(seen["runs"], 1):
        assert f"run {number} of 4: elbo {run['elbo']:.4f}\n" in said
    alone = evaluate.evaluate(dataclasses.replace(config, member=3))
    for name in ("elbo", "log_p", "active_units"):
        separate = [run[name] for run in seen["runs"]]
        assert seen["over_seeds"][1][name] == pytest.approx(np.mean(separate[2:]))
        assert alone[name] == separate[3]
    text = (tmp_path / "whole" / "evaluation_test.txt").read_text()
    assert text.count("log p(x), nats ") == 4
    _check_cards(whole, seen, alone)


def _check_cards(config, together, alone):
    """A card has its own run's figures, from all together or from it alone."""
    trained = trained_runs.load(config.workdir, checkpoint="auto")
    path = config.directory() / "evaluation_test.json"
    for one, run in zip(trained, together["runs"], strict=True):
        results = cards.of_trained(one)["results"]
        assert results["evaluation_test"]["elbo"] == run["elbo"]
        assert results["result"]["name"] == run["name"]
    path.unlink()
    path.with_stem("evaluation_test_member_3").write_text(json.dumps(alone))
    assert [*cards.of_trained(trained[0])["results"]] == ["result"]
    results = cards.of_trained(trained[3])["results"]
    assert results["evaluation_test_member_3"]["elbo"] == alone["elbo"]


@pytest.mark.slow
def test_runs_together_on_real_valued_targets_report_cross_entropies(tmp_path):
    config = tiny(tmp_path, num_seeds=2, num_epochs=1, binarization="none")
    assert train.main(config) == 0
    (row,) = journal.read(tmp_path)
    assert len(row["each_cross_entropy_objective"]) == 2
    assert min(row["each_cross_entropy"]) > 0.0
    assert row["cross_entropy_std"] > 0.0
    assert not {name for name in row if "bound" in name or "elbo" in name}


def test_a_member_below_all_is_refused():
    with pytest.raises(cli.UsageError, match="--member must be -1"):
        cli.parse(evaluate.Config, ["evaluate", "--member=-5"])


def _saved(config):
    saved = runs.restore(runs.build(config))
    assert saved is not None
    return saved


def _bits(leaf):
    if jax.numpy.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        leaf = jax.random.key_data(leaf)
    return np.asarray(leaf)


@pytest.mark.slow
def test_a_member_that_is_not_there_is_named(tmp_path):
    config = tiny(tmp_path, num_seeds=2, num_epochs=1)
    fitted(config)
    with pytest.raises(cli.UsageError, match=r"--member=2: .* holds 2 runs, from 0 on"):
        generate.main(generate.Config(workdir=str(tmp_path), member=2))
    first, second = trained_runs.load(tmp_path, checkpoint="last")
    assert (first.config.seed, second.config.seed) == (0, 1)


@pytest.mark.slow
def test_a_run_that_diverges_is_named(tmp_path):
    config = tiny(tmp_path, sweep="learning_rate=1e-3,1e30", optimizer="sgd")
    with pytest.raises(cli.UsageError, match=r"run with learning_rate=1e\+30, seed=0"):
        fitted(config)


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        ({"sweep": "hidden=3,4"}, "NAME=V1,V2,... with one of learning_rate, beta"),
        ({"sweep": "beta"}, "NAME=V1,V2,..."),
        ({"sweep": "beta=1,x"}, "1,x is not a list of float values"),
        ({"sweep": "kl_warmup=0.5"}, "0.5 is not a list of int values"),
        ({"sweep": "learning_rate=1e-3,-1"}, "--learning_rate must be positive"),
        ({"sweep": "beta=1,2", "estimator": "iwae"}, "--beta has no effect with"),
    ],
)
def test_a_sweep_that_cannot_be_run_is_a_one_line_error(tmp_path, flags, said):
    with pytest.raises(cli.UsageError) as error:
        runs.build(tiny(tmp_path, **flags))
    assert said in str(error.value)


def test_early_stopping_of_runs_together_is_refused():
    with pytest.raises(ValueError, match="ends one run at its own time"):
        Config(num_seeds=2, early_stopping=5)


def test_the_members_are_every_value_with_every_seed():
    config = Config(seed=3, num_seeds=2, sweep="learning_rate=1e-3,1e-2")
    seen = [(run.learning_rate, run.seed) for run in sweep.expand(config)]
    assert seen == [(1e-3, 3), (1e-3, 4), (1e-2, 3), (1e-2, 4)]
    assert not any(run.trains_many for run in sweep.expand(config))
