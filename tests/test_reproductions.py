"""Claims that take minutes: run on purpose, with `-m long`."""

import dataclasses
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments import evaluate, train
from experiments.choices.config import Config
from experiments.command import cli
from vae_jax import vae
from vae_jax.data import sources
from vae_jax.estimators import enumerated
from vae_jax.evaluation import marginal
from vae_jax.latent_models import sigmoid_belief
from vae_jax.types import Params

pytestmark = [pytest.mark.uses_optax, pytest.mark.long]

FLAGS = pathlib.Path(cli.__file__).parents[1] / "flags" / "train"


def trained(name: str, workdir: pathlib.Path, **changes) -> str:
    config = cli.parse(Config, ["train", f"--flagfile={FLAGS / name}.flags"])
    config = dataclasses.replace(
        config, workdir=str(workdir), progress=False, **changes
    )
    assert train.main(config) == 0
    return config.workdir


def test_the_linear_vae_reaches_the_likelihood_of_probabilistic_pca(tmp_path):
    workdir = trained("ppca_digits", tmp_path / "run")
    result = evaluate.evaluate(
        evaluate.Config(workdir, split="train", importance_samples=500)
    )
    # The maximum of Tipping & Bishop's closed form, from scikit-learn's digits.
    rows = sources.load("digits").train.reshape(1000, 64) / 16.0
    values = np.linalg.eigvalsh(np.cov(rows.T, bias=True))[::-1]
    num_features, saved = rows.shape[1], values[:2]
    noise = values[2:].mean()
    exact = -0.5 * (
        num_features * np.log(2.0 * np.pi)
        + np.log(saved).sum()
        + (num_features - 2) * np.log(noise)
        + num_features
    )
    np.testing.assert_allclose(exact, -0.0366, atol=5e-5)
    np.testing.assert_allclose(result["log_p"], exact, atol=0.01)
    np.testing.assert_allclose(result["elbo"], exact, atol=0.05)


def test_a_vae_of_digits_has_at_most_18_nats(tmp_path):
    workdir = trained("digits", tmp_path / "run")
    result = evaluate.evaluate(evaluate.Config(workdir, checkpoint="best"))
    assert -result["log_p"] <= 18.0


def test_thirty_binary_features_are_summed_over_when_asked():
    # 2^30 terms: the lecture's case. The estimate by importance sampling knows nothing
    # of the sum, and is unbiased for p(x).
    generative = sigmoid_belief.generative((30,), (8, 8))
    recognition = sigmoid_belief.recognition((30,), (8, 8))
    params = Params(
        generative.init(jax.random.key(0)), recognition.init(jax.random.key(1))
    )
    x = jnp.asarray(sources.load("digits").train[0] >= 8, jnp.float32)
    with pytest.raises(ValueError, match="1,073,741,824"):
        enumerated.log_evidence(generative, num_latents=30)
    exact = jax.jit(
        enumerated.log_evidence(generative, num_latents=30, max_terms=2**30)
    )(params, x)
    estimate = jax.jit(
        marginal.importance_sampling(
            vae.model(generative, recognition), num_samples=100_000
        )
    )(jax.random.key(2), params, x)
    print(f"log p(x) by 2^30 terms {exact:.4f}, by sampling {estimate.log_p:.4f}")
    assert abs(estimate.log_p - exact) < 5.0 * estimate.standard_error
