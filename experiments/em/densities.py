"""p(x) in the plane of two decoders and of a mixture, drawn by `experiments.em`."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from vae_jax import likelihoods, networks, priors, vae
from vae_jax.latent_models import gmm
from vae_jax.plots import mixtures
from vae_jax.training import gradient, loop
from vae_jax.types import (
    Batch,
    Generative,
    Network,
    Params,
    PRNGKey,
    Scalar,
    log_likelihood,
)

NUM_LATENTS = 2
NODES, FINE_NODES = 25, 61  # of each latent, to fit and to evaluate
MIN_STD = 0.02
GRID = 64
LEARNING_RATE = 1e-2


def compare(
    x: np.ndarray, *, num_components: int, num_steps: int, seed: int
) -> tuple[Any, dict[str, float]]:
    """Fits three models to x [N, 2] in the unit square; their picture and log p(x).

    Both decoders have a normal prior and h = [mean, log std] of each feature, the mean
    through the logistic function: the lecture's is affine in z, the other has one
    hidden layer of 20 tanh units. z has two dimensions, so that log p(x) is a sum over
    a grid of z and is maximized itself; no bound is involved. The mixture is fitted by
    EM.
    """
    low, high = x.min(0), x.max(0)
    x = 0.05 + 0.9 * (x - low) / (high - low)
    places = (np.arange(GRID) + 0.5) / GRID
    grid = np.stack(np.meshgrid(places, places), -1).reshape(-1, 2)
    width = 2 * x.shape[1]
    decoders = {
        "sigmoid-affine decoder": networks.linear(NUM_LATENTS, width),
        "tanh decoder": networks.mlp(NUM_LATENTS, (20,), width),
    }
    panels, values = {}, {}
    key_mixture, *keys = jax.random.split(jax.random.key(seed), 1 + len(decoders))
    found = {
        name: _fitted_decoder(key, decoder, x, num_steps=num_steps)
        for key, (name, decoder) in zip(keys, decoders.items(), strict=True)
    }
    found[f"mixture, K = {num_components}"] = _fitted_mixture(
        key_mixture, x, num_components
    )
    for name, log_p in found.items():
        values[name] = float(np.mean(log_p(jnp.asarray(x))))
        density = np.exp(np.asarray(log_p(jnp.asarray(grid))))
        panels[f"{name}\nlog p(x) {values[name]:.3f}"] = density.reshape(GRID, GRID)
    return mixtures.densities(x, panels, extent=(0.0, 1.0, 0.0, 1.0)), values


def log_evidence(
    generative: Generative, params: Params, x: Array, *, num_nodes: int, shift: Array
) -> Scalar:
    """log p(x) by the sum over a grid of z, for two latents with a normal prior.

    The grid has num_nodes values from -4 to 4 for each, moved by shift [2] times their
    distance. A model fitted on one grid puts its nodes on the data and means nothing in
    between: it is fitted on grids of random shift, and evaluated on a finer one.
    """
    axis = jnp.linspace(-4.0, 4.0, num_nodes)
    nodes = jnp.stack(jnp.meshgrid(axis, axis), -1).reshape(-1, NUM_LATENTS)
    nodes = nodes + (shift * (axis[1] - axis[0]))[None]
    log_w = jax.nn.log_softmax(-0.5 * (nodes**2).sum(1))
    terms = jax.vmap(lambda z: log_likelihood(generative, params, x, z))(nodes)
    return jax.nn.logsumexp(log_w + terms)


def _fitted_decoder(
    key: PRNGKey, decoder: Network, x: np.ndarray, *, num_steps: int
) -> Any:
    """Rows [N, 2] -> log p(x) of the decoder of the greatest likelihood found."""
    likelihood = likelihoods.normal_per_pixel_std(
        (2,), min_std=MIN_STD, squash=jax.nn.sigmoid
    )
    generative = vae.decoder_model(
        decoder, priors.standard_normal(NUM_LATENTS), likelihood
    )

    def objective(key: PRNGKey, params: Params, x: Array) -> Scalar:
        shift = jax.random.uniform(key, (NUM_LATENTS,), minval=-0.5, maxval=0.5)
        return log_evidence(generative, params, x, num_nodes=NODES, shift=shift)

    key_init, key_run = jax.random.split(key)
    fit = gradient.ascent(objective, gradient.adam(LEARNING_RATE))
    data = jnp.asarray(x)

    def take(key: PRNGKey, data: Array, index: Array) -> Batch:
        del key
        return Batch(data[index], index, jnp.ones(index.shape))

    state = loop.start(key_run, fit, Params(generative.init(key_init), ()))
    order = jnp.broadcast_to(jnp.arange(len(x)), (num_steps, len(x)))
    state, _ = loop.scan(fit, take)(state, data, order)
    middle = jnp.zeros((NUM_LATENTS,))

    def exact(x: Array) -> Scalar:
        params = state.inner.params
        return log_evidence(generative, params, x, num_nodes=FINE_NODES, shift=middle)

    return jax.jit(lambda rows: jax.lax.map(exact, rows, batch_size=100))


def _fitted_mixture(key: PRNGKey, x: np.ndarray, num_components: int) -> Any:
    run = loop.until_converged(
        gmm.em(min_variance=MIN_STD**2),
        value=lambda info: info.log_p,
        tolerance=1e-7,
        max_steps=500,
    )
    best = gmm.fit(
        key,
        jnp.asarray(x),
        num_components=num_components,
        run=run,
        num_starts=5,
        min_variance=MIN_STD**2,
    )
    each = jax.vmap(gmm.log_evidence, in_axes=(None, 0))
    return jax.jit(lambda rows: each(best.state.params, rows))
