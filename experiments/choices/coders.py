"""The networks that flags can name, as the encoder and the decoder of a model."""

import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array

from experiments.choices.rows import Choice
from vae_jax import conditional, convolutional, networks
from vae_jax.types import Likelihood, Network, PyTree


class Coders(NamedTuple):
    """The networks of a model of x.

    Attributes:
        encoder: shape of x, numbers of outputs, of latents and of entries of a context
            -> (x, c) to outputs; x itself to them without a context.
        decoder: number of latents, shape of x, p(x | h), entries of a context -> (z, c)
            to h; z itself without.
        shift_decoder: its parameters, a shift of h, shape of x, p(x | h) -> those with
            the shift in the output's bias. An encoder's output is always affine.
    """

    encoder: Callable[[tuple[int, ...], int, int, int], Network]
    decoder: Callable[[int, tuple[int, ...], Likelihood, int], Network]
    shift_decoder: Callable[[PyTree, Array, tuple[int, ...], Likelihood], PyTree]


def _perceptrons(
    *,
    hidden: tuple[int, ...],
    encoder_hidden: tuple[int, ...],
    precision: str,
    **names: str,
) -> Coders:
    network = functools.partial(
        networks.mlp, **style(**names), product=PRODUCTS[precision]
    )
    return _of_vectors(
        lambda size, outputs: network(size, encoder_hidden or hidden, outputs),
        lambda size, outputs: network(size, hidden[::-1], outputs),
    )


def _gated(
    *,
    hidden: tuple[int, ...],
    encoder_hidden: tuple[int, ...],
    init: str,
    precision: str,
) -> Coders:
    network = functools.partial(
        networks.gated_mlp,
        initializer=INITIALIZERS[init],
        product=PRODUCTS[precision],
    )
    return _of_vectors(
        lambda size, outputs: network(size, encoder_hidden or hidden, outputs),
        lambda size, outputs: network(size, hidden[::-1], outputs),
    )


def _residual(*, width: int, num_blocks: int, precision: str, **names: str) -> Coders:
    network = functools.partial(
        networks.residual_mlp,
        num_blocks=num_blocks,
        product=PRODUCTS[precision],
        **style(**names),
    )
    return _of_vectors(*2 * (lambda size, outputs: network(size, width, outputs),))


def _of_vectors(
    up: Callable[[int, int], Network], down: Callable[[int, int], Network]
) -> Coders:
    """Networks of numbers of inputs and outputs, for x as one vector."""

    def encoder(
        x_shape: tuple[int, ...], num_outputs: int, size: int, num_context: int
    ) -> Network:
        del size
        return up(math.prod(x_shape) + num_context, num_outputs)

    def decoder(
        size: int, x_shape: tuple[int, ...], observed: Likelihood, num_context: int
    ) -> Network:
        del x_shape
        return down(size + num_context, observed.width)

    def shift_decoder(
        params: PyTree, shift: Array, x_shape: tuple[int, ...], observed: Likelihood
    ) -> PyTree:
        del x_shape, observed
        return networks.shift_output(params, shift)

    return Coders(encoder, decoder, shift_decoder)


def style(*, activation: str, init: str) -> dict[str, Any]:
    """Keyword arguments of a perceptron from the names that flags have for them."""
    return {
        "activation": ACTIVATIONS[activation],
        "initializer": INITIALIZERS[init],
    }


def _convolutions(residual: bool) -> Callable[..., Coders]:
    named = f"--network={'resnet' if residual else 'conv'}"

    def build(
        *,
        activation: str,
        precision: str,
        latent_maps: bool,
        **others: Any,
    ) -> Coders:
        style: dict[str, Any] = {
            "residual": residual,
            "activation": ACTIVATIONS[activation],
            "product": PRODUCTS[precision],
            **others,
        }

        def encoder(
            x_shape: tuple[int, ...], num_outputs: int, size: int, num_context: int
        ) -> Network:
            if len(x_shape) == 3 and x_shape[0] in (1, 3) and x_shape[2] > 4:
                raise ValueError(
                    f"{named} reads images [H, W] or [H, W, C], and x is "
                    f"{list(x_shape)}: move its channels last"
                )
            maps, shape = num_outputs // size if latent_maps else 0, x_shape
            if num_context:
                shape = (*x_shape[:2], math.prod(x_shape[2:]) + num_context)
            try:
                network = convolutional.encoder(
                    shape, num_outputs, map_planes=maps, **style
                )
            except ValueError as error:
                of_maps = f"--latent_maps with --num_latents={size}"
                chosen = of_maps if latent_maps else named
                raise ValueError(f"{chosen}: {error}") from error
            return conditional.as_planes(network, x_shape) if num_context else network

        def decoder(
            size: int, x_shape: tuple[int, ...], observed: Likelihood, num_context: int
        ) -> Network:
            network = convolutional.decoder(
                size + num_context,
                x_shape,
                observed.width,
                planes=observed.planes,
                of_maps=latent_maps,
                **style,
            )
            return conditional.as_entries(network) if num_context else network

        def shift_decoder(
            params: PyTree, shift: Array, x_shape: tuple[int, ...], observed: Likelihood
        ) -> PyTree:
            return convolutional.shift_decoder(
                params, shift, x_shape=x_shape, planes=observed.planes
            )

        return Coders(encoder, decoder, shift_decoder)

    return build


_OF_MAPS = {
    "width": "width",
    "num_blocks": "num_blocks",
    "activation": "activation",
    "precision": "precision",
}
_OF_IMAGES = {
    **_OF_MAPS,
    "remat": "remat",
    "latent_maps": "latent_maps",
}
_OF_LAYERS = {
    "hidden": "hidden",
    "encoder_hidden": "encoder_hidden",
    "init": "init",
    "precision": "precision",
}
NETWORKS = {
    "mlp": Choice(_perceptrons, {**_OF_LAYERS, "activation": "activation"}),
    "gated_mlp": Choice(_gated, _OF_LAYERS),
    "residual_mlp": Choice(_residual, {**_OF_MAPS, "init": "init"}, ("hidden",)),
    # Those of flows stay perceptrons of float32.
    "conv": Choice(_convolutions(residual=False), _OF_IMAGES, ("hidden",)),
    "resnet": Choice(_convolutions(residual=True), _OF_IMAGES, ("hidden",)),
}
ACTIVATIONS = {
    "tanh": jnp.tanh,
    "relu": jax.nn.relu,
    "softplus": jax.nn.softplus,
    "gelu": jax.nn.gelu,
    "elu": jax.nn.elu,
}
PRODUCTS = {"float32": None, "bfloat16": networks.bfloat16_product}
INITIALIZERS = {
    "glorot": networks.glorot(),
    "normal_0.01": networks.normal(std=0.01),
    "normal_0.1": networks.normal(std=0.1),
}
