"""Stochastic gradient variational Bayes: the two estimators of the AEVB paper.

Kingma & Welling 2013, Auto-Encoding Variational Bayes (arXiv:1312.6114). The value of
every objective here is an unbiased draw of the ELBO of one example, in nats, whatever
its gradient is weighted with.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array

from vae_jax import bounds, numerics
from vae_jax.estimators import importance
from vae_jax.types import (
    Generative,
    Objective,
    Params,
    PRNGKey,
    PyTree,
    Recognition,
    Scalar,
    log_likelihood,
)

ClosedFormKL = Callable[[Array, Array], Scalar]  # mean, log_std -> nats


class Terms(NamedTuple):
    """The two terms of the ELBO of one example: ELBO = reconstruction - kl."""

    reconstruction: Scalar  # E_q[log p(x | z)], nats
    kl: Scalar  # KL(q(z | x) || p(z)), nats


def sgvb_a(
    generative: Generative, recognition: Recognition, *, num_samples: int
) -> Objective:
    """Estimator A: the mean of log p(x, z) - log q(z | x) over L samples.

    AEVB equation 6. Needs no closed form. Its gradient, taken through z = g(eps, x), is
    unbiased for the ELBO's, and carries the score of q, which is zero in expectation.

    Raises:
        ValueError: if num_samples is below one.
    """
    draw = importance.log_weights(generative, recognition, num_samples=num_samples)

    def objective(key: PRNGKey, params: Params, x: Array) -> Scalar:
        return bounds.elbo(draw(key, params, x, recognition.encode(params, x)))

    return objective


def elbo_terms(
    generative: Generative,
    recognition: Recognition,
    *,
    num_samples: int,
    kl: Callable[[Params, Array], Scalar] | None = None,
) -> Callable[[PRNGKey, Params, Array], Terms]:
    """(key, params, x) -> the two terms of the ELBO over the same L samples, for any q.

    Args:
        generative: the joint p(x, z).
        recognition: q.
        num_samples: L.
        kl: (params, h) -> KL(q || prior) in closed form; the mean of
            log q(z | x) - log p(z) where none is given.

    Raises:
        ValueError: if num_samples is below one.
    """
    if kl is None:
        return _sampled_terms(generative, recognition, num_samples=num_samples)
    reconstruct = _reconstruction(generative, recognition, num_samples=num_samples)

    def terms(key: PRNGKey, params: Params, x: Array) -> Terms:
        h = recognition.encode(params, x)
        return Terms(reconstruct(key, params, x, h), kl(params, h))

    return terms


def sgvb_b_terms(
    generative: Generative,
    recognition: Recognition,
    *,
    num_samples: int,
    kl: ClosedFormKL,
) -> Callable[[PRNGKey, Params, Array], Terms]:
    """(key, params, x) -> the two terms of estimator B: L samples, KL in closed form.

    Args:
        generative: the joint p(x, z).
        recognition: a q whose h is [mean, log_std], such as `posteriors.diag_normal`.
        num_samples: L.
        kl: KL(q || prior) from the two halves of h, such as
            `divergences.diag_normal_to_standard_normal`; it must fit both densities.

    Raises:
        ValueError: if num_samples is below one.
    """
    return elbo_terms(
        generative,
        recognition,
        num_samples=num_samples,
        kl=lambda params, h: kl(*jnp.split(h, 2)),
    )


def sgvb_b(
    generative: Generative,
    recognition: Recognition,
    *,
    num_samples: int,
    kl: ClosedFormKL,
    beta: float | Scalar = 1.0,
) -> Objective:
    """Estimator B: the sampled reconstruction minus the closed-form KL.

    AEVB equation 7, and equation 10 for the normal case. Unbiased for the ELBO in value
    and, at beta=1, in gradient; typically less noisy than A, as the KL is exact.

    Args:
        generative: as in `sgvb_b_terms`.
        recognition: as in `sgvb_b_terms`.
        num_samples: L.
        kl: as in `sgvb_b_terms`.
        beta: weight of the KL in the gradient alone, for KL warm-up; it may be traced.
            The value stays the ELBO.

    Raises:
        ValueError: if num_samples is below one or beta is a negative number.
    """
    if isinstance(beta, float | int) and not beta >= 0.0:
        raise ValueError(f"beta must not be negative, got {beta}.")
    return penalized_elbo(
        generative,
        recognition,
        num_samples=num_samples,
        kl=kl,
        penalty=lambda mean, log_std: beta * kl(mean, log_std),
    )


def penalized_elbo(
    generative: Generative,
    recognition: Recognition,
    *,
    num_samples: int,
    kl: ClosedFormKL,
    penalty: ClosedFormKL,
) -> Objective:
    """Reads as estimator B; its gradient has `penalty` in the place of the KL.

    Value: an unbiased draw of the ELBO. Gradient: unbiased for that of the expected
    reconstruction minus the penalty.

    Raises:
        ValueError: if num_samples is below one.
    """
    reconstruct = _reconstruction(generative, recognition, num_samples=num_samples)

    def objective(key: PRNGKey, params: Params, x: Array) -> Scalar:
        h = recognition.encode(params, x)
        halves = jnp.split(h, 2)
        reconstruction = reconstruct(key, params, x, h)
        return numerics.attach_gradient(
            reconstruction - kl(*halves), reconstruction - penalty(*halves)
        )

    return objective


def with_normal_prior_on_theta(
    objective: Objective, *, num_data: int, weight_decay: float = 1.0
) -> Objective:
    """Adds the gradient of log p(theta) / N, for maximum a posteriori theta.

    p(theta) = N(0, I / weight_decay), as AEVB section 5 trains. The objective is that
    of one example, so log p(theta) is divided by N: the mean over a minibatch then
    estimates 1/N of the data set's total. The value stays that of `objective`.

    Raises:
        ValueError: if num_data is below one, or weight_decay negative or not finite.
    """
    if num_data < 1:
        raise ValueError(f"num_data must be positive, got {num_data}.")
    if not 0.0 <= weight_decay < math.inf:
        raise ValueError(
            f"weight_decay must be finite and not be negative, got {weight_decay}."
        )

    def penalized(key: PRNGKey, params: Params, x: Array) -> Scalar:
        value = objective(key, params, x)
        penalty = 0.5 * weight_decay / num_data * _sum_of_squares(params.generative)
        return numerics.attach_gradient(value, value - penalty)

    return penalized


def data_set_total(
    objective: Objective, *, num_data: int
) -> Callable[[PRNGKey, Params, Array], Scalar]:
    """(key, params, x [M, *X]) -> nats of the whole data set: N/M times the sum.

    AEVB equation 8, unbiased for the sum over all N examples when the minibatch is
    drawn uniformly. Training uses nats per example instead, 1/N of this.

    Raises:
        ValueError: if num_data is below one.
    """
    if num_data < 1:
        raise ValueError(f"num_data must be positive, got {num_data}.")

    def total(key: PRNGKey, params: Params, x: Array) -> Scalar:
        keys = jax.random.split(key, x.shape[0])
        nats = jax.vmap(objective, in_axes=(0, None, 0))(keys, params, x)
        return num_data / x.shape[0] * nats.sum()

    return total


def _sampled_terms(
    generative: Generative, recognition: Recognition, *, num_samples: int
) -> Callable[[PRNGKey, Params, Array], Terms]:
    """`elbo_terms` without a closed form: log q(z | x) - log p(z), averaged."""

    def terms(key: PRNGKey, params: Params, x: Array) -> Terms:
        h = recognition.encode(params, x)

        def draw(key: PRNGKey) -> Terms:
            z = recognition.sample(key, params, h)
            kl = recognition.log_prob(params, h, z) - generative.log_prior(params, z)
            return Terms(log_likelihood(generative, params, x, z), kl)

        drawn = numerics.over_samples(key, draw, num_samples=num_samples)
        return Terms(*(term.mean() for term in drawn))

    return terms


def _reconstruction(
    generative: Generative, recognition: Recognition, *, num_samples: int
) -> Callable[[PRNGKey, Params, Array, Array], Scalar]:
    """(key, params, x, h) -> the mean of log p(x | z) over L draws from q(z | h)."""
    numerics.check_positive(num_samples=num_samples)

    def mean(key: PRNGKey, params: Params, x: Array, h: Array) -> Scalar:
        def draw(key: PRNGKey) -> Scalar:
            z = recognition.sample(key, params, h)
            return log_likelihood(generative, params, x, z)

        return numerics.over_samples(key, draw, num_samples=num_samples).mean()

    return mean


def _sum_of_squares(tree: PyTree) -> Scalar:
    return sum(
        (jnp.sum(leaf**2) for leaf in jax.tree.leaves(tree)), start=jnp.zeros(())
    )
