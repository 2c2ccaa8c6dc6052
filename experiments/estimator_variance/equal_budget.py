"""L samples of M images at equal L x M: is L = 1 enough when M is large?"""

import dataclasses
import time
from collections.abc import Iterator
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array

from experiments.choices.config import Config
from experiments.measures import measure
from experiments.runs import runs, trained_runs
from vae_jax import compilation
from vae_jax.data import batches
from vae_jax.estimators import sgvb
from vae_jax.evaluation import gradient_noise
from vae_jax.training import loop
from vae_jax.types import Params, PRNGKey

LEVELS = (1, 2, 5, 10, 20, 50, 100)  # values of L
STEPS_BETWEEN_LOOKS = 100  # at the clock


class Row(NamedTuple):
    """What L samples of M images give; the bounds, in nats, where it is trained."""

    num_samples: int
    batch_size: int
    theta_variance: float
    phi_variance: float
    steps: int | None = None
    train_elbo: float | None = None
    test_elbo: float | None = None


def against_batch(
    key: PRNGKey,
    run: runs.Run,
    params: Params,
    *,
    budget: int,
    num_draws: int,
    seconds: float,
) -> Iterator[Row]:
    """For each L: the variance of a step's gradient, and the bounds at equal time.

    The variance is that of minibatches drawn anew, so that it holds what the choice of
    images adds; the bounds are those after that many seconds of training.
    """
    take, data = run.data.prepared.take, jnp.asarray(run.data.prepared.train)
    divisors = [n for n in LEVELS if budget % n == 0]
    for i, num_samples in enumerate(divisors):
        batch_size = budget // num_samples
        if batch_size > len(data):
            continue
        gradient = gradient_noise.of_batch(
            sgvb.sgvb_b(run.model, num_samples=num_samples)
        )

        def of_step(
            key: PRNGKey, params: Params, size: int = batch_size, gradient=gradient
        ) -> Params:
            key_rows, key_take, key_noise = jax.random.split(key, 3)
            index = jax.random.randint(key_rows, (size,), 0, len(data))
            return gradient(key_noise, params, take(key_take, data, index).x)

        draw = compilation.program(gradient_noise.moments(of_step, num_draws=num_draws))
        moments = draw(jax.random.fold_in(key, i), params)
        theta, phi = (
            gradient_noise.total_variance(gradient_noise.part(moments, part))
            for part in Params._fields
        )
        row = Row(num_samples, batch_size, theta, phi)
        if seconds:
            config = dataclasses.replace(
                run.config, num_samples=num_samples, batch_size=batch_size
            )
            row = row._replace(**trained_for(config, seconds=seconds))
        yield row


def trained_for(config: Config, *, seconds: float) -> dict[str, float]:
    """The bounds after so many seconds of steps, and of nothing but steps."""
    run = runs.build(config)
    prepared = run.data.prepared
    data, scan = jnp.asarray(prepared.train), loop.scan(run.algorithm, prepared.take)
    key_order, key_bound = jax.random.split(run.keys.order)

    def rows_of(look: int) -> Array:
        key = jax.random.fold_in(key_order, look)
        epochs = [
            batches.order(
                jax.random.fold_in(key, epoch), len(data), batch_size=config.batch_size
            )
            for epoch in range(-(-STEPS_BETWEEN_LOOKS // run.steps_per_epoch))
        ]
        return jax.block_until_ready(jnp.concatenate(epochs)[:STEPS_BETWEEN_LOOKS])

    state = runs.initial(run).run
    jax.block_until_ready(scan(jax.tree.map(jnp.copy, state), data, rows_of(0)))
    look, spent = 0, 0.0
    while spent < seconds:
        order, started = rows_of(look), time.monotonic()
        state, info = scan(state, data, order)
        jax.block_until_ready(info)
        look, spent = look + 1, spent + time.monotonic() - started
    trained = trained_runs.Trained(
        run.config, run.data, run.model, state.inner.params, int(state.step)
    )
    row: dict[str, float] = {"steps": trained.step}
    for split in ("train", trained_runs.test_split(trained)):
        key = jax.random.clone(key_bound)
        bound = measure.bound(key, trained, split=split, num_samples=100)
        row[f"{split}_elbo"] = bound["elbo"]
    return row
