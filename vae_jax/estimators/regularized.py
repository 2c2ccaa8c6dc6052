"""ELBOs whose gradient weighs the KL term otherwise: free bits and capacity.

Both report the ELBO and climb something else, so their gradient is biased for the
ELBO's, on purpose. The beta-ELBO (Higgins et al. 2017) is `sgvb.sgvb_b(..., beta=...)`.
"""

import jax.numpy as jnp
from jaxtyping import Array, Float

from vae_jax import numerics
from vae_jax.estimators import sgvb
from vae_jax.types import ExampleObjective, Model, Scalar


def free_bits(
    model: Model,
    *,
    num_samples: int,
    min_nats: float | Scalar,
    beta: float | Scalar = 1.0,
    balance: float | Scalar = 0.0,
) -> ExampleObjective:
    r"""The ELBO, with no gradient from a group of latents whose KL is below min_nats.

    $E_q[\log p(x|z)] - \sum_g\max(\lambda, KL_g)$ is what it climbs: Kingma et al. 2016
    (arXiv:1606.04934), appendix C.8, for each example where the paper takes the
    minibatch's mean. A group is one latent where q and the prior factorize (`Draw.kl`).
    Value: an unbiased draw of the ELBO. Gradient: unbiased for that objective, not for
    the ELBO's in phi. In theta it is unbiased for the ELBO's too, but in the parameters
    of a learned prior, such as a ladder's, which have the maxima's gradient.

    Args:
        model: with a closed-form KL, or a ladder, whose layers are the groups: see
            `sgvb.closed_elbo`.
        num_samples: L.
        min_nats: lambda, the KL that each group has for free; it may be traced.
        beta: weight of the sum of maxima, as `sgvb.sgvb_b`'s.
        balance: as `sgvb.sgvb_b`'s.

    Raises:
        ValueError: if num_samples is below one, a weight or min_nats is a negative
            number or the model's KL has no closed form.
    """
    numerics.check_not_negative(min_nats=min_nats, beta=beta, balance=balance)
    return sgvb.balanced(
        model,
        num_samples=num_samples,
        penalty=lambda kl: beta * jnp.maximum(kl, min_nats),
        balance=balance,
    )


def capacity(
    model: Model, *, num_samples: int, nats: float | Scalar, strength: float | Scalar
) -> ExampleObjective:
    """The ELBO, with a gradient that pulls the KL to a given number of nats.

    E_q[log p(x|z)] - strength |KL - nats| is what it climbs: Burgess et al. 2018
    (arXiv:1804.03599), where nats rises in training. Value: an unbiased draw of the
    ELBO. Gradient: unbiased for that objective, not for the ELBO's in phi. In theta it
    is unbiased for the ELBO's too, but in the parameters of a learned prior, such as a
    ladder's, which have the pull's gradient.

    Args:
        model: with a closed-form KL, or a ladder.
        num_samples: L.
        nats: C; it may be traced.
        strength: gamma; it may be traced.

    Raises:
        ValueError: if num_samples is below one, nats or strength is negative or the
            model's KL has no closed form.
    """
    numerics.check_not_negative(nats=nats, strength=strength)

    def penalty(kl: Float[Array, " G"]) -> Scalar:
        return strength * jnp.abs(kl.sum() - nats)

    return sgvb.closed_elbo(model, num_samples=num_samples, penalty=penalty)
