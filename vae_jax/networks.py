"""Flax networks behind the `Network` record; the only module that imports Flax."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array

from vae_jax.types import Network, PRNGKey, PyTree


class Initializer(NamedTuple):
    """How a layer's weights and biases start: each (key, shape, dtype) -> array."""

    kernel: Callable[[PRNGKey, Any, Any], Array]
    bias: Callable[[PRNGKey, Any, Any], Array]


def glorot() -> Initializer:
    """Glorot & Bengio's uniform weights (2010), biases zero."""
    return Initializer(nn.initializers.glorot_uniform(), nn.initializers.zeros_init())


def normal(*, std: float) -> Initializer:
    """Weights and biases from N(0, std^2), as AEVB (arXiv:1312.6114) section 5 has it.

    The paper writes N(0, 0.01), which reads as a variance: std 0.1.

    Raises:
        ValueError: if std is not positive.
    """
    if std <= 0.0:
        raise ValueError(f"std must be positive, got {std}.")
    draw = nn.initializers.normal(std)
    return Initializer(draw, draw)


def mlp(
    num_inputs: int,
    hidden: Sequence[int],
    num_outputs: int,
    *,
    activation: Callable[[Array], Array] = jnp.tanh,
    initializer: Initializer | None = None,
) -> Network:
    """Fully connected network from an input of num_inputs entries to [num_outputs].

    The input may have any shape of that size: it is flattened. Weights take the
    default float type at the time of `init`: float32, or float64 under
    `jax.enable_x64`, which is how the exact tests get a float64 model.

    Args:
        num_inputs: entries of one input.
        hidden: units of each hidden layer; empty for an affine map.
        num_outputs: entries of one output.
        activation: applied after each hidden layer.
        initializer: `glorot()` where none is given.

    Raises:
        ValueError: for a size below one.
    """
    sizes = (num_inputs, *hidden, num_outputs)
    if min(sizes) < 1:
        raise ValueError(f"layer sizes must be positive, got {sizes}.")
    start = initializer or glorot()

    def layer(size: int, name: str) -> nn.Dense:
        return nn.Dense(
            size,
            param_dtype=jnp.result_type(float),
            kernel_init=start.kernel,
            bias_init=start.bias,
            name=name,  # Linen would number by order of construction
        )

    class Mlp(nn.Module):
        @nn.compact
        def __call__(self, x: Array) -> Array:
            for i, size in enumerate(hidden):
                x = activation(layer(size, f"hidden_{i}")(x))
            return layer(num_outputs, "output")(x)

    module = Mlp()

    def init(key: PRNGKey) -> PyTree:
        return module.init(key, jnp.zeros((num_inputs,)))["params"]

    def apply(params: PyTree, x: Array) -> Array:
        return jnp.asarray(module.apply({"params": params}, jnp.ravel(x)))

    return Network(init, apply)


def linear(
    num_inputs: int, num_outputs: int, *, initializer: Initializer | None = None
) -> Network:
    """Affine map; under a normal likelihood it makes the model probabilistic PCA."""
    return mlp(num_inputs, (), num_outputs, initializer=initializer)
