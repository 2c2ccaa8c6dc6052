"""The parameters of a trained run, which another one starts from."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from experiments.command import cli
from experiments.runs import runs
from experiments.runs.runs import Run
from vae_jax.types import Params


class Start(NamedTuple):
    """Where a run starts, and the line that says so."""

    params: Params  # with a leading axis R where runs train together
    line: str


def read(run: Run) -> Start:
    """The parameters that `evaluate` would take from the run in --start_from.

    One run there starts every run that trains together here; as many there start one
    here each.

    Raises:
        UsageError: if no run or no checkpoint is there, or of another model, naming the
            first array that differs; if there are several runs, and not as many here.
    """
    folder, together = run.config.start_from, len(run.configs)
    there, saved = runs.opened(folder, data_dir=run.config.data_dir)
    if len(there.configs) not in (1, together):
        raise cli.UsageError(
            f"--start_from={folder} holds {len(there.configs)} runs, and here are "
            f"{together}: --num_seeds={len(there.configs)} starts one from each"
        )
    taken = runs.choose(there.config, saved)
    params = taken.params
    if run.config.trains_many and not there.config.trains_many:
        params = jax.tree.map(
            lambda x: jnp.broadcast_to(x, (together, *x.shape)), params
        )
    _check(run, params)
    step, which = int(np.max(taken.step)), "best" if taken.is_best else taken.weights
    return Start(params, f"starting from {folder}, step {step}, {which} weights")


def _check(run: Run, there: Params) -> None:
    """Refuses parameters of another model."""
    init = jax.vmap(run.model.init) if run.config.trains_many else run.model.init
    of_both = [
        {jax.tree_util.keystr(path): x for path, x in jax.tree.leaves_with_path(tree)}
        for tree in (jax.eval_shape(init, run.keys.init), there)
    ]
    for name in dict.fromkeys(name for arrays in of_both for name in arrays):
        wanted, held = (
            f"{x.dtype}{list(x.shape)}" if x is not None else "nothing"
            for x in (arrays.get(name) for arrays in of_both)
        )
        if wanted != held:
            raise cli.UsageError(
                f"--start_from={run.config.start_from} holds another model: params"
                f"{name} is {held} there, and {wanted} here: give the flags of its "
                "flags.txt that the model is of"
            )
