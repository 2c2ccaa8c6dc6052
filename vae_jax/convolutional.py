"""Convolutional encoders and decoders of one image, as `Network` records.

Resolution falls by moving 2x2 pixels into channels and rises by moving them back
(`space_to_depth`, `depth_to_space`), so no convolution has a stride or a dilation: a
transposed convolution costs a CPU many times what it computes.
"""

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
from jax.core import ShapedArray
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir
from jaxtyping import Array, Float

from vae_jax import networks, numerics
from vae_jax.types import Network, PRNGKey, PyTree

SMALLEST_SIDE = 5  # of the maps that a network ends or starts at, where it has a choice
Sides: TypeAlias = tuple[int, int]
Axes: TypeAlias = Sequence[int | None]


def convolve(
    kernel: Float[Array, "R S I O"], x: Float[Array, "H W I"]
) -> Float[Array, "H W O"]:
    """The correlation of an image with kernels of odd sides, padded with zeros.

    Under `vmap` over images it is one convolution of the batch. It and its derivatives
    are of one layout, [N, H, W, I] by [R, S, I, O]: XLA brings other layouts to it in
    the outermost computation alone, and inside a loop runs them on a CPU without its
    fast kernel. Grouped convolutions, which XLA makes of a `vmap` over kernels, have no
    such kernel at all: on a CPU the members of that batch are convolved one by one.
    """
    precision: Any = jax.config.jax_default_matmul_precision  # pyright: ignore[reportAttributeAccessIssue]
    rows, columns = kernel.shape[:2]
    return _correlate(kernel, x[None], (rows, columns), precision)[0]


def _correlate(kernel: Array, x: Array, sides: Sides, precision: Any) -> Array:
    """[R, S, I, O] and [N, H, W, I] -> [N, H, W, O]."""
    kernel, x = numerics.vary_alike(kernel, x)
    return _CORRELATE.bind(kernel, x, sides=sides, precision=precision)


def _to_kernel(x: Array, g: Array, sides: Sides, precision: Any) -> Array:
    """[N, H, W, I] and y's cotangent [N, H, W, O] -> the kernel's."""
    return _TO_KERNEL.bind(x, g, sides=sides, precision=precision)


def _turned(kernel: Array) -> Array:
    """The kernel that takes y's cotangent to x's."""
    return jnp.flip(kernel, (0, 1)).swapaxes(2, 3)


def _of_images(kernel: Array, x: Array, *, sides: Sides, precision: Any) -> Array:
    return jax.lax.conv_general_dilated(
        x,
        kernel,
        (1, 1),
        [(side // 2, side // 2) for side in sides],
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        precision=precision,
    )


def _of_channels(x: Array, g: Array, **params: Any) -> Array:
    """As of images, with channels for images and images for channels."""
    kernel, channels = g.transpose(1, 2, 0, 3), x.transpose(3, 1, 2, 0)
    return _of_images(kernel, channels, **params).transpose(1, 2, 0, 3)


def _primitive(
    name: str, function: Callable[..., Array], *, of_batches: bool
) -> Primitive:
    """A function of two arrays with every rule but its transposes.

    Under `vmap` over the second array alone it is applied to batches as to one, if it
    is `of_batches` [N, ...]; else on a CPU to one member after the other.
    """
    primitive = Primitive(name)

    def abstract(*arrays: Any, **params: Any) -> ShapedArray:
        y = jax.eval_shape(partial(function, **params), *arrays)
        return arrays[0].update(shape=y.shape, dtype=y.dtype, weak_type=False)

    def batched(arrays: Sequence[Array], axes: Axes, **params: Any) -> tuple:
        apply = partial(primitive.bind, **params)
        arrays = [
            array if axis is None else jnp.moveaxis(array, axis, 0)
            for array, axis in zip(arrays, axes, strict=True)
        ]
        if of_batches and axes[0] is None:
            first, second = arrays
            y = apply(first, second.reshape(-1, *second.shape[2:]))
            return y.reshape(*second.shape[:2], *y.shape[1:]), 0
        in_axes = [None if axis is None else 0 for axis in axes]
        if jax.default_backend() != "cpu":
            return jax.vmap(partial(function, **params), in_axes)(*arrays), 0
        if axes[0] is None:
            return jax.lax.map(partial(apply, arrays[0]), arrays[1]), 0
        if axes[1] is None:
            return jax.lax.map(lambda first: apply(first, arrays[1]), arrays[0]), 0
        return jax.lax.map(lambda both: apply(*both), arrays), 0

    primitive.def_impl(jax.jit(function, static_argnames=("sides", "precision")))
    primitive.def_abstract_eval(abstract)
    mlir.register_lowering(primitive, mlir.lower_fun(function, multiple_results=False))
    batching.primitive_batchers[primitive] = batched
    return primitive


_CORRELATE = _primitive("correlate", _of_images, of_batches=True)
_TO_KERNEL = _primitive("correlate_to_kernel", _of_channels, of_batches=False)
# Linear in each array, and the transposes are the same two again.
ad.defbilinear(
    _CORRELATE,
    lambda g, kernel, x, **params: _to_kernel(x, g, **params),
    lambda g, kernel, x, **params: _correlate(_turned(kernel), g, **params),
)
ad.defbilinear(
    _TO_KERNEL,
    lambda kernel, x, g, **params: _correlate(_turned(kernel), g, **params),
    lambda kernel, x, g, **params: _correlate(kernel, x, **params),
)


def space_to_depth(x: Float[Array, "H W C"]) -> Array:
    """[H / 2, W / 2, 4 C]: every 2x2 pixels as the channels of one."""
    height, width, channels = x.shape
    x = x.reshape(height // 2, 2, width // 2, 2, channels).transpose(0, 2, 1, 3, 4)
    return x.reshape(height // 2, width // 2, 4 * channels)


def depth_to_space(x: Float[Array, "H W C"]) -> Array:
    """[2 H, 2 W, C / 4]: the inverse of `space_to_depth` (pixel shuffle)."""
    height, width, channels = x.shape
    x = x.reshape(height, width, 2, 2, channels // 4).transpose(0, 2, 1, 3, 4)
    return x.reshape(2 * height, 2 * width, channels // 4)


def encoder(
    x_shape: tuple[int, ...],
    num_outputs: int,
    *,
    width: int,
    num_blocks: int,
    residual: bool = True,
    activation: Callable[[Array], Array] = jax.nn.gelu,
    product: networks.Product | None = None,
    remat: bool = False,
    map_planes: int = 0,
) -> Network:
    """From an image, [H, W] or [H, W, C], to [num_outputs].

    Halves the resolution, with `width` channels and then twice as many at each further
    halving, as long as the smaller side stays at `SMALLEST_SIDE` or more, but once at
    least; at each resolution a 3x3 convolution and num_blocks blocks follow. Sides
    that do not halve evenly are padded with zeros. The last maps are flattened into an
    affine layer.

    A block is Child 2021's (arXiv:2011.10650): a pre-activation bottleneck of 1x1, 3x3,
    3x3 and 1x1 convolutions whose last weights start smaller by the root of the number
    of blocks; without `residual` it is one 3x3 convolution and its activation. There
    is no batch normalization: each example is on its own. `product` is of the affine
    maps and 1x1 convolutions, as in `networks.mlp`; those of 3x3 stay as they are.
    `remat` is as in `in_turn`.

    With `map_planes` the last layer is a 1x1 convolution instead: the output is as many
    equal parts, one behind the other, each laid out as the last maps' pixels are.

    Raises:
        ValueError: for a shape that is no image, a size below one, or outputs that are
            not planes of the last maps.
    """
    sizes = _resolutions(x_shape, width)
    numerics.check_positive(num_outputs=num_outputs, num_blocks=num_blocks)
    num_channels = x_shape[2] if len(x_shape) == 3 else 1
    layers, channels, at = {}, num_channels, len(sizes) * num_blocks
    for i, (_, _, size) in enumerate(sizes):
        layers[f"down_{i}"] = convolution(4 * channels, size)
        for j in range(num_blocks):
            layers[f"block_{i}_{j}"] = block(
                size,
                residual=residual,
                activation=activation,
                variance=1 / at,
                product=product,
            )
        channels = size
    height, breadth, _ = sizes[-1]
    if map_planes:
        per_pixel = numbers_per_pixel(num_outputs, (height, breadth), map_planes)
        layers["output"] = dense(channels, per_pixel, product=product)
    else:
        size = height * breadth * channels
        layers["output"] = dense(size, num_outputs, product=product)

    def apply(params: PyTree, x: Array) -> Array:
        x = x.reshape(*x_shape[:2], num_channels)
        for i, (height, breadth, _) in enumerate(sizes):
            x = space_to_depth(padded(x, 2 * height, 2 * breadth))
            x = layers[f"down_{i}"].apply(params[f"down_{i}"], x)
            of_blocks = [params[f"block_{i}_{j}"] for j in range(num_blocks)]
            x = in_turn(layers[f"block_{i}_0"], of_blocks, x, remat=remat)
        x = activation(x)
        if not map_planes:
            return layers["output"].apply(params["output"], x.reshape(-1))
        return in_planes(layers["output"].apply(params["output"], x), map_planes)

    return Network(networks.init_each(layers), apply)


def decoder(
    num_inputs: int,
    x_shape: tuple[int, ...],
    num_outputs: int,
    *,
    planes: int = 1,
    width: int,
    num_blocks: int,
    residual: bool = True,
    activation: Callable[[Array], Array] = jax.nn.gelu,
    product: networks.Product | None = None,
    remat: bool = False,
    of_maps: bool = False,
) -> Network:
    """From [num_inputs] to the h of a likelihood of images, `encoder` in reverse.

    Args:
        num_inputs: latents.
        x_shape: of an image, [H, W] or [H, W, C].
        num_outputs: the likelihood's width, a multiple of H W.
        planes: the likelihood's, so that each number is of its own pixel.
        width: channels at half the resolution.
        num_blocks: at each resolution.
        residual: as in `encoder`.
        activation: as in `encoder`.
        product: as in `encoder`.
        remat: as in `in_turn`.
        of_maps: whether the inputs are laid out as the pixels of the first maps, which
            a 1x1 convolution then makes of them.

    Raises:
        ValueError: for a shape that is no image, a size below one, or outputs, or
            inputs of maps, that are not planes of it.
    """
    sizes = _resolutions(x_shape, width)
    numerics.check_positive(num_inputs=num_inputs, num_blocks=num_blocks)
    per_pixel = numbers_per_pixel(num_outputs, x_shape[:2], planes)
    height, breadth, size = sizes[-1]
    inputs, outputs = num_inputs, height * breadth * size
    if of_maps:
        inputs, outputs = numbers_per_pixel(num_inputs, (height, breadth), 1), size
    layers = {"input": dense(inputs, outputs, product=product)}
    targets = [of[2] for of in sizes[-2::-1]] + [per_pixel]
    at = len(sizes) * num_blocks
    for i, target in enumerate(targets):
        for j in range(num_blocks):
            layers[f"block_{i}_{j}"] = block(
                size,
                residual=residual,
                activation=activation,
                variance=1 / at,
                product=product,
            )
        layers[f"up_{i}"] = convolution(size, 4 * target)
        size = target

    def apply(params: PyTree, z: Array) -> Array:
        z = z.reshape(height, breadth, inputs) if of_maps else z
        x = layers["input"].apply(params["input"], z)
        x = x.reshape(height, breadth, sizes[-1][2])
        cropped = [of[:2] for of in sizes[-2::-1]] + [x_shape[:2]]
        for i, (rows, columns) in enumerate(cropped):
            of_blocks = [params[f"block_{i}_{j}"] for j in range(num_blocks)]
            x = in_turn(layers[f"block_{i}_0"], of_blocks, x, remat=remat)
            x = layers[f"up_{i}"].apply(params[f"up_{i}"], activation(x))
            x = depth_to_space(x)[:rows, :columns]
        return in_planes(x, planes)

    return Network(networks.init_each(layers), apply)


def shift_decoder(
    params: PyTree, shift: Array, *, x_shape: tuple[int, ...], planes: int = 1
) -> PyTree:
    """As `networks.shift_output` of a `decoder`, whose bias all pixels share.

    Each number of a pixel's is shifted by the mean over the pixels.

    Args:
        params: of the decoder.
        shift: [num_outputs], laid out as the decoder's output is.
        x_shape: of an image, as in `decoder`.
        planes: the likelihood's.
    """
    per_pixel = mean_per_pixel(shift, x_shape, planes)
    ups = [name for name in params if name.startswith("up_")]
    last = max(ups, key=lambda name: int(name.removeprefix("up_")))
    layer = params[last]  # at half the resolution: four pixels side by side
    bias = layer["bias"] + jnp.tile(per_pixel, 4).astype(layer["bias"].dtype)
    return {**params, last: {**layer, "bias": bias}}


def mean_per_pixel(numbers: Array, x_shape: tuple[int, ...], planes: int) -> Array:
    """Numbers laid out as a decoder's output -> their means, as one pixel has them."""
    return numbers.reshape(planes, *x_shape[:2], -1).mean((1, 2)).reshape(-1)


def in_planes(x: Float[Array, "H W C"], planes: int) -> Array:
    """Maps as equal parts of their channels, each laid out as the pixels are."""
    x = x.reshape(*x.shape[:2], planes, -1)
    return x.transpose(2, 0, 1, 3).reshape(-1)


def numbers_per_pixel(size: int, sides: Sequence[int], planes: int) -> int:
    """How many of `size` numbers each pixel has, in all planes.

    Raises:
        ValueError: if they are not that many planes of the pixels.
    """
    per_pixel, rest = divmod(size, math.prod(sides))
    if rest or per_pixel % planes:
        raise ValueError(
            f"{size} entries are not {planes} planes of {sides[0]}x{sides[1]} pixels"
        )
    return per_pixel


def _resolutions(x_shape: tuple[int, ...], width: int) -> list[tuple[int, int, int]]:
    """(rows, columns, channels) of each resolution below that of the image."""
    if len(x_shape) not in (2, 3) or min(x_shape) < 1:
        raise ValueError(f"an image is [H, W] or [H, W, C], got a shape of {x_shape}")
    numerics.check_positive(width=width)
    height, breadth = -(-x_shape[0] // 2), -(-x_shape[1] // 2)
    sizes = [(height, breadth, width)]
    while min(height, breadth) >= 2 * SMALLEST_SIDE - 1:
        height, breadth, width = -(-height // 2), -(-breadth // 2), 2 * width
        sizes.append((height, breadth, width))
    return sizes


def padded(x: Float[Array, "H W C"], height: int, breadth: int) -> Array:
    """[height, breadth, C]: zeros below and to the right of x."""
    missing = (0, height - x.shape[0]), (0, breadth - x.shape[1]), (0, 0)
    return jnp.pad(x, missing) if any(end for _, end in missing) else x


def in_turn(
    block: Network, params: Sequence[PyTree], x: Array, *, remat: bool
) -> Array:
    """x through equal blocks, one after the other.

    Args:
        block: from some shape to the same.
        params: of each.
        x: what the first reads.
        remat: whether to run them as one loop whose backward pass computes what is
            inside a block anew, from the block's input, instead of keeping it: memory
            for a second forward pass, and programs that do not grow with the number of
            blocks. (Out of a loop, XLA for CPUs merges what is computed twice.)
    """
    if not remat:
        for of_block in params:
            x = block.apply(of_block, x)
        return x
    anew = jax.checkpoint(block.apply, prevent_cse=False)  # a scan needs no barrier
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *params)
    return jax.lax.scan(lambda x, params: (anew(params, x), None), x, stacked)[0]


def _affine(
    shape: tuple[int, ...], scale: float, product: Callable[[Array, Array], Array]
) -> Network:
    """A product with weights of mean square scale^2 / inputs, and a bias from zero."""
    std = scale / math.sqrt(math.prod(shape[:-1]))

    def init(key: PRNGKey) -> PyTree:
        dtype: Any = jnp.result_type(float)
        return {
            "kernel": std * jax.random.normal(key, shape, dtype),
            "bias": jnp.zeros(shape[-1:], dtype),
        }

    def apply(params: PyTree, x: Array) -> Array:
        y = product(params["kernel"], x)
        return y + jnp.broadcast_to(params["bias"], y.shape)

    return Network(init, apply)


def dense(
    num_inputs: int,
    num_outputs: int,
    *,
    scale: float = 1.0,
    product: networks.Product | None = None,
) -> Network:
    """Affine in the last axis: on maps, a 1x1 convolution."""
    of = product or jnp.matmul
    return _affine((num_inputs, num_outputs), scale, lambda kernel, x: of(x, kernel))


def convolution(num_inputs: int, num_outputs: int, *, scale: float = 1.0) -> Network:
    """From [H, W, num_inputs] to [H, W, num_outputs], 3x3 pixels to each."""
    return _affine((3, 3, num_inputs, num_outputs), scale, convolve)


def block(
    size: int,
    *,
    residual: bool = True,
    activation: Callable[[Array], Array] = jax.nn.gelu,
    variance: float = 1.0,
    product: networks.Product | None = None,
) -> Network:
    """From [H, W, size] to its own shape, as the blocks of `encoder`.

    Args:
        size: channels.
        residual: whether it is a bottleneck added to its input, or one convolution.
        activation: before each convolution.
        variance: of the last weights, as a multiple of its usual value (residual).
        product: of the affine maps, as `networks.mlp` takes it.
    """
    if not residual:
        plain = convolution(size, size)
        return Network(plain.init, lambda params, x: plain.apply(params, activation(x)))
    inner = max(1, size // 2 if size <= 64 else size // 4)
    layers = {
        "in": dense(size, inner, product=product),
        "first": convolution(inner, inner),
        "second": convolution(inner, inner),
        "out": dense(inner, size, scale=math.sqrt(variance), product=product),
    }

    def apply(params: PyTree, x: Array) -> Array:
        y = x
        for name, layer in layers.items():
            y = layer.apply(params[name], activation(y))
        return x + y

    return Network(networks.init_each(layers), apply)
