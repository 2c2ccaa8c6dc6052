"""M2 trained on each draw of the labels."""

import pathlib
from collections.abc import Iterator
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array

from experiments.semi_supervised.config import Config
from experiments.semi_supervised.labels import Labels
from experiments.semi_supervised.spaces import Nets, Space
from vae_jax import compilation
from vae_jax.estimators import semi_supervised, sgvb
from vae_jax.training import checkpoints, gradient, loop
from vae_jax.types import Algorithm, Batch, Params, PRNGKey, PyTree, per_row


def trained(
    config: Config, nets: Nets, space: Space, draws: list[Labels], folder: pathlib.Path
) -> Iterator[Params]:
    """The parameters of M2 for each draw, from the folder where they lie there."""
    num_plain, weight = draws[0].num_plain, draws[0].weight
    rate: optax.ScalarOrSchedule = config.learning_rate
    if config.schedule == "cosine":
        rate = optax.cosine_decay_schedule(rate, config.num_epochs * draws[0].steps)
    objective = semi_supervised.m2(
        nets.at,
        nets.classifier,
        num_classes=nets.num_classes,
        bound=partial(sgvb.sgvb_b, num_samples=1),
        alpha=config.alpha * len(space.train) / draws[0].num_labels,
    )

    def take(key: PRNGKey, rows: Array, index: Array) -> Batch:
        is_plain = jnp.arange(len(index)) < num_plain
        batch = space.take(key, rows, index)
        return batch._replace(weight=jnp.where(is_plain, 1.0, weight))

    def algorithm(seen: Array) -> Algorithm:
        def of_row(key: PRNGKey, params: Params, x: Array, row: Array) -> Array:
            return objective(key, params, (x, seen[row]))

        return gradient.ascent(per_row(of_row), gradient.adam(rate))

    @compilation.program
    def start(key: PRNGKey, seen: Array) -> loop.RunState:
        key_init, key_start = jax.random.split(key)
        params = nets.at(jnp.zeros(nets.num_classes)).init(key_init)
        return loop.start(key_start, algorithm(seen), params)

    @compilation.program
    def epoch(state: loop.RunState, seen: Array, rows: Array, order: Array) -> PyTree:
        return loop.scan(algorithm(seen), take)(state, rows, order)[0]

    for i, of_draw in enumerate(draws):
        seen = jnp.asarray(of_draw.seen)
        state = start(jax.random.fold_in(jax.random.key(config.seed), i), seen)
        saved = checkpoints.restore(folder / str(i), state.inner.params)
        if saved is None:
            for number in range(config.num_epochs):
                order = of_draw.order(np.random.default_rng((config.seed, i, number)))
                state = epoch(state, seen, space.train, jnp.asarray(order))
            checkpoints.save(folder / str(i), config.num_epochs, state.inner.params)
        yield state.inner.params if saved is None else saved.tree
