"""The flags of `experiments.disentanglement`."""

import dataclasses

from experiments.command import cli
from experiments.disentanglement.scores import METRICS
from experiments.runs import trained_runs


@dataclasses.dataclass(frozen=True)
class Config(trained_runs.WorkdirFlags):
    """One set of measurements; every field is a flag."""

    member: int = cli.flag(
        -1, "Which of the runs that trained together; -1: all of them.", least=-1
    )
    workdirs: tuple[str, ...] = cli.flag((), "Folders of several runs, instead.")
    metrics: tuple[str, ...] = cli.flag(
        tuple(METRICS), "What is measured.", choices=METRICS, empty=False
    )
    num_train: int = cli.flag(
        10_000,
        "Rows that are fitted to, at most two thirds of the grid's; batches too.",
        least=1,
    )
    num_test: int = cli.flag(
        5000, "Rows that are judged on, at most the others; batches too.", least=1
    )
    num_bins: int = cli.flag(20, "Of a code, where it is binned.", least=2)
    num_draws: int = cli.flag(10_000, "Draws of z for mig_of_samples.", least=1)
    num_pairs: int = cli.flag(
        64, "Rows, or pairs, of a batch that shares a factor.", least=2
    )
    num_trees: int = cli.flag(100, "Of each value of a factor (dci).", least=1)
    min_std: float = cli.flag(
        0.05, "Least deviation of a latent that votes (factor_vae).", least=0
    )
    num_columns: int = cli.flag(9, "Images of a traversal.", least=2)
    seed: int = cli.flag(0, "Of rows, batches, draws and trees.", least=0)
