import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests import problems
from vae_jax import types
from vae_jax.types import Generative, Params

RECORDS = {
    types.Params: ("generative", "recognition"),
    types.Batch: ("x", "index", "weight"),
    types.Family: ("name", "parameters"),
    types.Conditional: (
        "shape",
        "width",
        "init",
        "sample",
        "log_prob",
        "sample_and_log_prob",
        "moments",
        "family",
        "transport",
        "symbols",
    ),
    types.Symbols: ("of", "value", "log_probs"),
    types.Transport: ("forward", "inverse"),
    types.Likelihood: (
        "width",
        "planes",
        "init",
        "sample",
        "mean",
        "log_prob_terms",
        "quantity",
    ),
    types.Network: ("init", "apply"),
    types.Generative: (
        "init",
        "sample_prior",
        "log_prior",
        "log_likelihood_terms",
        "sample_observation",
        "mean_observation",
        "prior_family",
        "quantity",
        "transport",
        "symbols",
    ),
    types.Recognition: (
        "init",
        "encode",
        "sample",
        "log_prob",
        "sample_and_log_prob",
        "moments",
        "family",
    ),
    types.Draw: ("z", "log_likelihood", "log_prior", "log_posterior", "kl"),
    types.Hierarchy: ("shapes", "groups", "mix", "redraw", "means", "top", "densities"),
    types.Model: ("generative", "recognition", "draw", "kl", "hierarchy"),
    types.Objective: ("init", "value", "project"),
    types.Algorithm: ("init", "step"),
}
DEFAULTS = {
    types.Model: {"hierarchy": None},
    types.Family: {"parameters": None},
    types.Generative: {
        "prior_family": types.Family("a prior without closed forms"),
        "quantity": None,
        "transport": None,
        "symbols": None,
    },
    types.Objective: {"project": types.Objective._field_defaults["project"]},
}


def _two_by_two() -> Generative:
    """log p(z) = -|z|, and a term x_ij * z_i for every entry of a [2, 2] image."""
    return Generative(
        init=lambda key: (),
        sample_prior=lambda key, params: jnp.zeros(2),
        log_prior=lambda params, z: -jnp.abs(z).sum(),
        log_likelihood_terms=lambda params, x, z: params.generative * x * z[:, None],
        sample_observation=lambda key, params, z: jnp.zeros((2, 2)),
        mean_observation=lambda params, z: jnp.zeros((2, 2)),
    )


X = jnp.array([[1.0, 2.0], [3.0, 4.0]])
Z = jnp.array([1.0, -1.0])


@pytest.mark.parametrize("record", RECORDS)
def test_records_hold_their_fields_in_this_order_and_hardly_a_default(record):
    assert record._fields == RECORDS[record]
    assert record._field_defaults == DEFAULTS.get(record, {})
    assert record.__bases__ == (tuple,)


def test_log_likelihood_sums_the_terms_over_every_axis_of_the_image():
    params = Params(jnp.full((1, 1), 2.0), ())
    got = types.log_likelihood(_two_by_two(), params, X, Z)
    np.testing.assert_allclose(got, 2.0 * (1 + 2 - 3 - 4))


def test_log_joint_adds_the_prior_and_the_likelihood():
    params = Params(jnp.full((1, 1), 2.0), ())
    got = types.log_joint(_two_by_two(), params, X, Z)
    assert got.shape == ()
    np.testing.assert_allclose(got, -2.0 - 8.0)


def test_log_joint_is_the_same_under_jit_and_vmap():
    generative, params = _two_by_two(), Params(jnp.full((1, 1), 2.0), ())
    zs = jax.random.normal(jax.random.key(0), (3, 2))

    def log_joint(z):
        return types.log_joint(generative, params, X, z)

    expected = jnp.stack([log_joint(z) for z in zs])
    np.testing.assert_allclose(jax.jit(jax.vmap(log_joint))(zs), expected, rtol=1e-6)


def test_params_are_a_tree_that_keeps_theta_and_phi_apart():
    params = Params({"a": jnp.ones(2)}, {"b": jnp.zeros(3)})
    doubled = jax.tree.map(lambda leaf: 2.0 * leaf, params)
    assert isinstance(doubled, Params)
    np.testing.assert_array_equal(doubled.generative["a"], 2.0 * np.ones(2))
    np.testing.assert_array_equal(doubled.recognition["b"], np.zeros(3))


def test_a_draw_of_the_joint_is_z_of_the_prior_and_x_at_it():
    generative, _ = problems.bernoulli_vae()
    params, key = Params(generative.init(jax.random.key(0)), ()), jax.random.key(1)
    z, x = types.sample_joint(jax.random.clone(key), generative, params)
    key_z, key_x = jax.random.split(key)
    np.testing.assert_array_equal(z, generative.sample_prior(key_z, params))
    np.testing.assert_array_equal(x, generative.sample_observation(key_x, params, z))
