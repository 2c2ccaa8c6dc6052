r"""Normal densities of incomplete rows: the missing entries are integrated out.

A row holds NaN where an entry is missing, at random in the sense of Rubin 1976. The
covariance of a row's observed entries is a submatrix; here it keeps its size, with the
rows and columns of missing entries replaced by those of the identity, whose factor is
then the submatrix's with ones in between. Ghahramani & Jordan 1994 (Supervised learning
from incomplete data via an EM approach) give the conditional moments.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from vae_jax.types import Scalar


class Completion(NamedTuple):
    """The normal of a row's missing entries given its observed ones."""

    deviation: Float[Array, " D"]  # E[x | observed] - mean
    covariance: Float[Array, "D D"]  # zero but between missing entries
    terms: Float[Array, " D"]  # log-density of the observed entries; zero at missing
    entropy: Scalar  # of the missing entries given the observed ones, nats


def observed_factor(
    covariance: Float[Array, "D D"], observed: Bool[Array, " D"]
) -> Float[Array, "D D"]:
    """The Cholesky factor of the covariance with missing entries as the identity's."""
    both = observed[:, None] & observed[None, :]
    eye = jnp.eye(observed.shape[0], dtype=covariance.dtype)
    return jnp.linalg.cholesky(jnp.where(both, covariance, eye))


def density_terms(
    factor: Float[Array, "D D"], deviation: Float[Array, " D"]
) -> Float[Array, " D"]:
    r"""log p(x_d | x_{<d}) of N(mu, L L^T): they sum to the log-density of x.

    $-(\epsilon_d^2 + \log 2\pi) / 2 - \log L_{dd}$ with $\epsilon = L^{-1}(x - \mu)$.
    """
    eps = jax.scipy.linalg.solve_triangular(factor, deviation, lower=True)
    return -(0.5 * eps**2 + jnp.log(jnp.diagonal(factor)) + 0.5 * jnp.log(2.0 * jnp.pi))


def observed_terms(
    scale_tril: Float[Array, "D D"],
    mean: Float[Array, " D"],
    x: Float[Array, " D"],
) -> Float[Array, " D"]:
    """`density_terms` of the observed entries among themselves, zero at the others."""
    observed = ~jnp.isnan(x)
    factor = observed_factor(_covariance(scale_tril), observed)
    deviation = jnp.where(observed, x, mean) - mean
    return jnp.where(observed, density_terms(factor, deviation), 0.0)


def complete(
    scale_tril: Float[Array, "D D"],
    mean: Float[Array, " D"],
    x: Float[Array, " D"],
) -> Completion:
    """Conditional moments of one row under one component."""
    sigma, observed = _covariance(scale_tril), ~jnp.isnan(x)
    factor = observed_factor(sigma, observed)
    deviation = jnp.where(observed, x, mean) - mean
    # One solve for L_o^{-1} [Sigma_o, x_o - mu_o]; the rows of missing entries are 0.
    right = jnp.where(observed[:, None], sigma, 0.0)
    right = jnp.concatenate([right, deviation[:, None]], axis=1)
    solved = jax.scipy.linalg.solve_triangular(factor, right, lower=True)
    across, eps = solved[:, :-1], solved[:, -1]
    guess = jnp.matmul(across.T, eps, precision="highest")
    explained = jnp.matmul(across.T, across, precision="highest")
    missing = ~(observed[:, None] | observed[None, :])
    log_scales = jnp.log(jnp.diagonal(factor))
    terms = -(0.5 * eps**2 + log_scales + 0.5 * jnp.log(2.0 * jnp.pi))
    # log det of the whole = that of the observed + that of the missing given them.
    log_det = jnp.log(jnp.diagonal(scale_tril)).sum() - log_scales.sum()
    nats = 0.5 * (1.0 + jnp.log(2.0 * jnp.pi))
    return Completion(
        jnp.where(observed, deviation, guess),
        jnp.where(missing, sigma - explained, 0.0),
        jnp.where(observed, terms, 0.0),
        log_det + nats * (~observed).sum(dtype=x.dtype),
    )


def _covariance(scale_tril: Float[Array, "D D"]) -> Float[Array, "D D"]:
    return jnp.matmul(scale_tril, scale_tril.T, precision="highest")
