"""L samples of M images at equal L x M: is L = 1 enough when M is large?"""

import dataclasses
import time

import jax
import jax.numpy as jnp
from jaxtyping import Array

from experiments.choices import models
from experiments.choices.config import Config
from experiments.estimator_variance import gradients
from experiments.measures import measure
from experiments.runs import run as runs
from vae_jax.data import batches
from vae_jax.estimators import sgvb
from vae_jax.training import gradient, loop
from vae_jax.types import Params, PRNGKey

LEVELS = (1, 2, 5, 10, 20, 50, 100)  # values of L
STEPS_BETWEEN_LOOKS = 100  # at the clock


def against_batch(
    key: PRNGKey,
    run: runs.Run,
    params: Params,
    *,
    budget: int,
    num_draws: int,
    seconds: float,
) -> list[dict[str, float]]:
    """L samples of M images at equal L x M: the step's variance, and equal time.

    The variance is that of minibatches drawn anew, so that it holds what the choice of
    images adds; the bounds are those after that many seconds of training.
    """
    prepared, rows = run.data.prepared, []
    data = jnp.asarray(prepared.train)
    for i, samples in enumerate(_divisors(budget)):
        size = budget // samples
        if size > len(data):
            continue
        objective = gradient.over_batch(
            sgvb.sgvb_b(*run.model.pair, num_samples=samples, kl=models.kl)
        )

        def of_step(
            key: PRNGKey, params: Params, size: int = size, objective=objective
        ) -> Params:
            key_rows, key_take, key_noise = jax.random.split(key, 3)
            index = jax.random.randint(key_rows, (size,), 0, len(data))
            x = prepared.take(key_take, data, index).x
            return jax.grad(objective, argnums=1)(key_noise, params, x)

        drawn = gradients.moments(
            jax.random.fold_in(key, i), of_step, params, num_draws
        )
        rows.append(
            {
                "num_samples": samples,
                "batch_size": size,
                "theta_variance": gradients.total(drawn.variance.generative),
                "phi_variance": gradients.total(drawn.variance.recognition),
            }
            | trained_for(run.config, samples, size, seconds=seconds)
        )
    return rows


def _divisors(number: int) -> list[int]:
    return [n for n in range(1, number + 1) if number % n == 0 and n in LEVELS]


def trained_for(
    config: Config, num_samples: int, batch_size: int, *, seconds: float
) -> dict[str, float]:
    """The bounds after so many seconds of steps, and of nothing but steps."""
    if not seconds:
        return {}
    changed = {"num_samples": num_samples, "batch_size": batch_size}
    run = runs.build(dataclasses.replace(config, **changed))
    prepared = run.data.prepared
    data, scan = jnp.asarray(prepared.train), loop.scan(run.algorithm, prepared.take)
    key_order, key_bound = jax.random.split(run.keys.order)

    def rows_of(look: int) -> Array:
        drawn, epoch, key = [], 0, jax.random.fold_in(key_order, look)
        while sum(map(len, drawn)) < STEPS_BETWEEN_LOOKS:
            key_epoch = jax.random.fold_in(key, epoch)
            drawn.append(batches.order(key_epoch, len(data), batch_size=batch_size))
            epoch += 1
        return jax.block_until_ready(jnp.concatenate(drawn)[:STEPS_BETWEEN_LOOKS])

    state = runs.initial(run).run
    jax.block_until_ready(scan(jax.tree.map(jnp.copy, state), data, rows_of(0)))
    look, spent = 0, 0.0
    while spent < seconds:
        order, started = rows_of(look), time.monotonic()
        state, info = scan(state, data, order)
        jax.block_until_ready(info)
        look, spent = look + 1, spent + time.monotonic() - started
    trained = measure.Trained(
        run.config, run.data, run.model, state.inner.params, int(state.step)
    )
    found: dict[str, float] = {"steps": trained.step}
    for split in ("train", measure.test_split(trained)):
        key = jax.random.clone(key_bound)
        bound = measure.bound(key, trained, split=split, num_samples=100)
        found[f"{split}_elbo"] = bound["elbo"]
    return found
