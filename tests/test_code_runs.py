"""Codes that are rounded numbers, from flags to measurements."""

import dataclasses
import json
import pathlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments import evaluate, reconstruct, train
from experiments.choices import models
from experiments.choices.config import Config
from experiments.command import cli
from experiments.completion import command as completion
from experiments.generate import command as generate
from experiments.generate import paths
from experiments.measures import measure
from experiments.runs import protocol, trained_runs
from tests.architectures import ARCHITECTURES, TINY, untrained
from tests.tiny import metrics, tiny
from vae_jax import finite_scalar

pytestmark = pytest.mark.uses_optax
CODES: dict[str, Any] = {
    "posterior": "finite_scalar",
    "estimator": "sgvb_a",
    "num_latents": 3,
}


@pytest.mark.slow
def test_codes_train_and_every_command_says_what_a_point_mass_allows(tmp_path, capsys):
    config = tiny(
        tmp_path / "run",
        num_levels=3,
        prior="autoregressive",
        prior_units=8,
        **CODES,
    )
    assert train.main(config) == 0
    rows = metrics(config.workdir)
    for row in rows:
        np.testing.assert_allclose(row["bound"] + row["kl"], row["reconstruction"])
    assert rows[-1]["kl"] > 0.0
    which = evaluate.Config(workdir=config.workdir, num_images=40, eval_samples=2)
    capsys.readouterr()
    assert evaluate.main(which) == 0
    said = capsys.readouterr().out
    assert "q is a point mass: the ELBO is exact" in said
    path = pathlib.Path(config.workdir, "evaluation_test_40_images.json")
    result = json.loads(path.read_text())
    assert "log_p" not in result
    assert 1.0 <= result["perplexity"] <= 3.0
    trained = trained_runs.load(tmp_path / "run", checkpoint="last")[0]
    with pytest.raises(cli.UsageError, match="finite_scalar is a point mass"):
        measure.log_evidence(trained.model, num_samples=2)
    with pytest.raises(cli.UsageError, match=r"q\(z \| x\) is finite_scalar"):
        evaluate.evaluate(dataclasses.replace(which, evidence=("ais",)))
    chains = completion.Config(
        workdir=config.workdir, num_images=3, num_draws=5, methods=("pseudo_gibbs",)
    )
    assert completion.main(chains) == 0
    assert completion.OF_POINT_MASSES in capsys.readouterr().out
    with pytest.raises(cli.UsageError, match="--chain has no effect with --methods=ps"):
        completion.main(dataclasses.replace(chains, chain=5))
    with pytest.raises(cli.UsageError, match=r"a point mass here .*=pseudo_gibbs$"):
        completion.main(dataclasses.replace(chains, methods=("importance",)))
    assert generate.main(generate.Config(workdir=config.workdir, num=4)) == 0
    assert reconstruct.main(reconstruct.Config(workdir=config.workdir, num=4)) == 0


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({"estimator": "iwae"}, "what fits: sgvb_a$"),
        ({"estimator": "disarm"}, "what fits: sgvb_a$"),
        ({"prior": "flow"}, "has its own prior; what fits: autoregressive$"),
        ({"algorithm": "rws", "estimator": "sgvb_b"}, "--algorithm=rws does not fit"),
        ({"ladder": ("3", "2"), "num_latents": 16}, "is of one layer, not of --ladder"),
        (
            {"prior_units": 3},
            "--prior_units has no effect with --prior=standard_normal",
        ),
        ({"posterior_std": 0.5}, "--posterior_std has no effect with --posterior=fin"),
    ],
)
def test_what_does_not_go_with_codes_is_refused(flags, message):
    with pytest.raises(ValueError, match=message):
        Config(**CODES | flags).refuse()


BOOKS: dict[str, Any] = {
    "posterior": "vector_quantized",
    "num_latents": 6,
    "code_width": 3,
}


@pytest.mark.slow
def test_codebooks_train_end_where_an_unbroken_run_does_and_are_measured(
    tmp_path, capsys
):
    changes: dict[str, Any] = {
        "estimator": "codebook_averages",
        "codebook_rows": 4,
        "residual_levels": 2,
        "rotate": True,
        "min_code_uses": 0.5,
        "average_decay": 0.9,
        **BOOKS,
    }
    config = tiny(tmp_path / "run", num_epochs=4, **changes)
    assert train.main(config) == 0
    half = tiny(tmp_path / "half", num_epochs=2, **changes)
    assert train.main(half) == 0
    assert train.main(dataclasses.replace(half, num_epochs=4)) == 0
    whole, halves = (
        trained_runs.load(tmp_path / name, checkpoint="last", weights="raw")[0]
        for name in ("run", "half")
    )
    jax.tree.map(np.testing.assert_array_equal, whole.params, halves.params)
    assert all("codebook_perplexity" in row for row in metrics(config.workdir))
    which = evaluate.Config(workdir=config.workdir, num_images=40, eval_samples=2)
    capsys.readouterr()
    assert evaluate.main(which) == 0
    assert "used_rows" in capsys.readouterr().out
    path = pathlib.Path(config.workdir, "evaluation_test_40_images.json")
    result = json.loads(path.read_text())
    assert 1.0 <= result["perplexity"] <= 4.0
    assert result["used_rows"] * 8 == round(result["used_rows"] * 8)
    np.testing.assert_allclose(result["kl"], 4 * np.log(4.0), rtol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["vector_quantized", "finite_scalar"])
def test_a_traversal_moves_one_symbol_among_those_in_use(name):
    flags = ARCHITECTURES[name] | {"num_latents": 4}
    trained = untrained(protocol.load(TINY), **flags)
    rows = jnp.asarray(trained.data.prepared.test[:20])
    got = paths.along(jax.random.key(0), trained, rows[3], num_steps=5, num=3)
    width = measure.symbol_width(trained)
    key, every = jax.random.key(0), jnp.asarray(trained.data.prepared.test)
    codes = measure.codes(key, trained, every).reshape(len(every), -1, width)
    for place, z in zip(got["latents"], got["z"], strict=True):
        moved = z.reshape(5, -1, width)
        others = np.delete(np.arange(codes.shape[1]), place)
        expected = np.broadcast_to(codes[3, others], moved[:, others].shape)
        np.testing.assert_array_equal(moved[:, others], expected)
        in_use = {tuple(symbol) for symbol in codes[:, place]}
        assert {tuple(symbol) for symbol in moved[:, place]} <= in_use


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({"estimator": "sgvb_a"}, "what fits: codebook_gradient, codebook_averages$"),
        (
            {"estimator": "codebook_gradient", "codebook_decay": 0.5},
            "--codebook_decay has no effect with --estimator=codebook_gradient",
        ),
        (
            {"estimator": "codebook_averages", "num_levels": 3},
            "--num_levels has no effect with --posterior=vector_quantized",
        ),
    ],
)
def test_what_does_not_go_with_codebooks_is_refused(flags, message):
    with pytest.raises(ValueError, match=message):
        Config(**BOOKS | flags).refuse()


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (
            BOOKS | {"estimator": "codebook_averages", "code_width": 4},
            "--num_latents=6 must be a multiple of --code_width=4",
        ),
        (
            {"network": "conv", "latent_maps": True, "num_latents": 20},
            "--latent_maps with --num_latents=20: 40 entries are not 2 planes of 4x4",
        ),
    ],
)
def test_num_latents_are_whole_vectors_and_maps_whole_pixels(flags, message):
    with pytest.raises(ValueError, match=message):
        models.build(Config(**flags), (8, 8))


def test_levels_are_of_codes_alone():
    with pytest.raises(ValueError, match="--num_levels has no effect with --posterior"):
        Config(num_levels=3).refuse()


@pytest.mark.slow
@pytest.mark.parametrize("prior", ["standard_normal", "autoregressive"])
def test_flags_build_codes_whose_prior_starts_uniform(prior):
    config = Config(prior=prior, num_levels=4, **CODES)
    model = models.build(config, (8, 8)).model
    params = jax.jit(model.init)(jax.random.key(0))
    grid = finite_scalar.grid((4, 4, 4))
    z = grid.value((), jnp.array([3, 0, 1]), jnp.dtype("float32"))
    log_p = model.generative.log_prior(params, z)
    np.testing.assert_allclose(log_p, -3 * np.log(4.0), rtol=1e-6)
