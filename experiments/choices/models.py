"""From flags to the library's records, or to a model that a function builds."""

import contextlib
import importlib
import inspect
import math
import os
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from typing import TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from experiments.choices import estimators, ladders, rows
from experiments.choices.algorithms import ALGORITHMS, Parts
from experiments.choices.coders import NETWORKS
from experiments.choices.config import Config
from experiments.choices.densities import (
    LIKELIHOODS,
    POSTERIORS,
    PRIORS,
    Reading,
    traits,
)
from vae_jax import conditional, exemplars, networks, vae
from vae_jax.inference import full_vb, mcem, variational_em
from vae_jax.types import (
    Batch,
    Conditional,
    Generative,
    Likelihood,
    Model,
    Network,
    Params,
    PRNGKey,
    PyTree,
    Recognition,
)

ModelFunction: TypeAlias = Callable[[Config, tuple[int, ...]], Model]
"""(config, shape of one x) -> the model: what --model names."""

CHAIN_OF_FITTED_NORMAL = {  # MCEM's q of an x is a normal fitted to such a chain
    "num_samples": 100,
    "num_warmup": 100,
    "num_leapfrog": 10,
}


def build(
    config: Config,
    x_shape: tuple[int, ...],
    exemplar_rows: Batch | None = None,
    context: Sequence[str] = (),
) -> Parts:
    """The model of a configuration for observations of that shape.

    Args:
        config: the flags.
        x_shape: of one observation.
        exemplar_rows: of --prior=exemplar, to train with; without them their codes are
            parameters, as of a model that was trained.
        context: of --condition, names of the entries that p and q are given beside x.

    Raises:
        ValueError: for a --model that does not import, builds no `Model`, or one that
            does not fit x or the flags.
    """
    config, at_context = config.settled, None
    if config.model:
        at_theta = _of_function(config, x_shape)
    elif context:
        at_context = _at_context(config, x_shape, context)
        at_theta = conditional.of_rows(at_context, x_shape, num_context=len(context))
    else:
        at_theta = _of_flags(config, x_shape)
    num_entries = math.prod(x_shape) + len(context)
    at_theta, learned = estimators.with_learned(
        config, at_theta, num_entries=num_entries
    )
    if config.missing == "nan":
        check_masked(config, x_shape)
        at_theta = at_theta if context else masked(config, at_theta)
    of_rows = None
    if exemplar_rows is not None:
        x, index, _ = exemplar_rows
        of_rows = exemplars.with_exemplar_prior(at_theta, x, index)
        at_theta = of_rows.model
    elif config.prior == "exemplar":
        number = config.num_exemplars
        at_theta = exemplars.with_fixed_exemplars(at_theta, num_exemplars=number)
    density = None
    if not config.has_encoder:
        density = posterior(config)
        recognition = _without_encoder(config, at_theta.generative, density)
        at_theta = vae.model(at_theta.generative, recognition)
    if config.model:
        _check_fit(config, at_theta, x_shape)
    model = at_theta
    if config.algorithm == "full_vb":
        model = full_vb.at_mean(at_theta, initial_std=config.theta_std)
    return Parts(model, at_theta, density, learned, of_rows, at_context)


def masked(config: Config, model: Model) -> Model:
    """The model of partial x; q sees zeros in the holes of what it sees."""
    return vae.masked(model, fill=None if _reading(config) else 0.0)


def check_masked(config: Config, x_shape: tuple[int, ...]) -> None:
    """Refuses a p(x | z) of which no single entry of x can be left out.

    Shapes alone are traced.

    Raises:
        ValueError: naming the flag that chooses it; for a --model as in `build`.
    """
    config = config.settled
    of_flag = "model" if config.model else "likelihood"
    named = f"--{of_flag}={config.model or config.observed}"
    x = jax.ShapeDtypeStruct(x_shape, jnp.result_type(float))
    terms = (_terms_of_function if config.model else _terms_of_flags)(config, x_shape)
    key = jax.eval_shape(jax.random.key, 0)
    with _one_line(config.model, x_shape) if config.model else contextlib.nullcontext():
        shape = jax.eval_shape(terms, key, x).shape
    if shape != x_shape:
        raise ValueError(
            f"{named} has terms of shape {shape} for x of {x_shape}, of which no "
            "entry can be missing or hidden: train with one that has a term an entry, "
            "such as --likelihood=discretized_logistic"
        )


def _terms_of_flags(
    config: Config, x_shape: tuple[int, ...]
) -> Callable[[PRNGKey, Array], Array]:
    """(key, x) -> terms of log p(x | h), under fresh parameters and an h of zeros."""
    observed = likelihood(config, x_shape)

    def terms(key: PRNGKey, x: Array) -> Array:
        h = jnp.zeros(observed.width)
        return observed.log_prob_terms(observed.init(key), h, x)

    return terms


def _terms_of_function(
    config: Config, x_shape: tuple[int, ...]
) -> Callable[[PRNGKey, Array], Array]:
    """(key, x) -> terms of log p(x | z), under fresh parameters and a z of p."""
    model = _of_function(config, x_shape)

    def terms(key: PRNGKey, x: Array) -> Array:
        key_init, key_z = jax.random.split(key)
        params = model.init(key_init)
        z = model.generative.sample_prior(key_z, params)
        return model.generative.log_likelihood_terms(params, x, z)

    return terms


def _reading(
    config: Config,
) -> Callable[[Config, tuple[int, ...]], Reading] | None:
    return None if config.model else LIKELIHOODS[config.observed].reading


def seen(config: Config, x_shape: tuple[int, ...]) -> Callable[[Array], Array]:
    """x -> what q sees of it, before its holes are filled."""
    reading = _reading(config)
    return (lambda x: x) if reading is None else reading(config, x_shape)[0]


def quantity(config: Config, x_shape: tuple[int, ...]) -> Callable[[np.ndarray], str]:
    """Rows of x -> what log p(x | z) is on them, as the model itself says.

    Raises:
        ValueError: for a --model as in `build`, or one that does not say.
    """
    if not config.model:
        return likelihood(config, x_shape).quantity
    of_model = _of_function(config, x_shape).generative.quantity
    if of_model is None:
        raise ValueError(
            f"--model={config.model} builds a model without generative.quantity, which "
            "says what its number is on rows of x: give one, as vae.decoder_model does"
        )
    return of_model


def _of_flags(config: Config, x_shape: tuple[int, ...]) -> Model:
    """Two networks, or a ladder, between the densities that the flags name."""
    observed, density = likelihood(config, x_shape), posterior(config)
    prior = _prior(config)
    if config.layers:
        return ladders.model(
            config, x_shape, posterior=density, prior=prior, likelihood=observed
        )
    encoder, decoder, read = _networks(config, x_shape, density, observed)
    generative = vae.decoder_model(decoder, prior, observed)
    if config.prior == "vamp":
        generative = vae.with_vamp_prior(
            generative,
            encoder,
            density,
            num_components=config.num_components,
            x_shape=x_shape,
        )
    recognition = vae.encoder_model(
        encoder, density, read=POSTERIORS[config.posterior].read
    )
    model = vae.model(generative, recognition)
    return model if read is None else vae.with_reading(model, read)


def _networks(
    config: Config,
    x_shape: tuple[int, ...],
    density: Conditional,
    observed: Likelihood,
    num_context: int = 0,
) -> tuple[Network, Network, Callable[[Array], Array] | None]:
    """Encoder and decoder, and x -> what the encoder sees of it; None: x itself."""
    row, reading = NETWORKS[config.network], _reading(config)
    coders, seen, read = row.build(**rows.numbers(row, config)), x_shape, None
    if reading is not None:
        read, size = reading(config, x_shape)
        seen = x_shape if math.prod(x_shape) == size else (size,)
    size = config.num_latents
    encoder = coders.encoder(seen, density.width, size, num_context)
    decoder = coders.decoder(size, x_shape, observed, num_context)
    row = POSTERIORS[config.posterior]
    return encoder, row.decoder_of(decoder, **rows.numbers(row, config)), read


def _at_context(
    config: Config, x_shape: tuple[int, ...], context: Sequence[str]
) -> conditional.ConditionalModel:
    """c -> the model of x, which may have holes, given it; p(z) does not read c.

    A normal p(z | c) would say no more: z in its units is an affine map of a z of
    N(0, I) that reads c, as the decoder does.
    """
    observed, density = likelihood(config, x_shape), posterior(config)
    encoder, decoder, read = _networks(config, x_shape, density, observed, len(context))

    def sized(c: Array) -> Likelihood:
        log_size = c[list(context).index(config.size_factor)]
        return likelihood(config, x_shape, log_size=log_size)

    at = conditional.model(
        encoder,
        decoder,
        posterior=density,
        prior=_prior(config),
        likelihood=sized if config.size_factor else observed,
    )

    def with_holes(c: Array) -> Model:
        model = at(c) if read is None else vae.with_reading(at(c), read)
        return masked(config, model) if config.missing == "nan" else model

    return with_holes


def _of_function(config: Config, x_shape: tuple[int, ...]) -> Model:
    """What the function that --model names builds.

    Raises:
        ValueError: if there is none, or it builds something else.
    """
    build = _function(config.model)
    with _one_line(config.model, x_shape):
        model = build(config, x_shape)
    if not isinstance(model, Model):
        raise ValueError(
            f"--model={config.model} builds a {type(model).__name__}: return a "
            "vae_jax.types.Model, as vae.model makes it of p and q"
        )
    return model


def _function(name: str) -> ModelFunction:
    """MODULE:FUNCTION, looked for in the current folder first, as `python -m` does."""
    module, _, function = name.partition(":")
    if not module or not function:
        raise ValueError(f"--model={name}: give MODULE:FUNCTION, such as networks:conv")
    if not {"", os.getcwd()} & set(sys.path):
        sys.path.insert(0, os.getcwd())
    try:
        imported = importlib.import_module(module)
    except Exception as error:  # whatever the module raises
        raise ValueError(
            f"--model={name}: {module} does not import ({type(error).__name__}: "
            f"{error}); it is looked for in the current folder first"
        ) from error
    try:
        build = getattr(imported, function)
        inspect.signature(build).bind("config", "x_shape")
    except (AttributeError, TypeError) as error:
        raise ValueError(
            f"--model={name}: {module} has no function {function}(config, x_shape) "
            f"({error})"
        ) from error
    return build


@contextlib.contextmanager
def _one_line(name: str, x_shape: tuple[int, ...]) -> Iterator[None]:
    """Turns whatever goes wrong in a function of one's own into a line that says where.

    Raises:
        ValueError: naming --model, and the last line of its module that was reached.
    """
    try:
        yield
    except Exception as error:
        file = sys.modules[name.partition(":")[0]].__file__
        frames = traceback.extract_tb(error.__traceback__)
        lines = [frame.lineno for frame in frames if frame.filename == file]
        where = f", line {lines[-1]} of {file}" if lines else ""
        raise ValueError(
            f"--model={name}, x of shape {x_shape}{where}: {type(error).__name__}: "
            f"{error}"
        ) from error


def _check_fit(config: Config, model: Model, x_shape: tuple[int, ...]) -> None:
    """Refuses a model of one's own that is not of such x, or not of the flags' fit.

    Shapes alone are traced.

    Raises:
        ValueError: naming --model, and the flag that does not go with it.
    """

    q = traits(model)
    fitting = {
        "algorithm": [name for name, row in ALGORITHMS.items() if row.fits(q)],
        "estimator": estimators.fitting(q),
    }
    chosen = {"algorithm": config.algorithm}
    if config.has_encoder:
        chosen["estimator"] = config.gradient
    for flag, name in chosen.items():
        if name not in fitting[flag]:
            raise ValueError(
                f"--{flag}={name} does not fit --model={config.model}, whose latents "
                f"are {'real' if q.continuous else 'discrete'} and whose KL to the "
                f"prior has {'a' if q.closed_kl else 'no'} closed form; what fits: "
                f"{', '.join(fitting[flag])}"
            )

    def one(key: PRNGKey, x: Array) -> tuple[Array, Array]:
        key_init, key_draw = jax.random.split(key)
        params = model.init(key_init)
        vae.check_latents(model, params, x)
        z = model.draw(key_draw, params, x, model.recognition.encode(params, x)).z
        return z, model.generative.mean_observation(params, z)

    x = jax.ShapeDtypeStruct(x_shape, jnp.result_type(float))
    with _one_line(config.model, x_shape):
        z, mean = jax.eval_shape(one, jax.eval_shape(jax.random.key, 0), x)
    if z.ndim != 1 or mean.shape != x_shape:
        raise ValueError(
            f"--model={config.model} has z of shape {z.shape} and a mean of x of "
            f"{mean.shape}: z must be flat, and x is of {x_shape}"
        )


def started(
    config: Config, params: Params, x_shape: tuple[int, ...], mean: np.ndarray | None
) -> Params:
    """Fresh parameters of `build`'s with the output biases that the flags ask for.

    Args:
        config: the flags.
        params: of the model before the first step.
        x_shape: shape of one x.
        mean: of each entry of x, for --init_bias=data.
    """
    if config.model:
        return params  # whose function starts them as it likes
    theta, phi = params
    start = LIKELIHOODS[config.observed].h_of_mean
    if config.init_bias == "data" and start is not None:
        observed = likelihood(config, x_shape)
        shift = _filled(start(jnp.asarray(mean), config), observed.width)
        decoder = _shifted(config, theta["decoder"], shift, x_shape, observed)
        theta = {**theta, "decoder": decoder}
    narrow = POSTERIORS[config.posterior].h_of_std
    if config.posterior_std != 1.0 and narrow is not None:
        h = narrow(config.num_latents, std=config.posterior_std)
        shift = _filled(h, posterior(config).width)
        phi = {**phi, "encoder": networks.shift_output(phi["encoder"], shift)}
    return Params(theta, phi)


def _shifted(
    config: Config,
    decoder: PyTree,
    shift: Array,
    x_shape: tuple[int, ...],
    observed: Likelihood,
) -> PyTree:
    if config.layers:
        return ladders.shift_decoder(config, decoder, shift, x_shape, observed)
    row = NETWORKS[config.network]
    coders = row.build(**rows.numbers(row, config))
    return coders.shift_decoder(decoder, shift, x_shape, observed)


def _filled(first: Array, size: int) -> Array:
    """The entries, flat, with zeros behind them."""
    return jnp.pad(first.ravel(), (0, size - first.size))


def posterior(config: Config) -> Conditional:
    """q(z | h), as the flags choose it."""
    row = POSTERIORS[config.posterior]
    return row.build(_top_size(config), config.hidden, **rows.numbers(row, config))


def likelihood(config: Config, x_shape: tuple[int, ...], **size: Array) -> Likelihood:
    """p(x | h), as the flags choose it; size: the log_size of counts, if any."""
    row = LIKELIHOODS[config.observed]
    return row.build(x_shape, **rows.numbers(row, config), **size)


def _prior(config: Config) -> Conditional:
    """p(z); one that is made of the encoder later takes its place."""
    row = (POSTERIORS[config.posterior].priors or PRIORS)[config.prior]
    return row.build(_top_size(config), **rows.numbers(row, config))


def _top_size(config: Config) -> int:
    """Entries of z, or of the top layer of a ladder."""
    return config.layers[-1][0] if config.layers else config.num_latents


def _without_encoder(
    config: Config, generative: Generative, density: Conditional
) -> Recognition:
    """What finds a q for each x; it reads the joint, so the holes of x too."""
    key = jax.random.key(config.seed)
    if config.algorithm != "mcem":
        return variational_em.optimized(key, generative, density)

    size = generative.latents(Params(jax.eval_shape(generative.init, key), ())).size
    return mcem.fitted_normal(
        key, generative, num_latents=size, **CHAIN_OF_FITTED_NORMAL
    )
