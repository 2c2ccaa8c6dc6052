"""From flags to the library's records."""

import math
from typing import Any

import jax

from experiments.choices import estimators, rows
from experiments.choices.algorithms import ALGORITHMS, Parts
from experiments.choices.config import Config
from experiments.choices.densities import (
    ACTIVATIONS,
    INITIALIZERS,
    LIKELIHOODS,
    POSTERIORS,
    PRIORS,
)
from vae_jax import factors, networks, posteriors, priors, vae
from vae_jax.inference import full_vb, mcem, variational_em
from vae_jax.types import (
    Conditional,
    Generative,
    Likelihood,
    Network,
    Recognition,
)

CHAIN_OF_FITTED_NORMAL = {  # MCEM's q of an x is a normal fitted to such a chain
    "num_samples": 100,
    "num_warmup": 100,
    "num_leapfrog": 10,
}


def build(config: Config, x_shape: tuple[int, ...]) -> Parts:
    """The model of a configuration for observations of that shape."""
    num_entries = math.prod(x_shape)
    observed = likelihood(config, x_shape)
    style = {
        "activation": ACTIVATIONS[config.activation],
        "initializer": INITIALIZERS[config.init],
    }
    density = posterior(config)
    sizes = config.encoder_hidden or config.hidden
    encoder = networks.mlp(num_entries, sizes, density.width, **style)
    mirrored = config.hidden[::-1]
    decoder = networks.mlp(config.num_latents, mirrored, observed.width, **style)
    prior = _prior(config)
    if config.top_latents:
        density, prior, decoder = _two_layers(config, density, decoder, style)
    generative = vae.decoder_model(decoder, prior, observed)
    if config.prior == "vamp":
        generative = vae.with_vamp_prior(
            generative,
            encoder,
            density,
            num_components=config.num_components,
            x_shape=x_shape,
        )
    recognition = vae.encoder_model(encoder, density)
    baseline = None
    if estimators.ESTIMATORS[config.gradient].learns_baseline:
        baseline = estimators.baseline(num_entries)
        recognition = vae.with_baseline(recognition, baseline)
    at_theta = vae.model(generative, recognition)
    if config.missing == "nan":
        at_theta = vae.masked(at_theta)
    if not ALGORITHMS[config.algorithm].has_encoder:
        found = _without_encoder(config, at_theta.generative, density)
        at_theta = vae.model(at_theta.generative, found)
    model = at_theta
    if config.algorithm == "full_vb":
        model = full_vb.at_mean(at_theta, initial_std=config.theta_std)
    return Parts(model, at_theta, density, baseline)


def posterior(config: Config) -> Conditional:
    """q(z | h), as the flags choose it."""
    row = POSTERIORS[config.posterior]
    return row.build(config.num_latents, config.hidden, **rows.numbers(row, config))


def likelihood(config: Config, x_shape: tuple[int, ...]) -> Likelihood:
    """p(x | h), as the flags choose it."""
    row = LIKELIHOODS[config.likelihood]
    return row.build(x_shape, **rows.numbers(row, config))


def _prior(config: Config) -> Conditional:
    """p(z); a VampPrior later takes its place."""
    if not POSTERIORS[config.posterior].continuous:
        return priors.bernoulli(config.num_latents)
    row = PRIORS[config.prior]
    return row.build(config.num_latents, **rows.numbers(row, config))


def _two_layers(
    config: Config, density: Conditional, decoder: Network, style: dict[str, Any]
) -> tuple[Conditional, Conditional, Network]:
    """q(z1 | x) q(z2 | z1), p(z2) p(z1 | z2), and the decoder of z1 alone.

    Burda et al. 2016 (arXiv:1509.00519): two hidden layers of twice z2's size between
    the two, in both directions.
    """
    low, high = config.num_latents, config.top_latents
    hidden = (2 * high, 2 * high)
    up = networks.mlp(low, hidden, 2 * high, **style)
    down = networks.mlp(high, hidden, 2 * low, **style)
    z, of_top = factors.layout({"z1": low, "z2": high}), posteriors.diag_normal(high)
    upwards = [
        factors.Factor("z1", density),
        factors.Factor("z2", of_top, parent="z1", network=up),
    ]
    downwards = [
        factors.Factor("z2", priors.standard_normal(high)),
        factors.Factor("z1", density, parent="z2", network=down),
    ]
    of_z1 = Network(
        decoder.init, lambda params, both: decoder.apply(params, z.split(both)["z1"])
    )
    return factors.joint(z, upwards), factors.joint(z, downwards), of_z1


def _without_encoder(
    config: Config, generative: Generative, density: Conditional
) -> Recognition:
    """What finds a q for each x; it reads the joint, so the holes of x too."""
    key = jax.random.key(config.seed)
    if config.algorithm == "mcem":
        return mcem.fitted_normal(
            key, generative, num_latents=config.num_latents, **CHAIN_OF_FITTED_NORMAL
        )
    return variational_em.optimized(key, generative, density)
