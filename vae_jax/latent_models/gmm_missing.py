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

from vae_jax.latent_models import gmm_scales
from vae_jax.types import Scalar


class Completion(NamedTuple):
    r"""The normal of $\epsilon = L^{-1}(x - \mu)$ given the observed entries of x.

    Attributes:
        eps: E[eps | observed].
        covariance: of eps: a projection, of rank the missing entries.
        terms: log-density of the observed entries; zero at missing.
        entropy: of the missing entries given the observed ones, nats.
    """

    eps: Float[Array, " D"]
    covariance: Float[Array, "D D"]
    terms: Float[Array, " D"]
    entropy: Scalar


def observed_factor(
    scale_tril: Float[Array, "D D"], observed: Bool[Array, " D"]
) -> Float[Array, "D D"]:
    """The Cholesky factor of the covariance with missing entries as the identity's.

    It is taken from the rows of L, as float32 loses the thin directions of L L^T.
    """
    rows = jnp.where(observed[:, None], scale_tril, 0.0)
    between = jnp.diag((~observed).astype(rows.dtype))
    return gmm_scales.lower_factor(jnp.concatenate([rows, between], axis=1))


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
    factor = observed_factor(scale_tril, observed)
    deviation = jnp.where(observed, x, mean) - mean
    return jnp.where(observed, density_terms(factor, deviation), 0.0)


def complete(
    scale_tril: Float[Array, "D D"],
    mean: Float[Array, " D"],
    x: Float[Array, " D"],
) -> Completion:
    r"""Conditional moments of one row under one component.

    The observed rows of L are $L_o = F Q$ with F triangular and Q of orthonormal rows,
    so that $E[\epsilon | x_o] = Q^T F^{-1} (x_o - \mu_o)$ with covariance $I - Q^T Q$.
    """
    observed = ~jnp.isnan(x)
    factor = observed_factor(scale_tril, observed)
    deviation = jnp.where(observed, x, mean) - mean
    # One solve for F^{-1} [L_o, x_o - mu_o]; the rows of missing entries are 0.
    right = jnp.where(observed[:, None], scale_tril, 0.0)
    right = jnp.concatenate([right, deviation[:, None]], axis=1)
    solved = jax.scipy.linalg.solve_triangular(factor, right, lower=True)
    basis, eps = solved[:, :-1], solved[:, -1]
    # Newton's step toward orthonormal rows, which the solve leaves to rounding.
    gram = jnp.matmul(basis, basis.T, precision="highest")
    basis = 1.5 * basis - 0.5 * jnp.matmul(gram, basis, precision="highest")
    explained = jnp.matmul(basis.T, basis, precision="highest")
    log_scales = jnp.log(jnp.diagonal(factor))
    terms = -(0.5 * eps**2 + log_scales + 0.5 * jnp.log(2.0 * jnp.pi))
    # log det of the whole = that of the observed + that of the missing given them.
    log_det = jnp.log(jnp.diagonal(scale_tril)).sum() - log_scales.sum()
    nats = 0.5 * (1.0 + jnp.log(2.0 * jnp.pi))
    return Completion(
        jnp.matmul(basis.T, eps, precision="highest"),
        jnp.eye(len(x), dtype=x.dtype) - explained,
        jnp.where(observed, terms, 0.0),
        log_det + nats * (~observed).sum(dtype=x.dtype),
    )
