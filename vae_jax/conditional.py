"""Models of x given something else: p(x, z | c) and q(z | x, c).

A conditional model is a function of its context, c -> `Model`, so that within a traced
function every bound, estimator and evaluator serves it as it is: `of_pairs` lifts them
to pairs (x, c), and `of_rows` makes one model of rows that hold both. All models of one
have the same parameters.
"""

import math
from collections.abc import Callable
from typing import Any, NoReturn, TypeAlias

import jax.numpy as jnp
from jaxtyping import Array, Float

from vae_jax import networks, vae
from vae_jax.types import (
    Conditional,
    Draw,
    Likelihood,
    Model,
    Network,
    Params,
    PRNGKey,
    PyTree,
    conditional,
)

ConditionalModel: TypeAlias = Callable[[Float[Array, " C"]], Model]
"""context -> the model of x given it."""


def model(
    encoder: Network,
    decoder: Network,
    *,
    posterior: Conditional,
    prior: Conditional,
    likelihood: Likelihood | Callable[[Float[Array, " C"]], Likelihood],
    prior_network: Network | None = None,
) -> ConditionalModel:
    """c -> p(z | c) p(x | z, c) and q(z | x, c), of networks that read c as well.

    Where the weights of c are zero it is the model without.

    Args:
        encoder: (x, c) -> the h of the posterior.
        decoder: (z, c) -> the h of the likelihood.
        posterior: q(z | h).
        prior: p(z | h).
        likelihood: p(x | h), or c -> that given c, of as many parameters at every c,
            such as of counts whose means are multiples of a size factor in c.
        prior_network: c -> the h of the prior; None where p(z) does not read c.

    Raises:
        ValueError: if the prior reads an h and there is no network for it.
    """
    if prior.width and prior_network is None:
        raise ValueError(
            f"the prior reads h of {prior.width} entries: give a prior_network"
        )

    def at(c: Float[Array, " C"]) -> Model:
        of_c = prior if prior_network is None else _at(prior, prior_network, c)
        observed = likelihood(c) if callable(likelihood) else likelihood
        return vae.model(
            vae.decoder_model(_beside(decoder, c), of_c, observed),
            vae.encoder_model(_beside(encoder, c), posterior),
        )

    return at


def of_pairs(
    build: Callable[[Model], Callable[[PRNGKey, Params, Array], Any]],
    at: ConditionalModel,
) -> Callable[[PRNGKey, Params, tuple[Array, Array]], Any]:
    """(key, params, (x, c)) -> what an estimator or evaluator gives of x given c.

    Args:
        build: model -> its function of one example, such as
            `partial(sgvb.sgvb_b, num_samples=1)`.
        at: the conditional model.
    """

    def of_pair(key: PRNGKey, params: Params, pair: tuple[Array, Array]) -> Any:
        x, c = pair
        return build(at(c))(key, params, x)

    return of_pair


def of_rows(
    at: ConditionalModel, x_shape: tuple[int, ...], *, num_context: int
) -> Model:
    """The model of rows [D + C], x flattened and c behind it: of log p(x | c).

    What trains, bounds or evaluates a model of x does so of x given c where it is
    handed this model and such rows. Draws of x ask for a context: they are at(c)'s.

    Args:
        at: the conditional model, whose p(z) does not read c. Of one that does, p(z)
            drawn or weighed without a row is NaN; what `draw` says of it is right.
        x_shape: of one x, D entries.
        num_context: C, entries of c.

    Raises:
        ValueError: when x is drawn, or its mean asked for.
    """
    generative, recognition, _, kl, _ = at(jnp.full(num_context, jnp.nan))

    def log_likelihood_terms(params: Params, row: Array, z: Array) -> Array:
        x, c = parted(row, x_shape)
        return at(c).generative.log_likelihood_terms(params, x, z)

    def encode(params: Params, row: Array) -> PyTree:
        x, c = parted(row, x_shape)
        return at(c).recognition.encode(params, x)

    def draw(key: PRNGKey, params: Params, row: Array, h: PyTree) -> Draw:
        x, c = parted(row, x_shape)
        return at(c).draw(key, params, x, h)

    def refuse(*arguments: Any) -> NoReturn:
        del arguments
        raise ValueError("x is drawn given a context c: take the model at it, at(c)")

    of_x = generative.quantity
    joint = generative._replace(
        quantity=of_x and (lambda rows: of_x(parted(rows, x_shape)[0])),
        log_likelihood_terms=log_likelihood_terms,
        sample_observation=refuse,
        mean_observation=refuse,
    )
    return Model(joint, recognition._replace(encode=encode), draw, kl)


def parted(row: Array, x_shape: tuple[int, ...]) -> tuple[Array, Array]:
    """x [..., *X] and c [..., C] of rows [..., D + C]."""
    size = math.prod(x_shape)
    return row[..., :size].reshape(*row.shape[:-1], *x_shape), row[..., size:]


def as_planes(network: Network, x_shape: tuple[int, ...]) -> Network:
    """The network of (x, c) of one of images, behind whose channels c lies.

    Args:
        network: of [H, W, K + C], each of the last C planes one entry of c everywhere.
        x_shape: of one image, [H, W] or [H, W, K].
    """

    def apply(params: PyTree, x_and_c: tuple[Array, Array]) -> Array:
        x, c = x_and_c
        image = x.reshape(*x_shape[:2], -1)
        planes = jnp.broadcast_to(c, (*x_shape[:2], c.size))
        return network.apply(params, jnp.concatenate([image, planes], axis=-1))

    return Network(network.init, apply)


def as_entries(network: Network) -> Network:
    """The network of (z, c) of one of vectors [z, c]; perceptrons do without it."""

    def apply(params: PyTree, z_and_c: tuple[Array, Array]) -> Array:
        return network.apply(params, jnp.concatenate(z_and_c))

    return Network(network.init, apply)


def _beside(network: Network, c: Array) -> Network:
    return Network(network.init, lambda params, x: network.apply(params, (x, c)))


def _at(prior: Conditional, network: Network, c: Array) -> Conditional:
    """The prior at the h of c, whose parameters are a dictionary of both."""
    density = Network(prior.init, lambda params, x: x)  # of which init alone is read
    init = networks.init_each({"network": network, "density": density})

    def h_of(params: PyTree) -> Array:
        return network.apply(params["network"], c)

    def sample(key: PRNGKey, params: PyTree, h: Array) -> Array:
        del h
        return prior.sample(key, params["density"], h_of(params))

    def at_c(function: Callable[..., Any]) -> Callable[..., Any]:
        """Of params, h and more: h is that of c."""
        return lambda params, h, *rest: function(params["density"], h_of(params), *rest)

    return conditional(
        prior.family.lifted(at_c),
        prior.shape,
        width=0,
        init=init,
        sample=sample,
        log_prob=at_c(prior.log_prob),
        transport=prior.transport and prior.transport.lifted(at_c),
        symbols=prior.symbols and prior.symbols.lifted(at_c),
    )
