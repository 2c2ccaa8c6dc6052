"""The parameters of a trained run, which another one starts from."""

import pathlib
from typing import NamedTuple

import jax
import jax.numpy as jnp

from experiments.command import cli
from experiments.runs import trained_runs
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
    folder = pathlib.Path(run.config.start_from).expanduser()
    there = trained_runs.load(folder, checkpoint="auto", data_dir=run.config.data_dir)
    named = f"--start_from={folder}"
    if len(there) not in (1, len(run.configs)):
        raise cli.UsageError(
            f"{named} holds {len(there)} runs, and here are {len(run.configs)}: "
            f"--num_seeds={len(there)} starts one from each"
        )
    params = there[0].params
    _check(run, params, named)
    if run.config.trains_many:
        each = there * (len(run.configs) // len(there))
        params = jax.tree.map(lambda *x: jnp.stack(x), *(one.params for one in each))
    return Start(params, f"starting from {folder}, {there[0].moment}")


def _check(run: Run, there: Params, named: str) -> None:
    """Refuses parameters of another model."""
    here = jax.eval_shape(run.model.init, run.keys.init.reshape(-1)[0])
    of_both = [
        {jax.tree_util.keystr(path): x for path, x in jax.tree.leaves_with_path(tree)}
        for tree in (here, there)
    ]
    for name in dict.fromkeys(name for arrays in of_both for name in arrays):
        wanted, held = (
            f"{x.dtype}{list(x.shape)}" if x is not None else "nothing"
            for x in (arrays.get(name) for arrays in of_both)
        )
        if wanted != held:
            raise cli.UsageError(
                f"{named} holds another model: params{name} is {held} there, and "
                f"{wanted} here: give the flags of its flags.txt that the model is of"
            )
