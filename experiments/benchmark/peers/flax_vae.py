"""Flax's plain form: Linen modules, a step a dispatch, batches from NumPy.

The published example's `train_step` is not compiled: each of its operations is
dispatched by itself. `flax_jit` is the same with `jax.jit` around the step.
"""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import linen
from flax.training.train_state import TrainState

from experiments.benchmark.contenders import (
    LEARNING_RATE,
    Contender,
    Layer,
    Problem,
    Weights,
)


class Perceptron(linen.Module):
    """Affine maps with tanh between them."""

    sizes: Sequence[int]

    @linen.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """[B, inputs] -> [B, outputs]."""
        *hidden, output = self.sizes
        for size in hidden:
            x = jnp.tanh(linen.Dense(size)(x))
        return linen.Dense(output)(x)


class VAE(linen.Module):
    """Encoder, one reparameterized draw, decoder."""

    encoder: Perceptron
    decoder: Perceptron

    def __call__(self, x: jax.Array, key: jax.Array) -> tuple[jax.Array, ...]:
        """Logits of x, and mean and log std of q(z | x)."""
        mean, log_std = jnp.split(self.encoder(x), 2, axis=-1)
        z = mean + jnp.exp(log_std) * jax.random.normal(key, mean.shape)
        return self.decoder(z), mean, log_std


def contender(name: str, problem: Problem) -> Contender:
    """A pass in a random order, the step compiled if the name says so."""
    rows = problem.train.reshape(len(problem.train), -1)
    start = problem.start
    model = VAE(*(Perceptron(_sizes(net)) for net in (start.encoder, start.decoder)))

    def step(state: TrainState, x: np.ndarray, key: jax.Array) -> TrainState:
        def loss(params: Any) -> jax.Array:
            logits, mean, log_std = state.apply_fn({"params": params}, x, key)
            entropy = (jax.nn.softplus(logits) - x * logits).sum(-1)
            kl = 0.5 * (mean**2 + jnp.exp(2.0 * log_std) - 1.0) - log_std
            return (entropy + kl.sum(-1)).mean()

        return state.apply_gradients(grads=jax.grad(loss)(state.params))

    update = jax.jit(step) if name == "flax_jit" else step
    params = {"encoder": _tree(start.encoder), "decoder": _tree(start.decoder)}
    optimizer = optax.adam(LEARNING_RATE)
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


def _sizes(layers: list[Layer]) -> tuple[int, ...]:
    return tuple(len(layer.bias) for layer in layers)


def _tree(layers: list[Layer]) -> dict[str, dict[str, jax.Array]]:
    return {
        f"Dense_{i}": {"kernel": jnp.asarray(w.kernel), "bias": jnp.asarray(w.bias)}
        for i, w in enumerate(layers)
    }


def _layers(tree: Any) -> list[Layer]:
    named = (tree[f"Dense_{i}"] for i in range(len(tree)))
    return [Layer(layer["kernel"], layer["bias"]) for layer in named]
