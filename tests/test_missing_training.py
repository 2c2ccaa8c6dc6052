"""Training on data with holes, and the script that completes."""

import dataclasses
import json
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments import train
from experiments.choices import models
from experiments.choices.config import Config
from experiments.command import cli
from experiments.completion import command as completion
from experiments.runs import protocol, trained_runs
from tests.tiny import metrics, saved, saved_arrays, tiny
from vae_jax.training import journal

pytestmark = pytest.mark.uses_optax
HOLES = {"missing": "nan", "missing_rate": 0.5, "estimator": "iwae", "num_samples": 2}
STEPS: dict[str, Any] = {
    "num_images": 3,
    "num_draws": 5,
    "num_warmup": 1,
    "num_burn_in": 1,
    "thin": 1,
    "importance_samples": 20,
    "chain": 10,
}


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    """One tiny run on digits with holes that several tests read."""
    path = tmp_path_factory.mktemp("runs") / "holes"
    with jax.numpy_dtype_promotion("standard"):
        assert train.main(tiny(path, **HOLES)) == 0
    return path


# Training


@pytest.mark.slow
def test_a_resumed_run_on_holes_ends_bit_for_bit_as_an_unbroken_one(tmp_path, workdir):
    broken = tiny(tmp_path / "broken", num_epochs=1, **HOLES)
    train.main(broken)
    broken = dataclasses.replace(broken, num_epochs=2)
    train.main(broken)
    whole = dataclasses.replace(broken, workdir=str(workdir))
    for a, b in zip(saved_arrays(whole), saved_arrays(broken), strict=True):
        np.testing.assert_array_equal(a, b)
    assert metrics(whole.workdir) == metrics(broken.workdir)


@pytest.mark.slow
def test_what_was_missing_is_in_the_protocol_and_no_number_is_nan(workdir):
    stamp = json.loads((workdir / "run.json").read_text())["protocol"]
    assert (stamp["missing"], stamp["missing_rate"]) == ("nan", 0.5)
    assert abs(stamp["missing_share"]["train"] - 0.5) < 0.02
    assert abs(stamp["missing_share"]["valid"] - 0.5) < 0.02
    assert stamp["missing_share"]["test"] == 0.0
    rows = journal.read(workdir)
    assert np.isfinite([row["bound"] for row in rows]).all()
    assert np.isfinite([row["valid_bound"] for row in rows]).all()
    trained = trained_runs.load(workdir, checkpoint="last")[0]
    chex.assert_tree_all_finite(trained.params)


@pytest.mark.slow
def test_nan_in_a_file_trains_where_the_flag_says_what_it_is(tmp_path):
    rows = np.random.default_rng(0).random((40, 6)).astype(np.float32)
    rows[7, 1] = np.nan
    np.savez(tmp_path / "a.npz", train=rows, test=rows)
    config = tiny(
        tmp_path / "run",
        dataset=f"npz:{tmp_path / 'a.npz'}",
        binarization="none",
        likelihood="normal",
        batch_size=10,
        num_epochs=1,
    )
    with pytest.raises(cli.UsageError, match=r"train row 7 holds NaN.*missing=nan"):
        train.main(config)
    assert train.main(dataclasses.replace(config, missing="nan")) == 0
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    assert np.isfinite(result["elbo"])


@pytest.mark.slow
def test_a_learned_baseline_trains_on_rows_with_holes(tmp_path):
    config = tiny(
        tmp_path,
        posterior="bernoulli",
        estimator="nvil",
        missing="nan",
        missing_rate=0.5,
        num_epochs=1,
    )
    assert train.main(config) == 0
    assert np.isfinite([row["bound"] for row in journal.read(tmp_path)]).all()
    trained = trained_runs.load(tmp_path, checkpoint="last")[0]
    chex.assert_tree_all_finite(trained.params)


@pytest.mark.slow
@pytest.mark.parametrize("algorithm", ["aevb", "rws", "full_vb", "mcem", "vem"])
def test_each_algorithm_that_takes_holes_has_models_that_do(algorithm):
    config = Config(missing="nan", algorithm=algorithm, weight_decay=1.0, num_latents=2)
    model = models.build(config, (2, 2)).model
    params = model.init(jax.random.key(0))
    x, z = jnp.full((2, 2), jnp.nan), jnp.zeros(2)
    terms = model.generative.log_likelihood_terms(params, x, z)
    np.testing.assert_array_equal(terms, 0.0)


def test_binary_data_with_holes_is_binary_still(tmp_path):
    rows = np.array([[0.0, 1.0], [np.nan, 1.0]], np.float32)
    np.savez(tmp_path / "a.npz", train=rows)
    config = Config(
        dataset=f"npz:{tmp_path / 'a.npz'}", binarization="none", missing="nan"
    )
    assert protocol.load(config).quantity == "log-likelihood"


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--missing_rate=0.5"], "--missing_rate has no effect with --missing=refuse"),
        (["--missing=nan", "--missing_rate=1"], "--missing_rate must be below 1"),
        (["--missing_rate=-0.1"], "--missing_rate must not be negative"),
        (["--missing=nan", "--algorithm=wake_sleep"], "does not go with --algorithm"),
        (["--missing=zero"], "missing"),
    ],
)
def test_flags_of_holes_that_make_no_sense_are_refused(flags, message):
    with pytest.raises(cli.UsageError, match=message):
        cli.parse(Config, ["train", *flags])


def test_a_table_may_lose_more_cells_than_it_has_lost():
    config = cli.parse(Config, ["train", "--dataset=csv:a.csv", "--missing_rate=0.2"])
    assert config.settled.missing == "nan"


JOINT = Config(
    likelihood="discretized_logistic_mixture",
    num_logistics=2,
    num_values=17,
    binarization="none",
    num_latents=2,
    hidden=(3,),
)
NO_TERM_AN_ENTRY = (
    r"--likelihood=discretized_logistic_mixture has terms of shape \(4, 4\) for x of "
    r"\(4, 4, 3\), .* such as --likelihood=discretized_logistic$"
)


def test_channels_of_one_term_cannot_be_missing():
    models.build(dataclasses.replace(JOINT, missing="nan"), (4, 4))
    for flags in (JOINT, dataclasses.replace(JOINT, condition="labels")):
        with pytest.raises(ValueError, match=NO_TERM_AN_ENTRY):
            models.build(
                dataclasses.replace(flags, missing="nan"),
                (4, 4, 3),
                context=("0", "1") if flags.condition else (),
            )


# The script


@pytest.mark.slow
def test_completions_of_binary_images_report_what_they_promise(workdir, capsys):
    config = completion.Config(workdir=str(workdir), mask="top", **STEPS)
    assert completion.main(config) == 0
    stem = "completion_top_3_images"
    result = json.loads((workdir / f"{stem}.json").read_text())
    for name in ("pseudo_gibbs", "metropolis_within_gibbs", "importance"):
        results = result["methods"][name]
        assert 0.0 < results["rmse"] < 1.0
        assert results["log_p_of_truth"] < 0.0
        assert sum(row["num_entries"] for row in results["calibration"]) == 3 * 32
        assert "coverage" not in results
    assert 0.0 < result["methods"]["metropolis_within_gibbs"]["acceptance"] <= 1.0
    assert set(result["log_p_truth"]) >= {"log_p_x", "log_p_missing_given_observed"}
    assert isinstance(result["log_p_truth"]["doubts"], list)
    assert "mean_squared_error" in result["differences"]
    assert result["notes"] == []
    names = {path.name for path in workdir.iterdir()}
    assert {f"{stem}.{end}" for end in ("txt", "png", "npz")} <= names
    stored = np.load(workdir / f"{stem}.npz")
    saved = np.where(stored["hidden"], 0.0, stored["x"])
    completed = stored["importance_x"][:, 0]
    np.testing.assert_array_equal(np.where(stored["hidden"], 0.0, completed), saved)
    assert "training_mean" in capsys.readouterr().out


@pytest.mark.slow
def test_where_everything_is_hidden_the_prior_answers_and_the_report_says_so(workdir):
    steps: dict[str, Any] = {n: x for n, x in STEPS.items() if n != "chain"}
    config = completion.Config(
        workdir=str(workdir), mask="random", fraction=1.0, proposal="encoder", **steps
    )
    result, arrays = completion.complete(config, config.load())
    assert "Nothing is observed of 3 of 3 rows" in result["notes"][0]
    assert "the prior's answer" in result["notes"][-1]
    assert abs(result["log_p_truth"]["log_p_observed"]) < 1e-5
    assert arrays["hidden"].all()


@pytest.mark.slow
def test_real_valued_images_report_coverage(tmp_path):
    path = tmp_path / "run"
    changes = {"likelihood": "normal", "binarization": "none", "num_epochs": 1}
    train.main(tiny(path, **changes))
    config = completion.Config(workdir=str(path), mask="block", **STEPS)
    result, _ = completion.complete(config, config.load())
    for results in result["methods"].values():
        assert 0.0 <= results["coverage"] <= 1.0
        assert results["interval_width"] > 0.0
        assert "calibration" not in results


@pytest.mark.slow
def test_a_mask_that_hides_nothing_known_is_one_line(workdir):
    config = completion.Config(
        workdir=str(workdir), mask="random", fraction=1e-9, **STEPS
    )
    with pytest.raises(cli.UsageError, match="hides no entry of these 3 rows"):
        completion.complete(config, config.load())


@pytest.mark.slow
def test_a_mask_of_the_wrong_shape_is_one_line(tmp_path, workdir):
    for shape in ((4, 4), (2, 8, 8)):
        np.save(tmp_path / "mask.npy", np.ones(shape, bool))
        config = completion.Config(
            workdir=str(workdir), mask=f"npy:{tmp_path / 'mask.npy'}", **STEPS
        )
        with pytest.raises(cli.UsageError, match=r"does not fit .* shape") as error:
            completion.complete(config, config.load())
        assert "\n" not in str(error.value)


def test_a_mask_in_another_file_than_of_one_array_is_one_line(tmp_path):
    np.savez(tmp_path / "mask.npz", np.ones((8, 8), bool))
    (tmp_path / "empty.npy").write_bytes(b"")
    for name, said in (("mask.npz", "save the mask by numpy.save"), ("empty.npy", "")):
        config = completion.Config(mask=f"npy:{tmp_path / name}")
        with pytest.raises(ValueError, match=rf"^--mask=npy:.*{name}: .*{said}"):
            completion.hidden_entries(config, jnp.zeros((3, 8, 8)))


def test_a_term_of_several_entries_is_refused_before_any_draw(tmp_path):
    rows = np.random.default_rng(0).integers(17, size=(20, 4, 4, 3)) / np.float32(16)
    np.savez(tmp_path / "a.npz", train=rows, test=rows)
    joint = dataclasses.replace(
        JOINT,
        workdir=str(tmp_path / "run"),
        dataset=f"npz:{tmp_path / 'a.npz'}",
        batch_size=10,
    )
    config = completion.Config(workdir=str(saved(joint)), **STEPS)
    with pytest.raises(cli.UsageError, match=NO_TERM_AN_ENTRY):
        completion.complete(config, config.load())


def test_a_block_beyond_the_image_names_its_flag():
    config = completion.Config(mask="block", block=20)
    with pytest.raises(ValueError, match=r"^--block=20: a block of .* 8 x 8"):
        completion.hidden_entries(config, jnp.zeros((3, 8, 8)))


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--methods=importance", "--thin=3"], "--thin has no effect with --methods"),
        (["--proposal=encoder", "--chain=5"], "--chain has no effect with --proposal"),
        (
            ["--mask=none", "--methods=pseudo_gibbs", "--proposal=encoder"],
            "--proposal has no effect with --methods=pseudo_gibbs",
        ),
    ],
)
def test_a_flag_that_no_method_reads_is_named(flags, message):
    with pytest.raises(cli.UsageError, match=message):
        cli.parse(completion.Config, ["completion", *flags])


@pytest.mark.slow
def test_a_chain_too_short_for_the_latents_is_one_line(workdir):
    steps: dict[str, Any] = STEPS | {"chain": 2}
    config = completion.Config(workdir=str(workdir), **steps)
    with pytest.raises(cli.UsageError, match=r"--chain=2 must be above .* 2 latents"):
        completion.complete(config, config.load())


@pytest.mark.parametrize(
    ("flag", "message"),
    [
        ("--mask=west", "--mask=west is unknown; known: left"),
        ("--methods=gibbs", "--methods=gibbs is unknown; known: pseudo_gibbs"),
        ("--methods=", "--methods must hold at least one item"),
        ("--fraction=0.2", "--fraction has no effect with --mask=left"),
        ("--fraction=0", "--fraction must be positive"),
        ("--fraction=1.1", "--fraction must be at most 1"),
        ("--block=5", "--block has no effect with --mask=left"),
        ("--num_draws=0", "--num_draws must be positive"),
        ("--num_burn_in=-1", "--num_burn_in must not be negative"),
        ("--importance_samples=501", "--importance_samples above 500"),
    ],
)
def test_a_bad_flag_of_completion_is_named(flag, message):
    with pytest.raises(cli.UsageError, match=message):
        cli.parse(completion.Config, ["completion", flag])
