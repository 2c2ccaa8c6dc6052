"""p(x) in the plane of two decoders and of a mixture, drawn by `experiments.em`."""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from experiments.measures import mixtures
from vae_jax import compilation, likelihoods, networks, priors, vae
from vae_jax.evaluation import exact
from vae_jax.latent_models import gmm
from vae_jax.plots import mixtures as mixture_plots
from vae_jax.training import gradient, loop
from vae_jax.types import Network, Params, PRNGKey, per_example

NODES, FINE_NODES = 25, 61  # a side of z's grid, to fit and to evaluate
LATENTS = {"num_latents": 2, "limit": 4.0}
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
    decoders = {
        "sigmoid-affine decoder": networks.linear(2, 4),
        "tanh decoder": networks.mlp(2, (20,), 4),
    }
    key_mixture, *keys = jax.random.split(jax.random.key(seed), 1 + len(decoders))
    fitted = {
        name: _fitted_decoder(key, decoder, jnp.asarray(x), num_steps=num_steps)
        for key, (name, decoder) in zip(keys, decoders.items(), strict=True)
    }
    best = mixtures.fitted(
        key_mixture,
        jnp.asarray(x),
        tolerance=1e-7,
        num_components=num_components,
        num_starts=5,
        min_variance=MIN_STD**2,
    )
    fitted[f"mixture, K = {num_components}"] = _over_rows(
        partial(gmm.log_evidence, best)
    )
    values = {name: float(log_p(x).mean()) for name, log_p in fitted.items()}
    panels = {
        f"{name}\nlog p(x) {values[name]:.3f}": np.exp(log_p(grid)).reshape(GRID, GRID)
        for name, log_p in fitted.items()
    }
    return mixture_plots.densities(x, panels, extent=(0.0, 1.0, 0.0, 1.0)), values


def _fitted_decoder(
    key: PRNGKey, decoder: Network, x: Array, *, num_steps: int
) -> Callable[[np.ndarray], np.ndarray]:
    """Rows [N, 2] -> log p(x) of the decoder of the greatest likelihood found."""
    likelihood = likelihoods.normal_per_pixel_std(
        (2,), min_std=MIN_STD, squash=jax.nn.sigmoid
    )
    generative = vae.decoder_model(decoder, priors.standard_normal(2), likelihood)
    objective = exact.shifted_grid(generative, num_nodes=NODES, **LATENTS)
    fit = gradient.ascent(per_example(objective), gradient.adam(LEARNING_RATE))

    key_init, key_run = jax.random.split(key)
    state = loop.start(key_run, fit, Params(generative.init(key_init), ()))
    order = jnp.broadcast_to(jnp.arange(len(x)), (num_steps, len(x)))
    state, _ = loop.scan(fit, loop.take_rows)(state, x, order)
    log_p = exact.grid_quadrature(generative, num_nodes=FINE_NODES, **LATENTS)
    return _over_rows(partial(log_p, state.inner.params))


def _over_rows(log_p: Callable[[Array], Array]) -> Callable[[np.ndarray], np.ndarray]:
    compiled = compilation.program(
        lambda rows: jax.lax.map(log_p, rows, batch_size=100)
    )
    return lambda rows: np.asarray(compiled(jnp.asarray(rows)))
