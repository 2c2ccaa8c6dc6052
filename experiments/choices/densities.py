"""The densities and networks that flags can name: q(z | x), p(z), p(x | z)."""

import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from experiments.choices.rows import NO_FLAGS, Choice, Traits
from vae_jax import (
    convolutional,
    discretized,
    flows,
    likelihoods,
    networks,
    posteriors,
    priors,
)
from vae_jax.types import Conditional, Likelihood, Model, Network

DISCRETE = {"bernoulli", "categorical", "layers of bits"}  # families of latents


class Posterior(NamedTuple):
    """A family of q(z | x): a `Choice`, and what a fit has to know of it.

    Attributes:
        build: num_latents, hidden, own numbers -> the density.
        flags: as a `Choice`'s.
        reads: as a `Choice`'s.
        traits: of the family, its KL being that to N(0, I).
    """

    build: Callable[..., Conditional]
    flags: Mapping[str, str] = NO_FLAGS
    reads: tuple[str, ...] = ()
    traits: Traits = Traits()


def traits(model: Model) -> Traits:
    """Those of the q of a model that is there, whoever built it."""
    q, p = model.recognition.family.name, model.generative.prior_family.name
    closed = model.kl is not None
    return Traits(
        continuous=DISCRETE.isdisjoint({q, p}),
        closed_kl=closed,
        factorizes=closed and q in ("diag_normal", "bernoulli"),
    )


def _flow(
    layer: Callable[[int, tuple[int, ...], int], flows.Flow],
) -> Callable[..., Conditional]:
    """A diagonal normal through flows that each read num_latents numbers of context."""

    def build(size: int, hidden: tuple[int, ...], *, num_layers: int) -> Conditional:
        layers = [layer(size, hidden[:1], i) for i in range(num_layers)]
        return posteriors.flow(posteriors.diag_normal(size), flows.chain(*layers))

    return build


def _coupling(size: int, hidden: tuple[int, ...], index: int) -> flows.Flow:
    passed = size // 2
    network = networks.mlp(passed + size, hidden, 2 * (size - passed))
    return flows.affine_coupling(network, size, context_width=size, flip=index % 2 == 1)


def _autoregressive(size: int, hidden: tuple[int, ...], index: int) -> flows.Flow:
    del index
    network = networks.made(size, hidden, num_context=size)
    autoregressive = flows.inverse_autoregressive(network, size, context_width=size)
    return flows.chain(autoregressive, flows.reverse(size))


_LAYERS, _OF_FLOWS = {"num_layers": "flow_layers"}, Traits(own_parameters=True)
POSTERIORS = {
    "diag_normal": Posterior(
        lambda size, hidden: posteriors.diag_normal(size),
        traits=Traits(closed_kl=True, factorizes=True),
    ),
    "full_normal": Posterior(
        lambda size, hidden: posteriors.full_normal(size),
        traits=Traits(closed_kl=True),
    ),
    "planar": Posterior(
        _flow(lambda size, hidden, index: flows.planar(size)),
        _LAYERS,
        traits=_OF_FLOWS,
    ),
    "coupling": Posterior(_flow(_coupling), _LAYERS, traits=_OF_FLOWS),
    "iaf": Posterior(_flow(_autoregressive), _LAYERS, traits=_OF_FLOWS),
    "bernoulli": Posterior(
        lambda size, hidden: posteriors.bernoulli(size),
        traits=Traits(continuous=False),
    ),
}


def _flow_prior(num_latents: int, *, num_layers: int, units: int) -> Conditional:
    """Couplings that start at N(0, I)."""
    if num_latents < 2:
        raise ValueError(
            "--prior=flow couples latents: give --num_latents of 2 or more"
        )
    passed = num_latents // 2
    network = networks.from_zero(
        networks.mlp(
            passed, (units, units), 2 * (num_latents - passed), activation=jax.nn.elu
        )
    )
    layers = [
        flows.affine_coupling(network, num_latents, flip=i % 2 == 1)
        for i in range(num_layers)
    ]
    return posteriors.flow(priors.standard_normal(num_latents), flows.chain(*layers))


def _autoregressive_prior(
    num_latents: int, *, num_layers: int, units: int
) -> Conditional:
    """Masked autoregressive flows, whose density is one pass; they start at N(0, I)."""
    network = networks.from_zero(
        networks.made(num_latents, (units, units), activation=jax.nn.elu)
    )
    layer = flows.inverse_autoregressive(network, num_latents)
    layers = [layer, flows.reverse(num_latents)] * num_layers
    flow = flows.inverted(flows.chain(*layers[:-1]))
    return posteriors.flow(priors.standard_normal(num_latents), flow)


_OF_FLOW_PRIORS = {"num_layers": "prior_layers", "units": "prior_units"}
PRIORS = {
    "standard_normal": Choice(priors.standard_normal),
    "flow": Choice(_flow_prior, _OF_FLOW_PRIORS),
    "autoregressive": Choice(_autoregressive_prior, _OF_FLOW_PRIORS),
    "normal_mixture": Choice(
        priors.normal_mixture, {"num_components": "num_components"}
    ),
    # Of the encoder: `vae.with_vamp_prior` and `exemplars.with_exemplar_prior` take the
    # place of what is built here.
    "vamp": Choice(priors.standard_normal, reads=("num_components",)),
    "exemplar": Choice(priors.standard_normal, reads=("num_exemplars",)),
}


def _squashed(
    build: Callable[..., Likelihood],
) -> Callable[..., Likelihood]:
    """The likelihood's builder with a flag in the place of its squashing function."""

    def of_flag(x_shape: tuple[int, ...], *, squash: bool, **stds: float) -> Likelihood:
        return build(x_shape, squash=jax.nn.sigmoid if squash else None, **stds)

    return of_flag


_SQUASH, _GRID = {"squash": "squash_mean"}, {"num_values": "num_values"}
LIKELIHOODS = {
    "bernoulli": Choice(likelihoods.bernoulli),
    "normal": Choice(_squashed(likelihoods.normal), {"std": "std", **_SQUASH}),
    "normal_learned_std": Choice(
        _squashed(likelihoods.normal_learned_std),
        {"initial_std": "std", "min_std": "min_std", **_SQUASH},
    ),
    "normal_per_pixel_std": Choice(
        _squashed(likelihoods.normal_per_pixel_std), {"min_std": "min_std", **_SQUASH}
    ),
    "continuous_bernoulli": Choice(likelihoods.continuous_bernoulli),
    "laplace": Choice(likelihoods.laplace, {"min_scale": "min_std"}),
    "student_t": Choice(
        likelihoods.student_t, {"min_scale": "min_std", "degrees": "degrees"}
    ),
    "categorical": Choice(discretized.categorical, _GRID),
    "discretized_logistic": Choice(discretized.logistic, _GRID),
    "discretized_logistic_mixture": Choice(
        discretized.logistic_mixture, {"num_components": "num_logistics", **_GRID}
    ),
}


class Coders(NamedTuple):
    """The networks of a model of x.

    Attributes:
        encoder: shape of x, number of outputs -> x to them.
        decoder: number of inputs, shape of x, p(x | h) -> z to h.
    """

    encoder: Callable[[tuple[int, ...], int], Network]
    decoder: Callable[[int, tuple[int, ...], Likelihood], Network]


def _perceptrons(
    *, hidden: tuple[int, ...], encoder_hidden: tuple[int, ...], **names: str
) -> Coders:
    network_style = style(**names)

    def encoder(x_shape: tuple[int, ...], num_outputs: int) -> Network:
        sizes = encoder_hidden or hidden
        return networks.mlp(math.prod(x_shape), sizes, num_outputs, **network_style)

    def decoder(size: int, x_shape: tuple[int, ...], observed: Likelihood) -> Network:
        del x_shape
        return networks.mlp(size, hidden[::-1], observed.width, **network_style)

    return Coders(encoder, decoder)


def style(*, activation: str, init: str) -> dict[str, Any]:
    """Keyword arguments of a perceptron from the names that flags have for them."""
    return {
        "activation": ACTIVATIONS[activation],
        "initializer": INITIALIZERS[init],
    }


def _convolutions(residual: bool) -> Callable[..., Coders]:
    def build(*, activation: str, **sizes: int) -> Coders:
        style: dict[str, Any] = {
            "residual": residual,
            "activation": ACTIVATIONS[activation],
            **sizes,
        }

        def encoder(x_shape: tuple[int, ...], num_outputs: int) -> Network:
            return convolutional.encoder(x_shape, num_outputs, **style)

        def decoder(
            size: int, x_shape: tuple[int, ...], observed: Likelihood
        ) -> Network:
            return convolutional.decoder(
                size, x_shape, observed.width, planes=observed.planes, **style
            )

        return Coders(encoder, decoder)

    return build


_OF_MAPS = {"width": "width", "num_blocks": "num_blocks", "activation": "activation"}
NETWORKS = {
    "mlp": Choice(
        _perceptrons,
        {
            "hidden": "hidden",
            "encoder_hidden": "encoder_hidden",
            "activation": "activation",
            "init": "init",
        },
    ),
    # The networks of flows, and between two layers of latents, stay perceptrons.
    "conv": Choice(_convolutions(residual=False), _OF_MAPS, ("hidden",)),
    "resnet": Choice(_convolutions(residual=True), _OF_MAPS, ("hidden",)),
}
ACTIVATIONS = {
    "tanh": jnp.tanh,
    "relu": jax.nn.relu,
    "softplus": jax.nn.softplus,
    "gelu": jax.nn.gelu,
    "elu": jax.nn.elu,
}
INITIALIZERS = {
    "glorot": networks.glorot(),
    "normal_0.01": networks.normal(std=0.01),
    "normal_0.1": networks.normal(std=0.1),
}
