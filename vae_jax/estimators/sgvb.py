"""Stochastic gradient variational Bayes: the two estimators of the AEVB paper.

Kingma & Welling 2013, Auto-Encoding Variational Bayes (arXiv:1312.6114). The value of
every objective here is an unbiased draw of the ELBO of one example, in nats, whatever
its gradient is weighted with.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from vae_jax import bounds, numerics
from vae_jax.estimators import importance
from vae_jax.types import (
    Draw,
    ExampleObjective,
    Model,
    Params,
    PRNGKey,
    PyTree,
    Scalar,
)

Penalty = Callable[[Float[Array, " G"]], Scalar]  # KL of each group -> nats
Draws = Callable[[PRNGKey, Params, Array], tuple[Scalar, Float[Array, " G"]]]


class Terms(NamedTuple):
    """The two terms of the ELBO of one example: ELBO = reconstruction - kl.

    Attributes:
        reconstruction: E_q[log p(x | z)], nats.
        kl: KL(q(z | x) || p(z)), nats.
    """

    reconstruction: Scalar
    kl: Scalar


def sgvb_a(
    model: Model, *, num_samples: int, beta: float | Scalar = 1.0
) -> ExampleObjective:
    """Estimator A: the mean of log p(x, z) - log q(z | x) over L samples.

    AEVB equation 6. Needs no closed form. Its gradient, taken through z = g(eps, x), is
    unbiased for the ELBO's, and carries the score of q, which is zero in expectation.

    Args:
        model: p and q.
        num_samples: L.
        beta: weight of log q(z | x) - log p(z) in the gradient alone, as `sgvb_b`'s.

    Raises:
        ValueError: if num_samples is below one or beta is a negative number.
    """
    numerics.check_not_negative(beta=beta)
    if isinstance(beta, float) and beta == 1.0:
        return importance.of_bound(model, bounds.elbo, num_samples=num_samples)

    def sampled_kl(draw: Draw) -> Float[Array, " 1"]:
        return (draw.log_posterior - draw.log_prior)[None]

    draws = grouped_terms(model, num_samples=num_samples, kl=sampled_kl)
    return _penalized(draws, lambda kl: beta * kl.sum())


def sgvb_b(
    model: Model,
    *,
    num_samples: int,
    beta: float | Scalar = 1.0,
    balance: float | Scalar = 0.0,
) -> ExampleObjective:
    """Estimator B: the sampled reconstruction minus the closed-form KL.

    AEVB equation 7, and equation 10 for the normal case. Unbiased for the ELBO in value
    and, at beta=1, in gradient; typically less noisy than A, as the KL is exact.

    Args:
        model: with a closed-form KL, or a ladder: see `closed_elbo`.
        num_samples: L.
        beta: weight of the KL in the gradient alone, for KL warm-up; it may be traced.
            The value stays the ELBO.
        balance: share of `balanced` weights of a ladder's layers in it, likewise.

    Raises:
        ValueError: if num_samples is below one, beta or balance is a negative number
            or the model's KL has no closed form.

    Examples:
        >>> from vae_jax import likelihoods, networks, posteriors, priors, vae
        >>> p = vae.decoder_model(
        ...     networks.linear(2, 3),
        ...     priors.standard_normal(2),
        ...     likelihoods.normal((3,), std=0.5),
        ... )
        >>> q = vae.encoder_model(networks.linear(3, 4), posteriors.diag_normal(2))
        >>> model = vae.model(p, q)
        >>> elbo = sgvb_b(model, num_samples=1)
        >>> params = model.init(jax.random.key(0))
        >>> gradient = jax.grad(elbo, argnums=1)(jax.random.key(1), params, jnp.ones(3))
        >>> jax.tree.structure(gradient) == jax.tree.structure(params)
        True
    """
    numerics.check_not_negative(beta=beta, balance=balance)
    return balanced(
        model,
        num_samples=num_samples,
        penalty=lambda kl: beta * kl,
        balance=balance,
    )


def closed_elbo(
    model: Model, *, num_samples: int, penalty: Penalty
) -> ExampleObjective:
    """`elbo` of a model whose KL is without noise.

    A ladder's layers each have a closed form given those above, but a top that has
    none is sampled.

    Raises:
        ValueError: if num_samples is below one, or the model's KL has no closed form.
    """
    if model.kl is None and not model.lower:
        raise ValueError(
            f"the KL of a {model.recognition.family.name} q to "
            f"{model.generative.prior_family.name} has no closed form; sgvb_a and elbo "
            "need none"
        )
    return elbo(model, num_samples=num_samples, penalty=penalty)


def balanced(
    model: Model,
    *,
    num_samples: int,
    penalty: Callable[[Float[Array, " G"]], Float[Array, " G"]],
    balance: float | Scalar = 0.0,
) -> ExampleObjective:
    r"""`closed_elbo` of a penalty by group, in which a ladder's layers are weighed.

    Layers of much KL for their size are held back while others are found: the weight of
    z_l is 1 + balance (gamma_l - 1), gamma_l proportional to $(KL_l + 0.01) / D_l$, of
    mean 1 over the layers and without a gradient, for each example, where Vahdat &
    Kautz 2020 (arXiv:2007.03898), appendix A, take the minibatch's mean. It is meant
    for the KL's warm-up: what is climbed is no bound.

    Args:
        model: as `closed_elbo`'s; a ladder, where there is a balance.
        num_samples: L.
        penalty: the KL of each group -> nats of each.
        balance: 1 for those weights, 0 for none; it may be traced.

    Raises:
        ValueError: if num_samples is below one, the model's KL has no closed form, or
            a balance is asked of a model of one layer.
    """

    def total(kl: Float[Array, " G"]) -> Scalar:
        return penalty(kl).sum()

    plain = closed_elbo(model, num_samples=num_samples, penalty=total)
    if isinstance(balance, float | int) and not balance:
        return plain
    if not model.lower:
        raise ValueError("balance weighs layers of a ladder, and this model has one")

    def objective(key: PRNGKey, params: Params, x: Array) -> Scalar:
        sizes = np.array(model.layer_sizes(params))

        def weighed(kl: Float[Array, " G"]) -> Scalar:
            fixed = jnp.abs(jax.lax.stop_gradient(kl))
            dense = (fixed + 0.01) / jnp.asarray(sizes, fixed.dtype)
            weights = 1.0 + balance * (dense / dense.mean() - 1.0)
            return weights @ penalty(kl)

        of_weights = closed_elbo(model, num_samples=num_samples, penalty=weighed)
        return of_weights(key, params, x)

    return objective


def elbo(
    model: Model, *, num_samples: int, penalty: Penalty = jnp.sum
) -> ExampleObjective:
    """The reconstruction minus the KL, closed where it is; L samples.

    Value: an unbiased draw of the ELBO. Gradient: that of the expected reconstruction
    minus the penalty, which stands in the gradient alone: unbiased for the ELBO's where
    it is the sum, and biased on purpose for beta, free bits or a capacity.

    Args:
        model: the joint p(x, z) and q.
        num_samples: L.
        penalty: the KL of each group of latents, a mean over samples -> nats.

    Raises:
        ValueError: if num_samples is below one.
    """
    return _penalized(grouped_terms(model, num_samples=num_samples), penalty)


def elbo_terms(
    model: Model, *, num_samples: int
) -> Callable[[PRNGKey, Params, Array], Terms]:
    """(key, params, x) -> the two terms of the ELBO over the same L samples, for any q.

    Raises:
        ValueError: if num_samples is below one.
    """
    draw = grouped_terms(model, num_samples=num_samples)

    def terms(key: PRNGKey, params: Params, x: Array) -> Terms:
        reconstruction, kl = draw(key, params, x)
        return Terms(reconstruction, kl.sum())

    return terms


def grouped_terms(
    model: Model,
    *,
    num_samples: int,
    kl: Callable[[Draw], Float[Array, " G"]] = lambda draw: draw.kl,
) -> Draws:
    """(key, params, x) -> log p(x | z) and the KL [G] of each group, over L draws.

    Args:
        model: the joint p(x, z) and q.
        num_samples: L.
        kl: what of a draw counts as the KL of each group; its own, by default.

    Raises:
        ValueError: if num_samples is below one.
    """
    numerics.check_positive(num_samples=num_samples)

    def means(
        key: PRNGKey, params: Params, x: Array
    ) -> tuple[Scalar, Float[Array, " G"]]:
        h = model.recognition.encode(params, x)

        def one(key: PRNGKey) -> tuple[Scalar, Float[Array, " G"]]:
            sample = model.draw(key, params, x, h)
            return sample.log_likelihood.sum(), kl(sample)

        reconstruction, kls = numerics.over_samples(key, one, num_samples=num_samples)
        return reconstruction.mean(), kls.mean(0)

    return means


def with_normal_prior_on_theta(
    objective: ExampleObjective, *, num_data: int, weight_decay: float = 1.0
) -> ExampleObjective:
    """The objective with `add_log_prior_of_theta`, for maximum a posteriori theta.

    Raises:
        ValueError: as that.
    """
    _check_prior(num_data, weight_decay)

    def penalized(key: PRNGKey, params: Params, x: Array) -> Scalar:
        nats = objective(key, params, x)
        return add_log_prior_of_theta(
            nats, params, num_data=num_data, weight_decay=weight_decay
        )

    return penalized


def add_log_prior_of_theta(
    nats: Float[Array, "*B"], params: Params, *, num_data: int, weight_decay: float
) -> Float[Array, "*B"]:
    """Adds the gradient of log p(theta) / N to the nats of each example.

    p(theta) = N(0, I / weight_decay), as AEVB section 5 trains; log p(theta) is divided
    by N, so that a mean over a minibatch estimates 1/N of the data set's total. The
    values stay what they are; with a weight_decay of zero the gradient does too.

    Raises:
        ValueError: if num_data is below one, or weight_decay negative or not finite.
    """
    _check_prior(num_data, weight_decay)
    if not weight_decay:
        return nats
    penalty = 0.5 * weight_decay / num_data * _sum_of_squares(params.generative)
    return numerics.attach_gradient(nats, nats - penalty)


def _check_prior(num_data: int, weight_decay: float) -> None:
    numerics.check_positive(num_data=num_data)
    numerics.check_in("[0, inf)", weight_decay=weight_decay)


def _penalized(draws: Draws, penalty: Penalty) -> ExampleObjective:
    """The ELBO, with the gradient of the reconstruction less the penalty."""

    def objective(key: PRNGKey, params: Params, x: Array) -> Scalar:
        reconstruction, kl = draws(key, params, x)
        return numerics.attach_gradient(
            reconstruction - kl.sum(), reconstruction - penalty(kl)
        )

    return objective


def _sum_of_squares(tree: PyTree) -> Scalar:
    return sum(
        (jnp.sum(leaf**2) for leaf in jax.tree.leaves(tree)), start=jnp.zeros(())
    )
