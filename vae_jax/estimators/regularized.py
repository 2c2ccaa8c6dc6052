"""ELBOs whose gradient weighs the KL term otherwise: free bits and capacity.

Both report the ELBO and climb something else, so their gradient is biased for the
ELBO's, on purpose. The beta-ELBO (Higgins et al. 2017) is `sgvb.sgvb_b(..., beta=...)`.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array

from vae_jax.estimators import sgvb
from vae_jax.types import Generative, Objective, Recognition, Scalar


def free_bits(
    generative: Generative,
    recognition: Recognition,
    *,
    num_samples: int,
    kl: sgvb.ClosedFormKL,
    min_nats: float | Scalar,
) -> Objective:
    r"""The ELBO, with no gradient from a latent whose KL is below min_nats.

    $E_q[\log p(x|z)] - \sum_d\max(\lambda, KL_d)$ is what it climbs: Kingma et al. 2016
    (arXiv:1606.04934), appendix C.8, for each example and latent where the paper takes
    the minibatch's mean in groups. Value: an unbiased draw of the ELBO. Gradient:
    unbiased for that objective, not for the ELBO's in phi; unbiased for theta.

    Args:
        generative: the joint p(x, z).
        recognition: a q whose h is [mean, log_std].
        num_samples: L.
        kl: as in `sgvb.sgvb_b`; a sum over latents.
        min_nats: lambda, the KL that each latent has for free; it may be traced.

    Raises:
        ValueError: if num_samples is below one or min_nats is a negative number.
    """
    _refuse_negative(min_nats=min_nats)

    def penalty(mean: Array, log_std: Array) -> Scalar:
        each = jax.vmap(lambda m, s: kl(m[None], s[None]))(mean, log_std)
        return jnp.maximum(each, min_nats).sum()

    return sgvb.penalized_elbo(
        generative,
        recognition,
        num_samples=num_samples,
        kl=kl,
        penalty=penalty,
    )


def capacity(
    generative: Generative,
    recognition: Recognition,
    *,
    num_samples: int,
    kl: sgvb.ClosedFormKL,
    nats: float | Scalar,
    strength: float | Scalar,
) -> Objective:
    """The ELBO, with a gradient that pulls the KL to a given number of nats.

    E_q[log p(x|z)] - strength |KL - nats| is what it climbs: Burgess et al. 2018
    (arXiv:1804.03599), where nats rises in training. Value: an unbiased draw of the
    ELBO. Gradient: unbiased for that objective, not for the ELBO's in phi;
    unbiased for theta.

    Args:
        generative: the joint p(x, z).
        recognition: a q whose h is [mean, log_std].
        num_samples: L.
        kl: as in `sgvb.sgvb_b`.
        nats: C; it may be traced.
        strength: gamma; it may be traced.

    Raises:
        ValueError: if num_samples is below one, or nats or strength is negative.
    """
    _refuse_negative(nats=nats, strength=strength)

    def penalty(mean: Array, log_std: Array) -> Scalar:
        return strength * jnp.abs(kl(mean, log_std) - nats)

    return sgvb.penalized_elbo(
        generative,
        recognition,
        num_samples=num_samples,
        kl=kl,
        penalty=penalty,
    )


def _refuse_negative(**numbers: float | Scalar) -> None:
    for name, value in numbers.items():
        if isinstance(value, float | int) and not value >= 0.0:
            raise ValueError(f"{name} must not be negative, got {value}.")
