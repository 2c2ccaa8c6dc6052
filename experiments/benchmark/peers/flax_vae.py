"""Flax's plain form: Linen modules, a step a dispatch, batches from NumPy.

The published example's `train_step` is not compiled: each of its operations is
dispatched by itself. `flax_jit` is the same with `jax.jit` around the step.
"""

import itertools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import linen
from flax.training.train_state import TrainState

from experiments.benchmark import contenders
from experiments.benchmark.contenders import Contender, Layer, Problem, Weights
from vae_jax import convolutional


class Perceptron(linen.Module):
    """Affine maps with tanh between them."""

    sizes: Sequence[int]

    @linen.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """[B, inputs] -> [B, outputs]."""
        *hidden, output = self.sizes
        for i, size in enumerate(hidden):
            x = jnp.tanh(linen.Dense(size, name=f"layer_{i}")(x))
        return linen.Dense(output, name=f"layer_{len(hidden)}")(x)


class Maps(linen.Module):
    """A convolutional encoder, or the decoder that mirrors it.

    Layers are numbered in the order in which they are applied.
    """

    flags: contenders.Flags
    x_shape: tuple[int, ...]
    sizes: Sequence[int]  # outputs of each layer
    decodes: bool

    @linen.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """[B, entries] -> [B, outputs] of the encoder; the other way round."""
        flags, numbers = self.flags, itertools.count()
        steps = contenders.resolutions(flags, self.x_shape)
        activation = jnp.tanh if flags.activation == "tanh" else linen.gelu

        def layer(x: jax.Array, *, side: int = 0) -> jax.Array:
            i = next(numbers)
            if not side:
                return linen.Dense(self.sizes[i], name=f"layer_{i}")(x)
            return linen.Conv(self.sizes[i], (side, side), name=f"layer_{i}")(x)

        def blocks(x: jax.Array) -> jax.Array:
            for _ in range(flags.num_blocks):
                sides, y = (3,) if flags.network == "conv" else (0, 3, 3, 0), x
                for side in sides:
                    y = layer(activation(y), side=side)
                x = y if flags.network == "conv" else x + y
            return x

        if self.decodes:
            x = layer(x).reshape(len(x), *steps[-1])
            for rows, columns in [*(s[:2] for s in steps[-2::-1]), self.x_shape[:2]]:
                x = layer(activation(blocks(x)), side=3)
                x = jax.vmap(convolutional.depth_to_space)(x)[:, :rows, :columns]
            return x.reshape(len(x), -1)
        x = x.reshape(len(x), *self.x_shape[:2], -1)
        for rows, columns, _ in steps:
            missing = 2 * rows - x.shape[1], 2 * columns - x.shape[2]
            x = jnp.pad(x, [(0, 0), (0, missing[0]), (0, missing[1]), (0, 0)])
            x = blocks(layer(jax.vmap(convolutional.space_to_depth)(x), side=3))
        return layer(activation(x).reshape(len(x), -1))


class VAE(linen.Module):
    """Encoder, one reparameterized draw, decoder."""

    encoder: linen.Module
    decoder: linen.Module

    def __call__(self, x: jax.Array, key: jax.Array) -> tuple[jax.Array, ...]:
        """Logits of x, and mean and log std of q(z | x)."""
        mean, log_std = jnp.split(self.encoder(x), 2, axis=-1)
        z = mean + jnp.exp(log_std) * jax.random.normal(key, mean.shape)
        return self.decoder(z), mean, log_std


def contender(name: str, problem: Problem) -> Contender:
    """A pass in a random order, the step compiled if the name says so."""
    rows = problem.train.reshape(len(problem.train), -1)
    start = problem.start
    model = VAE(*networks(problem))

    def step(state: TrainState, x: np.ndarray, key: jax.Array) -> TrainState:
        def loss(params: Any) -> jax.Array:
            logits, mean, log_std = state.apply_fn({"params": params}, x, key)
            entropy = (jax.nn.softplus(logits) - x * logits).sum(-1)
            kl = 0.5 * (mean**2 + jnp.exp(2.0 * log_std) - 1.0) - log_std
            return (entropy + kl.sum(-1)).mean()

        return state.apply_gradients(grads=jax.grad(loss)(state.params))

    update = jax.jit(step) if name == "flax_jit" else step
    params = {"encoder": _tree(start.encoder), "decoder": _tree(start.decoder)}
    optimizer = optax.adam(contenders.LEARNING_RATE)
    held = [TrainState.create(apply_fn=model.apply, params=params, tx=optimizer)]
    generator, key = np.random.default_rng(0), jax.random.key(0)
    size = problem.flags.batch_size

    def batch(index: np.ndarray) -> np.ndarray:
        x = rows[index].astype(np.float32) / np.float32(problem.divisor)
        if problem.dynamic:
            x = (generator.random(x.shape, np.float32) < x).astype(np.float32)
        return x

    def epoch() -> None:
        order, state = generator.permutation(len(rows)), held[0]
        for i in range(problem.num_steps):
            x = batch(order[i * size : (i + 1) * size])
            state = update(state, x, jax.random.fold_in(key, state.step))
        held[0] = jax.block_until_ready(state)

    def weights() -> Weights:
        host = jax.device_get(held[0].params)
        return Weights(_layers(host["encoder"]), _layers(host["decoder"]))

    return Contender(epoch, weights)


def networks(problem: Problem) -> tuple[linen.Module, linen.Module]:
    """Encoder and decoder of a problem."""
    flags, x_shape = problem.flags, problem.train.shape[1:]
    encoder, decoder = map(_sizes, problem.start)
    if flags.network == "mlp":
        return Perceptron(encoder), Perceptron(decoder)
    return Maps(flags, x_shape, encoder, False), Maps(flags, x_shape, decoder, True)


def _sizes(layers: list[Layer]) -> tuple[int, ...]:
    return tuple(len(layer.bias) for layer in layers)


def _tree(layers: list[Layer]) -> dict[str, dict[str, jax.Array]]:
    return {
        f"layer_{i}": {"kernel": jnp.asarray(w.kernel), "bias": jnp.asarray(w.bias)}
        for i, w in enumerate(layers)
    }


def _layers(tree: Any) -> list[Layer]:
    named = (tree[f"layer_{i}"] for i in range(len(tree)))
    return [Layer(layer["kernel"], layer["bias"]) for layer in named]
