"""The flags of `experiments.semi_supervised`, and those of the M1 that they ask for."""

import dataclasses
import hashlib
import pathlib

import numpy as np

from experiments.choices.config import Config as TrainConfig
from experiments.command import cli
from experiments.runs import rundir


@dataclasses.dataclass(frozen=True)
class Config(cli.Flags):
    """One comparison; every field is a flag."""

    workdir: str = cli.flag("runs/semi_supervised", "Where the results are written.")
    dataset: str = cli.flag("digits", "Data set with labels, as in experiments.train.")
    data_dir: str = cli.flag("", "Folder that holds the original data files.")
    methods: tuple[str, ...] = cli.flag(
        ("M2", "M1+M2"), "What is trained.", choices=("M2", "M1+M2"), empty=False
    )
    m1: str = cli.flag(
        "", "Workdir of a trained M1, whose data are taken; or train one."
    )
    num_labels: int = cli.flag(
        100, "Labels, of all classes together; 0: all that are there, once.", least=0
    )
    num_draws: int = cli.flag(10, "Draws of the labeled rows, 0, 1, ...", least=1)
    num_latents: int = cli.flag(10, "Latent dimensions.", least=1)
    hidden: tuple[int, ...] = cli.flag((200,), "Units of hidden layers.", least=1)
    classifier: str = cli.flag(
        "mlp", "Of M2's q(y | x), where rows are images.", choices=("mlp", "conv")
    )
    width: int = cli.flag(16, "Channels of --classifier=conv.", least=1)
    alpha: float = cli.flag(
        0.1,
        "Weight of the classifier's loss, times rows over labels. Where classes come "
        "out exchanged, worse than by chance, more is wanted.",
        least=0,
    )
    num_epochs: int = cli.flag(100, "Passes over the rows without labels.", least=1)
    batch_size: int = cli.flag(100, "Rows without labels a step.", least=1)
    labels_per_step: int = cli.flag(100, "Labeled rows a step, at most.", least=1)
    learning_rate: float = cli.flag(1e-3, "Of Adam, at the start.", above=0)
    schedule: str = cli.flag(
        "constant", "Of the step size.", choices=("constant", "cosine")
    )
    seed: int = cli.flag(0, "Seed of weights, order, noise and labels.", least=0)

    def refuse(self) -> None:
        """Refuses what nothing would read."""
        if self.classifier == "conv" and "M2" not in self.methods:
            raise ValueError(
                "--classifier=conv is of images: M1+M2's q(y | x) is of codes"
            )
        if self.classifier != "conv" and self.width != self.default("width"):
            raise ValueError(
                f"--width={self.width} means nothing with "
                f"--classifier={self.classifier}; it is of --classifier=conv"
            )


def digest(config: Config, labels: np.ndarray, m1_step: int) -> str:
    """Of what the draws of M2 depend on: flags, labels, and how far M1 is trained."""
    flags = dataclasses.replace(config, workdir="", num_draws=1, methods=("M2",))
    what = f"{flags!r} {m1_step} {labels.tolist()}"
    return hashlib.sha256(what.encode()).hexdigest()[:12]


def unlabeled(config: Config) -> TrainConfig:
    """The flags of M1.

    Raises:
        UsageError: for a table; for a workdir without a run, or of one that is not of
            plain bits.
    """
    if not config.m1:
        flags = TrainConfig(
            workdir=str(pathlib.Path(config.workdir) / "m1"),
            dataset=config.dataset,
            data_dir=config.data_dir,
            num_latents=config.num_latents,
            hidden=config.hidden,
            learning_rate=config.learning_rate,
            num_epochs=config.num_epochs,
            seed=config.seed,
            progress=False,
        )
        if flags.is_table:
            raise cli.UsageError(
                f"--dataset={config.dataset} is a table, and M2 is of bits"
            )
        return flags
    flags = rundir.read_config(pathlib.Path(config.m1).expanduser())
    if flags.observed != "bernoulli":
        raise cli.UsageError(
            f"--m1={config.m1} has --likelihood={flags.observed}, and M2 is of bits"
        )
    if flags.settled.missing == "nan":
        raise cli.UsageError(
            f"--m1={config.m1} has --missing=nan, and M2 is of rows without holes"
        )
    if flags.condition:
        raise cli.UsageError(
            f"--m1={config.m1} has --condition={flags.condition}, and M1 is given no "
            "label"
        )
    return dataclasses.replace(flags, data_dir=config.data_dir or flags.data_dir)
