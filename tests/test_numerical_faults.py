"""Numbers at the edge of float32: bounded, or stopped with the cause named."""

import math
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments import evaluate, train
from experiments.command import cli
from tests import problems
from tests.tiny import metrics, tiny
from vae_jax import likelihoods, vae
from vae_jax.estimators import importance, score_function, sgvb, wake_sleep

pytestmark = pytest.mark.uses_optax


def npz(folder, **arrays) -> dict:
    """The flags of a run on arrays."""
    np.savez(folder / "a.npz", allow_pickle=False, **arrays)
    return {
        "dataset": f"npz:{folder / 'a.npz'}",
        "batch_size": 10,
        "binarization": "none",
    }


@pytest.mark.slow
@pytest.mark.parametrize("likelihood", ["normal_learned_std", "normal_per_pixel_std"])
def test_a_std_driven_to_its_bound_stays_there_with_finite_gradients(
    tmp_path, likelihood
):
    # One image, over and over: its density would grow without limit (Mattei & Frellsen
    # 2018, arXiv:1802.04826).
    data = npz(tmp_path, train=np.full((200, 4, 4), 0.5, np.float32))
    changes = {"likelihood": likelihood, "min_std": 0.01, "learning_rate": 0.01}
    config = tiny(tmp_path / "run", num_epochs=100, **changes, **data)
    assert train.main(config) == 0
    rows = metrics(config.workdir)
    assert np.isfinite([list(row.values()) for row in rows]).all()
    peak = -16.0 * math.log(0.01 * math.sqrt(2.0 * math.pi))
    best = max(row["reconstruction"] for row in rows)
    assert 0.8 * peak < best <= peak


@pytest.mark.slow
@pytest.mark.parametrize("log_std", [-40.0, 40.0])
def test_the_elbo_and_its_gradient_are_finite_far_from_the_posteriors_scale(log_std):
    problem, params = _with_log_std(log_std)
    value, slopes = _elbo(problem, params)
    assert jnp.isfinite(value)
    assert value < -30.0
    chex.assert_tree_all_finite(slopes)


def test_an_elbo_beyond_float32_is_not_taken_for_a_number():
    value, _ = _elbo(*_with_log_std(60.0))
    assert not jnp.isfinite(value)


def _with_log_std(log_std: float):
    """A linear model whose q(z | x) has this log std for every x."""
    problem = problems.linear_gaussian(num_latents=1, num_features=2)
    layer = problem.params.recognition["encoder"]["output"]
    bias = layer["bias"].at[1].set(log_std)
    layer = {"kernel": layer["kernel"].at[:, 1].set(0.0), "bias": bias}
    recognition = {**problem.params.recognition, "encoder": {"output": layer}}
    return problem, problem.params._replace(recognition=recognition)


def _elbo(problem, params):
    elbo = sgvb.sgvb_b(problem.model, num_samples=1)
    x = jnp.array([0.3, -0.8])
    return jax.jit(jax.value_and_grad(elbo, argnums=1))(jax.random.key(0), params, x)


SAMPLED = {
    "dreg": importance.dreg,
    "vimco": score_function.vimco,
    "reweighted_wake_sleep": wake_sleep.reweighted_wake_sleep,
}


@pytest.mark.slow
@pytest.mark.parametrize("name", SAMPLED)
def test_samples_that_cannot_be_leave_an_estimator_its_value(name):
    """Its surrogate is no number where 0 meets the logarithm of 0; its bound is one."""
    problem = problems.linear_gaussian()

    def terms(params, x, z):
        possible = problem.generative.log_likelihood_terms(params, x, z)
        return jnp.where(z[0] > 0.0, possible, -jnp.inf)

    generative = problem.generative._replace(log_likelihood_terms=terms)
    model = vae.model(generative, problem.recognition)
    estimator = jax.value_and_grad(SAMPLED[name](model, num_samples=4), argnums=1)
    plain = importance.iwae(model, num_samples=4)

    @jax.jit
    def both(key, params, x):
        return estimator(jax.random.clone(key), params, x), plain(key, params, x)

    x, values = jnp.array([0.3, -0.8]), []
    for seed in range(5):
        (value, slopes), expected = both(jax.random.key(seed), problem.params, x)
        np.testing.assert_allclose(value, expected, rtol=1e-5)
        values.append(value)
        if name != "vimco" and np.isfinite(value):
            chex.assert_tree_all_finite(slopes)
    assert np.isfinite(values).any()


@pytest.mark.slow
@pytest.mark.parametrize("method", ["ais", "hmc_density"])
def test_an_image_whose_weights_overflow_is_named(tmp_path, method):
    rows = np.random.default_rng(0).random((30, 4), np.float32)
    data = npz(tmp_path, train=rows[:20], test=np.vstack([rows[20:], rows[:1] * 1e25]))
    config = tiny(tmp_path / "run", likelihood="normal", num_epochs=1, **data)
    train.main(config)
    of_method: dict[str, Any] = {
        "ais": {"num_temperatures": 5, "num_chains": 2},
        "hmc_density": {"hmc_samples": 12},
    }
    with pytest.raises(
        cli.UsageError, match=r"example 10, .* 1 of 11: .* float32"
    ) as e:
        evaluate.main(
            evaluate.Config(
                config.workdir,
                evidence=(method,),
                eval_samples=2,
                num_leapfrog=2,
                **of_method[method],
            )
        )
    assert "\n" not in str(e.value)


@pytest.mark.parametrize("uniform", [0.0, 1.0 - 2.0**-23])
def test_a_continuous_bernoulli_draws_no_end_that_it_has_no_mass_at(
    uniform, monkeypatch
):
    monkeypatch.setattr(
        jax.random, "uniform", lambda key, shape, dtype: jnp.full(shape, uniform, dtype)
    )
    logits = np.array([60.0, -60.0, 30.0, -30.0, 0.0])
    sample = likelihoods.continuous_bernoulli(logits.shape).sample
    x = np.asarray(sample(jax.random.key(0), (), jnp.asarray(logits)), np.float64)
    p, size = uniform + 2.0**-24, np.abs(logits[:4])
    np.testing.assert_allclose(x[4], p)
    # From the end of little mass: P(X < x), or its mirror for negative logits.
    from_far = np.where(logits[:4] > 0.0, x[:4], 1.0 - x[:4])
    of_far = np.where(logits[:4] > 0.0, p, 1.0 - p)
    exact = 1.0 + np.log(of_far + (1.0 - of_far) * np.exp(-size)) / size
    np.testing.assert_allclose(from_far, exact, atol=1e-5)
