r"""Signal-to-noise ratio of the K-sample bound's gradients, against K.

    python -m experiments.gradient_snr
    python -m experiments.gradient_snr --setting=data_set --std=0.01 --num_draws=400
    python -m experiments.gradient_snr --estimators=dreg,gdreg,ovis

Rainforth et al. 2018 (arXiv:1802.04537) on their toy: z ~ N(mu, I), x | z ~ N(z, I),
q(z | x) = N(A x + b, 2/3 I) in D = 20, whose optimum is known: mu is the mean of x,
A = I / 2, b = mu / 2. At mu and b perturbed from it the slope of log SNR against log K
is -1/2 for the encoder's b and +1/2 for the decoder's mu under IWAE, and +1/2 for b
under OVIS (Lievin et al. 2020, arXiv:2010.15524). mu is the prior's, so that GDReG has
its own gradient for it. Prints fitted slopes with their standard errors beside theory;
writes snr.json and snr.png.

`--setting=one` takes the gradient at one x, `data_set` its mean over all x, as the
paper does. The squared SNR is corrected for the noise of its own mean, which near the
optimum is most of it: (mean^2 - variance / n) / variance, averaged over dimensions.
"""

import dataclasses
import functools
import time
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from experiments.command import cli, report
from experiments.command.report import Column, field
from vae_jax import compilation, likelihoods, posteriors, vae
from vae_jax.estimators import (
    gdreg,
    importance,
    ovis,
    score_function,
    thermodynamic,
)
from vae_jax.evaluation import gradient_noise
from vae_jax.plots import curves
from vae_jax.types import (
    ExampleObjective,
    Family,
    Model,
    Network,
    Params,
    PRNGKey,
    Transport,
    conditional,
)

VARIANCE = 2.0 / 3.0  # of q
GROUPS = 20  # of draws, whose spread gives the standard errors
ROWS = 40_000  # samples of z side by side
ESTIMATORS = {
    "iwae": importance.iwae,
    "dreg": importance.dreg,
    "stick_the_landing": importance.stick_the_landing,
    "gdreg": gdreg.gdreg,
    "vimco": score_function.vimco,
    "ovis": ovis.ovis,
    "ovis_gamma_1": functools.partial(ovis.ovis, gamma=1.0),
    "ovis_monte_carlo": ovis.ovis_monte_carlo,
    "thermodynamic_4_terms": functools.partial(
        thermodynamic.thermodynamic, num_terms=4
    ),
}
PARTS = {"encoder": "recognition", "decoder": "generative"}
THEORY = {
    ("iwae", "encoder"): -0.5,
    ("iwae", "decoder"): 0.5,
    ("ovis", "encoder"): 0.5,
    ("ovis_gamma_1", "encoder"): 0.5,
    ("ovis_monte_carlo", "encoder"): 0.5,
}
COLUMNS = [
    Column("log SNR against log K", lambda r: f"{r.estimator}, {r.part}", width=32),
    field("slope", "slope", ".3f", 7),
    field("s.e.", "standard_error", ".3f", 7),
    field("theory", "theory", "g", 7),
]


@dataclasses.dataclass(frozen=True)
class Config(cli.Flags):
    """One experiment; every field is a flag."""

    workdir: str = cli.flag("runs/gradient_snr", "Where the results are written.")
    setting: str = cli.flag(
        "one", "Gradients at one x or their mean over all.", choices=("one", "data_set")
    )
    estimators: tuple[str, ...] = cli.flag(
        (), "Their names; all if empty.", choices=ESTIMATORS
    )
    num_latents: int = cli.flag(20, "D.", least=1)
    num_data: int = cli.flag(1024, "Rows x, N.", least=1)
    std: float = cli.flag(0.1, "Of the perturbation of mu and b.", above=0)
    num_samples: tuple[int, ...] = cli.flag((4, 16, 64, 256), "Values of K.", least=1)
    num_draws: int = cli.flag(20_000, "Gradients for each K.", least=2 * GROUPS)
    seed: int = cli.flag(
        0, "Seed of the data, the perturbation and the noise.", least=0
    )

    def refuse(self) -> None:
        """Refuses a single K, which has no slope."""
        if len(set(self.num_samples)) < 2:
            raise ValueError(
                f"--num_samples must hold two sizes or more, got {self.num_samples}"
            )


class Toy(NamedTuple):
    """The model, parameters near its optimum, and the rows that gradients are of."""

    model: Model
    params: Params
    x: Float[Array, "N D"]


def toy(key: PRNGKey, config: Config) -> Toy:
    """The model near its optimum on data drawn from N(mu_0, 2 I)."""
    shape, log_std = (config.num_latents,), 0.5 * np.log(VARIANCE)

    def log_prior(mu: Array, h: Array, z: Array) -> Array:
        return likelihoods.normal_terms(mu, jnp.zeros_like(z), z).sum()

    def encode(params: Params, x: Array) -> Array:
        mean = 0.5 * x + params.recognition
        return jnp.concatenate([mean, jnp.full_like(mean, log_std)])

    prior = conditional(
        Family("a normal of unknown mean"),
        shape,
        width=0,
        sample=lambda key, mu, h: mu + jax.random.normal(key, shape),
        log_prob=log_prior,
        transport=Transport(
            lambda mu, h, eps: mu + eps,
            lambda mu, h, z: z - mu,
        ),
    )
    model = vae.model(
        vae.decoder_model(
            Network(lambda key: (), lambda params, z: z),
            prior,
            likelihoods.normal(shape, std=1.0),
        ),
        vae.recognition(encode, posteriors.diag_normal(config.num_latents)),
    )
    key_mu, key_x, key_decoder, key_encoder = jax.random.split(key, 4)
    noise = jax.random.normal(key_x, (config.num_data, *shape))
    x = jax.random.normal(key_mu, shape)[None] + np.sqrt(2.0) * noise
    mu, b = (
        share * x.mean(0) + config.std * jax.random.normal(key, shape)
        for share, key in ((1.0, key_decoder), (0.5, key_encoder))
    )
    params = Params({"decoder": (), "prior": mu, "likelihood": ()}, b)
    return Toy(model, params, x if config.setting == "data_set" else x[:1])


def moments(
    key: PRNGKey, toy: Toy, objective: ExampleObjective, config: Config
) -> gradient_noise.Moments:
    """Of the gradients of one K, in GROUPS groups."""
    num_draws = config.num_draws // GROUPS
    limit = max(1, ROWS // (256 * len(toy.x)))
    run = gradient_noise.moments(
        gradient_noise.of_batch(objective),
        num_draws=num_draws,
        batch_size=max(n for n in range(1, limit + 1) if num_draws % n == 0),
    )
    of_groups = compilation.program(
        lambda keys: jax.lax.map(lambda key: run(key, toy.params, toy.x), keys)
    )
    return of_groups(jax.random.split(key, GROUPS))


class Slope(NamedTuple):
    """The least-squares slope of log SNR against log K, of one part's gradients."""

    estimator: str
    part: str
    slope: float
    standard_error: float
    theory: float | None
    snr: list[float]  # at each K


def slopes(config: Config) -> Iterator[Slope]:
    """Of each estimator, for the encoder's b and the decoder's mu."""
    key_toy, key_draws = jax.random.split(jax.random.key(config.seed))
    problem = toy(key_toy, config)

    def slope(pooled: Sequence[gradient_noise.Moments]) -> float:
        points = [gradient_noise.log_snr(m) for m in pooled]
        return float(np.polyfit(np.log(config.num_samples), points, 1)[0])

    for i, (name, build) in enumerate(ESTIMATORS.items()):
        if config.estimators and name not in config.estimators:
            continue
        key = jax.random.fold_in(key_draws, i)
        sampled = [
            moments(
                jax.random.fold_in(key, k),
                *(problem, build(problem.model, num_samples=k), config),
            )
            for k in config.num_samples
        ]
        for part, params in PARTS.items():
            of_part = [gradient_noise.part(m, params) for m in sampled]
            log_snrs = [gradient_noise.log_snr(gradient_noise.pool(m)) for m in of_part]
            yield Slope(
                *(name, part),
                *gradient_noise.jackknife(slope, of_part),
                THEORY.get((name, part)),
                np.exp(log_snrs).tolist(),
            )


def main(config: Config) -> int:
    """Measures, prints, writes and draws."""
    folder, started = report.claim(config.workdir), time.monotonic()
    result, panels = {}, {part: {} for part in PARTS}
    for row in report.printed(COLUMNS, slopes(config)):
        result.setdefault(row.estimator, {})[row.part] = row
        panels[row.part][row.estimator] = config.num_samples, row.snr
    seconds = time.monotonic() - started
    print(f"{seconds:.0f} s")
    figure = curves.series(panels, x_label="K", y_label="SNR", log="xy")
    result = {"slopes": result, "seconds": seconds}
    report.write(folder / "snr.json", config, result, {"snr": figure})
    return 0


if __name__ == "__main__":
    cli.run(Config, main)
