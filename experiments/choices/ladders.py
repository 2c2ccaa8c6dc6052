"""Ladders that flags can name: several layers of latents with one top-down pass."""

import re
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

from jaxtyping import Array

from experiments.choices.coders import ACTIVATIONS, PRODUCTS, style
from vae_jax import ladder, ladder_of_maps, layer_forms, networks
from vae_jax.types import Conditional, Likelihood, Model, PyTree

Shapes = tuple[tuple[int, ...], ...]
NETWORKS = {"vectors": ("mlp",), "maps": ("conv", "resnet")}


class Form(NamedTuple):
    """How q of a layer is read, below the top.

    Attributes:
        of_normals: makes the form of real latents.
        of_bits: of binary ones; None where there is none.
    """

    of_normals: Callable[[], layer_forms.Form]
    of_bits: Callable[[], layer_forms.Form] | None


FORMS = {
    "plain": Form(layer_forms.plain_normal, layer_forms.bernoulli),
    "residual": Form(
        layer_forms.residual_normal, partial(layer_forms.bernoulli, residual=True)
    ),
    "merged": Form(layer_forms.merged_normal, None),
}


def shapes(items: tuple[str, ...]) -> Shapes:
    """The shape of each layer, from x upward, as --ladder has it.

    Raises:
        ValueError: for what is no list of vectors, or of maps below a vector.
    """
    read = tuple(tuple(map(int, item.split("x"))) for item in items if _is_shape(item))
    below = {len(shape) for shape in read[:-1]}
    if len(read) < len(items) or len(below) > 1 or any(len(s) == 3 for s in read[-1:]):
        raise ValueError(
            f"{written(items)} is no ladder: give the sizes of vectors from "
            "x upward, such as 64,32,16, or maps (height x width x channels) below a "
            "vector, such as 14x14x8,7x7x16,32"
        )
    return read


def written(items: tuple[str, ...]) -> str:
    """The flag as it is given."""
    return f"--ladder={','.join(items)}"


def _is_shape(item: str) -> bool:
    size = "[1-9][0-9]{0,6}"
    return re.fullmatch(f"{size}(x{size}x{size})?", item) is not None


def kind(layers: Shapes) -> str:
    """What the layers below the top are: "vectors" or "maps"."""
    return "maps" if len(layers[0]) == 3 else "vectors"


def model(
    config: Any,
    x_shape: tuple[int, ...],
    *,
    posterior: Conditional,
    prior: Conditional,
    likelihood: Likelihood,
) -> Model:
    """The ladder of --ladder, below a top layer of these densities.

    Raises:
        ValueError: for maps that do not follow from x by halving.
    """
    form = FORMS[config.posterior_form]
    is_real = posterior.family.name != "bernoulli"
    build = form.of_normals if is_real else form.of_bits
    assert build is not None  # `refusals.check` has said so
    densities: dict[str, Any] = {
        "form": build(),
        "posterior": posterior,
        "prior": prior,
        "likelihood": likelihood,
        "product": PRODUCTS[config.precision],
    }
    layers: Shapes = config.layers
    if kind(layers) == "vectors":
        return ladder.mlp(
            [shape[0] for shape in layers],
            x_shape,
            hidden=[(units,) * config.num_hidden for units in hidden(config)],
            **densities,
            **style(activation=config.activation, init=config.init),
        )
    try:
        return ladder_of_maps.images(
            layers[:-1],  # pyright: ignore[reportArgumentType]
            x_shape,
            width=config.width,
            num_blocks=config.num_blocks,
            residual=config.network == "resnet",
            activation=ACTIVATIONS[config.activation],
            remat=config.remat,
            **densities,
        )
    except ValueError as error:
        raise ValueError(f"{written(config.ladder)}: {error}") from error


def hidden(config: Any) -> tuple[int, ...]:
    """Units of each layer's networks: --hidden, or its one number for all."""
    if len(config.hidden) == 1:
        return config.hidden * len(config.layers)
    return config.hidden


def shift_decoder(
    config: Any,
    params: PyTree,
    shift: Array,
    x_shape: tuple[int, ...],
    observed: Likelihood,
) -> PyTree:
    """As `coders.Coders`'s, of a ladder's decoder."""
    if kind(config.layers) == "vectors":
        return networks.shift_output(params, shift)
    return ladder_of_maps.shift_decoder(
        params, shift, x_shape=x_shape, planes=observed.planes
    )
