"""From flags to the library's records."""

import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from experiments import objectives
from experiments.configuration import Config
from vae_jax import (
    divergences,
    flows,
    likelihoods,
    networks,
    posteriors,
    priors,
    vae,
)
from vae_jax.estimators import sgvb
from vae_jax.evaluation import representation
from vae_jax.training import gradient
from vae_jax.types import (
    Algorithm,
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
STAIRCASE_STAGES = 8
LONG_EPOCH = 100  # steps, from which every tenth reports the gradient's norm


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
    posterior = _posterior(config)
    encoder = networks.mlp(num_entries, config.hidden, posterior.width, **style)
    mirrored = config.hidden[::-1]
    decoder = networks.mlp(config.num_latents, mirrored, likelihood.width, **style)
    binary = config.posterior == "bernoulli"
    prior = (priors.bernoulli if binary else priors.standard_normal)(config.num_latents)
    recognition = vae.encoder_model(encoder, posterior)
    baseline = None
    if config.estimator == "nvil":
        baseline = objectives.baseline(num_entries)
        recognition = vae.with_baseline(recognition, baseline)
    return Model(
        vae.decoder_model(decoder, prior, likelihood),
        recognition,
        _closed_form(config),
        baseline,
    )


def algorithm(
    config: Config, model: Model, *, num_data: int, steps_per_epoch: int
) -> Algorithm:
    """The fit that the flags ask for."""
    warmup_steps = config.kl_warmup * steps_per_epoch
    closed = model.closed_form
    build = objectives.builder(
        config,
        model.pair,
        kl=closed and closed.kl,
        network=model.baseline,
        num_data=num_data,
    )

    def settings(step: jax.Array) -> gradient.Settings:
        if not warmup_steps:
            return {}
        return {"warmup": jnp.minimum(1.0, (step + 1.0) / warmup_steps)}

    return objectives.algorithm(
        config.estimator,
        build,
        optimizer(config, steps_per_epoch=steps_per_epoch),
        settings=settings,
        monitor=_monitor(config, model),
        norm_every=10 if steps_per_epoch >= LONG_EPOCH else 1,
    )


def elbo_terms(model: Model, *, num_samples: int) -> Callable:
    """(key, params, x) -> reconstruction and KL of the ELBO, KL closed where it is."""
    closed = model.closed_form
    return sgvb.elbo_terms(
        *model.pair, num_samples=num_samples, kl=closed and closed.kl
    )


def optimizer(config: Config, *, steps_per_epoch: int) -> optax.GradientTransformation:
    """The optax optimizer with its schedule, clipping first."""
    rate = _schedule(config, steps_per_epoch)
    make = {
        "sgd": optax.sgd,
        "adam": lambda rate: gradient.adam(rate, eps=config.adam_epsilon),
        "adamax": optax.adamax,
        "rmsprop": optax.rmsprop,
        # The paper's Adagrad starts its sums at zero; optax would start at 0.1.
        "adagrad": lambda rate: optax.adagrad(rate, initial_accumulator_value=0.0),
    }[config.optimizer]
    if config.clip_norm:
        return optax.chain(optax.clip_by_global_norm(config.clip_norm), make(rate))
    return make(rate)


def _schedule(config: Config, steps_per_epoch: int) -> optax.ScalarOrSchedule:
    rate = config.learning_rate
    if config.schedule == "constant":
        return rate
    if config.schedule == "cosine":
        return optax.cosine_decay_schedule(rate, config.num_epochs * steps_per_epoch)
    # Burda et al. 2016: 3^i passes at rate 10^(-i/7), i = 0..7, 3,280 in all.
    ends = [(3**i - 1) // 2 * steps_per_epoch for i in range(1, STAIRCASE_STAGES)]
    return optax.piecewise_constant_schedule(rate, dict.fromkeys(ends, 10 ** (-1 / 7)))


def _monitor(config: Config, model: Model) -> gradient.Monitor:
    """The KL where it has a closed form, else both terms of the ELBO.

    A closed form draws no noise, so the step already holds all it needs. Noise drawn
    twice is computed twice, and a second decoding with it.
    """
    closed = model.closed_form
    if closed is None:
        terms = elbo_terms(model, num_samples=config.num_samples)
        return lambda key, params, x: terms(key, params, x)._asdict()

    def kl_alone(key: PRNGKey, params: Params, x: jax.Array) -> dict[str, jax.Array]:
        del key
        return {"kl": closed.kl(params, model.recognition.encode(params, x))}

    return kl_alone


def _posterior(config: Config) -> Conditional:
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
