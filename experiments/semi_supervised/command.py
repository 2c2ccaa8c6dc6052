r"""Few labels and many rows: M2 and M1+M2 of Kingma et al. 2014, over draws of labels.

    python -m experiments.semi_supervised --num_labels=100

Of the training split so many rows keep their labels, equally many of each class, drawn
anew for every one of --num_draws; a model of each draw trains on all rows. What is
reported is the share of test rows whose class is wrong, with mean and standard
deviation over the draws: which labels are drawn matters more than the method.
M2 is a model of the rows; M1+M2 is one of the codes of a VAE that saw all rows and no
label (M1), drawn anew at each step. Beside them, of the same labeled rows: nearest
neighbors and logistic regression on pixels, and on the means of M1's codes. Writes
semi_supervised.json, .txt, with the expected calibration errors of both classifiers,
and a picture of analogies: test rows, and what M2 makes of each with the same z and
every class.

Rows are of bits, 0 and 1; of numbers between, which are their probabilities, where
--m1 is of a run that draws bits from them (--binarization=dynamic). Own data
(--dataset=npz:PATH) may have few labels from the start: those below 0 are none, and
with --num_labels=0 all others are the one draw.

Every step takes --batch_size rows without labels and --labels_per_step labeled ones,
whose weight is such that each counts once an epoch. Draws that are trained lie in the
workdir, below a digest of flags, labels and M1's step, and are not trained again.
"""

from typing import NamedTuple

import numpy as np
from jaxtyping import Int

from experiments.command import cli, report
from experiments.command.report import Column
from experiments.measures import whole_run
from experiments.runs import protocol, trained_runs
from experiments.runs.trained_runs import Trained
from experiments.semi_supervised import judging, labels, spaces, training
from experiments.semi_supervised.config import Config, digest, unlabeled
from vae_jax.plots import images


def unsupervised(config: Config) -> Trained:
    """M1: the VAE of the same rows without labels, in a workdir of its own.

    Raises:
        UsageError: for one whose q does not know its mean and standard deviation.
    """
    if config.m1:
        m1, *_ = trained_runs.load(
            config.m1, checkpoint="auto", data_dir=config.data_dir
        )
    else:
        with cli.user_errors():
            run, saved = whole_run.train(unlabeled(config))
        m1 = trained_runs.of_run(run, saved, checkpoint="auto")
    if m1.model.recognition.moments is None:
        raise cli.UsageError(
            f"--m1={config.m1}: its q(z | x) does not know its mean and standard "
            "deviation, which M1+M2 draws codes by: take one of --posterior=diag_normal"
        )
    return m1


class Task(NamedTuple):
    """What every method is given.

    Attributes:
        labels: of the training rows; below 0 where there is none.
        truth: class of each test row, from 0 on.
        num_classes: of the data.
        draws: of the labels, the rows that keep theirs [R, L].
    """

    labels: Int[np.ndarray, " N"]
    truth: Int[np.ndarray, " M"]
    num_classes: int
    draws: Int[np.ndarray, "R L"]


def task_of(config: Config) -> Task:
    """The labels of the data, and which of them are kept in each draw.

    Raises:
        UsageError: for data without labels in a split, of fewer than two classes, with
            a test row of none of them, or whose training rows all keep their labels.
    """
    flags = unlabeled(config)
    with cli.user_errors():
        of = protocol.load(flags).prepared.labels
    for split in ("train", "test"):
        if split not in of or of[split].max(initial=-1) < 0:
            raise cli.UsageError(
                f"--dataset={flags.dataset} has no labels in its {split} split, where "
                "they are from 0 on (and below where there is none, of train)"
            )
    train, test = of["train"], of["test"]
    classes = np.unique(train[train >= 0])
    if len(classes) < 2 or not set(test) <= set(classes):
        raise cli.UsageError(
            f"--dataset={flags.dataset} has training rows of {len(classes)} classes: "
            "it takes two or more, and every test row of one of them"
        )
    num_draws = config.num_draws if config.num_labels else 1
    seeds = range(config.seed, config.seed + num_draws)
    draws = np.stack(
        [labels.labeled_rows(train, config.num_labels, seed=seed) for seed in seeds]
    )
    if draws.shape[1] == len(train):
        raise cli.UsageError(
            f"--num_labels={config.num_labels}: every training row has its label, and "
            "M2 is for those that have none"
        )
    return Task(train, np.searchsorted(classes, test), len(classes), draws)


def main(config: Config) -> int:
    """Trains, judges, prints, writes and draws."""
    folder = report.claim(config.workdir)
    task = task_of(config)
    m1 = unsupervised(config)
    draws = [labels.labels_of(config, task.labels, rows) for rows in task.draws]
    place = folder / "draws" / digest(config, task.labels, m1.step)
    judged: dict[str, list[judging.Judged]] = {}
    figures = {}
    for name in config.methods:
        space = spaces.SPACES[name](m1)
        # Codes are no images.
        classifier = config.classifier if name == "M2" else "mlp"
        nets = spaces.nets(config, space, task.num_classes, classifier=classifier)
        judge = judging.judge_of(nets, space, task.truth)
        judged[name] = []
        for params in training.trained(config, nets, space, draws, place / name):
            if name == "M2" and not judged[name] and m1.is_image:
                title = f"test rows as every class; {draws[0].num_labels} labels"
                shown = judging.analogies(nets, params, space.test)
                figures["semi_supervised"] = images.groups(shown, title=title)
            judged[name].append(judge(params))
            number, error = len(judged[name]), judged[name][-1].error
            print(f"{name}, draw {number}: {100 * error:.2f} % wrong", flush=True)
    errors = {name: [one.error for one in each] for name, each in judged.items()}
    errors |= judging.plain_errors(m1, task.draws)
    misjudged = {
        name: [one.calibration_error for one in each] for name, each in judged.items()
    }
    rows = [Row(name, 100.0 * np.array(each)) for name, each in errors.items()]
    table = report.table(COLUMNS, rows)
    for name, each in misjudged.items():
        table += f"\nexpected calibration error of {name}: {100 * np.mean(each):.2f} %"
    print(table)
    result = {"errors": errors, "calibration_error": misjudged}
    report.draw(folder, figures)
    path = folder / "semi_supervised"
    report.write_both(path, config, result, table, *([".png"] if figures else []))
    return 0


class Row(NamedTuple):
    """A method over the draws of the labels, in percent."""

    name: str
    percent: np.ndarray


def _deviation(row: Row) -> float | None:
    """None of a single draw, which has none."""
    return row.percent.std(ddof=1) if len(row.percent) > 1 else None


COLUMNS = [
    Column("wrong test rows, %", lambda row: row.name, width=31),
    Column("mean", lambda row: row.percent.mean(), ".2f", 8),
    Column("std", _deviation, ".2f", 8),
    Column("least", lambda row: row.percent.min(), ".2f", 8),
    Column("most", lambda row: row.percent.max(), ".2f", 8),
]
