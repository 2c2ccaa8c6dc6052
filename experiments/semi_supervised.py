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

Rows are of bits: 0 and 1, or numbers between, which are their probabilities. Own data
(--dataset=npz:PATH) may have few labels from the start: those below 0 are none, and
with --num_labels=0 all others are the one draw.

Every step takes --batch_size rows without labels and --labels_per_step labeled ones,
whose weight is such that each counts once an epoch. Draws that are trained lie in the
workdir, below the digest of the flags, and are not trained again.
"""

import dataclasses
import hashlib
import pathlib
from collections.abc import Callable, Iterator
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Int

from experiments.choices.config import Config as TrainConfig
from experiments.command import cli, report
from experiments.command.report import Column
from experiments.measures import measure, pictures, whole_run
from experiments.runs import protocol, rundir, trained_runs
from experiments.runs.trained_runs import Trained
from vae_jax import (
    compilation,
    conditional,
    convolutional,
    likelihoods,
    networks,
    posteriors,
    priors,
)
from vae_jax.data import batches
from vae_jax.estimators import semi_supervised, sgvb
from vae_jax.evaluation import calibration, probes
from vae_jax.plots import images
from vae_jax.training import checkpoints, gradient, loop
from vae_jax.types import (
    Algorithm,
    Batch,
    Likelihood,
    Network,
    Params,
    PRNGKey,
    PyTree,
    per_row,
)

NUM_SHOWN = 8  # rows of the picture
NEIGHBORS = 1


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

    def check(self) -> None:
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


class Space(NamedTuple):
    """What M2 is a model of.

    Attributes:
        train: the training rows, as stored.
        test: the test rows, as a classifier sees them.
        take: key, stored rows, index -> a batch of x.
        likelihood: of x.
    """

    train: Array
    test: Array
    take: batches.Take
    likelihood: Likelihood


class Nets(NamedTuple):
    """M2 of rows of one shape.

    Attributes:
        at: one-hot class -> the model given it.
        classifier: x -> logits of the classes.
        num_classes: of the data.
    """

    at: conditional.ConditionalModel
    classifier: Network
    num_classes: int


def of_pixels(m1: Trained) -> Space:
    """The rows themselves, of bits."""
    prepared = m1.data.prepared
    return Space(
        jnp.asarray(prepared.train),
        prepared.value(trained_runs.spread_rows(m1, split="test")),
        prepared.take,
        likelihoods.bernoulli(m1.data.x_shape),
    )


def of_codes(m1: Trained) -> Space:
    """Codes of M1, drawn anew whenever a row is taken; a classifier sees their means.

    Stored are mean and standard deviation of each row's q, one behind the other.
    """
    (train, std), (test, _) = (
        measure.of_rows(
            jax.random.key(0),
            m1,
            measure.moments(m1.model),
            trained_runs.spread_rows(m1, split=split),
            num_decoded=1,
        )
        for split in ("train", "test")
    )

    def take(key: PRNGKey, rows: Array, index: Array) -> Batch:
        mean, std = jnp.split(rows[index], 2, axis=1)
        x = mean + std * jax.random.normal(key, mean.shape)
        return Batch(x, index, jnp.ones(index.shape))

    stored = jnp.concatenate([jnp.asarray(train), jnp.asarray(std)], axis=1)
    observed = likelihoods.normal_per_pixel_std(test.shape[1:])
    return Space(stored, jnp.asarray(test), take, observed)


SPACES = {"M2": of_pixels, "M1+M2": of_codes}


def nets(config: Config, space: Space, num_classes: int, *, classifier: str) -> Nets:
    """The networks of the flags, between a space and normal latents.

    Raises:
        UsageError: for convolutions of rows that are no images.
    """
    size, units, observed = space.test[0].size, config.hidden, space.likelihood
    q = posteriors.diag_normal(config.num_latents)
    at = conditional.model(
        networks.mlp(size + num_classes, units, q.width),
        networks.mlp(config.num_latents + num_classes, units[::-1], observed.width),
        posterior=q,
        prior=priors.standard_normal(config.num_latents),
        likelihood=observed,
    )
    of_class = networks.mlp(size, units, num_classes)
    if classifier == "conv":
        with cli.user_errors():
            of_class = convolutional.encoder(
                space.test.shape[1:],
                num_classes,
                width=config.width,
                num_blocks=1,
                residual=False,
            )
    return Nets(semi_supervised.with_classifier(at, of_class), of_class, num_classes)


def labeled_rows(labels: np.ndarray, number: int, *, seed: int) -> np.ndarray:
    """Rows [number] drawn without replacement, equally many of each class.

    Raises:
        UsageError: where the number does not divide, or a class has too few rows.
    """
    if not number:
        return np.flatnonzero(labels >= 0)
    classes, counts = np.unique(labels[labels >= 0], return_counts=True)
    each, rest = divmod(number, len(classes))
    if rest or not 0 < each <= counts.min():
        raise cli.UsageError(
            f"--num_labels={number} must be a multiple of the {len(classes)} classes, "
            f"of which the smallest has {counts.min()} rows"
        )
    generator = np.random.default_rng(seed)
    rows = [
        generator.choice(np.flatnonzero(labels == c), each, replace=False)
        for c in classes
    ]
    return np.concatenate(rows)


class Labels(NamedTuple):
    """A draw of labeled rows, and how rows come to be in the steps of an epoch.

    Attributes:
        seen: of each row its label, or `NO_LABEL`.
        num_plain: rows without a label a step.
        num_labeled: rows with one.
        steps: of an epoch.
    """

    seen: Int[np.ndarray, " N"]
    num_plain: int
    num_labeled: int
    steps: int

    @property
    def num_labels(self) -> int:
        """How many rows have one."""
        return int((self.seen != semi_supervised.NO_LABEL).sum())

    @property
    def weight(self) -> float:
        """Of a labeled row in a step: that of one row over an epoch."""
        return self.num_labels / (self.steps * self.num_labeled)

    def order(self, generator: np.random.Generator) -> np.ndarray:
        """Rows [S, B] of an epoch: without labels first, each at most once."""
        has_label = self.seen != semi_supervised.NO_LABEL
        plain = generator.permutation(np.flatnonzero(~has_label))
        labeled = np.flatnonzero(has_label)
        parts = [
            plain[: self.steps * self.num_plain].reshape(self.steps, -1),
            [
                generator.permutation(labeled)[: self.num_labeled]
                for _ in range(self.steps)
            ],
        ]
        return np.concatenate(parts, axis=1)


def labels_of(config: Config, labels: np.ndarray, rows: np.ndarray) -> Labels:
    """Of all rows those that keep their labels."""
    seen = np.full(len(labels), semi_supervised.NO_LABEL)
    seen[rows] = np.unique(labels[rows], return_inverse=True)[1]
    num_rest = len(labels) - len(rows)
    num_plain = min(config.batch_size, num_rest)
    num_labeled = min(config.labels_per_step, len(rows))
    return Labels(seen, num_plain, num_labeled, num_rest // num_plain)


def trained(
    config: Config, nets: Nets, space: Space, draws: list[Labels], folder: pathlib.Path
) -> Iterator[Params]:
    """The parameters of M2 for each draw, from the folder where they lie there."""
    num_plain, weight = draws[0].num_plain, draws[0].weight
    rate: optax.ScalarOrSchedule = config.learning_rate
    if config.schedule == "cosine":
        rate = optax.cosine_decay_schedule(rate, config.num_epochs * draws[0].steps)
    objective = semi_supervised.m2(
        nets.at,
        nets.classifier,
        num_classes=nets.num_classes,
        bound=partial(sgvb.sgvb_b, num_samples=1),
        alpha=config.alpha * len(space.train) / draws[0].num_labels,
    )

    def take(key: PRNGKey, rows: Array, index: Array) -> Batch:
        is_plain = jnp.arange(len(index)) < num_plain
        batch = space.take(key, rows, index)
        return batch._replace(weight=jnp.where(is_plain, 1.0, weight))

    def algorithm(seen: Array) -> Algorithm:
        def of_row(key: PRNGKey, params: Params, x: Array, row: Array) -> Array:
            return objective(key, params, (x, seen[row]))

        return gradient.ascent(per_row(of_row), gradient.adam(rate))

    @compilation.program
    def start(key: PRNGKey, seen: Array) -> loop.RunState:
        key_init, key_start = jax.random.split(key)
        params = nets.at(jnp.zeros(nets.num_classes)).init(key_init)
        return loop.start(key_start, algorithm(seen), params)

    @compilation.program
    def epoch(state: loop.RunState, seen: Array, rows: Array, order: Array) -> PyTree:
        return loop.scan(algorithm(seen), take)(state, rows, order)[0]

    for i, of_draw in enumerate(draws):
        seen = jnp.asarray(of_draw.seen)
        state = start(jax.random.fold_in(jax.random.key(config.seed), i), seen)
        saved = checkpoints.restore(folder / str(i), state.inner.params)
        if saved is None:
            for number in range(config.num_epochs):
                order = of_draw.order(np.random.default_rng((config.seed, i, number)))
                state = epoch(state, seen, space.train, jnp.asarray(order))
            checkpoints.save(folder / str(i), config.num_epochs, state.inner.params)
        yield state.inner.params if saved is None else saved.tree


def _digest(config: Config) -> str:
    flags = dataclasses.replace(config, workdir="", num_draws=1, methods=("M2",))
    return hashlib.sha256(repr(flags).encode()).hexdigest()[:12]


def _unlabeled(config: Config) -> TrainConfig:
    """The flags of M1.

    Raises:
        UsageError: for a workdir without a run, or of one that is not of plain bits.
    """
    if not config.m1:
        return TrainConfig(
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
    flags = rundir.read_config(pathlib.Path(config.m1))
    if flags.observed != "bernoulli":
        raise cli.UsageError(
            f"--m1={config.m1} has --likelihood={flags.observed}, and M2 is of bits"
        )
    if flags.condition:
        raise cli.UsageError(
            f"--m1={config.m1} has --condition={flags.condition}, and M1 is given no "
            "label"
        )
    return dataclasses.replace(flags, data_dir=config.data_dir or flags.data_dir)


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
            run, saved = whole_run.train(_unlabeled(config))
        m1 = trained_runs.of_run(run, saved, checkpoint="auto")
    if m1.model.recognition.moments is None:
        raise cli.UsageError(
            f"--m1={config.m1}: its q(z | x) does not know its mean and standard "
            "deviation, which M1+M2 draws codes by: take one of --posterior=diag_normal"
        )
    return m1


def main(config: Config) -> int:
    """Trains, judges, prints, writes and draws."""
    folder = report.claim(config.workdir)
    flags = _unlabeled(config)
    with cli.user_errors():
        labels = protocol.load(flags).prepared.labels
    for split in ("train", "test"):
        if split not in labels or labels[split].max(initial=-1) < 0:
            raise cli.UsageError(
                f"--dataset={flags.dataset} has no labels in its {split} split, where "
                "they are from 0 on (and below where there is none, of train)"
            )
    classes = np.unique(labels["train"][labels["train"] >= 0])
    if len(classes) < 2 or not set(labels["test"]) <= set(classes):
        raise cli.UsageError(
            f"--dataset={flags.dataset} has training rows of {len(classes)} classes: "
            "it takes two or more, and every test row of one of them"
        )
    true = np.searchsorted(classes, labels["test"])
    num_draws = config.num_draws if config.num_labels else 1
    seeds = range(config.seed, config.seed + num_draws)
    draws = np.stack(
        [labeled_rows(labels["train"], config.num_labels, seed=seed) for seed in seeds]
    )
    if draws.shape[1] == len(labels["train"]):
        raise cli.UsageError(
            f"--num_labels={config.num_labels}: every training row has its label, and "
            "M2 is for those that have none"
        )
    m1 = unsupervised(config)
    judged: dict[str, list[Judged]] = {}
    figures = {}
    for name in config.methods:
        space = SPACES[name](m1)
        # Codes are no images.
        classifier = config.classifier if name == "M2" else "mlp"
        of_m2 = nets(config, space, len(classes), classifier=classifier)
        judge = judge_of(of_m2, space, true)
        of_draws = [labels_of(config, labels["train"], rows) for rows in draws]
        judged[name] = []
        place = folder / "draws" / _digest(config) / name
        for params in trained(config, of_m2, space, of_draws, place):
            if name == "M2" and not judged[name] and pictures.is_image(m1):
                title = f"test rows as every class; {len(draws[0])} labels"
                shown = analogies(of_m2, params, space.test)
                figures["semi_supervised"] = images.groups(shown, title=title)
            judged[name].append(judge(params))
            number, error = len(judged[name]), judged[name][-1].error
            print(f"{name}, draw {number}: {100 * error:.2f} % wrong", flush=True)
    errors = {name: [one.error for one in each] for name, each in judged.items()}
    errors |= plain_errors(m1, draws)
    misjudged = {
        name: [one.calibration_error for one in each] for name, each in judged.items()
    }
    rows = [Row(name, 100.0 * np.array(each)) for name, each in errors.items()]
    table = report.table(COLUMNS, rows)
    for name, each in misjudged.items():
        table += f"\nexpected calibration error of {name}: {100 * np.mean(each):.2f} %"
    print(table)
    result = {"errors": errors, "calibration_error": misjudged}
    report.write_both(folder / "semi_supervised", config, result, table)
    report.draw(folder, figures)
    return 0


def plain_errors(m1: Trained, draws: np.ndarray) -> dict[str, list[float]]:
    """Of each draw: nearest neighbors and regression, on pixels and on M1's codes."""
    rows = {n: trained_runs.spread_rows(m1, split=n) for n in ("train", "test")}
    value, labels = m1.data.prepared.value, m1.data.prepared.labels
    spaces = {
        "pixels": {
            n: np.asarray(value(x)).reshape(len(x), -1) for n, x in rows.items()
        },
        "M1's codes": {
            n: measure.codes(jax.random.key(0), m1, x) for n, x in rows.items()
        },
    }
    errors: dict[str, list[float]] = {}
    for name, space in spaces.items():
        near, regression = [], []
        for of_draw in draws:
            train = probes.Labeled(space["train"][of_draw], labels["train"][of_draw])
            test = probes.Labeled(space["test"], labels["test"])
            vote = probes.nearest_neighbors(train, test, num_neighbors=NEIGHBORS)
            near.append(1.0 - vote)
            regression.append(1.0 - probes.linear_probe(train, test).accuracy)
        errors[f"nearest neighbors, {name}"] = near
        errors[f"logistic regression, {name}"] = regression
    return errors


class Judged(NamedTuple):
    """A classifier on the test rows.

    Attributes:
        error: share of rows whose likeliest class is another.
        calibration_error: mean of |confidence - accuracy|, over bins of the likeliest
            class's probability.
    """

    error: float
    calibration_error: float


def judge_of(
    nets: Nets, space: Space, labels: np.ndarray
) -> Callable[[Params], Judged]:
    """params -> q(y | x) on the test rows."""

    def predict(params: Params, x: Array) -> Array:
        return jnp.exp(semi_supervised.log_classes(nets.classifier, params, x))

    each = compilation.program(jax.vmap(predict, (None, 0)))

    def judge(params: Params) -> Judged:
        probabilities = np.asarray(each(params, space.test))
        right = (probabilities.argmax(axis=1) == labels).astype(float)
        confidence = np.minimum(probabilities.max(axis=1), 1.0)
        bins = calibration.reliability(confidence, right)
        error = calibration.expected_calibration_error(bins)
        return Judged(1.0 - float(right.mean()), error)

    return judge


def analogies(nets: Nets, params: Params, x: Array) -> list[np.ndarray]:
    """Some x [R, 1, *X], and E[x | z, y] [R, C, *X] of every class at each one's z.

    That is the mean of q(z | x, y) at the class that the classifier takes x for.
    """
    x = x[batches.at_equal_distances(len(x), min(NUM_SHOWN, len(x)))]
    classes = jnp.eye(nets.num_classes)

    def of_row(x: Array) -> Array:
        log_q = semi_supervised.log_classes(nets.classifier, params, x)
        recognition = nets.at(classes[log_q.argmax()]).recognition
        assert recognition.moments is not None
        z, _ = recognition.moments(params, recognition.encode(params, x))
        each = jax.vmap(lambda c: nets.at(c).generative.mean_observation(params, z))
        return each(classes)

    of_rows = compilation.program(jax.vmap(of_row))
    return [np.asarray(x)[:, None], np.asarray(of_rows(x))]


class Row(NamedTuple):
    """A method over the draws of the labels, in percent."""

    name: str
    percent: np.ndarray


COLUMNS = [
    Column("wrong test rows, %", lambda row: row.name, width=31),
    Column("mean", lambda row: row.percent.mean(), ".2f", 8),
    Column(
        "std", lambda row: row.percent.std(ddof=min(1, len(row.percent) - 1)), ".2f", 8
    ),
    Column("least", lambda row: row.percent.min(), ".2f", 8),
    Column("most", lambda row: row.percent.max(), ".2f", 8),
]


if __name__ == "__main__":
    cli.run(Config, main)
