r"""EM for Gaussian mixtures: the bound between two values of log p(x), and clustering.

    python -m experiments.em
    python -m experiments.em --flagfile=experiments/flags/em/full.flags

Fits a mixture by whole-data EM from one k-means++ start, with scikit-learn's
`GaussianMixture` from the same start beside it (which adds 1e-6 to each variance, so
ours does too for that comparison), then mixtures of 1, 2, ... components from several
starts. `--dataset=clusters` draws 2-D data from a mixture by ancestral sampling;
`digits` projects scikit-learn's digits onto their principal components.

Prints log p(x) by iteration with the bounds around it, log p(x) against K on train and
test rows, how far the components agree with the labels (accuracy after the best
matching, normalized mutual information, adjusted Rand index), and the share of the
variance that z explains, 1 - E[Var(x|z)] / Var(x). Writes em.json and the pictures
sandwich.png, components.png, responsibilities.png (its first two features) and
densities.png: p(x) of the lecture's sigmoid-affine decoder, of a tanh decoder and of a
mixture fitted to the first two features, in the unit square.

All in float64.
"""

import dataclasses
import warnings
from collections.abc import Iterator
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from sklearn import decomposition, mixture

from experiments.command import cli, report
from experiments.em import densities
from experiments.measures import mixtures
from vae_jax import compilation, numerics
from vae_jax.data import sources
from vae_jax.evaluation import clustering
from vae_jax.latent_models import gmm, gmm_scales
from vae_jax.plots import curves
from vae_jax.plots import mixtures as mixture_plots
from vae_jax.training import loop
from vae_jax.types import Batch, Params, PyTree, sample_joint

ADDED = 1e-6  # scikit-learn's reg_covar
SHOWN = (0, 1, 3, 10)  # iterations that are printed and drawn, and the last
EARLY = 10  # iterations of the sandwich's first panel
ITERATIONS = (
    report.field("iteration", "iteration"),
    report.field("log p(x)", "log_p", ".6f", 13),
    report.field("bound after M", "bound_after_m_step", ".6f", 15),
)
COMPONENTS = (
    report.field("K", "num_components", width=6),
    report.field("train log p(x)", "train", ".4f", 16),
    report.field("test log p(x)", "test", ".4f", 16),
)


@dataclasses.dataclass(frozen=True)
class Config(cli.Flags):
    """One experiment; every field is a flag."""

    workdir: str = cli.flag("runs/em", "Where the results are written.")
    dataset: str = cli.flag("clusters", "Data.", choices=("clusters", "digits"))
    num_rows: int = cli.flag(600, "Rows of clusters, and of their test.", least=1)
    num_features: int = cli.flag(
        10, "Principal components of digits, 2 to 64.", least=2, most=64
    )
    num_components: int = cli.flag(4, "Components of the mixture, K.", least=1)
    covariance: str = cli.flag("full", "Its type.", choices=gmm_scales.COVARIANCES)
    min_variance: float = cli.flag(1e-6, "Least eigenvalue of a covariance.", above=0)
    num_steps: int = cli.flag(100, "Iterations from the one start.", least=1)
    max_components: int = cli.flag(8, "Last K of log p(x) against K; 0: none.", least=0)
    num_starts: int = cli.flag(5, "Starts for each K.", least=1)
    decoder_steps: int = cli.flag(1000, "Steps of Adam, decoders; 0: none.", least=0)
    seed: int = cli.flag(0, "Seed of the data and the starts.", least=0)


class SameStart(NamedTuple):
    """log p(x) in nats per row from one start, by scikit-learn and by `gmm.em`."""

    scikit_learn: float
    ours: float


class Components(NamedTuple):
    """log p(x) in nats per row of a mixture of so many components."""

    num_components: int
    train: float
    test: float


class Data(NamedTuple):
    """Rows to fit and to test on, and the labels of the former."""

    train: np.ndarray
    test: np.ndarray
    labels: np.ndarray


def load(config: Config) -> Data:
    """Clusters in the plane, or digits on their principal components."""
    if config.dataset == "clusters":
        return _clusters(config)
    source = sources.load("digits")
    train, test = (
        np.asarray(rows, float).reshape(len(rows), -1) / source.divisor
        for rows in (source.train, source.test)
    )
    projection = decomposition.PCA(config.num_features).fit(train)
    return Data(
        projection.transform(train),
        projection.transform(test),
        np.asarray(source.labels["train"]),
    )


def _clusters(config: Config) -> Data:
    """Ancestral samples of four overlapping normals, z first and then x."""
    packed = [[0.5, 0.5, 0.4], [0.9, -0.3, 0.3], [0.4, 0.3, 0.8], [1.0, 0.0, 0.25]]
    unpack = jax.vmap(partial(numerics.unpack_tril, size=2))
    theta = {
        "logits": jnp.log(jnp.array([0.2, 0.3, 0.3, 0.2])),
        "mean": jnp.array([[-2.0, 0.0], [0.0, 1.5], [2.2, -0.5], [0.3, -1.6]]),
        "scale_tril": unpack(jnp.array(packed)),
    }
    model, params = gmm.generative(4, 2), Params(theta, ())

    num = config.num_rows
    keys = jax.random.split(jax.random.key(config.seed), 2 * num)
    draw = compilation.program(jax.vmap(lambda key: sample_joint(key, model, params)))
    z, x = map(np.asarray, draw(keys))
    labels = z.reshape(len(z), -1).argmax(axis=1)
    return Data(x[:num], x[num:], labels[:num])


def iterate(
    config: Config, start: Params, x: np.ndarray, *, added_variance: float = 0.0
) -> loop.Trajectory:
    """num_steps iterations of whole-data EM."""
    algorithm = gmm.em(min_variance=config.min_variance, added_variance=added_variance)
    run = compilation.program(loop.trajectory(algorithm, num_steps=config.num_steps))
    batch = Batch(jnp.asarray(x), jnp.arange(len(x)), jnp.ones(len(x)))
    return run(jax.random.key(0), start, batch)  # EM draws nothing


def mean_log_p(params: Params, x: np.ndarray) -> float:
    """Nats per row."""
    log_p = compilation.program(jax.vmap(gmm.log_evidence, (None, 0)))
    return float(log_p(params, jnp.asarray(x)).mean())


def peer(config: Config, start: Params, x: np.ndarray) -> SameStart:
    """log p(x) of scikit-learn and of ours, each after its last iteration."""
    precisions = np.linalg.inv(gmm_scales.covariances(start.generative))
    precisions_init = {
        "full": precisions,
        "tied": precisions[0],
        "diag": np.diagonal(precisions, axis1=1, axis2=2),
        "spherical": precisions[:, 0, 0],
    }
    shares = np.asarray(jax.nn.softmax(start.generative["logits"]))
    fitted = mixture.GaussianMixture(
        config.num_components,
        covariance_type=config.covariance,  # pyright: ignore[reportArgumentType]
        reg_covar=ADDED,
        tol=0.0,
        max_iter=config.num_steps,
        weights_init=shares / shares.sum(),
        means_init=np.asarray(start.generative["mean"]),
        precisions_init=precisions_init[config.covariance],
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a tolerance of zero is never met
        fitted.fit(x)
    end = iterate(config, start, x, added_variance=ADDED).end
    return SameStart(float(fitted.score(x)), mean_log_p(end.params, x))


def agreement(params: Params, x: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    """Hard clusters against labels, and the share of the variance that z explains."""
    cluster = compilation.program(jax.vmap(gmm.cluster, (None, 0)))
    explained = gmm_scales.variance_explained(params.generative)
    return {
        **clustering.agreement(labels, np.asarray(cluster(params, jnp.asarray(x)))),
        "variance_explained": float(explained),
    }


def against_k(config: Config, data: Data) -> Iterator[Components]:
    """log p(x) of train and test rows for K = 1, 2, ..., the best of several starts."""
    key = jax.random.key(config.seed + 1)
    for num_components in range(1, config.max_components + 1):
        best = mixtures.fitted(
            jax.random.fold_in(key, num_components),
            jnp.asarray(data.train),
            tolerance=1e-6,
            num_components=num_components,
            num_starts=config.num_starts,
            covariance=config.covariance,
            min_variance=config.min_variance,
        )
        log_ps = (mean_log_p(best, x) for x in (data.train, data.test))
        yield Components(num_components, *log_ps)


def sandwich(info: PyTree) -> Any:
    """log p(x) at whole iterations, and the bound before and after each M-step."""
    steps = np.arange(len(info.log_p))
    bounds = np.stack([info.bound_after_e_step, info.bound_after_m_step], 1)
    lines = {
        "log p(x)": (steps, np.asarray(info.log_p)),
        "bound: E-step, M-step": ((steps[:, None] + [0, 1]).ravel(), bounds.ravel()),
    }

    def panel(first: int, last: float, less: float = 0.0) -> dict[str, tuple]:
        return {
            name: (times[inside], values[inside] - less)
            for name, (times, values) in lines.items()
            for inside in [(first <= times) & (times <= last)]
        }

    panels, last = {"first iterations": panel(0, EARLY)}, float(info.log_p[-1])
    if len(steps) > EARLY:
        panels["later, less the last log p(x)"] = panel(EARLY, np.inf, last)
    return curves.series(panels, x_label="iteration", y_label="nats per row")


def responsibilities(iterations: list[int], params: PyTree, x: np.ndarray) -> Any:
    """Responsibilities, means and covariances of some iterations."""
    frames = {}
    for t in iterations:
        now = jax.tree.map(lambda leaf, t=t: leaf[t], params)
        mean = np.asarray(now.generative["mean"])
        encode = jax.vmap(gmm.recognition(len(mean)).encode, (None, 0))
        shares = np.exp(compilation.program(encode)(now, jnp.asarray(x)))
        sigma = np.asarray(gmm_scales.covariances(now.generative))
        frames[f"iteration {t}"] = shares, mean[:, :2], sigma[:, :2, :2]
    return mixture_plots.responsibilities(x[:, :2], frames)


def measure(
    config: Config, data: Data, start: Params
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Every number, each printed as soon as it is known, and every picture by name."""
    states, info, end = iterate(config, start, data.train)
    bounds = ("log_p", "bound_after_e_step", "bound_after_m_step")
    result: dict[str, Any] = {
        **{name: np.asarray(getattr(info, name)).tolist() for name in bounds},
        "num_at_floor": int(info.num_at_floor[-1]),
        "num_collapsed": int(info.num_collapsed[-1]),
        "clusters": agreement(end.params, data.train, data.labels),
        "same_start": peer(config, start, data.train),
    }
    last = config.num_steps - 1
    iterations = sorted({t for t in SHOWN if t < last} | {last})
    rows = [{"iteration": t, **{n: result[n][t] for n in bounds}} for t in iterations]
    print(report.table(ITERATIONS, rows))
    print("\n".join(report.numbers(result["clusters"])))
    scikit_learn, ours = result["same_start"]
    print(
        f"from one start: scikit-learn {scikit_learn:.6f}, ours {ours:.6f} nats per row"
    )
    pictures = {
        "sandwich": sandwich(info),
        "responsibilities": responsibilities(iterations, states.params, data.train),
    }
    if config.max_components:
        rows = report.printed(COMPONENTS, against_k(config, data))
        by_k = result["against_k"] = report.by_name(rows)
        lines = {s: (by_k["num_components"], by_k[s]) for s in ("train", "test")}
        pictures["components"] = curves.series(
            {config.dataset: lines}, x_label="K", y_label="log p(x), nats per row"
        )
    if config.decoder_steps:
        pictures["densities"], result["densities"] = densities.compare(
            data.train[:, :2],
            num_components=config.num_components,
            num_steps=config.decoder_steps,
            seed=config.seed,
        )
        print("log p(x) in the unit square:")
        print("\n".join(report.numbers(result["densities"])))
    return result, pictures


def main(config: Config) -> int:
    """Fits, compares, prints, draws and writes."""
    folder = report.claim(config.workdir)
    with jax.enable_x64(True):
        with cli.user_errors():
            data = load(config)
            start = gmm.start(
                jax.random.key(config.seed),
                jnp.asarray(data.train),
                num_components=config.num_components,
                covariance=config.covariance,
                min_variance=config.min_variance,
            )
            if config.max_components > len(data.train):
                raise ValueError(
                    f"--max_components={config.max_components} is more than the "
                    f"{len(data.train)} training rows"
                )
        result, pictures = measure(config, data, start)
    report.write(folder / "em.json", config, result, pictures)
    return 0
