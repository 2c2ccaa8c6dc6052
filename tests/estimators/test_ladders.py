"""Estimators where q reads theta: ladders of two normals and of five bits."""

import jax
import jax.numpy as jnp
import pytest

from tests import estimands, ladders, problems, testing
from vae_jax.estimators import (
    gdreg,
    importance,
    score_function,
    thermodynamic,
    wake_sleep,
)

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
