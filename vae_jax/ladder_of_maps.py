"""Ladders of maps: latents at several resolutions of an image, below a vector."""

import itertools
import math
from collections.abc import Callable, Sequence
from functools import partial

import jax
import jax.numpy as jnp
from jaxtyping import Array

from vae_jax import convolutional, ladder, layer_forms, networks, numerics, vae
from vae_jax.types import Conditional, Likelihood, Model, Network, PRNGKey, PyTree


def images(
    maps: Sequence[tuple[int, int, int]],
    x_shape: tuple[int, ...],
    *,
    width: int,
    num_blocks: int,
    form: layer_forms.Form,
    posterior: Conditional,
    prior: Conditional,
    likelihood: Likelihood,
    residual: bool = True,
    activation: Callable[[Array], Array] = jax.nn.gelu,
    product: networks.Product | None = None,
    remat: bool = False,
) -> Model:
    """A ladder of convolutional layers below a vector z_L.

    Features go up and the state goes down at the resolutions of the layers, with
    `width` channels at each: num_blocks blocks (`convolutional.block`) in every `up_l`
    and `down_l`, one in every posterior, as Vahdat & Kautz 2020 (arXiv:2007.03898) and
    Child 2021 (arXiv:2011.10650) arrange them; several layers may have one resolution.
    Between resolutions, pixels move into channels and back.

    What gives the densities starts at zero, as does the decoder's last layer: before
    the first step no p(z_l | z_{>l}) or q(z_l | z_{>l}, x) reads anything, each is the
    form's at zero (of the plain and the residual normals N(0, I)), and the decoder
    gives its bias. (Noise of a thousand latents in a decoder's output costs tens of
    bits a pixel, and steps that do not come back.)

    Args:
        maps: (height, width, channels) of z_1, ..., z_{L-1}, from x upward; each
            resolution is that below it, or half of it rounded up, once or more times.
        x_shape: of an image, [H, W] or [H, W, C].
        width: channels of features and state.
        num_blocks: of each network of a layer.
        form: the densities of the layers.
        posterior: q(z_L | x), of a vector.
        prior: p(z_L).
        likelihood: p(x | z), whose width is a multiple of H W.
        residual: whether the blocks are.
        activation: of the blocks.
        product: of affine maps and 1x1 convolutions, as in `networks.mlp`.
        remat: of the blocks, as in `convolutional.in_turn`.

    Raises:
        ValueError: for no maps, a size below one, a resolution that is not reached, or
            a likelihood that is not of planes of x.
    """
    numerics.check_positive(width=width, num_blocks=num_blocks)
    if not maps:
        raise ValueError("maps must hold one layer or more below the vector, got none")
    per_pixel = convolutional.numbers_per_pixel(
        likelihood.width, x_shape[:2], likelihood.planes
    )
    sides = [tuple(x_shape[:2]), *(shape[:2] for shape in maps)]
    for below, above in itertools.pairwise(sides):
        if math.prod(above) > math.prod(below):
            raise ValueError(f"maps of {above} are above those of {below}, and larger")
    channels = [x_shape[2] if len(x_shape) == 3 else 1, *(width for _ in maps)]
    total = num_blocks * (len(maps) + 1)  # that follow each other on the way down
    block = convolutional.block(
        width,
        residual=residual,
        activation=activation,
        variance=1.0 / total,
        product=product,
    )
    blocks = [block] * num_blocks
    in_turn = partial(_in_turn, remat=remat)
    dense = partial(convolutional.dense, product=product)
    layers = []
    for i, shape in enumerate(maps):
        of_a, of_b = form.prior_width * shape[2], form.posterior_width * shape[2]
        if i + 1 < len(maps):
            above = maps[i + 1][2] + width
            start = _between(sides[i + 2], sides[i + 1], above, width)
        else:
            shaped = (*shape[:2], width)
            wide = networks.linear(prior.shape[0], math.prod(shaped), product=product)
            start = _reshaped(wide, shaped)
        down = [start, *blocks, _with_zeros(of_a, dense(width, of_a + width))]
        up = [_between(sides[i], sides[i + 1], channels[i], width), *blocks]
        seen = dense(of_a + 2 * width, width)
        read = [seen, block, dense(width, of_b, scale=0.0)]
        layers.append(
            ladder.Layer(
                tuple(shape),
                form,
                down=in_turn(down),
                up=in_turn(up),
                posterior=in_turn(read),
            )
        )
    layers[0] = layers[0]._replace(up=_of_image(layers[0].up, x_shape))
    size = math.prod(sides[-1]) * width
    first = maps[0][2] + width
    to_image = [
        dense(first, width),
        *blocks,
        _between(sides[1], sides[0], width, per_pixel, scale=0.0),
    ]
    decoder = _planes(in_turn(to_image), likelihood.planes)
    encoder = networks.linear(size, posterior.width, product=product)
    return ladder.model(
        layers,
        vae.decoder_model(decoder, prior, likelihood),
        vae.encoder_model(encoder, posterior),
    )


def shift_decoder(
    params: PyTree, shift: Array, *, x_shape: tuple[int, ...], planes: int = 1
) -> PyTree:
    """As `convolutional.shift_decoder`, of the decoder of `images`.

    Args:
        params: of the decoder.
        shift: [likelihood.width], laid out as the decoder's output is.
        x_shape: of an image.
        planes: the likelihood's.
    """
    per_pixel = convolutional.mean_per_pixel(shift, x_shape, planes)

    def of_last(params: PyTree) -> PyTree:
        if "bias" in params:  # of one pixel, or of four side by side
            bias = params["bias"]
            added = jnp.tile(per_pixel, len(bias) // len(per_pixel))
            return {**params, "bias": bias + added.astype(bias.dtype)}
        last = f"part_{len(params) - 1}"
        return {**params, last: of_last(params[last])}

    return of_last(params)


def _in_turn(parts: Sequence[Network], *, remat: bool = False) -> Network:
    """One after the other; `remat` is of those that follow their equals."""
    named = {f"part_{i}": part for i, part in enumerate(parts)}

    def apply(params: PyTree, x: Array) -> Array:
        for part, equals in itertools.groupby(named, named.__getitem__):
            of_each = [params[name] for name in equals]
            anew = remat and len(of_each) > 1
            x = convolutional.in_turn(part, of_each, x, remat=anew)
        return x

    return Network(networks.init_each(named), apply)


def _with_zeros(num_zeros: int, layer: Network) -> Network:
    """An affine layer whose first outputs start at zero."""

    def init(key: PRNGKey) -> PyTree:
        params = layer.init(key)
        return params | {"kernel": params["kernel"].at[..., :num_zeros].set(0.0)}

    return Network(init, layer.apply)


def _of_image(network: Network, x_shape: tuple[int, ...]) -> Network:
    def apply(params: PyTree, x: Array) -> Array:
        return network.apply(params, x.reshape(*x_shape[:2], -1))

    return Network(network.init, apply)


def _planes(network: Network, planes: int) -> Network:
    """The maps of a network, plane behind plane as a likelihood reads them."""

    def apply(params: PyTree, state: Array) -> Array:
        return convolutional.in_planes(network.apply(params, state), planes)

    return Network(network.init, apply)


def _reshaped(layer: Network, shape: tuple[int, ...]) -> Network:
    return Network(layer.init, lambda params, z: layer.apply(params, z).reshape(shape))


def _between(
    start: tuple[int, ...],
    end: tuple[int, ...],
    num_inputs: int,
    num_outputs: int,
    *,
    scale: float = 1.0,
) -> Network:
    """From maps of one resolution to those of another, halved or doubled in turn.

    `scale` is of the last weights.

    Raises:
        ValueError: where halving the greater and rounding up does not reach the other.
    """
    falls = math.prod(end) <= math.prod(start)
    great, small = (start, end) if falls else (end, start)
    sides = [great]
    while sides[-1] != small:
        half = tuple(-(-side // 2) for side in sides[-1])
        if math.prod(half) < math.prod(small) or half == sides[-1]:
            raise ValueError(f"maps of {small} are not those of {great}, halved")
        sides.append(half)
    if len(sides) == 1:
        return convolutional.convolution(num_inputs, num_outputs, scale=scale)
    steps, size = [], num_inputs
    for target in sides[1:] if falls else sides[-2::-1]:
        gain = scale if target == end else 1.0
        if falls:
            layer = convolutional.convolution(4 * size, num_outputs, scale=gain)
            steps.append(_halved(layer))
        else:
            layer = convolutional.convolution(size, 4 * num_outputs, scale=gain)
            steps.append(_doubled(layer, target))
        size = num_outputs
    return _in_turn(steps)


def _halved(layer: Network) -> Network:
    def apply(params: PyTree, x: Array) -> Array:
        even = convolutional.padded(x, *(side + side % 2 for side in x.shape[:2]))
        return layer.apply(params, convolutional.space_to_depth(even))

    return Network(layer.init, apply)


def _doubled(layer: Network, sides: tuple[int, ...]) -> Network:
    def apply(params: PyTree, x: Array) -> Array:
        x = convolutional.depth_to_space(layer.apply(params, x))
        return x[: sides[0], : sides[1]]

    return Network(layer.init, apply)
