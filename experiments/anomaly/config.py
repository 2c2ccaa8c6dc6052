"""The flags of `experiments.anomaly`."""

import dataclasses
import pathlib
from typing import ClassVar

from experiments.anomaly import scores
from experiments.command import cli
from experiments.measures import measure
from experiments.runs import new_rows, trained_runs
from vae_jax.data import codecs


@dataclasses.dataclass(frozen=True)
class Config(trained_runs.InputFlags):
    """One table; every field is a flag."""

    OF_IMAGES: ClassVar = "--outlier_dataset=images:"
    outlier_dataset: str = cli.flag(
        "",
        "A data set by name, as --dataset of experiments.train, whose test rows are "
        "outliers, instead of --input.",
    )
    outlier_labels: tuple[int, ...] = cli.flag(
        (),
        "Labels of outliers: of --input, whose other rows are then inliers (the run's "
        "test rows, where there are none); of --outlier_dataset, whose other rows are "
        "left out.",
    )
    false_alarm_rate: float = cli.flag(
        0.01, "P(flagged) of a row as the run's own, at most.", above=0, below=1
    )
    scores: tuple[str, ...] = cli.flag(
        ("elbo", "log_p", "reconstruction", "kl", "typicality", "mahalanobis"),
        "What is scored by: elbo, log_p, reconstruction and kl; regret, searched for "
        "each row; ratio, to --background; complexity, less the bits of --codec; waic, "
        "over runs of --num_seeds; typicality; mahalanobis, of the codes.",
        choices=scores.SCORES,
        empty=False,
    )
    background: str = cli.flag("", "Folder of the run that ratio compares with.")
    member: int = cli.flag(
        -1,
        "Which of the runs that trained together (--num_seeds, --sweep), from 0; -1: "
        "all of them, with means and standard deviations.",
        least=-1,
    )
    num_images: int = cli.flag(
        1000,
        "Rows of each split, and of --outlier_dataset, at equal distances, or as many "
        "as there are; 0 for all. Rows of --input are all scored.",
        least=0,
    )
    eval_samples: int = cli.flag(100, "Samples per row of the bound.", least=1)
    importance_samples: int = cli.flag(500, "Samples per row of log p(x).", least=1)
    regret_steps: int = cli.flag(100, "Steps of a round of regret's search.", least=1)
    regret_rounds: int = cli.flag(5, "Rounds at most.", least=1)
    regret_rate: float = cli.flag(0.02, "Where a round's rate of Adam starts.", above=0)
    codec: str = cli.flag(
        "png", "Compressor of complexity, a file a row.", choices=codecs.CODECS
    )
    seed: int = cli.flag(0, "Seed of the samples.", least=0)

    def refuse(self) -> None:
        """Refuses rows from two places, and a background that nothing reads."""
        super().refuse()
        if self.input and self.outlier_dataset:
            raise ValueError(
                f"--input={self.input} and --outlier_dataset={self.outlier_dataset}: "
                "give one of the two, the rows to score"
            )
        if self.background and "ratio" not in self.scores:
            raise ValueError(
                f"--background={self.background} is read by --scores=ratio alone"
            )
        of_regret = ("regret_steps", "regret_rounds", "regret_rate")
        readers = dict.fromkeys(of_regret, ("regret",)) | {"codec": ("complexity",)}
        self.refuse_unread("scores", self.scores, readers)
        measure.check_importance_samples(self.importance_samples)

    def load_all(self, workdir: str | pathlib.Path = "") -> list[trained_runs.Trained]:
        """As of any workdir, with the rows to score.

        Raises:
            UsageError: as `trained_runs.load`, or as `new_rows.read`; for no rows.
        """
        if not self.input and not self.outlier_dataset:
            raise cli.UsageError("no rows to score: give --input, or --outlier_dataset")
        runs = super().load_all(workdir)
        if not self.outlier_dataset:
            return runs
        first = runs[0]
        rows = new_rows.of_dataset(self.outlier_dataset, first.config, first.data)
        return [one._replace(input=rows) for one in runs]

    @property
    def place(self) -> str:
        """Where the rows to score come from, as the flag that says it."""
        if self.input:
            return f"--input={self.input}"
        return f"--outlier_dataset={self.outlier_dataset}"
