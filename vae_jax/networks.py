"""Flax networks behind the `Network` record; the only module that imports Flax."""

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, TypeAlias

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.custom_derivatives import SymbolicZero
from jaxtyping import Array, Float

from vae_jax import numerics
from vae_jax.types import Network, PRNGKey, PyTree

Product: TypeAlias = Callable[[Array, Array], Array]
"""x [..., I], kernel [I, O] -> x @ kernel [..., O]."""


class Initializer(NamedTuple):
    """How a layer's weights and biases start: each (key, shape, dtype) -> array.

    Attributes:
        kernel: of the weights.
        bias: of the biases.
    """

    kernel: Callable[[PRNGKey, Any, Any], Array]
    bias: Callable[[PRNGKey, Any, Any], Array]


def glorot() -> Initializer:
    """Glorot & Bengio's uniform weights (2010), biases zero."""
    return Initializer(nn.initializers.glorot_uniform(), nn.initializers.zeros_init())


def normal(*, std: float) -> Initializer:
    """Weights and biases from N(0, std^2), as AEVB (arXiv:1312.6114) section 5 has it.

    The paper writes N(0, 0.01), which reads as a variance: std 0.1.

    Raises:
        ValueError: if std is not positive and finite.
    """
    numerics.check_in("(0, inf)", std=std)
    draw = nn.initializers.normal(std)
    return Initializer(draw, draw)


@jax.custom_jvp
def bfloat16_product(
    x: Float[Array, "*B I"], kernel: Float[Array, "I O"]
) -> Float[Array, "*B O"]:
    """x @ kernel of operands rounded to bfloat16, summed and returned in float32.

    In reverse mode too: each product's operands are rounded, the cotangent among them,
    and the gradients are float32.
    """
    return _rounded_product(x, kernel, (x.ndim - 1,), (0,))


def _bfloat16_product_jvp(primals: tuple, tangents: tuple) -> tuple[Array, Array]:
    """Each tangent map is the transpose of the map that reverse mode is to run."""
    (x, kernel), (d_x, d_kernel) = primals, tangents
    y = bfloat16_product(x, kernel)
    d_y, leading = jnp.zeros_like(y), tuple(range(y.ndim - 1))
    if not isinstance(d_x, SymbolicZero):

        def to_x(g: Array) -> Array:
            return _rounded_product(g, kernel, (g.ndim - 1,), (1,))

        d_y += jax.linear_transpose(to_x, y)(d_x)[0]
    if not isinstance(d_kernel, SymbolicZero):

        def to_kernel(g: Array) -> Array:
            return _rounded_product(x, g, leading, leading)

        d_y += jax.linear_transpose(to_kernel, y)(d_kernel)[0]
    return y, d_y


bfloat16_product.defjvp(_bfloat16_product_jvp, symbolic_zeros=True)


def _rounded_product(
    x: Array, y: Array, x_axes: tuple[int, ...], y_axes: tuple[int, ...]
) -> Array:
    x, y = x.astype(jnp.bfloat16), y.astype(jnp.bfloat16)
    summed = (x_axes, y_axes), ((), ())
    return jax.lax.dot_general(x, y, summed, preferred_element_type=jnp.float32)


def mlp(
    num_inputs: int,
    hidden: Sequence[int],
    num_outputs: int,
    *,
    activation: Callable[[Array], Array] = jnp.tanh,
    initializer: Initializer | None = None,
    product: Product | None = None,
) -> Network:
    """Fully connected network from an input of num_inputs entries to [num_outputs].

    The input may have any shape of that size: it is flattened. Or it is a tuple of
    arrays, as if flattened one behind the other; each has a product of its own, so that
    `jax.vmap` over some of them multiplies the others once. Weights take the default
    float type at the time of `init`: float32, or float64 under `jax.enable_x64`, which
    is how the exact tests get a float64 model.

    Args:
        num_inputs: entries of one input.
        hidden: units of each hidden layer; empty for an affine map.
        num_outputs: entries of one output.
        activation: applied after each hidden layer.
        initializer: `glorot()` where none is given.
        product: of inputs and weights; `bfloat16_product` is for mixed precision.

    Raises:
        ValueError: for a size below one.

    Examples:
        >>> network = mlp(64, (32,), 10)
        >>> params = network.init(jax.random.key(0))
        >>> network.apply(params, jnp.zeros((8, 8))).shape
        (10,)
    """
    sizes = (num_inputs, *hidden, num_outputs)
    if min(sizes) < 1:
        raise ValueError(f"layer sizes must be positive, got {sizes}")
    start = initializer or glorot()

    def layer(size: int, name: str) -> _Dense:
        # Linen would number by order of construction: layers have names.
        return _Dense(size, start, product or jnp.matmul, name=name)

    class Mlp(nn.Module):
        @nn.compact
        def __call__(self, parts: tuple[Array, ...]) -> Array:
            for i, size in enumerate(hidden):
                parts = (activation(layer(size, f"hidden_{i}")(parts)),)
            return layer(num_outputs, "output")(parts)

    module = Mlp()

    def init(key: PRNGKey) -> PyTree:
        return module.init(key, (jnp.zeros((num_inputs,)),))["params"]

    def apply(params: PyTree, x: Array | tuple[Array, ...]) -> Array:
        parts = tuple(map(jnp.ravel, x if isinstance(x, tuple) else (x,)))
        return jnp.asarray(module.apply({"params": params}, parts))

    return Network(init, apply)


class _Dense(nn.Module):
    """Parts of one input, side by side -> an affine map of them."""

    size: int
    start: Initializer
    product: Product

    @nn.compact
    def __call__(self, parts: tuple[Array, ...]) -> Array:
        dtype = jnp.result_type(float)
        ends = np.cumsum([part.size for part in parts])
        kernel = self.param("kernel", self.start.kernel, (ends[-1], self.size), dtype)
        y = self.param("bias", self.start.bias, (self.size,), dtype)
        for part, rows in zip(parts, jnp.split(kernel, ends[:-1]), strict=True):
            y = self.product(part, rows) + y
        return y


def linear(
    num_inputs: int,
    num_outputs: int,
    *,
    initializer: Initializer | None = None,
    product: Product | None = None,
) -> Network:
    """Affine map; under a normal likelihood it makes the model probabilistic PCA."""
    return mlp(num_inputs, (), num_outputs, initializer=initializer, product=product)


def gated_mlp(
    num_inputs: int,
    hidden: Sequence[int],
    num_outputs: int,
    *,
    initializer: Initializer | None = None,
    product: Product | None = None,
) -> Network:
    """Fully connected layers that each scale their units: (W x + b) sigmoid(V x + c).

    Tomczak & Welling 2018 (arXiv:1705.07120), after Dauphin et al. 2017
    (arXiv:1612.08083). The output layer is affine.

    Raises:
        ValueError: for a size below one.
    """
    sizes = (num_inputs, *hidden, num_outputs)
    style: Any = {"initializer": initializer, "product": product}
    layers: dict[str, Network] = {}
    for i, (below, above) in enumerate(itertools.pairwise(sizes[:-1])):
        layers[f"hidden_{i}"] = linear(below, 2 * above, **style)
    layers["output"] = linear(sizes[-2], num_outputs, **style)

    def apply(params: PyTree, x: Array) -> Array:
        for name, layer in layers.items():
            x = layer.apply(params[name], x)
            if name != "output":
                value, gate = jnp.split(x, 2)
                x = value * jax.nn.sigmoid(gate)
        return x

    return Network(init_each(layers), apply)


def residual_mlp(
    num_inputs: int,
    width: int,
    num_outputs: int,
    *,
    num_blocks: int,
    activation: Callable[[Array], Array] = jnp.tanh,
    initializer: Initializer | None = None,
    product: Product | None = None,
) -> Network:
    """Pre-activation residual blocks of two layers between two affine maps.

    He et al. 2016 (arXiv:1603.05027): x + V f(W f(x)), with V smaller by the root of
    the number of blocks at the start, so that depth does not change the scale.

    Raises:
        ValueError: for a size below one.
    """
    numerics.check_positive(num_blocks=num_blocks)
    style: Any = {"initializer": initializer, "product": product}
    layers = {"input": linear(num_inputs, width, **style)}
    for i in range(num_blocks):
        layers[f"first_{i}"] = linear(width, width, **style)
        layers[f"second_{i}"] = linear(width, width, **style)
    layers["output"] = linear(width, num_outputs, **style)
    init_plain = init_each(layers)

    def init(key: PRNGKey) -> PyTree:
        params = init_plain(key)
        for i in range(num_blocks):
            params[f"second_{i}"] = jax.tree.map(
                lambda leaf: leaf / math.sqrt(num_blocks), params[f"second_{i}"]
            )
        return params

    def apply(params: PyTree, x: Array) -> Array:
        x = layers["input"].apply(params["input"], x)
        for i in range(num_blocks):
            y = layers[f"first_{i}"].apply(params[f"first_{i}"], activation(x))
            x += layers[f"second_{i}"].apply(params[f"second_{i}"], activation(y))
        return layers["output"].apply(params["output"], activation(x))

    return Network(init, apply)


def from_zero(network: Network) -> Network:
    """The network with an output layer that starts at zero, and so its output.

    A flow of such networks starts as the identity: a prior of them is N(0, I) bit for
    bit before the first step.

    Raises:
        ValueError: at `init`, for a network without a layer named output.
    """

    def init(key: PRNGKey) -> PyTree:
        params = network.init(key)
        if "output" not in params:
            raise ValueError(f"no output layer among {', '.join(params)}")
        return {**params, "output": jax.tree.map(jnp.zeros_like, params["output"])}

    return Network(init, network.apply)


def shift_output(params: PyTree, shift: Array) -> PyTree:
    """A network's parameters with so much more in the bias of its output layer.

    What fresh parameters compute then starts around the shift: a decoder at the data's
    mean (`likelihoods.logit_of_mean`), an encoder at a narrow q (`posteriors`).

    Args:
        params: with a layer named output, as `mlp` has it.
        shift: an entry for each output.

    Raises:
        ValueError: for parameters without a layer named output, or a shift of another
            size than its bias.
    """
    if "output" not in params:
        raise ValueError(f"no output layer among {', '.join(params)}")
    layer = params["output"]
    if shift.shape != layer["bias"].shape:
        raise ValueError(
            f"a shift of {shift.shape} for an output bias of {layer['bias'].shape}"
        )
    bias = layer["bias"] + shift.astype(layer["bias"].dtype)
    return {**params, "output": {**layer, "bias": bias}}


def init_each(layers: Mapping[str, Network]) -> Callable[[PRNGKey], PyTree]:
    """key -> the parameters of every layer by its name, for a network made of them."""

    def init(key: PRNGKey) -> PyTree:
        keys = jax.random.split(key, len(layers))
        each = zip(layers.items(), keys, strict=True)
        return {name: layer.init(key) for (name, layer), key in each}

    return init


def made(
    num_inputs: int,
    hidden: Sequence[int],
    *,
    outputs_per_input: int = 2,
    num_context: int = 0,
    width: int = 1,
    activation: Callable[[Array], Array] = jnp.tanh,
    initializer: Initializer | None = None,
) -> Network:
    """Masked autoregressive network: output d reads the inputs before d alone.

    Germain et al. 2015 (arXiv:1502.03509) section 4. The input is [y, context], with y
    of num_inputs entries. The output is one block of num_inputs for each kind, as
    `jnp.split(out, outputs_per_input)` gives them: entry d of every block is a function
    of y_{<d} and of all the context.

    A unit of degree a may read y_1..y_a. Degrees are spread evenly over each hidden
    layer, in order and not at random, from 0 where there is a context: units of degree
    0 carry it to output 1. A layer of fewer units than there are degrees leaves some
    out, and outputs then read fewer inputs than they may.

    An input may be a vector: y is then [num_inputs * width], input after input.

    Args:
        num_inputs: of y.
        hidden: units of each hidden layer; empty for a masked affine map.
        outputs_per_input: blocks of the output.
        num_context: entries of the context.
        width: entries of an input.
        activation: applied after each hidden layer.
        initializer: `glorot()` where none is given; drawn before masking.

    Raises:
        ValueError: for a size below one, or a negative num_context.
    """
    sizes = (num_inputs, *hidden, outputs_per_input)
    if min(sizes) < 1:
        raise ValueError(f"layer sizes must be positive, got {sizes}")
    numerics.check_not_negative(num_context=num_context)
    numerics.check_positive(width=width)
    start = initializer or glorot()
    least = 0 if num_context else min(1, num_inputs - 1)

    order = np.arange(1, num_inputs + 1)
    degrees = [np.concatenate([order.repeat(width), np.zeros(num_context, int)])]
    for size in hidden:
        degrees.append(least + np.arange(size) * (num_inputs - least) // size)
    masks = {
        f"hidden_{i}": degrees[i][:, None] <= degrees[i + 1] for i in range(len(hidden))
    }
    masks["output"] = degrees[-1][:, None] < np.tile(order, outputs_per_input)

    def init(key: PRNGKey) -> PyTree:
        dtype, params = jnp.result_type(float), {}
        for name, mask in masks.items():
            key, key_kernel, key_bias = jax.random.split(key, 3)
            params[name] = {
                "kernel": start.kernel(key_kernel, mask.shape, dtype),
                "bias": start.bias(key_bias, mask.shape[1:], dtype),
            }
        return params

    def apply(params: PyTree, x: Array) -> Array:
        x = jnp.ravel(x)
        for name, mask in masks.items():
            kernel = jnp.where(mask, params[name]["kernel"], 0.0)
            x = x @ kernel + params[name]["bias"]
            x = x if name == "output" else activation(x)
        return x

    return Network(init, apply)
