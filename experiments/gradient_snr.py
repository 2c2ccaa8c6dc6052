r"""Signal-to-noise ratio of the K-sample bound's gradients, against K.

    python -m experiments.gradient_snr
    python -m experiments.gradient_snr --setting=data_set --std=0.01 --num_draws=400

Rainforth et al. 2018 (arXiv:1802.04537) on their toy: z ~ N(mu, I), x | z ~ N(z, I),
q(z | x) = N(A x + b, 2/3 I) in D = 20, whose optimum is known: mu is the mean of x,
A = I / 2, b = mu / 2. At mu and b perturbed from it the slope of log SNR against log K
is -1/2 for the encoder's b and +1/2 for the decoder's mu under IWAE. Prints fitted
slopes with their standard errors beside theory; writes snr.json and snr.png.

`--setting=one` takes the gradient at one x, `data_set` its mean over all x, as the
paper does. The squared SNR is corrected for the noise of its own mean, which near the
optimum is most of it: (mean^2 - variance / n) / variance, averaged over dimensions.
"""

import dataclasses
import time
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from experiments import cli, reports
from vae_jax import likelihoods, posteriors
from vae_jax.estimators import importance
from vae_jax.plots import curves, files
from vae_jax.types import Generative, Objective, Params, PRNGKey, Recognition, Scalar

VARIANCE = 2.0 / 3.0  # of q
GROUPS = 20  # of draws, whose spread gives the standard errors
ROWS = 40_000  # samples of z side by side
ESTIMATORS = {
    "iwae": importance.iwae,
    "dreg": importance.dreg,
    "stick_the_landing": importance.stick_the_landing,
}
THEORY = {("iwae", "encoder"): -0.5, ("iwae", "decoder"): 0.5}


@dataclasses.dataclass(frozen=True)
class Config:
    """One experiment; every field is a flag."""

    workdir: str = cli.flag("runs/gradient_snr", "Where the results are written.")
    setting: str = cli.flag(
        "one", "Gradients at one x or their mean over all.", choices=("one", "data_set")
    )
    num_latents: int = cli.flag(20, "D.")
    num_data: int = cli.flag(1024, "Rows x, N.")
    std: float = cli.flag(0.1, "Of the perturbation of mu and b.")
    num_samples: tuple[int, ...] = cli.flag((4, 16, 64, 256), "Values of K.")
    num_draws: int = cli.flag(20_000, "Gradients for each K.")
    seed: int = cli.flag(0, "Seed of the data, the perturbation and the noise.")

    def __post_init__(self) -> None:
        """Refuses numbers that give no slope.

        Raises:
            ValueError: naming the flag and its value.
        """
        if len(set(self.num_samples)) < 2 or min(self.num_samples) < 1:
            raise ValueError(
                f"--num_samples must hold two positive sizes, got {self.num_samples}"
            )
        if self.num_draws < 2 * GROUPS:
            raise ValueError(
                f"--num_draws must be {2 * GROUPS} or more, got {self.num_draws}"
            )
        for name in ("num_latents", "num_data"):
            if getattr(self, name) < 1:
                value = getattr(self, name)
                raise ValueError(f"--{name} must be positive, got {value}")
        if not self.std > 0.0:
            raise ValueError(f"--std must be positive, got {self.std}")


class Toy(NamedTuple):
    """The records, perturbed parameters and data."""

    generative: Generative
    recognition: Recognition
    params: Params
    x: Float[Array, "N D"]


def toy(key: PRNGKey, config: Config) -> Toy:
    """The model near its optimum, on data drawn from N(mu_0, 2 I)."""
    size, log_std = config.num_latents, 0.5 * np.log(VARIANCE)

    def log_prior(params: Params, z: Array) -> Scalar:
        return likelihoods.normal_terms(params.generative, jnp.zeros_like(z), z).sum()

    def encode(params: Params, x: Array) -> Array:
        mean = 0.5 * x + params.recognition
        return jnp.concatenate([mean, jnp.full_like(mean, log_std)])

    q = posteriors.diag_normal(size)
    generative = Generative(
        init=lambda key: jnp.zeros(size),
        sample_prior=lambda key, params: (
            params.generative + jax.random.normal(key, (size,))
        ),
        log_prior=log_prior,
        log_likelihood_terms=lambda params, x, z: likelihoods.normal_terms(
            z, jnp.zeros_like(z), x
        ),
        sample_observation=lambda key, params, z: z + jax.random.normal(key, (size,)),
        mean_observation=lambda params, z: z,
    )
    recognition = Recognition(
        init=lambda key: jnp.zeros(size),
        encode=encode,
        sample=lambda key, params, h: q.sample(key, (), h),
        log_prob=lambda params, h, z: q.log_prob((), h, z),
    )
    key_mu, key_x, key_decoder, key_encoder = jax.random.split(key, 4)
    mu = jax.random.normal(key_mu, (size,))
    x = mu[None] + np.sqrt(2.0) * jax.random.normal(key_x, (config.num_data, size))
    best = x.mean(0)
    params = Params(
        best + config.std * jax.random.normal(key_decoder, (size,)),
        0.5 * best + config.std * jax.random.normal(key_encoder, (size,)),
    )
    return Toy(generative, recognition, params, x)


class Moments(NamedTuple):
    """Sums of gradients and of their squares, for each group of draws."""

    total: Params  # [G, D]
    squares: Params  # [G, D]
    num_draws: int  # of each group


def moments(key: PRNGKey, toy: Toy, objective: Objective, config: Config) -> Moments:
    """Draws the gradients of one K."""
    num_x = config.num_data if config.setting == "data_set" else 1
    num_draws = config.num_draws // GROUPS
    gradient = jax.grad(objective, argnums=1)

    def draw(key: PRNGKey) -> Params:
        keys = jax.random.split(key, num_x)
        each = jax.vmap(gradient, in_axes=(0, None, 0))(keys, toy.params, toy.x[:num_x])
        return jax.tree.map(lambda g: g.mean(0), each)

    def group(key: PRNGKey) -> tuple[Params, Params]:
        grads = jax.lax.map(
            draw, jax.random.split(key, num_draws), batch_size=_side_by_side(num_x)
        )
        return (
            jax.tree.map(lambda g: g.sum(0), grads),
            jax.tree.map(lambda g: (g**2).sum(0), grads),
        )

    total, squares = jax.jit(lambda key: jax.lax.map(group, key))(
        jax.random.split(key, GROUPS)
    )
    return Moments(total, squares, num_draws)


def _side_by_side(num_x: int) -> int:
    return max(1, ROWS // (256 * num_x))


def log_snr(total: np.ndarray, squares: np.ndarray, count: int) -> float:
    """log SNR of [D] sums over count draws, corrected for the noise of the mean.

    NaN where the noise leaves no signal.
    """
    mean = total / count
    variance = (squares / count - mean**2) * count / (count - 1)
    squared = np.mean((mean**2 - variance / count) / variance)
    return float(0.5 * np.log(squared)) if squared > 0.0 else float("nan")


def slope(drawn: list[Moments], part: str, num_samples: tuple[int, ...]) -> dict:
    """The fitted slope of log SNR against log K, its jackknife error and the points."""
    sums = [
        tuple(
            np.asarray(getattr(m, part), np.float64) for m in (one.total, one.squares)
        )
        for one in drawn
    ]
    count = drawn[0].num_draws

    def fit(kept: np.ndarray) -> tuple[float, list[float]]:
        points = [
            log_snr(total[kept].sum(0), squares[kept].sum(0), count * kept.sum())
            for total, squares in sums
        ]
        return float(np.polyfit(np.log(num_samples), points, 1)[0]), points

    every = np.ones(GROUPS, bool)
    fitted, points = fit(every)
    without = np.array([fit(np.arange(GROUPS) != g)[0] for g in range(GROUPS)])
    error = np.sqrt((GROUPS - 1) / GROUPS * ((without - without.mean()) ** 2).sum())
    return {
        "slope": fitted,
        "standard_error": float(error),
        "snr": np.exp(points).tolist(),
    }


def run(config: Config) -> dict[str, Any]:
    """Slopes of every estimator, for the encoder's b and the decoder's mu."""
    key_toy, key_draws = jax.random.split(jax.random.key(config.seed))
    model = toy(key_toy, config)
    pair, result = (model.generative, model.recognition), {}
    for i, (name, build) in enumerate(ESTIMATORS.items()):
        drawn = [
            moments(
                jax.random.fold_in(jax.random.fold_in(key_draws, i), k),
                model,
                build(*pair, num_samples=k),
                config,
            )
            for k in config.num_samples
        ]
        result[name] = {
            "encoder": slope(drawn, "recognition", config.num_samples),
            "decoder": slope(drawn, "generative", config.num_samples),
        }
    return result


def main(config: Config) -> int:
    """Measures, prints, writes and draws."""
    folder, started = reports.claim(config.workdir), time.monotonic()
    result = run(config)
    print(f"{'log SNR against log K':<28}{'slope':>8}{'s.e.':>8}{'theory':>8}")
    for name, parts in result.items():
        for part, fitted in parts.items():
            theory = THEORY.get((name, part))
            print(
                f"{name + ', ' + part:<28}{fitted['slope']:8.3f}"
                f"{fitted['standard_error']:8.3f}"
                f"{'' if theory is None else theory:>8}"
            )
    seconds = time.monotonic() - started
    panels = {
        part: {
            name: (config.num_samples, parts[part]["snr"])
            for name, parts in result.items()
        }
        for part in ("encoder", "decoder")
    }
    figure = curves.series(panels, x_label="K", y_label="SNR", log="xy")
    with cli.user_errors():
        files.save(figure, folder / "snr.png")
    print(f"{seconds:.0f} s")
    reports.write(folder / "snr.json", config, {"slopes": result, "seconds": seconds})
    return 0


if __name__ == "__main__":
    cli.run(Config, main)
