"""The flags of `experiments.representation`."""

import dataclasses

from experiments.command import cli
from experiments.runs import trained_runs


@dataclasses.dataclass(frozen=True)
class Config(trained_runs.InputFlags):
    """One set of measurements; every field is a flag."""

    workdirs: tuple[str, ...] = cli.flag(
        (), "Folders of runs that differ in their seed, instead."
    )
    codes: str = cli.flag(
        "mean", "The mean of q(z | x), or one draw of it.", choices=("mean", "sample")
    )
    layer: int = cli.flag(
        0, "Layer of a ladder that codes are of, 1 next to x; 0: all of z.", least=0
    )
    num_train: int = cli.flag(
        10_000, "Training rows that are fitted to, from the start; 0 for all.", least=0
    )
    num_test: int = cli.flag(
        10_000,
        "Rows of test, or of --input, that are judged on, from the start; 0: all.",
        least=0,
    )
    num_neighbors: int = cli.flag(5, "Neighbors that vote, k.", least=1)
    num_clusters: int = cli.flag(
        0, "Clusters; 0: as many as there are labels.", least=0
    )
    few_labels: tuple[int, ...] = cli.flag(
        (10, 100, 1000), "Labels of the curve of few labels.", least=1
    )
    few_draws: int = cli.flag(10, "Draws of each number of labels.", least=1)
    surgery_rows: int = cli.flag(
        2000, "Test rows of the mean KL's two parts (cost: squared); 0: none.", least=0
    )
    surgery_samples: int = cli.flag(4, "Draws of z for each of them.", least=2)
    num_queries: int = cli.flag(10, "Test images whose neighbors are drawn.", least=1)
    seed: int = cli.flag(0, "Seed of the samples, starts and few labels.", least=0)

    def refuse(self) -> None:
        """Refuses a single test row, which has nothing to be compared with."""
        if self.num_test == 1:
            raise ValueError("--num_test must be 0, for all, or 2 or more, got 1")
