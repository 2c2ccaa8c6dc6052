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
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array
from sklearn import decomposition, mixture

from experiments import cli, em_densities, reports
from vae_jax.data import sources
from vae_jax.evaluation import clustering
from vae_jax.latent_models import gmm, gmm_scales
from vae_jax.plots import curves, files, mixtures
from vae_jax.training import loop
from vae_jax.types import Batch, Params, PyTree

ADDED = 1e-6  # scikit-learn's reg_covar
FRAMES = (0, 1, 3, 10)  # iterations of responsibilities.png, and the last


@dataclasses.dataclass(frozen=True)
class Config:
    """One experiment; every field is a flag."""

    workdir: str = cli.flag("runs/em", "Where the results are written.")
    dataset: str = cli.flag("clusters", "Data.", choices=("clusters", "digits"))
    num_rows: int = cli.flag(600, "Rows of clusters, as many again for the test.")
    num_features: int = cli.flag(10, "Principal components of digits.")
    num_components: int = cli.flag(4, "Components of the mixture, K.")
    covariance: str = cli.flag("full", "Its type.", choices=gmm_scales.COVARIANCES)
    min_variance: float = cli.flag(1e-6, "Floor of the covariances' eigenvalues.")
    num_steps: int = cli.flag(100, "Iterations from the one start.")
    max_components: int = cli.flag(8, "The last K of log p(x) against K; 0 for none.")
    num_starts: int = cli.flag(5, "Starts for each K.")
    decoder_steps: int = cli.flag(1000, "Steps of Adam for the decoders; 0 for none.")
    seed: int = cli.flag(0, "Seed of the data and the starts.")

    def __post_init__(self) -> None:
        """Refuses numbers that make no experiment.

        Raises:
            ValueError: naming the flag and its value.
        """
        for name in ("num_rows", "num_components", "num_steps", "num_starts"):
            if getattr(self, name) < 1:
                value = getattr(self, name)
                raise ValueError(f"--{name} must be positive, got {value}")
        for name in ("max_components", "decoder_steps"):
            if getattr(self, name) < 0:
                value = getattr(self, name)
                raise ValueError(f"--{name} must not be negative, got {value}")
        if not 2 <= self.num_features <= 64:
            raise ValueError(f"--num_features must be 2 to 64, got {self.num_features}")
        if not self.min_variance > 0.0:
            raise ValueError(
                f"--min_variance must be positive, got {self.min_variance}"
            )


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
    flat = {
        split: np.asarray(getattr(source, split), float).reshape(
            len(getattr(source, split)), -1
        )
        / source.divisor
        for split in ("train", "test")
    }
    projection = decomposition.PCA(config.num_features).fit(flat["train"])
    return Data(
        projection.transform(flat["train"]),
        projection.transform(flat["test"]),
        np.asarray(source.labels["train"]),
    )


def _clusters(config: Config) -> Data:
    """Ancestral samples of four overlapping normals, z first and then x."""
    mean = np.array([[-2.0, 0.0], [0.0, 1.5], [2.2, -0.5], [0.3, -1.6]])
    factor = np.array(
        [
            [[0.5, 0.0], [0.5, 0.4]],
            [[0.9, 0.0], [-0.3, 0.3]],
            [[0.4, 0.0], [0.3, 0.8]],
            [[1.0, 0.0], [0.0, 0.25]],
        ]
    )
    theta = {
        "logits": jnp.log(jnp.array([0.2, 0.3, 0.3, 0.2])),
        "mean": jnp.asarray(mean),
        "scale_tril": jnp.asarray(factor),
    }
    model, params = gmm.generative(4, 2), Params(theta, ())

    @jax.jit
    @jax.vmap
    def draw(key: Array) -> tuple[Array, Array]:
        key_z, key_x = jax.random.split(key)
        z = model.sample_prior(key_z, params)
        return model.sample_observation(key_x, params, z), jnp.argmax(z)

    keys = jax.random.split(jax.random.key(config.seed), 2 * config.num_rows)
    x, labels = map(np.asarray, draw(keys))
    return Data(x[: config.num_rows], x[config.num_rows :], labels[: config.num_rows])


def iterate(
    config: Config, start: Params, x: Array, *, added_variance: float = 0.0
) -> PyTree:
    """Parameters before each of num_steps iterations and its info, and the last."""
    algorithm = gmm.em(min_variance=config.min_variance, added_variance=added_variance)
    batch = Batch(x, jnp.arange(len(x)), jnp.ones(len(x)))
    key = jax.random.key(0)  # EM draws nothing

    def step(state: PyTree, _: None) -> tuple[PyTree, PyTree]:
        new, info = algorithm.step(key, state, batch)
        return new, (state.params, info)

    @jax.jit
    def run(start: Params) -> PyTree:
        state = algorithm.init(key, start)
        return jax.lax.scan(step, state, length=config.num_steps)

    state, (params, info) = run(start)
    return params, info, state.params


def mean_log_p(params: Params, x: Array) -> float:
    """Nats per row."""
    return float(jax.jit(jax.vmap(gmm.log_evidence, (None, 0)))(params, x).mean())


def covariances(params: Params) -> np.ndarray:
    """[K, D, D], of any type."""
    tables = jax.device_get(gmm_scales.tables(params.generative))
    num_components, num_features = tables.mean.shape
    if tables.scale.ndim == 3:
        sigma = tables.scale @ tables.scale.swapaxes(1, 2)
    else:
        sigma = np.exp(2.0 * tables.scale)[:, :, None] * np.eye(num_features)
    return np.broadcast_to(sigma, (num_components, num_features, num_features))


def peer(config: Config, start: Params, x: np.ndarray) -> dict[str, float]:
    """log p(x) of scikit-learn and of ours, each after its last iteration."""
    precisions = np.linalg.inv(covariances(start))
    taken = {
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
        precisions_init=taken[config.covariance],
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a tolerance of zero is never met
        fitted.fit(x)
    _, _, end = iterate(config, start, jnp.asarray(x), added_variance=ADDED)
    return {
        "scikit_learn": float(fitted.score(x)),
        "ours": mean_log_p(end, jnp.asarray(x)),
    }


def agreement(params: Params, x: Array, labels: np.ndarray) -> dict[str, float]:
    """Hard clusters against labels, and the share of the variance that z explains."""
    found = np.asarray(jax.jit(jax.vmap(gmm.cluster, (None, 0)))(params, x))
    shares = np.asarray(jax.nn.softmax(params.generative["logits"]))
    within = shares @ np.trace(covariances(params), axis1=1, axis2=2)
    mean = np.asarray(params.generative["mean"])
    between = shares @ ((mean - shares @ mean) ** 2).sum(1)
    return {
        **clustering.agreement(labels, found),
        "variance_explained": float(between / (between + within)),
    }


def against_k(config: Config, data: Data) -> dict[str, list[float]]:
    """log p(x) of train and test rows for K = 1, 2, ..., the best of several starts."""
    run = loop.until_converged(
        gmm.em(min_variance=config.min_variance),
        value=lambda info: info.log_p,
        tolerance=1e-6,
        max_steps=500,
    )
    key = jax.random.key(config.seed + 1)
    found = {"num_components": [], "train": [], "test": []}
    for num_components in range(1, config.max_components + 1):
        best = gmm.fit(
            jax.random.fold_in(key, num_components),
            jnp.asarray(data.train),
            num_components=num_components,
            run=run,
            num_starts=config.num_starts,
            covariance=config.covariance,
            min_variance=config.min_variance,
        )
        found["num_components"].append(num_components)
        for split in ("train", "test"):
            value = mean_log_p(best.state.params, jnp.asarray(getattr(data, split)))
            found[split].append(value)
        train, test = found["train"][-1], found["test"][-1]
        print(
            f"K = {num_components:<4}{train:12.4f} train{test:12.4f} test", flush=True
        )
    return found


def sandwich(info: PyTree) -> dict[str, tuple[list, list]]:
    """log p(x) at whole iterations, and the bound before and after each M-step."""
    steps = np.arange(len(info.log_p))
    both = np.stack([info.bound_after_e_step, info.bound_after_m_step], 1)
    times = np.stack([steps, steps + 1.0], 1)
    return {
        "log p(x)": (steps.tolist(), np.asarray(info.log_p).tolist()),
        "bound: E-step, M-step": (times.ravel().tolist(), both.ravel().tolist()),
    }


def _between(curve: dict[str, tuple], first: int, last: int) -> dict[str, tuple]:
    """The points of the curves in a range of iterations."""
    kept = {}
    for name, (times, values) in curve.items():
        inside = (np.array(times) >= first) & (np.array(times) <= last)
        kept[name] = np.array(times)[inside], np.array(values)[inside]
    return kept


def frames(config: Config, params: PyTree, x: Array) -> dict[str, tuple]:
    """Responsibilities, means and covariances of some iterations."""
    encode = gmm.recognition(config.num_components).encode
    shares = jax.jit(lambda p: jnp.exp(jax.vmap(encode, (None, 0))(p, x)))
    drawn = {}
    for t in sorted(
        {t for t in FRAMES if t < config.num_steps} | {config.num_steps - 1}
    ):
        now = jax.tree.map(lambda leaf, t=t: leaf[t], params)
        mean = np.asarray(now.generative["mean"])[:, :2]
        sigma = covariances(now)[:, :2, :2]
        drawn[f"after {t} iterations"] = np.asarray(shares(now)), mean, sigma
    return drawn


def main(config: Config) -> int:
    """Fits, compares, prints, draws and writes."""
    folder = reports.claim(config.workdir)
    with jax.enable_x64(True):
        return _main(config, folder)


def _main(config: Config, folder: Any) -> int:
    with cli.user_errors():
        data = load(config)
        x = jnp.asarray(data.train)
        start = gmm.start(
            jax.random.key(config.seed),
            x,
            num_components=config.num_components,
            covariance=config.covariance,
            min_variance=config.min_variance,
        )
        if config.max_components > len(x):
            raise ValueError(
                f"--max_components={config.max_components} is more than the {len(x)} "
                "training rows"
            )
    params, info, end = iterate(config, start, x)
    curve = sandwich(info)
    result: dict[str, Any] = {
        "log_p": curve["log p(x)"][1],
        "bound_after_e_step": np.asarray(info.bound_after_e_step).tolist(),
        "bound_after_m_step": np.asarray(info.bound_after_m_step).tolist(),
        "num_at_floor": int(info.num_at_floor[-1]),
        "num_collapsed": int(info.num_collapsed[-1]),
        "clusters": agreement(end, x, data.labels),
        "same_start": peer(config, start, data.train),
    }
    _print(config, result)
    if config.max_components:
        result["against_k"] = against_k(config, data)
    panels = {"first iterations": _between(curve, 0, 10)}
    if config.num_steps > 10:
        panels["later"] = _between(curve, 10, config.num_steps)
    pictures = {
        "sandwich.png": curves.series(
            panels, x_label="iteration", y_label="nats per row"
        ),
        "responsibilities.png": mixtures.responsibilities(
            data.train[:, :2], frames(config, params, x)
        ),
    }
    if config.max_components:
        found = result["against_k"]
        lines = {s: (found["num_components"], found[s]) for s in ("train", "test")}
        pictures["components.png"] = curves.series(
            {config.dataset: lines}, x_label="K", y_label="log p(x), nats per row"
        )
    if config.decoder_steps:
        figure, result["densities"] = em_densities.compare(
            data.train[:, :2],
            num_components=config.num_components,
            num_steps=config.decoder_steps,
            seed=config.seed,
        )
        pictures["densities.png"] = figure
        for name, value in result["densities"].items():
            print(f"log p(x) in the unit square, {name:<24}{value:10.4f}")
    with cli.user_errors():
        for name, figure in pictures.items():
            files.save(figure, folder / name)
    reports.write(folder / "em.json", config, result)
    return 0


def _print(config: Config, result: dict[str, Any]) -> None:
    rows = zip(*(result[n] for n in ("log_p", "bound_after_m_step")), strict=True)
    print(f"{'iteration':<10}{'log p(x)':>14}{'bound after M':>16}")
    for t, (log_p, after) in enumerate(rows):
        if t in FRAMES or t == config.num_steps - 1:
            print(f"{t:<10}{log_p:14.6f}{after:16.6f}")
    for name, value in result["clusters"].items():
        print(f"{name:<32}{value:8.4f}")
    same = result["same_start"]
    print(
        f"from one start: scikit-learn {same['scikit_learn']:.6f}, "
        f"ours {same['ours']:.6f} nats per row"
    )


if __name__ == "__main__":
    cli.run(Config, main)
