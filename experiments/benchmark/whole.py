r"""Ten epochs of MNIST as whole processes, from the command to the exit.

    python -m experiments.benchmark.whole --data_dir=DIR

Each contender is a process of its own that imports, reads the data, compiles if it
does, trains the AEVB model and writes its weights (`experiments.benchmark.process`), no
cache of compiled programs before it. `experiments.train` is the project's command,
which does more: a validation bound after each epoch, checkpoints, TensorBoard events,
the test bound and pictures. What each has reached is measured on the test rows, all by
one ruler; a peer more than a nat from ours is no contender.
"""

import dataclasses
import json
import pathlib
import tempfile
from collections.abc import Callable
from functools import partial

from experiments.benchmark import contenders, ours, process, rounds
from experiments.command import cli

COMMAND = "experiments.train"


@dataclasses.dataclass(frozen=True)
class Config(contenders.Flags, rounds.Flags):
    """One benchmark; every field is a flag."""

    num_steps: int = cli.flag(
        0, "Steps of one pass; 0 for the whole data set.", least=0
    )
    num_epochs: int = cli.flag(10, "Passes over the rows.", least=1)
    contenders: str = cli.flag(
        "ours,torch,torch_compile,numpyro,pythae,flax_jit", "Comma-separated."
    )
    command: bool = cli.flag(
        True, "Run experiments.train too (on all rows, whatever --num_steps is)."
    )


def main(config: Config) -> int:
    """Measures, prints and writes."""
    problem = contenders.problem(config)
    names = contenders.fitting(config.contenders, config)
    reached, peaks = {}, {}

    def seconds(name: str) -> float:
        trained = process.trained(name, config, num_epochs=config.num_epochs, cache="")
        reached[name] = ours.objective(problem, trained.weights)
        peaks[name] = trained.peak_mib
        return trained.process.seconds

    def of_command() -> float:
        with tempfile.TemporaryDirectory() as folder:
            flags = ours.config(
                config,
                workdir=folder,
                num_epochs=config.num_epochs,
                eval_samples=ours.RULER_SAMPLES,
                progress=False,
            )
            ended = process.run(COMMAND, flags, {})
            result = json.loads(pathlib.Path(folder, "result.json").read_text())
        # Of real-valued pixels it goes by the name of a cross-entropy.
        measured = {"elbo", "cross_entropy_objective"} & set(result)
        reached[COMMAND] = result[measured.pop()]
        return ended.seconds

    runs: dict[str, Callable[[], float]] = {
        name: partial(seconds, name) for name in names
    }
    if config.command:
        runs[COMMAND] = of_command
    timed = rounds.interleaved(runs, num_rounds=config.num_rounds)
    race = rounds.Race(timed, reached, peaks)
    config.write(
        rounds.show(
            race,
            scale=1.0,
            unit="s",
            ratios=race.ratios("ours", timed),
            quantity=problem.quantity,
        )
    )
    return 0


if __name__ == "__main__":
    cli.run(Config, main)
