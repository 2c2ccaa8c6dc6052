r"""Fills the holes of small tables, beside scikit-learn's imputers.

    python -m experiments.imputation --tables=wine --fractions=0.5

Of a table of real columns a share of all cells is removed at random, anew for each of
--num_seeds; a VAE that is trained on the observed cells alone (the importance-weighted
bound of Mattei & Frellsen 2019, arXiv:1812.02633) fills them with the means of its
completions, and its draws give 90% intervals. Beside it, of the same cells: the
columns' means, the five nearest neighbors and the iterative imputer, whose intervals
are of imputations drawn by Bayesian ridge regressions; neighbors give none. All are
scored on the removed cells alone, in units of each column's observed standard
deviation. Models of all seeds train side by side. Writes imputation.json and .txt.
"""

import dataclasses
import warnings
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float
from scipy import stats
from sklearn import datasets, exceptions, impute
from sklearn.experimental import enable_iterative_imputer

from experiments.command import cli, report
from vae_jax import compilation, networks, posteriors, priors, tables, vae
from vae_jax.estimators import missing_data
from vae_jax.evaluation import calibration, completion
from vae_jax.training import gradient, loop
from vae_jax.types import Algorithm, Batch, Model, Params, PRNGKey, per_row

del enable_iterative_imputer  # importing it is what makes the imputer available
TABLES: Mapping[str, Callable[..., Any]] = {
    "iris": datasets.load_iris,
    "wine": datasets.load_wine,
    "diabetes": datasets.load_diabetes,
    "breast_cancer": datasets.load_breast_cancer,
}
FAMILIES = ("normal", "student_t")
NOMINAL = 0.9
NEIGHBORS = 5
NUM_IMPUTATIONS = 5  # of the iterative imputer, for its intervals
NUM_DRAWS = 200  # of the VAE's


@dataclasses.dataclass(frozen=True)
class Config(cli.Flags):
    """One comparison; every field is a flag."""

    workdir: str = cli.flag("runs/imputation", "Where the results are written.")
    tables: tuple[str, ...] = cli.flag(
        tuple(TABLES), "Tables of scikit-learn.", choices=TABLES
    )
    fractions: tuple[float, ...] = cli.flag(
        (0.2, 0.5), "Shares of the cells that are removed.", above=0, below=1
    )
    num_seeds: int = cli.flag(5, "Removals of each share, --seed and on.", least=2)
    family: str = cli.flag("normal", "Of every column, given z.", choices=FAMILIES)
    num_latents: int = cli.flag(10, "Latent dimensions.", least=1)
    hidden: tuple[int, ...] = cli.flag((64,), "Units of hidden layers.", least=1)
    num_samples: int = cli.flag(20, "Samples of the bound, K.", least=1)
    num_epochs: int = cli.flag(300, "Passes over the rows.", least=1)
    batch_size: int = cli.flag(32, "Rows a step.", least=1)
    learning_rate: float = cli.flag(1e-3, "Of Adam.", above=0)
    importance_samples: int = cli.flag(1000, "Samples of a completion.", least=1)
    seed: int = cli.flag(0, "Of the first removal, the weights and the noise.", least=0)


class Holes(NamedTuple):
    """A table in units of its observed cells, and which cells are removed."""

    x: Float[np.ndarray, "N D"]
    hidden: Bool[np.ndarray, "N D"]

    @property
    def partial(self) -> Float[np.ndarray, "N D"]:
        """The table with NaN where cells are removed."""
        return np.where(self.hidden, np.nan, self.x)


class Filled(NamedTuple):
    """A value for every cell, and the ends of its interval, where it has one."""

    value: Float[np.ndarray, "N D"]
    ends: tuple[np.ndarray, np.ndarray] | None


def removed(x: Float[np.ndarray, "N D"], *, fraction: float, seed: int) -> Holes:
    """The table without a share of its cells, each as likely as any other."""
    generator = np.random.default_rng(seed)
    hidden = generator.permutation(x.size).reshape(x.shape) < round(fraction * x.size)
    seen = np.where(hidden, np.nan, x)
    return Holes((x - np.nanmean(seen, 0)) / np.nanstd(seen, 0), hidden)


def by_mean(holes: Holes, seed: int) -> Filled:
    """Zero, as columns are standardized, between the quantiles of a normal."""
    del seed
    zero, half = np.zeros(holes.x.shape), stats.norm.ppf(0.5 + 0.5 * NOMINAL)
    return Filled(zero, (zero - half, zero + half))


def by_neighbors(holes: Holes, seed: int) -> Filled:
    """The mean of the nearest rows."""
    del seed
    imputer = impute.KNNImputer(n_neighbors=NEIGHBORS)
    return Filled(np.asarray(imputer.fit_transform(holes.partial)), None)


def by_regressions(holes: Holes, seed: int) -> Filled:
    """scikit-learn's iterative imputer, and intervals by a few that draw."""

    def imputed(random_state: int, *, sample: bool) -> np.ndarray:
        imputer = impute.IterativeImputer(
            random_state=random_state, sample_posterior=sample
        )
        return np.asarray(imputer.fit_transform(holes.partial))

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", exceptions.ConvergenceWarning)
        value = imputed(seed, sample=False)
        states = [seed + 1000 * (i + 1) for i in range(NUM_IMPUTATIONS)]
        draws = np.stack([imputed(state, sample=True) for state in states])
    # Of one more draw of the same normal, whose variance so few draws leave uncertain.
    quantile = stats.t.ppf(0.5 + 0.5 * NOMINAL, NUM_IMPUTATIONS - 1)
    half = quantile * np.sqrt(1.0 + 1.0 / NUM_IMPUTATIONS) * draws.std(axis=0, ddof=1)
    return Filled(value, (draws.mean(axis=0) - half, draws.mean(axis=0) + half))


METHODS = {
    "mean": by_mean,
    f"{NEIGHBORS} neighbors": by_neighbors,
    "iterative": by_regressions,
}


def model(config: Config, num_columns: int) -> Model:
    """The VAE of standardized columns with holes."""
    columns = [tables.Column(config.family, (0.0, 1.0))] * num_columns
    observed = tables.likelihood(columns, min_std=0.05, degrees=4.0)
    q = posteriors.diag_normal(config.num_latents)
    decoder = networks.mlp(config.num_latents, config.hidden[::-1], observed.width)
    encoder = networks.mlp(num_columns, config.hidden, q.width)
    joint = vae.decoder_model(
        decoder, priors.standard_normal(config.num_latents), observed
    )
    return vae.masked(vae.model(joint, vae.encoder_model(encoder, q)))


def by_vae(config: Config, many: list[Holes]) -> list[Filled]:
    """Of each table by a VAE of its own; all of them are trained side by side."""
    partial = jnp.asarray(np.stack([holes.partial for holes in many]), jnp.float32)
    num_rows, num_columns = partial.shape[1:]
    of_table = model(config, num_columns)
    size = min(config.batch_size, num_rows)

    def build(settings: Any) -> Algorithm:
        bound = missing_data.importance_bound(of_table, num_samples=config.num_samples)

        def of_row(key: PRNGKey, params: Params, x: Array, row: Array) -> Array:
            return bound(key, params, settings["x"][row])

        return gradient.ascent(per_row(of_row), gradient.adam(config.learning_rate))

    def take(key: PRNGKey, rows: Array, index: Array) -> Batch:
        del key
        return Batch(rows[index], index, jnp.ones(size))

    def start(key: PRNGKey, x: Array) -> loop.RunState:
        key_init, key_start = jax.random.split(key)
        return loop.start(key_start, build({"x": x}), of_table.init(key_init))

    key_start, key_fill = jax.random.split(jax.random.key(config.seed))
    start_all = compilation.program(jax.vmap(start))
    states = start_all(jax.random.split(key_start, len(many)), partial)
    generator = np.random.default_rng(config.seed)
    steps = config.num_epochs * (num_rows // size)
    orders = [
        np.concatenate(
            [
                generator.permutation(num_rows)[: num_rows // size * size]
                for _ in range(config.num_epochs)
            ]
        ).reshape(steps, size)
        for _ in many
    ]
    run = loop.scan_together(build, take)
    states, _ = run({"x": partial}, states, partial[0], jnp.asarray(np.stack(orders)))
    return _completed(config, of_table, key_fill, states.inner.params, partial)


def _completed(
    config: Config, of_table: Model, key: PRNGKey, params: Params, partial: Array
) -> list[Filled]:
    complete = completion.importance(
        of_table,
        num_samples=config.importance_samples,
        num_draws=NUM_DRAWS,
        chunk_size=config.importance_samples,
    )

    @compilation.program
    def of_rows(key: PRNGKey, params: Params, rows: Array) -> tuple[Array, Array]:
        def of_row(row: tuple[PRNGKey, Array]) -> tuple[Array, Array]:
            draws = complete(row[0], params, row[1])
            return draws.mean, draws.x

        return jax.lax.map(of_row, (jax.random.split(key, len(rows)), rows))

    filled = []
    for i, rows in enumerate(partial):
        of_one = jax.tree.map(lambda leaf, i=i: leaf[i], params)
        mean, draws = of_rows(jax.random.fold_in(key, i), of_one, rows)
        by_draw = np.asarray(draws).swapaxes(0, 1)
        ends = calibration.intervals(by_draw, nominal=NOMINAL)
        filled.append(Filled(np.asarray(mean), ends))
    return filled


class Score(NamedTuple):
    """Of a method over the seeds: error and share of cells inside their intervals."""

    table: str
    fraction: float
    method: str
    error: list[float]
    coverage: list[float] | None


def score(
    table: str, fraction: float, method: str, many: list[Holes], filled: list[Filled]
) -> Score:
    """The root mean squared error and the coverage of the removed cells alone."""
    errors, coverages = [], []
    for (x, hidden), (value, ends) in zip(many, filled, strict=True):
        errors.append(float(np.sqrt(((value - x)[hidden] ** 2).mean())))
        if ends is not None:
            inside = (ends[0] <= x) & (x <= ends[1])
            coverages.append(float(inside[hidden].mean()))
    return Score(table, fraction, method, errors, coverages or None)


def _of_coverage(row: Score, of: Callable[[Any], Any]) -> float | None:
    return None if row.coverage is None else float(of(row.coverage))


COLUMNS = [
    report.Column("table", lambda row: row.table, width=14),
    report.Column("removed", lambda row: row.fraction, ".0%", 8),
    report.Column("method", lambda row: row.method, width=12),
    report.Column("error", lambda row: np.mean(row.error), ".3f", 8),
    report.Column("std", lambda row: np.std(row.error, ddof=1), ".3f", 7),
    report.Column("coverage", lambda row: _of_coverage(row, np.mean), ".3f", 9),
    report.Column(
        "std",
        lambda row: _of_coverage(row, lambda v: np.std(v, ddof=1)),
        ".3f",
        7,
    ),
]


def main(config: Config) -> int:
    """Removes, fills, scores, prints and writes."""
    folder = report.claim(config.workdir)
    scores = []
    for table in config.tables:
        x = np.asarray(TABLES[table]().data, float)
        for fraction in config.fractions:
            seeds = range(config.seed, config.seed + config.num_seeds)
            many = [removed(x, fraction=fraction, seed=seed) for seed in seeds]
            for name, fill in METHODS.items():
                filled = [fill(*pair) for pair in zip(many, seeds, strict=True)]
                scores.append(score(table, fraction, name, many, filled))
            scores.append(score(table, fraction, "VAE", many, by_vae(config, many)))
            print(f"{table}, {fraction:.0%} removed: done", flush=True)
    text = report.table(COLUMNS, scores)
    print(text)
    result = {"scores": [of_method._asdict() for of_method in scores]}
    report.write_both(folder / "imputation", config, result, text)
    return 0


if __name__ == "__main__":
    cli.run(Config, main)
