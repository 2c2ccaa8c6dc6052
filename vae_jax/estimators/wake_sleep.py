"""Wake-sleep and reweighted wake-sleep: theta climbs a bound, phi fits the posterior.

Nothing is differentiated through z, so q may be discrete. Where q reads theta, as a
ladder's does, what fits q moves phi alone, and theta climbs the bound at that q.
"""

import jax
from jax.lax import stop_gradient
from jaxtyping import Array

from vae_jax import bounds, numerics
from vae_jax.estimators import importance
from vae_jax.types import (
    ExampleObjective,
    Model,
    Params,
    PRNGKey,
    Scalar,
    sample_joint,
)


def wake_sleep(model: Model, *, num_samples: int) -> ExampleObjective:
    r"""The ELBO, whose gradient is that of the wake and the sleep phase, both at once.

    Hinton, Dayan, Frey & Neal 1995 (Science 268), which AEVB (arXiv:1312.6114) section
    5 compares with. Theta gets $\frac1L\sum_l\nabla_\theta\log p(x, z_l)$, $z_l \sim
    q(z|x)$; phi gets $\frac1L\sum_l\nabla_\phi\log q(z'_l|x'_l)$ at z', x' drawn from
    the model. Value: one draw of the ELBO. Gradient: unbiased for that of the ELBO in
    theta. In phi it descends KL(p(z|x) || q(z|x)) averaged over the model's own x: the
    divergence the other way round, so that no one function is climbed by both phases.

    Args:
        model: the joint p(x, z) and q.
        num_samples: L, of each phase.

    Raises:
        ValueError: if num_samples is below one.
    """
    draw = importance.log_densities(model, num_samples=num_samples)

    def objective(key: PRNGKey, params: Params, x: Array) -> Scalar:
        key_wake, key_sleep = jax.random.split(key)
        log_p, log_q = draw(key_wake, params, x)

        def dream(key: PRNGKey) -> Scalar:
            return _log_q_of_dream(model, key, params)

        dreamt = numerics.over_samples(key_sleep, dream, num_samples=num_samples)
        elbo = bounds.elbo(log_p - log_q)
        return numerics.attach_gradient(elbo, log_p.mean() + dreamt.mean())

    return objective


def reweighted_wake_sleep(
    model: Model,
    *,
    num_samples: int,
    sleep_share: float | Scalar = 0.0,
) -> ExampleObjective:
    r"""The K-sample bound, whose gradient fits q to the posterior and not the bound.

    Bornschein & Bengio 2015 (arXiv:1406.2751), with $\tilde w = $ softmax(log w):
    theta gets $\sum_k\tilde w_k\nabla_\theta\log p(x, z_k)$; phi, in the wake phase,
    $\sum_k\tilde w_k\nabla_\phi\log q(z_k|x)$, and in the sleep phase $\nabla_\phi\log
    q(z|x')$ at x', z drawn from the model. Value: one draw of L_K. Gradient: unbiased
    for that of L_K in theta. In phi it is not a gradient of the bound: the wake phase
    descends KL(p(z|x) || q(z|x)), with a bias that vanishes as K grows, and the sleep
    phase that divergence's mean over the model's own x, without bias. q may be
    discrete: nothing is differentiated through z.

    Args:
        model: the joint p(x, z) and q.
        num_samples: K.
        sleep_share: s in phi's (1 - s) wake + s sleep; it may be traced.

    Raises:
        ValueError: if num_samples is below one, or sleep_share is a number outside
            [0, 1].
    """
    numerics.check_in("[0, 1]", sleep_share=sleep_share)
    draw = importance.log_densities(model, num_samples=num_samples, theta_moves_q=False)
    sleeps = not isinstance(sleep_share, float | int) or sleep_share > 0.0

    def objective(key: PRNGKey, params: Params, x: Array) -> Scalar:
        key_wake, key_sleep = jax.random.split(key) if sleeps else (key, key)
        log_p, log_q = draw(key_wake, params, x)
        log_w = stop_gradient(log_p - log_q)
        weights = jax.nn.softmax(log_w)
        surrogate = weights @ (log_p + (1.0 - sleep_share) * log_q)
        if sleeps:
            surrogate += sleep_share * _log_q_of_dream(model, key_sleep, params)
        return numerics.attach_gradient(bounds.iwae(log_w), surrogate)

    return objective


def _log_q_of_dream(model: Model, key: PRNGKey, params: Params) -> Scalar:
    """log q(z | x) at one x, z drawn from the model, phi's alone to move."""
    generative, recognition = model.generative, model.recognition
    z, x = sample_joint(key, generative, stop_gradient(params))
    of_q = importance.with_theta_fixed(params)
    return recognition.log_prob(of_q, recognition.encode(of_q, x), z)
