r"""Where the optimum lies, with nothing sampled: the family of q moves it.

Probabilistic PCA whose W is known and whose noise alone is learned. The bound is
log p(x) less the posterior gap, and the gap of the best diagonal normal falls as the
noise grows: the posterior is then closer to the prior, which is diagonal. So the bound
is greatest at more noise than the likelihood is.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float
from scipy import optimize

from experiments.posterior_gap import models
from experiments.posterior_gap.config import Config
from vae_jax import compilation, posteriors
from vae_jax.latent_models import ppca, ppca_bounds
from vae_jax.plots import gaps
from vae_jax.types import Params, Scalar

RANGE = (0.3, 1.0)  # of the standard deviation, in the units of x
NUM_VALUES = 71
LABELS = {
    "log_p": "log p(x)",
    "full": "bound, full covariance",
    "diagonal": "bound, diagonal covariance",
}


def population() -> Float[Array, "M P"]:
    """Rows whose mean is zero and whose covariance is exactly W W^T + std^2 I.

    The two ends of every axis of that normal. All that is averaged here is of second
    degree in x, so the mean over these rows is the expectation over the population.
    """
    w = np.asarray(models.COLUMNS)
    covariance = w @ w.T + models.LINEAR_STD**2 * np.eye(len(w))
    axes = math.sqrt(len(w)) * np.linalg.cholesky(covariance).T
    return jnp.asarray(np.concatenate([axes, -axes]))


def profiles() -> dict[str, Callable[[Scalar], Scalar]]:
    """log std -> log p(x), and the bound at the best q of each family, in nats."""

    def full(params: Params, x: Array) -> Scalar:
        h = ppca.recognition(models.NUM_LATENTS).encode(params, x)
        return ppca_bounds.bound(params, x, *models.moments(h))

    def diagonal(params: Params, x: Array) -> Scalar:
        h = jnp.concatenate(ppca_bounds.best_diagonal(params, x))
        return ppca_bounds.bound(params, x, *models.moments(h))

    def mean(of_row: Callable[[Params, Array], Scalar]) -> Callable[[Scalar], Scalar]:
        def value(log_std: Scalar) -> Scalar:
            params = Params(models.linear_theta(log_std), ())
            return jax.vmap(of_row, in_axes=(None, 0))(params, population()).mean()

        return compilation.program(value)

    of_row = {"log_p": ppca.log_evidence, "full": full, "diagonal": diagonal}
    return {name: mean(function) for name, function in of_row.items()}


def joint_optimum(*, full: bool, start_std: float) -> float:
    """The noise where ascent of the bound in it and in a linear encoder ends.

    The encoder is q(z | x) = N(V x, L L^T), which holds the best q of either family for
    every x at once, and nothing is put in by hand: neither V nor L.
    """
    rows, num_latents = population(), models.NUM_LATENTS
    density = (posteriors.full_normal if full else posteriors.diag_normal)(num_latents)
    num_scales = density.width - num_latents

    def negative(flat: Array) -> Scalar:
        log_std, scales, v = jnp.split(flat, [1, 1 + num_scales])
        params = Params(models.linear_theta(log_std[0]), ())
        h = jnp.concatenate([jnp.zeros(num_latents), scales])
        _, scale_tril = models.moments(h)
        means = rows @ v.reshape(num_latents, -1).T
        each = jax.vmap(ppca_bounds.bound, in_axes=(None, 0, 0, None))
        return -each(params, rows, means, scale_tril).mean()

    start = np.zeros(1 + num_scales + num_latents * rows.shape[1])
    start[0] = math.log(start_std)
    slope = compilation.program(jax.value_and_grad(negative))
    optimum = optimize.minimize(
        lambda flat: [np.asarray(part) for part in slope(jnp.asarray(flat))],
        start,
        jac=True,
        method="BFGS",
        options={"gtol": 1e-7},
    )
    return float(np.exp(optimum.x[0]))


class Profile(NamedTuple):
    """A quantity over the noise, nats, and where it is greatest."""

    values: list[float]
    std: float
    greatest: float


class Family(NamedTuple):
    """Curves over the noise, and where ascent in noise and encoder ends."""

    true_std: float
    std: list[float]
    log_p: Profile
    full: Profile
    diagonal: Profile
    gap_at_the_truth: float  # nats
    joint_std: dict[str, float]


def run(config: Config) -> Family:
    """Curves of the three quantities over the noise, and where each is greatest."""
    del config  # the model is known, and nothing is drawn
    stds = np.linspace(*RANGE, NUM_VALUES)
    result: dict[str, Profile] = {}
    for name, profile in profiles().items():
        values = jax.vmap(profile)(jnp.log(jnp.asarray(stds)))
        optimum: Any = optimize.minimize_scalar(
            lambda log_std, profile=profile: -float(profile(jnp.asarray(log_std))),
            bounds=[math.log(end) for end in RANGE],
            method="bounded",
            options={"xatol": 1e-8},
        )
        result[name] = Profile(
            np.asarray(values).tolist(),
            math.exp(optimum.x),
            float(profile(jnp.asarray(optimum.x))),
        )
    theta = models.linear_theta(jnp.log(models.LINEAR_STD))
    gap = compilation.program(ppca_bounds.diagonal_gap)(Params(theta, ()))
    ends = {
        name: joint_optimum(full=name == "full", start_std=1.0)
        for name in ("full", "diagonal")
    }
    return Family(
        models.LINEAR_STD,
        stds.tolist(),
        **result,
        gap_at_the_truth=float(gap),
        joint_std=ends,
    )


def table(result: dict[str, Any]) -> str:
    """Where each is greatest."""
    lines = [f"\nfamily: the noise of the truth is {result['true_std']:.2f}"]
    for name, label in LABELS.items():
        std, greatest = result[name]["std"], result[name]["greatest"]
        lines.append(f"{label:<28} greatest at {std:.4f}: {greatest:.4f}")
    for name, std in result["joint_std"].items():
        lines.append(f"ascent in noise and encoder, {name:<9} ends at {std:.4f}")
    return "\n".join(lines)


def figures(result: dict[str, Any]) -> dict[str, Any]:
    """log p and both bounds over the noise."""
    std = np.array(result["std"])
    figure = gaps.optima(
        {
            label: (std, np.array(result[name]["values"]), result[name]["std"])
            for name, label in LABELS.items()
        },
        x_label="standard deviation of the noise",
        y_label="nats, over the population",
    )
    return {"family": figure}
