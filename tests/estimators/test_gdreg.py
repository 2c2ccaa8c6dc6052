import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests import ladders, problems, testing
from vae_jax import likelihoods, networks, posteriors, priors, vae
from vae_jax.estimators import gdreg, importance
from vae_jax.types import Params

PAIR = np.array([0.4, -1.0])


@pytest.mark.slow
def test_the_value_and_the_gradient_of_phi_are_those_of_dreg(x64):
    problem, x = problems.learned_prior(), jnp.asarray(PAIR)
    both = [
        jax.jit(jax.value_and_grad(build(problem.model, num_samples=4), 1))(
            jax.random.key(0), problem.params, x
        )
        for build in (gdreg.gdreg, importance.dreg)
    ]
    (value, grads), (other, others) = both
    np.testing.assert_allclose(value, other, rtol=1e-12)
    chex.assert_trees_all_close(grads.recognition, others.recognition, rtol=1e-9)
    theta, ordinary = grads.generative, others.generative
    chex.assert_trees_all_close(theta["decoder"], ordinary["decoder"], rtol=1e-9)
    gaps = theta["prior"]["flow"]["output"]["bias"], ordinary["prior"]["flow"]
    assert float(jnp.abs(gaps[0] - gaps[1]["output"]["bias"]).min()) > 1e-3


@pytest.mark.slow
def test_the_identity_holds_by_quadrature_for_another_function_of_z(x64):
    """E_q[g grad log p] and its reparameterized form at a normal prior's parameters."""
    prior, q = posteriors.diag_normal(1), (0.3, 0.7)
    theta, nodes = jnp.array([-0.4, 0.2]), jnp.linspace(-9.0, 9.0, 2001)
    weights = jax.nn.softmax(-0.5 * nodes**2)
    assert prior.transport is not None
    forward, inverse = prior.transport

    def g(z):
        return jnp.sin(z[0]) + 0.3 * z[0] ** 2

    def log_ratio(z):
        h = jnp.array([q[0], np.log(q[1])])
        return prior.log_prob((), h, z) - prior.log_prob((), theta, z)

    def left(eps):
        z = jnp.array([q[0] + q[1] * eps])
        return g(z) * jax.grad(prior.log_prob, 1)((), theta, z)

    def right(eps):
        z = jnp.array([q[0] + q[1] * eps])
        slope = jax.grad(g)(z) + g(z) * jax.grad(log_ratio)(z)
        noise = inverse((), theta, z)
        return slope @ jax.jacobian(forward, 1)((), theta, noise)

    sides = [weights @ jax.vmap(side)(nodes) for side in (left, right)]
    np.testing.assert_allclose(*sides, rtol=1e-9)
    assert float(jnp.abs(sides[0]).min()) > 0.01


@pytest.mark.slow
def test_where_q_is_the_prior_and_nothing_is_seen_theta_has_no_noise(x64):
    """At K = 1 along z with a flat likelihood; the ordinary gradient has noise."""
    problem, x = problems.learned_prior(), jnp.asarray(PAIR)
    theta = problem.params.generative
    decoder = jax.tree.map(jnp.zeros_like, theta["decoder"])
    phi = jax.tree.map(jnp.zeros_like, problem.params.recognition)
    eps = jnp.array([-1.0, 0.0, 1.0])[:, None]
    assert problem.generative.transport is not None
    z = jax.vmap(problem.generative.transport.forward, (None, 0))(problem.params, eps)
    phi["encoder"]["output"]["bias"] = jnp.stack([z[1, 0], jnp.log(z[2, 0] - z[1, 0])])
    params = Params({**theta, "decoder": decoder}, phi)
    noisy = importance.dreg(problem.model, num_samples=1)
    quiet = gdreg.gdreg(problem.model, num_samples=1)
    for objective, is_quiet in ((noisy, False), (quiet, True)):
        slope = jax.grad(objective, 1)(jax.random.key(3), params, x)
        of_prior = slope.generative["prior"]["flow"]["output"]["bias"]
        assert (float(jnp.abs(of_prior).max()) < 1e-9) == is_quiet


@pytest.mark.slow
def test_the_gradient_of_a_ladders_prior_is_quieter_than_dregs():
    problem, x = ladders.two_scalars(), jnp.asarray(PAIR)
    spreads = []
    for build in (gdreg.gdreg, importance.dreg):
        objective = build(problem.model, num_samples=16)
        _, grads = testing.draws(objective, problem.params, x, num_draws=5_000)
        leaves = jax.tree.leaves(grads.generative["layer_1"])
        spreads.append(sum(float(leaf.var(0).sum()) for leaf in leaves))
    assert spreads[0] < spreads[1]


def test_a_prior_that_is_no_map_of_noise_is_refused():
    problem = problems.linear_gaussian()
    mixture = vae.decoder_model(
        networks.linear(1, 6),
        priors.normal_mixture(1, 2),
        likelihoods.bernoulli((2, 3)),
    )
    vamp = vae.with_vamp_prior(
        problem.generative,
        networks.linear(2, 2),
        posteriors.diag_normal(1),
        num_components=2,
        x_shape=(2,),
    )
    for generative, name in ((mixture, "mixture"), (vamp, "vamp")):
        model = vae.model(generative, problem.recognition)
        with pytest.raises(ValueError, match=f"prior .*{name}.* is no map of noise"):
            gdreg.gdreg(model, num_samples=2)
