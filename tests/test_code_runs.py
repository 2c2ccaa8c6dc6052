"""Codes that are rounded numbers, from flags to measurements."""

import dataclasses
import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments import evaluate, reconstruct, train
from experiments.choices import models
from experiments.choices.config import Config
from experiments.command import cli
from experiments.generate import command as generate
from experiments.measures import measure
from experiments.runs import trained_runs
from tests.tiny import metrics, tiny
from vae_jax import finite_scalar

pytestmark = pytest.mark.uses_optax
CODES = {"posterior": "finite_scalar", "estimator": "sgvb_a", "num_latents": 3}


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
        evaluate.evaluate(dataclasses.replace(which, evidence="ais"))
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
        ({"prior_units": 3}, "--prior_units says nothing to --prior=standard_normal"),
        ({"posterior_std": 0.5}, "--posterior_std says nothing to --posterior=fin"),
    ],
)
def test_what_does_not_go_with_codes_is_refused(flags, message):
    with pytest.raises(ValueError, match=message):
        Config(**CODES | flags).check()


def test_levels_are_of_codes_alone():
    with pytest.raises(ValueError, match="--num_levels says nothing to --posterior"):
        Config(num_levels=3).check()


@pytest.mark.parametrize("prior", ["standard_normal", "autoregressive"])
def test_flags_build_codes_whose_prior_starts_uniform(prior):
    config = Config(prior=prior, num_levels=4, **CODES)
    model = models.build(config, (8, 8)).model
    params = jax.jit(model.init)(jax.random.key(0))
    z = finite_scalar.value(jnp.array([3, 0, 1]), (4, 4, 4), jnp.dtype("float32"))
    log_p = model.generative.log_prior(params, z)
    np.testing.assert_allclose(log_p, -3 * np.log(4.0), rtol=1e-6)
