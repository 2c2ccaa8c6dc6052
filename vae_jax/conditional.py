"""Models of x given something else: p(x, z | c) and q(z | x, c).

A conditional model is a function of its context, c -> `Model`, so that within a traced
function every bound, estimator and evaluator serves it as it is: `of_pairs` lifts them
to pairs (x, c). All models of one have the same parameters.
"""

from collections.abc import Callable
from typing import Any, TypeAlias

import jax.numpy as jnp
from jaxtyping import Array, Float

from vae_jax import networks, vae
from vae_jax.types import (
    Conditional,
    Likelihood,
    Model,
    Network,
    Params,
    PRNGKey,
    PyTree,
    Symbols,
    Transport,
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
    likelihood: Likelihood,
    prior_network: Network | None = None,
) -> ConditionalModel:
    """c -> p(z | c) p(x | z, c) and q(z | x, c), of networks that read c as well.

    Where the weights of c are zero it is the model without.

    Args:
        encoder: [x, c], flattened -> the h of the posterior.
        decoder: [z, c] -> the h of the likelihood.
        posterior: q(z | h).
        prior: p(z | h).
        likelihood: p(x | h).
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
        return vae.model(
            vae.decoder_model(_beside(decoder, c), of_c, likelihood),
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


def _beside(network: Network, c: Array) -> Network:
    def apply(params: PyTree, x: Array) -> Array:
        return network.apply(params, jnp.concatenate([x.reshape(-1), c]))

    return Network(network.init, apply)


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

    family, mapped, symbols = prior.family, prior.transport, prior.symbols
    return conditional(
        family._replace(parameters=family.parameters and at_c(family.parameters)),
        prior.shape,
        width=0,
        init=init,
        sample=sample,
        log_prob=at_c(prior.log_prob),
        moments=prior.moments and at_c(prior.moments),
        transport=mapped and Transport(at_c(mapped.forward), at_c(mapped.inverse)),
        symbols=symbols and Symbols(*map(at_c, symbols)),
    )
