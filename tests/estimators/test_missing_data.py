import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests import problems, testing
from vae_jax import vae
from vae_jax.estimators import importance, missing_data
from vae_jax.types import Params

NAN = float("nan")


@pytest.mark.slow
def test_the_bound_is_that_of_the_model_of_the_observed_entries_alone(x64):
    """Value and gradient, for a linear model whose rows can be left out by hand."""
    problem = problems.linear_gaussian(num_features=3)
    x, saved = jnp.array([0.7, NAN, -0.4]), np.array([0, 2])
    objective = missing_data.importance_bound(problem.model, num_samples=4)
    small = problems.linear_gaussian(num_features=2)

    def left_out(params):
        """The parameters of the rows and columns that are observed."""
        theta, phi = params.generative["decoder"]["output"], params.recognition
        decoder = {"kernel": theta["kernel"][:, saved], "bias": theta["bias"][saved]}
        encoder = phi["encoder"]["output"]
        shown = {"kernel": encoder["kernel"][saved], "bias": encoder["bias"]}
        return Params(
            params.generative | {"decoder": {"output": decoder}},
            phi | {"encoder": {"output": shown}},
        )

    whole = importance.iwae(small.model, num_samples=4)

    def by_hand(key, params, x):
        return whole(key, left_out(params), x[saved])

    key = jax.random.key(1)
    single = [jax.jit(jax.value_and_grad(f, argnums=1)) for f in (objective, by_hand)]
    got = single[0](key, problem.params, x)
    expected = single[1](jax.random.clone(key), problem.params, x)
    chex.assert_trees_all_close(got, expected, rtol=1e-9, atol=1e-12)


@pytest.mark.slow
def test_without_holes_it_is_the_importance_weighted_bound_bit_for_bit():
    model = vae.model(*problems.bernoulli_vae())
    key_init, key = jax.random.split(jax.random.key(0))
    params = model.init(key_init)
    x = jnp.ones((2, 3))
    made = [
        build(model, num_samples=3)
        for build in (missing_data.importance_bound, importance.iwae)
    ]
    one, other = (jax.jit(jax.value_and_grad(f, argnums=1)) for f in made)
    chex.assert_trees_all_equal(
        one(key, params, x), other(jax.random.clone(key), params, x)
    )


def test_where_nothing_is_observed_the_bound_is_minus_kl_to_the_prior_at_most_zero():
    problem = problems.linear_gaussian(num_features=2)
    x = jnp.full(2, NAN)
    objective = missing_data.importance_bound(problem.model, num_samples=1)
    values, _ = testing.draws(objective, problem.params, x)
    testing.assert_mean_equals(values, -problem.kl(problem.params, jnp.zeros(2)))
