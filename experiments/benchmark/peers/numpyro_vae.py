"""NumPyro's SVI, an epoch of updates in one compiled `fori_loop`."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpyro  # pyright: ignore[reportMissingImports]  # of the extra `benchmark`
from numpyro import distributions  # pyright: ignore[reportMissingImports]
from numpyro.infer import SVI, TraceMeanField_ELBO  # pyright: ignore

from experiments.benchmark import contenders
from experiments.benchmark.contenders import Contender, Layer, Problem, Weights


def contender(name: str, problem: Problem) -> Contender:
    """Its mean-field ELBO, the KL in closed form.

    Real-valued pixels have no Bernoulli density (its score is minus infinity), so the
    cross-entropy is a factor; its mean over the batch, as every contender takes it.
    """
    del name
    rows = jnp.asarray(problem.train.reshape(len(problem.train), -1))
    size, num_latents = problem.flags.batch_size, problem.flags.num_latents
    start = jax.tree.map(jnp.asarray, problem.start)

    def model(x: jax.Array) -> None:
        theta = numpyro.param("decoder", start.decoder)
        with numpyro.plate("rows", size), numpyro.handlers.scale(scale=1.0 / size):
            prior = distributions.Normal(jnp.zeros(num_latents), 1.0).to_event(1)
            logits = _network(theta, numpyro.sample("z", prior))
            nats = (x * logits - jax.nn.softplus(logits)).sum(-1)
            numpyro.factor("x", nats)

    def guide(x: jax.Array) -> None:
        phi = numpyro.param("encoder", start.encoder)
        mean, log_std = jnp.split(_network(phi, x), 2, axis=-1)
        with numpyro.plate("rows", size), numpyro.handlers.scale(scale=1.0 / size):
            posterior = distributions.Normal(mean, jnp.exp(log_std)).to_event(1)
            numpyro.sample("z", posterior)

    optimizer = numpyro.optim.Adam(contenders.LEARNING_RATE)
    svi = SVI(model, guide, optimizer, TraceMeanField_ELBO())

    @jax.jit
    def run(key: jax.Array, state: Any) -> tuple[Any, jax.Array]:
        key_order, key_pixels = jax.random.split(key)
        order = jax.random.permutation(key_order, len(rows))

        def body(i: jax.Array, carried: tuple[Any, Any]) -> tuple[Any, Any]:
            index = jax.lax.dynamic_slice_in_dim(order, i * size, size)
            x = rows[index].astype(jnp.float32) / problem.divisor
            if problem.dynamic:
                bits = jax.random.bernoulli(jax.random.fold_in(key_pixels, i), x)
                x = bits.astype(jnp.float32)
            state, loss = svi.update(carried[0], x)
            return state, carried[1] + loss

        return jax.lax.fori_loop(0, problem.num_steps, body, (state, jnp.zeros(())))

    key_start, key_run = jax.random.split(jax.random.key(0))
    first = rows[:size].astype(jnp.float32) / problem.divisor
    held = [0, svi.init(key_start, first)]

    def epoch() -> None:
        held[1], loss = run(jax.random.fold_in(key_run, held[0]), held[1])
        loss.block_until_ready()
        held[0] += 1
        if not jnp.isfinite(loss):
            raise FloatingPointError("NumPyro's loss is not finite")

    def weights() -> Weights:
        host = jax.device_get(svi.get_params(held[1]))
        return Weights(_layers(host["encoder"]), _layers(host["decoder"]))

    return Contender(epoch, weights)


def _network(layers: Any, x: jax.Array) -> jax.Array:
    *hidden, output = layers
    for layer in hidden:
        x = jnp.tanh(x @ layer.kernel + layer.bias)
    return x @ output.kernel + output.bias


def _layers(tree: Any) -> list[Layer]:
    return [Layer(np.asarray(layer.kernel), np.asarray(layer.bias)) for layer in tree]
