"""Estimators where q reads theta: ladders of two normals and of five bits."""

import chex
import jax
import jax.numpy as jnp
import pytest

from tests import estimands, ladders, problems, testing
from vae_jax.estimators import (
    gdreg,
    importance,
    ovis,
    score_function,
    thermodynamic,
    wake_sleep,
)
from vae_jax.types import log_joint

PAIR, BITS = [0.4, -1.0], [1.0, 0.0, 1.0, 1.0, 0.0]
SLOW = pytest.mark.slow


@pytest.mark.slow
@pytest.mark.parametrize(
    ("build", "num_samples"),
    [
        (importance.dreg, 3),
        (gdreg.gdreg, 3),
        (importance.stick_the_landing, 1),
        pytest.param(importance.iwae, 3, marks=SLOW),
    ],
)
def test_normals_get_unbiased_gradients_in_both(x64, build, num_samples):
    problem = ladders.two_scalars()
    testing.assert_unbiased(
        build(problem.model, num_samples=num_samples),
        problem.params,
        jnp.asarray(PAIR),
        problem.k_sample_bound(num_samples),
    )


@pytest.mark.slow
def test_what_is_left_out_is_the_score_of_qs_joint_density_in_theta_too(x64):
    """Draw by draw: the rest is theta's in p, and theta's and phi's through z."""
    problem, x, key = ladders.two_scalars(), jnp.asarray(PAIR), jax.random.key(2)
    generative, recognition = problem.model.generative, problem.model.recognition
    builders = importance.iwae, importance.stick_the_landing, importance.dreg

    def samples(params):
        keys = jax.random.split(jax.random.clone(key), 3)
        h = recognition.encode(params, x)
        return jax.vmap(recognition.sample, (0, None, None))(keys, params, h)

    def log_q(params, z):
        h = recognition.encode(params, x)
        return jax.vmap(recognition.log_prob, (None, None, 0))(params, h, z)

    def log_p(params, z):
        return jax.vmap(log_joint, (None, None, None, 0))(generative, params, x, z)

    @jax.jit
    def gradients(params):
        at = samples(params)
        weights = jax.nn.softmax(log_p(params, at) - log_q(params, at))
        slopes = jax.grad(lambda z: (log_p(params, z) - log_q(params, z)).sum())(at)

        def of_parts(params, weights_of_paths):
            path = (weights_of_paths[:, None] * slopes * samples(params)).sum()
            return weights @ log_p(params, at) + path

        score = jax.grad(lambda params: weights @ log_q(params, at))(params)
        parts = [jax.grad(of_parts)(params, w) for w in (weights, weights**2)]
        objectives = [build(problem.model, num_samples=3) for build in builders]
        got = [jax.grad(f, 1)(jax.random.clone(key), params, x) for f in objectives]
        return score, parts, got

    score, parts, (ordinary, *without) = gradients(problem.params)
    chex.assert_trees_all_close(without, parts, rtol=1e-8, atol=1e-12)
    left_out = jax.tree.map(jnp.subtract, without[0], ordinary)
    chex.assert_trees_all_close(left_out, score, rtol=1e-8, atol=1e-12)
    for leaves in (score.generative["layer_1"], score.recognition):
        assert max(float(jnp.abs(leaf).max()) for leaf in jax.tree.leaves(leaves)) > 0.1


@pytest.mark.slow
def test_for_more_samples_sticking_the_landing_is_biased_in_theta_too(x64):
    problem, x = ladders.two_scalars(), jnp.asarray(PAIR)
    objective = importance.stick_the_landing(problem.model, num_samples=3)
    _, grads = testing.draws(objective, problem.params, x)
    exact = jax.jit(jax.grad(problem.k_sample_bound(3)))(problem.params, x)
    shared = grads.generative["layer_1"], exact.generative["layer_1"]
    assert testing.largest_z(*shared) > 8.0
    testing.assert_mean_equals(grads.generative["decoder"], exact.generative["decoder"])


@pytest.mark.slow
@pytest.mark.parametrize(
    ("build", "settings", "bound"),
    [
        pytest.param(
            score_function.score_function,
            {"num_samples": 2, "baseline": -3.0},
            estimands.elbo,
            marks=SLOW,
        ),
        (score_function.leave_one_out, {"num_samples": 3}, estimands.elbo),
        (score_function.vimco, {"num_samples": 3}, estimands.iwae(3)),
        pytest.param(ovis.ovis, {"num_samples": 3}, estimands.iwae(3), marks=SLOW),
        pytest.param(
            thermodynamic.thermodynamic,
            {"num_samples": 2, "num_terms": 2},
            estimands.thermodynamic(2, (0.0, 0.03)),
            marks=SLOW,
        ),
    ],
)
def test_bits_get_unbiased_gradients_in_both(x64, build, settings, bound):
    problem = ladders.bits_problem()
    testing.assert_unbiased(
        build(problem.model, **settings),
        problem.params,
        jnp.asarray(BITS),
        bound(problem),
    )


@pytest.mark.slow
@pytest.mark.parametrize("sleep_share", [0.25, pytest.param(1.0, marks=SLOW)])
def test_what_fits_q_moves_phi_alone(x64, sleep_share):
    problem = ladders.bits_problem()
    fits = estimands.combination(
        (1.0 - sleep_share, estimands.wake(3)),
        (sleep_share, problems.log_q_of_dreams),
    )
    testing.assert_unbiased(
        wake_sleep.reweighted_wake_sleep(
            problem.model, num_samples=3, sleep_share=sleep_share
        ),
        problem.params,
        jnp.asarray(BITS),
        estimands.theta_apart_from_q(estimands.iwae(3))(problem),
        bound_of_phi=fits(problem),
    )
