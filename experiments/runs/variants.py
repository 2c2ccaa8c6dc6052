"""Training runs that differ in their algorithm and number of latents alone."""

import dataclasses
import pathlib
import shlex
from collections.abc import Sequence

from experiments.choices.config import Config
from experiments.command import cli

VARIED = ("workdir", "data_dir", "num_latents", "algorithm", "num_epochs")


def base(run_flagfile: str, run_flags: str, *, taken: Sequence[str] = VARIED) -> Config:
    """What all runs of a comparison share: a flag file of train, then more flags.

    Args:
        run_flagfile: path of a flag file of `experiments.train`; empty for none.
        run_flags: more of its flags, separated by spaces.
        taken: names of the flags that the comparison sets itself.

    Raises:
        UsageError: for what `experiments.train` would refuse, or a flag in run_flags
            that is taken.
    """
    try:
        more = shlex.split(run_flags)
    except ValueError as error:
        raise cli.UsageError(f"--run_flags={run_flags}: {error}") from error
    given = {token.lstrip("-").partition("=")[0] for token in more}
    if found := [name for name in taken if name in given]:
        raise cli.UsageError(
            f"--run_flags={run_flags}: --{found[0]} is set by the comparison's own "
            "flags"
        )
    files = [f"--flagfile={run_flagfile}"] if run_flagfile else []
    config = cli.parse(Config, ["train", *files, *more])
    if config.trains_many:
        raise cli.UsageError(
            "the runs of a comparison train one by one: --num_seeds and --sweep are "
            "for experiments.train"
        )
    return config


def runs(
    shared: Config,
    *,
    workdir: str,
    data_dir: str,
    algorithms: Sequence[str],
    latents: Sequence[int],
    num_epochs: int,
) -> list[Config]:
    """Every algorithm for every number of latents, in workdir/ALGORITHM_NUM_LATENTS.

    The same run of two scripts has the same folder and flags, so that the second takes
    up what the first has trained. num_epochs 0 keeps the shared number.

    Raises:
        ValueError: for an algorithm or a number that no run can have, or none at all.
    """
    if not latents:
        raise ValueError("--latents must hold at least one size")
    folder = pathlib.Path(workdir)
    return [
        dataclasses.replace(
            shared,
            workdir=str(folder / f"{algorithm}_{num_latents}"),
            data_dir=data_dir,
            algorithm=algorithm,
            num_latents=num_latents,
            num_epochs=num_epochs or shared.num_epochs,
            progress=False,
        )
        for num_latents in latents
        for algorithm in algorithms
    ]
