"""A linear model given a context, all of whose numbers are known."""

import jax
import jax.numpy as jnp
import numpy as np

from vae_jax import conditional, likelihoods, posteriors, priors
from vae_jax.types import Network

STD, X_SIZE, Z_SIZE, NUM_CLASSES = 0.7, 4, 2, 3
_GENERATOR = np.random.default_rng(0)
W = _GENERATOR.normal(size=(X_SIZE, Z_SIZE))
B = 2.0 * _GENERATOR.normal(size=(X_SIZE, NUM_CLASSES))


def linear() -> conditional.ConditionalModel:
    """x = W z + B c + noise, with its exact posterior: pPCA around B c."""
    precision = np.eye(Z_SIZE) + W.T @ W / STD**2
    covariance = jnp.asarray(np.linalg.inv(precision))
    scale = jnp.linalg.cholesky(covariance)
    gain = covariance @ W.T / STD**2

    def decode(params, z_and_c):
        z, c = z_and_c
        return jnp.asarray(W) @ z + jnp.asarray(B) @ c

    def encode(params, x_and_c):
        x, c = x_and_c
        return posteriors.packed(gain @ (x - B @ c), scale)

    return conditional.model(
        Network(lambda key: (), encode),
        Network(lambda key: (), decode),
        posterior=posteriors.full_normal(Z_SIZE),
        prior=priors.standard_normal(Z_SIZE),
        likelihood=likelihoods.normal((X_SIZE,), std=STD),
    )


def log_p(x, c):
    """log N(x; B c, W W' + std^2 I) in closed form."""
    covariance = jnp.asarray(W @ W.T + STD**2 * np.eye(X_SIZE))
    return jax.scipy.stats.multivariate_normal.logpdf(x, B @ c, covariance)
