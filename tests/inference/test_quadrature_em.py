import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from tests import problems
from vae_jax import numerics
from vae_jax.evaluation import exact
from vae_jax.inference import quadrature_em
from vae_jax.types import Batch, Params, log_joint

pytestmark = pytest.mark.uses_optax
GRID = {"num_latents": 2, "num_nodes": 24, "limit": 6.0}


def _model():
    generative, _ = problems.bernoulli_vae()
    params = Params(generative.init(jax.random.key(0)), ())
    x = jax.random.bernoulli(jax.random.key(1), 0.7, (8, 2, 3))
    return generative, params, jnp.asarray(x, jnp.result_type(float))


def _batch(x):
    return Batch(x, jnp.arange(len(x)), jnp.ones(len(x)))


@pytest.mark.slow
def test_the_bound_is_tight_after_e_and_rises_in_m(x64):
    generative, params, x = _model()
    fit = quadrature_em.quadrature_em(generative, optax.adam(0.03), **GRID)
    state, step = fit.init(jax.random.key(0), params), jax.jit(fit.step)
    log_p = exact.grid_quadrature(generative, **GRID)
    evidence = jax.jit(jax.vmap(log_p, in_axes=(None, 0)))
    for t in range(10):
        before = evidence(state.params, x).mean()
        state, info = step(jax.random.key(t), state, _batch(x))
        after = evidence(state.params, x).mean()
        np.testing.assert_allclose(info.log_p, before, rtol=1e-12)
        np.testing.assert_allclose(info.bound_after_e_step, before, rtol=1e-12)
        assert info.bound_after_e_step < info.bound_after_m_step < after


@pytest.mark.slow
def test_the_first_update_is_the_exact_gradient_of_log_p(x64):
    generative, params, x = _model()
    fit = quadrature_em.quadrature_em(generative, optax.sgd(1.0), num_updates=1, **GRID)
    state = fit.init(jax.random.key(0), params)
    after, info = jax.jit(fit.step)(jax.random.key(0), state, _batch(x))
    moved = jax.tree.map(jnp.subtract, after.params, params)
    log_p = exact.grid_quadrature(generative, **GRID)

    def mean(params):
        return jax.vmap(log_p, in_axes=(None, 0))(params, x).mean()

    slope = jax.jit(jax.grad(mean))(params)
    chex.assert_trees_all_close(moved, slope, rtol=1e-7, atol=1e-12)
    np.testing.assert_allclose(info.gradient_norm, optax.tree.norm(slope), rtol=1e-7)


@pytest.mark.parametrize("num_updates", [1, 3])
def test_the_last_bound_is_of_the_theta_that_the_step_leaves(num_updates, x64):
    generative, params, x = _model()
    fit = quadrature_em.quadrature_em(
        generative, optax.sgd(0.3), num_updates=num_updates, **GRID
    )
    state = fit.init(jax.random.key(0), params)
    after, info = jax.jit(fit.step)(jax.random.key(0), state, _batch(x))
    nodes, log_weight = numerics.grid(2, num_nodes=24, limit=6.0)

    @jax.jit
    def log_terms(params):
        of_rows = jax.vmap(log_joint, in_axes=(None, None, 0, None))
        of_nodes = jax.vmap(of_rows, in_axes=(None, None, None, 0), out_axes=1)
        return of_nodes(generative, params, x, jnp.asarray(nodes)) + log_weight

    log_r = jax.nn.log_softmax(log_terms(params))
    bound = (jnp.exp(log_r) * (log_terms(after.params) - log_r)).sum(axis=1).mean()
    np.testing.assert_allclose(info.bound_after_m_step, bound, rtol=1e-12)


@pytest.mark.slow
def test_an_optimizer_with_weight_decay_leaves_phi_as_it_is():
    generative, params, x = _model()
    params = params._replace(recognition={"encoder": jnp.ones(3)})
    decay = optax.adamw(0.1, weight_decay=0.5)
    fit = quadrature_em.quadrature_em(generative, decay, **GRID)
    state = fit.init(jax.random.key(0), params)
    after, _ = jax.jit(fit.step)(jax.random.key(0), state, _batch(x))
    np.testing.assert_array_equal(after.params.recognition["encoder"], jnp.ones(3))


@pytest.mark.slow
def test_images_that_rule_nodes_out_give_no_nan():
    generative, params, x = _model()
    params = jax.tree.map(lambda w: 200.0 * w, params)
    fit = quadrature_em.quadrature_em(generative, optax.adam(0.03), **GRID)
    state = fit.init(jax.random.key(0), params)
    state, info = jax.jit(fit.step)(jax.random.key(0), state, _batch(x))
    leaves = jax.tree.leaves((state.params, info))
    assert all(np.isfinite(leaf).all() for leaf in leaves)


def test_bad_settings_are_refused_when_built():
    generative, _, _ = _model()
    with pytest.raises(ValueError, match="num_updates must be positive"):
        quadrature_em.quadrature_em(
            generative, optax.sgd(0.1), num_latents=2, num_updates=0
        )
    with pytest.raises(ValueError, match="num_nodes must be 2 or more"):
        quadrature_em.quadrature_em(
            generative, optax.sgd(0.1), num_latents=2, num_nodes=1
        )


def test_nodes_that_the_prior_rules_out_are_in_no_bound():
    generative, params, x = _model()
    bounded = generative._replace(
        log_prior=lambda params, z: jnp.where(
            (jnp.abs(z) < 2.0).all(), -jnp.log(16.0), -jnp.inf
        )
    )
    fit = quadrature_em.quadrature_em(bounded, optax.adam(0.03), **GRID)
    state = fit.init(jax.random.key(0), params)
    _, info = jax.jit(fit.step)(jax.random.key(0), state, _batch(x))
    np.testing.assert_allclose(info.bound_after_e_step, info.log_p, rtol=1e-5)
    assert info.bound_after_m_step > info.bound_after_e_step
