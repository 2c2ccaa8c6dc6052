"""Mixtures of normals by SciPy, rows drawn of them, and runs of EM on such rows."""

import functools
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
from scipy import special, stats

from vae_jax.latent_models import gmm, gmm_scales
from vae_jax.types import Batch, Params

K, D = 3, 2
NORMAL: Any = stats.multivariate_normal  # its stub takes the covariance for an int


def mixture(covariance, *, num_components=K, num_features=D, seed=0):
    """Parameters of order one, no two components alike."""
    generator = np.random.default_rng(seed)
    logits = generator.normal(size=num_components)
    mean = 2.0 * generator.normal(size=(num_components, num_features))
    scale = np.array(gmm_scales.unit(jnp.asarray(mean), covariance=covariance))
    noise = generator.normal(size=scale.shape)
    if covariance in ("full", "tied"):
        scale = 0.7 * scale + 0.4 * np.tril(noise, -1) + 0.2 * scale * np.abs(noise)
    else:
        scale = 0.3 * noise
    tables = gmm_scales.Tables(*map(jnp.asarray, (logits, mean, scale)))
    return Params(gmm_scales.parameters(tables, covariance=covariance), ())


def normals(params):
    """Shares [K] and SciPy's distribution of each component."""
    theta = jax.device_get(params.generative)
    num_components, num_features = theta["mean"].shape
    if "scale_tril" in theta:
        scale = np.tril(theta["scale_tril"])
        sigma = scale @ np.swapaxes(scale, -1, -2)
    else:
        std = np.exp(theta["log_std"]).reshape(num_components, -1, 1)
        sigma = std**2 * np.eye(num_features)
    sigma = np.broadcast_to(sigma, (num_components, num_features, num_features))
    return special.softmax(theta["logits"]), [
        NORMAL(*pair) for pair in zip(theta["mean"], sigma, strict=True)
    ]


def covariance_of(normal):
    return np.asarray(normal.cov_object.covariance)


def expected_log_joints(params, x):
    """log p(x, z) of every component, [N, K], of the entries that are not NaN."""
    shares, components = normals(params)
    logs = np.zeros((len(x), len(components)))
    for i, row in enumerate(x):
        seen = ~np.isnan(row)
        for k, normal in enumerate(components):
            logs[i, k] = np.log(shares[k])
            if seen.any():
                part = normal.mean[seen], covariance_of(normal)[seen][:, seen]
                logs[i, k] += NORMAL.logpdf(row[seen], *part)
    return logs


def rows(*, num_rows=200, num_features=3, num_components=3, spread=3.0, seed=0):
    """Rows of clusters with covariances of their own, and the clusters' numbers."""
    generator = np.random.default_rng(seed)
    shape = (num_components, num_features, num_features)
    scales = np.eye(num_features) + 0.5 * np.tril(generator.normal(size=shape))
    means = spread * generator.normal(size=(num_components, num_features))
    labels = generator.integers(0, num_components, num_rows)
    noise = generator.normal(size=(num_rows, num_features))
    x = means[labels] + np.einsum("nij,nj->ni", scales[labels], noise)
    return x, labels


def with_holes(x, share=0.2, seed=1):
    """x with NaN in a share of its entries."""
    return np.where(np.random.default_rng(seed).random(x.shape) < share, np.nan, x)


def batch_of(x, weight=None, dtype=None):
    x = jnp.asarray(x, dtype)
    weight = np.ones(len(x)) if weight is None else weight
    return Batch(x, jnp.arange(len(x)), jnp.asarray(weight, x.dtype))


_START = jax.jit(
    gmm.start, static_argnames=("num_components", "covariance", "min_variance")
)


def start(x, *, num_components=3, covariance="full", seed=1, **settings):
    return _START(
        jax.random.key(seed),
        jnp.asarray(x),
        num_components=num_components,
        covariance=covariance,
        **settings,
    )


@functools.partial(jax.jit, static_argnames=("algorithm", "num_steps"))
def run(algorithm, params, batch, num_steps):
    """The last state, and the info of every step stacked."""

    def step(state, _):
        return algorithm.step(jax.random.key(0), state, batch)

    state = algorithm.init(jax.random.key(0), params)
    return jax.lax.scan(step, state, length=num_steps)


def mean_log_p(params, x, *, missing=False):
    evidence = functools.partial(gmm.log_evidence, missing=missing)
    return float(jax.jit(jax.vmap(evidence, (None, 0)))(params, jnp.asarray(x)).mean())


def assert_finite(params):
    chex.assert_tree_all_finite(params)
