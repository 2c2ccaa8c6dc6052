"""--prior=flow and autoregressive are N(0, I) at step 0; flow is bit for bit."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.choices import models
from tests.tiny import tiny
from vae_jax.estimators import sgvb

X_SHAPE = (2, 3)


@pytest.mark.slow
@pytest.mark.parametrize("prior", ["flow", "autoregressive"])
@pytest.mark.parametrize("num_latents", [2, pytest.param(5, marks=pytest.mark.slow)])
def test_a_flow_prior_starts_as_the_model_of_n_0_i(tmp_path, prior, num_latents):
    """Every number of a draw, the bound, and what generates; but not the gradient."""
    made = {
        name: models.build(
            tiny(tmp_path, prior=name, estimator="sgvb_a", num_latents=num_latents),
            X_SHAPE,
        ).model
        for name in (prior, "standard_normal")
    }
    x, results = jnp.ones(X_SHAPE), {}
    for name, model in made.items():

        def of_model(key, model=model):
            key_init, key_draw, key_prior = jax.random.split(key, 3)
            params = model.init(key_init)
            h = model.recognition.encode(params, x)
            value, slope = jax.value_and_grad(
                sgvb.sgvb_a(model, num_samples=3), argnums=1
            )(jax.random.clone(key_draw), params, x)
            sample = model.draw(key_draw, params, x, h)
            z = model.generative.sample_prior(key_prior, params)
            return (*sample[:4], value, z), slope.generative["prior"]

        results[name], slope = jax.jit(of_model)(jax.random.key(0))
        moves = any(bool((leaf != 0.0).any()) for leaf in jax.tree.leaves(slope))
        assert moves == (name == prior)
    numbers = zip(
        *(jax.tree.leaves(result) for result in results.values()), strict=True
    )
    *of_draw, (z, expected_z) = numbers
    for got, expected in of_draw:
        np.testing.assert_allclose(got, expected, rtol=0.0 if prior == "flow" else 1e-6)
    if prior == "autoregressive" and not np.array_equal(z, expected_z):
        z = z[::-1]  # its layers turn the order of the latents around
    np.testing.assert_array_equal(z, expected_z)
