"""One training run: its records, its keys, and what its checkpoints hold."""

import pathlib
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from experiments import algorithms, cli, models, protocol, rundir
from experiments.configuration import Config
from vae_jax.training import checkpoints, loop
from vae_jax.types import Algorithm, Params, PRNGKey


class Keys(NamedTuple):
    """The branches of the root key: evaluation and order never change training."""

    init: PRNGKey
    steps: PRNGKey
    order: PRNGKey
    evaluation: PRNGKey


class Saved(NamedTuple):
    """What a checkpoint holds."""

    run: loop.RunState
    best: Params  # of the best validation bound; the newest where none was taken
    best_bound: Float[Array, ""]
    best_step: Int[Array, ""]


class Run(NamedTuple):
    """What stays the same from the first step to the last."""

    config: Config
    data: protocol.Dataset
    model: models.Model
    keys: Keys
    workdir: pathlib.Path
    steps_per_epoch: int
    algorithm: Algorithm

    @property
    def steps_per_validation(self) -> int:
        """Steps between validation bounds."""
        return self.config.eval_every * self.steps_per_epoch


def build(config: Config) -> Run:
    """Reads the data and builds the records; writes nothing.

    Raises:
        UsageError: for data, sizes or flags that do not fit together.
    """
    with cli.user_errors():
        data = protocol.load(config)
        num_rows = len(data.source.train)
        if config.batch_size > num_rows:
            raise ValueError(
                f"--batch_size={config.batch_size} is larger than the training split "
                f"of {num_rows} rows"
            )
        if config.early_stopping and not len(data.source.valid):
            raise ValueError(
                f"--early_stopping needs a validation split, {config.dataset} has none"
            )
        model = models.build(config, data.x_shape)
        steps_per_epoch = num_rows // config.batch_size
        algorithm = algorithms.build(
            config, model, num_data=num_rows, steps_per_epoch=steps_per_epoch
        )
    keys = Keys(*jax.random.split(jax.random.key(config.seed), 4))
    workdir = config.directory()
    return Run(config, data, model, keys, workdir, steps_per_epoch, algorithm)


def initial(run: Run) -> Saved:
    """The state before the first step, made by one compiled program."""
    return jax.jit(partial(_initial, run))(run.keys)


def restore(run: Run) -> Saved | None:
    """The newest whole checkpoint of a run, damaged ones reported; None without any.

    Raises:
        UsageError: if all are damaged, or hold another model.
    """
    template = jax.eval_shape(partial(_initial, run), run.keys)
    with cli.user_errors():
        found = checkpoints.restore(run.workdir / rundir.CHECKPOINTS, template)
    if found is None:
        return None
    for report in found.damaged:
        print(f"warning: {report}", flush=True)
    return found.tree


def _initial(run: Run, keys: Keys) -> Saved:
    params = run.model.init(keys.init)
    state = loop.start(keys.steps, run.algorithm, params)
    return Saved(state, params, jnp.full((), -jnp.inf), jnp.zeros((), jnp.int32))
