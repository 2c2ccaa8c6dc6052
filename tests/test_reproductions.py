"""Claims that take minutes: run on purpose, with `-m long`."""

import dataclasses
import pathlib

import numpy as np
import pytest

from experiments import cli, evaluate, train
from experiments.configuration import Config
from vae_jax.data import sources

pytestmark = [pytest.mark.uses_optax, pytest.mark.long]

FLAGS = pathlib.Path(cli.__file__).parent / "flags" / "train"


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
    num_features, kept = rows.shape[1], values[:2]
    noise = values[2:].mean()
    exact = -0.5 * (
        num_features * np.log(2.0 * np.pi)
        + np.log(kept).sum()
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
