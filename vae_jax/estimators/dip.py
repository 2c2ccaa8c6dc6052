"""DIP-VAE: the ELBO whose gradient pulls the covariance of the codes to the prior's."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from vae_jax import numerics
from vae_jax.estimators import batch_penalty
from vae_jax.types import Model, Objective, Params, PRNGKey, PyTree, Scalar


def dip(
    model: Model,
    *,
    num_samples: int,
    num_data: int,
    off_diagonal: float | Scalar,
    diagonal: float | Scalar,
    of_samples: bool,
) -> Objective:
    r"""The ELBO, with a gradient that pulls a covariance of the codes to the identity.

    $ELBO - \lambda_{od}\sum_{i\ne j} C_{ij}^2 - \lambda_d\sum_i (C_{ii} - 1)^2$ is what
    it climbs: Kumar et al. 2018 (arXiv:1711.00848), equations 6 and 7. C is the batch's
    covariance of q's means (DIP-VAE-I), or that of z, which has the mean of q's
    variances on its diagonal too (II).

    Value: an unbiased draw of the ELBO. Gradient: the squares of a batch's covariance
    are on average greater than those of the data set's.

    Args:
        model: whose q is a normal of independent latents, with a closed-form KL.
        num_samples: L, of the ELBO: the penalty is in closed form.
        num_data: N, of the parts of the KL that are logged.
        off_diagonal: lambda_od; it may be traced.
        diagonal: lambda_d; it may be traced.
        of_samples: whether C is of z (II), and not of q's means (I).

    Raises:
        ValueError: if a weight is negative, or as `batch_penalty.penalized`.
    """
    numerics.check_not_negative(off_diagonal=off_diagonal, diagonal=diagonal)

    def penalty(
        key: PRNGKey, params: Params, memory: PyTree, codes: batch_penalty.Codes
    ) -> tuple[Array, PyTree, dict[str, Scalar]]:
        del key, params
        c = covariance(codes, of_samples=of_samples)
        on = jnp.diag(c)
        rest = c - jnp.diag(on)
        nats = off_diagonal * (rest**2).sum() + diagonal * ((on - 1.0) ** 2).sum()
        return nats, memory, {}

    return batch_penalty.penalized(
        model, num_samples=num_samples, num_data=num_data, penalty=penalty
    )


def covariance(codes: batch_penalty.Codes, *, of_samples: bool) -> Float[Array, "D D"]:
    """The covariance over a batch of q's means or of z, with M in the denominator."""
    mean = batch_penalty.weighted_mean(codes.mean, codes.weight)
    rest = codes.mean - mean[None]
    squares = jax.vmap(jnp.outer)(rest, rest)
    if of_samples:
        squares += jax.vmap(jnp.diag)(jnp.exp(2.0 * codes.log_std))
    return batch_penalty.weighted_mean(squares, codes.weight)
