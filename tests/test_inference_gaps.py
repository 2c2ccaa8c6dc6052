"""The script on the inference gaps, run in process with tiny configurations."""

import dataclasses
import json

import jax
import numpy as np
import pytest

from experiments.choices.config import Config
from experiments.command import cli
from experiments.inference_gaps import command as inference_gaps
from experiments.inference_gaps.config import MODELS
from experiments.runs import trained_runs
from tests.tiny import FLAGS
from vae_jax.latent_models import ppca, ppca_bounds

pytestmark = pytest.mark.uses_optax


@pytest.mark.parametrize("path", sorted((FLAGS / "inference_gaps").glob("*.flags")))
def test_a_flag_file_of_inference_gaps_parses(path):
    got = cli.parse(inference_gaps.Config, ["gaps", f"--flagfile={path}"])
    assert got != inference_gaps.Config()
    runs = inference_gaps.train_configs(got)
    assert tuple(runs) == MODELS
    assert runs["wide_encoder"].encoder_hidden > runs["diagonal"].hidden
    assert runs["wide_encoder"].hidden == runs["diagonal"].hidden


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ("--models=diagonal,square", "square is unknown; known: diagonal"),
        ("--num_images=0", "--num_images must be positive"),
        ("--num_temperatures=-1", "--num_temperatures must not be negative"),
        ("--tolerance=0", "--tolerance must be positive"),
        ("--flow_rate=0", "--flow_rate must be positive"),
        ("--eval_samples=15", "--eval_samples must be a multiple of --local_samples"),
        ("--run_flags=--num_seeds=2", "train one by one"),
        ("--run_flags=--posterior=iaf", "--posterior is set by the comparison's own"),
        ("--run_flags=--algorithm=vem", "--algorithm=vem do not fit"),
    ],
)
def test_what_makes_no_comparison_is_one_line(flags, words):
    with pytest.raises(cli.UsageError) as error:
        cli.parse(inference_gaps.Config, ["gaps", flags])
    assert words in str(error.value)


def test_searches_that_came_to_no_rest_are_warned_of():
    names = ("log_p", "best_flow", "best_diagonal", "bound", *inference_gaps.PARTS)
    split = dict.fromkeys([*names, *(f"{n}_standard_error" for n in names)], 1.0)
    split |= {"log_p_hats": {"is_q": 1.0}, "family": "flow"}
    at_rest = split | {"converged": {"diagonal": 0.0, "flow": 1.0}}
    restless = split | {"converged": {"diagonal": 1.0, "flow": 0.1}}
    text = inference_gaps.table("flow", {"train": at_rest, "test": restless})
    assert "warning, test: few searches" in text
    assert "warning, train" not in text


@pytest.mark.slow
def test_on_a_linear_vae_the_best_q_and_log_p_are_the_closed_forms(tmp_path, capsys):
    linear = (
        "--binarization=none --likelihood=normal_learned_std --std=0.5 --hidden= "
        "--num_latents=2 --num_epochs=1 --batch_size=50"
    )
    config = inference_gaps.Config(
        workdir=str(tmp_path),
        run_flags=linear,
        models=("diagonal",),
        num_images=10,
        eval_samples=2000,
        importance_samples=2000,
        tolerance=0.01,
    )
    assert inference_gaps.main(config) == 0
    trained = trained_runs.load(tmp_path / "diagonal", checkpoint="last")[0]
    result = json.loads((tmp_path / "inference_gaps.json").read_text())
    exact = {"min_std": trained.config.min_std}
    for split in inference_gaps.SPLITS:
        got = result["models"]["diagonal"][split]
        rows = trained_runs.spread_rows(trained, split=split, num_images=10)
        rows = trained.data.prepared.value(rows)

        def mean_of(function, rows=rows):
            return float(jax.vmap(function, (None, 0))(trained.params, rows).mean())

        def best_diagonal(params, x):
            mean, log_std = ppca_bounds.best_diagonal(params, x, **exact)
            tril = jax.numpy.diag(jax.numpy.exp(log_std))
            return ppca_bounds.bound(params, x, mean, tril, **exact)

        log_p = mean_of(lambda params, x: ppca.log_evidence(params, x, **exact))
        best = mean_of(best_diagonal)
        np.testing.assert_allclose(got["log_p"], log_p, atol=0.02)
        np.testing.assert_allclose(got["best_bound"], best, atol=0.03)
        assert got["approximation"] == pytest.approx(log_p - best, abs=0.04)
        parts = got["approximation"] + got["amortization"]
        assert got["inference"] == pytest.approx(parts, abs=1e-6)
        assert got["converged"]["diagonal"] == 1.0
        assert got["best_flow"] > got["best_diagonal"] - 0.02
    assert (tmp_path / "inference_gaps.png").is_file()

    measured = (tmp_path / "diagonal.json").stat().st_mtime_ns
    assert inference_gaps.main(config) == 0, "read back, not measured again"
    assert (tmp_path / "diagonal.json").stat().st_mtime_ns == measured
    assert "approximation" in capsys.readouterr().out

    moved = tmp_path.rename(tmp_path.with_name("moved"))
    config = dataclasses.replace(config, workdir=str(moved))
    assert inference_gaps.main(config) == 0, "nor is it where its folder has moved"
    assert (moved / "diagonal.json").stat().st_mtime_ns == measured


def test_what_numbers_depend_on_is_neither_the_folder_nor_the_device():
    def of(**changes):
        config = inference_gaps.Config(models=("diagonal",), **changes)
        run = inference_gaps.train_configs(config)["diagonal"]
        return inference_gaps.made_with(config, run, "sha256")

    assert of(workdir="a", data_dir="b") == of(run_flags="--num_devices=2") == of()
    assert of(num_images=7) != of()
    assert of(seed=1) != of()
    assert of(run_flags="--seed=1") != of()
    assert of() != {  # as it was written before: measured again, never read
        "measurement": dataclasses.asdict(inference_gaps.Config()) | {"models": ""},
        "run": dataclasses.asdict(Config().settled),
        "sha256": "sha256",
    }


@pytest.mark.parametrize(
    ("flags", "wanted"),
    [
        ("", "sgvb_a"),
        ("--estimator=iwae --num_samples=5", "iwae"),
        ("--algorithm=rws --num_samples=5", Config().estimator),
    ],
)
def test_a_flow_is_trained_by_the_estimator_of_the_others(flags, wanted):
    """But for the one that needs a KL in closed form."""
    config = inference_gaps.Config(models=("diagonal", "flow"), run_flags=flags)
    runs = inference_gaps.train_configs(config)
    assert runs["flow"].estimator == wanted
    assert runs["diagonal"].estimator in (wanted, "sgvb_b")
