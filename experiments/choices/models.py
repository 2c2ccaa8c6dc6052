"""From flags to the library's records."""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from experiments.choices import estimators as objectives
from experiments.choices.choices import FREE_POSTERIORS, WITHOUT_ENCODER
from experiments.choices.config import Config
from vae_jax import (
    divergences,
    factors,
    flows,
    likelihoods,
    networks,
    posteriors,
    priors,
    vae,
)
from vae_jax.estimators import sgvb
from vae_jax.evaluation import representation
from vae_jax.inference import full_vb, mcem, variational_em
from vae_jax.types import (
    Conditional,
    Generative,
    Likelihood,
    Network,
    Params,
    PRNGKey,
    Recognition,
)

kl = divergences.diag_normal_to_standard_normal
ACTIVATIONS = {
    "tanh": jnp.tanh,
    "relu": jax.nn.relu,
    "softplus": jax.nn.softplus,
    "gelu": jax.nn.gelu,
    "elu": jax.nn.elu,
}

CHAIN_OF_FITTED_NORMAL = {  # MCEM's q of an x is a normal fitted to such a chain
    "num_samples": 100,
    "num_warmup": 100,
    "num_leapfrog": 10,
}


class ClosedForm(NamedTuple):
    """What is known of a factorized q without sampling it."""

    kl_per_latent: Callable[[Params, jax.Array], jax.Array]  # params, h -> nats [D]
    mean: Callable[[jax.Array], jax.Array]  # h -> E_q[z] [D]

    def kl(self, params: Params, h: jax.Array) -> jax.Array:
        """KL(q || prior) in nats."""
        return self.kl_per_latent(params, h).sum()


class Model(NamedTuple):
    """The joint and the recognition model of one configuration."""

    generative: Generative
    recognition: Recognition
    closed_form: ClosedForm | None  # None where q does not factorize
    baseline: Network | None  # x -> [1], where the estimator learns one
    joint: Generative  # at a given theta: `generative`, but for full_vb's mean theta

    @property
    def pair(self) -> tuple[Generative, Recognition]:
        """What estimators are built from."""
        return self.generative, self.recognition

    def init(self, key: PRNGKey) -> Params:
        """Fresh parameters theta and phi."""
        key_generative, key_recognition = jax.random.split(key)
        return Params(
            self.generative.init(key_generative), self.recognition.init(key_recognition)
        )


def build(config: Config, x_shape: tuple[int, ...]) -> Model:
    """The model of a configuration for observations of that shape."""
    num_entries = math.prod(x_shape)
    likelihood = _likelihood(config, x_shape)
    style = {
        "activation": ACTIVATIONS[config.activation],
        "initializer": _initializer(config.init),
    }
    density = posterior(config)
    sizes = config.encoder_hidden or config.hidden
    encoder = networks.mlp(num_entries, sizes, density.width, **style)
    mirrored = config.hidden[::-1]
    decoder = networks.mlp(config.num_latents, mirrored, likelihood.width, **style)
    prior = _prior(config)
    if config.top_latents:
        density, prior, decoder = _two_layers(config, density, decoder, style)
    joint = vae.decoder_model(decoder, prior, likelihood)
    if config.prior == "vamp":
        joint = vae.with_vamp_prior(
            joint,
            encoder,
            density,
            num_components=config.num_components,
            x_shape=x_shape,
        )
    recognition = _recognition(config, joint, encoder, density)
    if config.missing == "nan":
        joint, recognition = vae.masked(joint, recognition)
        if config.algorithm in WITHOUT_ENCODER:  # it reads the joint, so the holes too
            recognition = _recognition(config, joint, encoder, density)
    baseline = None
    if config.estimator == "nvil":
        baseline = objectives.baseline(num_entries)
        recognition = vae.with_baseline(recognition, baseline)
    generative = joint
    if config.algorithm == "full_vb":
        generative = full_vb.at_mean(joint, initial_std=config.theta_std)
    return Model(generative, recognition, _closed_form(config), baseline, joint)


def _prior(config: Config) -> Conditional:
    """p(z); a VampPrior later takes its place."""
    if config.posterior == "bernoulli":
        return priors.bernoulli(config.num_latents)
    if config.prior == "normal_mixture":
        return priors.normal_mixture(config.num_latents, config.num_components)
    return priors.standard_normal(config.num_latents)


def _two_layers(
    config: Config, density: Conditional, decoder: Network, style: dict[str, Any]
) -> tuple[Conditional, Conditional, Network]:
    """q(z1 | x) q(z2 | z1), p(z2) p(z1 | z2), and the decoder of z1 alone.

    Burda et al. 2016 (arXiv:1509.00519): two hidden layers of twice z2's size between
    the two, in both directions.
    """
    low, high = config.num_latents, config.top_latents
    hidden = (2 * high, 2 * high)
    z1 = factors.Factor("z1", low, density)
    z2 = factors.Factor("z2", high, posteriors.diag_normal(high))
    top = z2._replace(density=priors.standard_normal(high))
    up = networks.mlp(low, hidden, 2 * high, **style)
    down = networks.mlp(high, hidden, 2 * low, **style)
    return (
        factors.chain(z1, up, z2),
        factors.chain(top, down, z1, first_is_last=True),
        factors.reading("z1", decoder, (z1, z2)),
    )


def _recognition(
    config: Config, joint: Generative, encoder: Network, density: Conditional
) -> Recognition:
    """The encoder's q, or what finds a q for each x where there is no encoder."""
    key = jax.random.key(config.seed)
    if config.algorithm == "mcem":
        return mcem.fitted_normal(
            key, joint, num_latents=config.num_latents, **CHAIN_OF_FITTED_NORMAL
        )
    if config.algorithm == "vem":
        return variational_em.optimized(key, joint, density)
    return vae.encoder_model(encoder, density)


def posterior_mean(config: Config) -> Callable[[jax.Array], jax.Array] | None:
    """h -> E_q[z], where the family of q gives it; None for flows and two layers."""
    if config.posterior == "bernoulli":
        return jax.nn.sigmoid
    normal = config.algorithm == "mcem" or config.posterior in FREE_POSTERIORS
    if config.top_latents or not normal:
        return None
    return lambda h: h[: config.num_latents]


def elbo_terms(model: Model, *, num_samples: int) -> Callable:
    """(key, params, x) -> reconstruction and KL of the ELBO, KL closed where it is."""
    closed = model.closed_form
    return sgvb.elbo_terms(
        *model.pair, num_samples=num_samples, kl=closed and closed.kl
    )


def posterior(config: Config) -> Conditional:
    """q(z | h), as the flags choose it."""
    size = config.num_latents
    if config.posterior == "bernoulli":
        return posteriors.bernoulli(size)
    if config.posterior == "full_normal":
        return posteriors.full_normal(size)
    base = posteriors.diag_normal(size)
    if config.posterior == "diag_normal":
        return base
    layers = [_flow(config, i) for i in range(config.flow_layers)]
    return posteriors.flow(base, flows.chain(*layers))


def _flow(config: Config, layer: int) -> flows.Flow:
    """One flow that reads num_latents numbers of context, or all its parameters."""
    size, hidden = config.num_latents, config.hidden[:1]
    if config.posterior == "planar":
        return flows.planar(size)
    if config.posterior == "coupling":
        passed = size // 2
        network = networks.mlp(passed + size, hidden, 2 * (size - passed))
        return flows.affine_coupling(
            network, size, context_width=size, flip=layer % 2 == 1
        )
    network = networks.made(size, hidden, num_context=size)
    autoregressive = flows.inverse_autoregressive(network, size, context_width=size)
    return flows.chain(autoregressive, flows.reverse(size))


def _closed_form(config: Config) -> ClosedForm | None:
    if config.algorithm == "mcem" or not config.has_standard_prior:
        return None  # MCEM's q has full covariance
    if config.posterior == "diag_normal":
        return ClosedForm(
            kl_per_latent=lambda params, h: representation.kl_per_latent(h, kl=kl),
            mean=lambda h: jnp.split(h, 2)[0],
        )
    if config.posterior == "bernoulli":
        return ClosedForm(objectives.bernoulli_kl_per_latent, jax.nn.sigmoid)
    return None


def _likelihood(config: Config, x_shape: tuple[int, ...]) -> Likelihood:
    squash = jax.nn.sigmoid if config.squash_mean else None
    if config.likelihood == "bernoulli":
        return likelihoods.bernoulli(x_shape)
    if config.likelihood == "normal":
        return likelihoods.normal(x_shape, std=config.std, squash=squash)
    if config.likelihood == "normal_learned_std":
        return likelihoods.normal_learned_std(
            x_shape, initial_std=config.std, min_std=config.min_std, squash=squash
        )
    return likelihoods.normal_per_pixel_std(
        x_shape, min_std=config.min_std, squash=squash
    )


def _initializer(name: str) -> networks.Initializer:
    if name == "glorot":
        return networks.glorot()
    return networks.normal(std=float(name.removeprefix("normal_")))
