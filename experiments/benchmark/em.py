r"""An iteration of EM for Gaussian mixtures against scikit-learn's, in one run.

    python -m experiments.benchmark.em
    python -m experiments.benchmark.em --num_rows=10000 --num_features=64 \
        --num_components=16

Full covariances, whole-data EM with all that `gmm.em` reports, in float32 and float64,
and scikit-learn's `GaussianMixture` in float64, from the same parameters. Ours runs
`--num_steps` iterations in one compiled scan. scikit-learn's are its own E-step and
M-step (`_e_step` and `_m_step`, which `fit` alternates) without what `fit` does around
them, so that its time is the smallest it has. Rounds are interleaved, and the ratios
are of the same round. Rows are of as many normal clusters as there are components: an
iteration costs the same on any.
"""

import dataclasses
import warnings
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from sklearn import mixture

from experiments.benchmark import rounds
from experiments.command import cli
from vae_jax import compilation
from vae_jax.latent_models import gmm
from vae_jax.types import Batch, Params, PyTree

FLOOR = 1e-6
PEER = "scikit-learn float64"


@dataclasses.dataclass(frozen=True)
class Config(rounds.Flags):
    """One benchmark; every field is a flag."""

    num_rows: int = cli.flag(50_000, "Rows of data, N.", least=1)
    num_features: int = cli.flag(32, "Features, D.", least=1)
    num_components: int = cli.flag(10, "Components, K.", least=1)
    block_size: int = cli.flag(1000, "Rows that gmm.em holds at once.", least=1)
    num_steps: int = cli.flag(10, "Iterations per round.", least=1)
    num_rounds: int = cli.flag(7, "Interleaved rounds.", least=1)


def main(config: Config) -> int:
    """Measures, prints and writes."""
    x, start = problem(config)
    runs = {
        PEER: scikit_learns(config, x, start),
        "gmm.em float64": ours(config, x, start, np.float64),
        "gmm.em float32": ours(config, x, start, np.float32),
    }
    race = rounds.Race(rounds.interleaved(runs, num_rounds=config.num_rounds))
    of_ours = [race.ratios(name, [PEER]) for name in runs]
    ratios = {name: ratio for table in of_ours for name, ratio in table.items()}
    config.write(race.show(ratios, scale=1e3, unit="ms"))
    return 0


def problem(config: Config) -> tuple[np.ndarray, Params]:
    """Unit clusters about means of standard deviation 2 [N, D]; where all start."""
    generator, k = np.random.default_rng(0), config.num_components
    means = 2.0 * generator.normal(size=(k, config.num_features))
    labels = generator.integers(0, k, config.num_rows)
    x = means[labels] + generator.normal(size=(config.num_rows, config.num_features))
    with jax.enable_x64(True):
        return x, gmm.start(jax.random.key(1), jnp.asarray(x), num_components=k)


def ours(
    config: Config, x: np.ndarray, start: Params, dtype: type
) -> Callable[[], float]:
    """A function that runs num_steps iterations and returns the seconds of one."""
    algorithm = gmm.em(min_variance=FLOOR, block_size=config.block_size)

    def run_steps(params: Params, batch: Batch) -> PyTree:
        key = jax.random.key(0)  # EM draws nothing

        def step(state: PyTree, _: None) -> tuple[PyTree, PyTree]:
            return algorithm.step(key, state, batch)

        return jax.lax.scan(step, algorithm.init(key, params), length=config.num_steps)

    with jax.enable_x64(dtype is np.float64):
        params = jax.tree.map(lambda leaf: jnp.asarray(leaf, dtype), start)
        rows = jnp.arange(len(x))
        batch = Batch(jnp.asarray(x, dtype), rows, jnp.ones(len(x), dtype))
        compiled = compilation.whole(run_steps).lower(params, batch).compile()

    def work() -> None:
        _, info = jax.block_until_ready(compiled(params, batch))
        if not np.isfinite(info.log_p).all():
            raise FloatingPointError(f"log p(x) is not finite in {dtype.__name__}")

    return rounds.timed(work, config.num_steps)


def scikit_learns(config: Config, x: np.ndarray, start: Params) -> Callable[[], float]:
    """As `ours`, of scikit-learn's steps."""
    theta = jax.device_get(start.generative)
    inverses = np.linalg.inv(theta["scale_tril"])
    shares = np.exp(theta["logits"] - np.logaddexp.reduce(theta["logits"]))
    fitted = mixture.GaussianMixture(
        config.num_components,
        reg_covar=FLOOR,
        weights_init=shares / shares.sum(),
        means_init=theta["mean"],
        precisions_init=inverses.swapaxes(1, 2) @ inverses,
        max_iter=1,
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # one iteration does not converge
        fitted.fit(x)

    def work() -> None:
        for _ in range(config.num_steps):
            _, log_resp = fitted._e_step(x)
            fitted._m_step(x, log_resp)

    return rounds.timed(work, config.num_steps)


if __name__ == "__main__":
    cli.run(Config, main)
