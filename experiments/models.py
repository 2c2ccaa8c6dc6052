"""From flags to the library's records."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from experiments.configuration import Config
from vae_jax import divergences, likelihoods, networks, posteriors, priors, vae
from vae_jax.estimators import importance, sgvb
from vae_jax.training import gradient
from vae_jax.types import (
    Algorithm,
    Generative,
    Likelihood,
    Objective,
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


class Model(NamedTuple):
    """The joint and the recognition model of one configuration."""

    generative: Generative
    recognition: Recognition

    def init(self, key: PRNGKey) -> Params:
        """Fresh parameters theta and phi."""
        key_generative, key_recognition = jax.random.split(key)
        return Params(
            self.generative.init(key_generative), self.recognition.init(key_recognition)
        )


def build(config: Config, x_shape: tuple[int, ...]) -> Model:
    """The model of a configuration for observations of that shape."""
    num_entries = 1
    for size in x_shape:
        num_entries *= size
    likelihood = _likelihood(config, x_shape)
    style = {
        "activation": ACTIVATIONS[config.activation],
        "initializer": _initializer(config.init),
    }
    encoder = networks.mlp(num_entries, config.hidden, 2 * config.num_latents, **style)
    mirrored = config.hidden[::-1]
    decoder = networks.mlp(config.num_latents, mirrored, likelihood.width, **style)
    prior = priors.standard_normal(config.num_latents)
    return Model(
        vae.decoder_model(decoder, prior, likelihood),
        vae.encoder_model(encoder, posteriors.diag_normal(config.num_latents)),
    )


def algorithm(
    config: Config, model: Model, *, num_data: int, steps_per_epoch: int
) -> Algorithm:
    """The fit that the flags ask for."""
    warmup_steps = config.kl_warmup * steps_per_epoch

    def settings(step: jax.Array) -> gradient.Settings:
        if not warmup_steps:
            return {}
        return {"beta": jnp.minimum(1.0, (step + 1.0) / warmup_steps)}

    def objective(settings: gradient.Settings) -> Objective:
        plain = _objective(config, model, settings)
        if not config.weight_decay:
            return plain
        return sgvb.with_normal_prior_on_theta(
            plain, num_data=num_data, weight_decay=config.weight_decay
        )

    return gradient.scheduled_ascent(
        objective,
        optimizer(config, steps_per_epoch=steps_per_epoch),
        settings=settings,
        monitor=_monitor(config, model),
        norm_every=10 if steps_per_epoch >= LONG_EPOCH else 1,
    )


def has_elbo_value(config: Config) -> bool:
    """Whether the objective's value is an ELBO, so that bound + KL = reconstruction."""
    return config.estimator in ("sgvb_a", "sgvb_b")


def elbo_terms(model: Model, *, num_samples: int) -> Callable:
    """(key, params, x) -> reconstruction and KL of the ELBO, KL in closed form."""
    return sgvb.sgvb_b_terms(*model, num_samples=num_samples, kl=kl)


def optimizer(config: Config, *, steps_per_epoch: int) -> optax.GradientTransformation:
    """The optax optimizer with its schedule, clipping first."""
    rate = _schedule(config, steps_per_epoch)
    make = {
        "sgd": optax.sgd,
        "adam": gradient.adam,
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


def _objective(config: Config, model: Model, settings: gradient.Settings) -> Objective:
    if config.estimator == "sgvb_b":
        beta = settings.get("beta", 1.0)
        return sgvb.sgvb_b(*model, num_samples=config.num_samples, kl=kl, beta=beta)
    make = {"sgvb_a": sgvb.sgvb_a, "iwae": importance.iwae}[config.estimator]
    return make(*model, num_samples=config.num_samples)


def _monitor(config: Config, model: Model) -> gradient.Monitor:
    if not has_elbo_value(config):
        terms = elbo_terms(model, num_samples=config.num_samples)
        return lambda key, params, x: terms(key, params, x)._asdict()

    def kl_alone(key: PRNGKey, params: Params, x: jax.Array) -> dict[str, jax.Array]:
        del key
        return {"kl": kl(*jnp.split(model.recognition.encode(params, x), 2))}

    return kl_alone


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
