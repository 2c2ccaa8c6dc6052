r"""The part of `experiments.posterior_gap` that trains nothing: where the optimum lies.

Probabilistic PCA whose W is known and whose noise alone is learned. The bound is
log p(x) less the posterior gap, and the gap of the best diagonal normal falls as the
noise grows: the posterior is then closer to the prior, which is diagonal. So the bound
is greatest at more noise than the likelihood is.
"""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float
from scipy import optimize

from experiments.posterior_gap import models as gap_models
from vae_jax import posteriors
from vae_jax.latent_models import ppca, ppca_bounds
from vae_jax.types import Params, Scalar

RANGE = (0.3, 1.0)  # of the standard deviation, in the units of x
NUM_VALUES = 71
SHOWN = {
    "log_p": "log p(x)",
    "full": "bound, full covariance",
    "diagonal": "bound, diagonal covariance",
}


def population() -> Float[Array, "M P"]:
    """Rows whose mean is zero and whose covariance is exactly W W^T + std^2 I.

    The two ends of every axis of that normal. All that is averaged here is of second
    degree in x, so the mean over these rows is the expectation over the population.
    """
    w = np.asarray(gap_models.COLUMNS)
    covariance = w @ w.T + gap_models.LINEAR_STD**2 * np.eye(len(w))
    axes = math.sqrt(len(w)) * np.linalg.cholesky(covariance).T
    return jnp.asarray(np.concatenate([axes, -axes]))


def profiles() -> dict[str, Callable[[Scalar], Scalar]]:
    """log std -> log p(x), and the bound at the best q of each family, in nats."""
    rows = population()

    def mean(of_row: Callable[[Params, Array], Scalar]) -> Callable[[Scalar], Scalar]:
        def value(log_std: Scalar) -> Scalar:
            params = Params(gap_models.linear_theta(log_std), ())
            return jax.vmap(of_row, in_axes=(None, 0))(params, rows).mean()

        return jax.jit(value)

    def diagonal(params: Params, x: Array) -> Scalar:
        q_mean, log_std = ppca_bounds.best_diagonal(params, x)
        return ppca_bounds.bound(params, x, q_mean, jnp.diag(jnp.exp(log_std)))

    def full(params: Params, x: Array) -> Scalar:
        h = ppca.recognition(gap_models.NUM_LATENTS).encode(params, x)
        best = posteriors.mean_and_scale_tril(h, gap_models.NUM_LATENTS)
        return ppca_bounds.bound(params, x, *best)

    found = {"log_p": ppca.log_evidence, "full": full, "diagonal": diagonal}
    return {name: mean(of_row) for name, of_row in found.items()}


def joint_optimum(*, full: bool, start_std: float) -> float:
    """The noise where ascent of the bound in it and in a linear encoder ends.

    The encoder is q(z | x) = N(V x, L L^T), which holds the best q of either family for
    every x at once, and nothing is put in by hand: neither V nor L.
    """
    rows, num_latents = population(), gap_models.NUM_LATENTS
    density = (posteriors.full_normal if full else posteriors.diag_normal)(num_latents)
    num_scales = density.width - num_latents

    def negative(flat: Array) -> Scalar:
        log_std, scales, v = jnp.split(flat, [1, 1 + num_scales])
        params = Params(gap_models.linear_theta(log_std[0]), ())
        h = jnp.concatenate([jnp.zeros(num_latents), scales])
        _, scale_tril = gap_models.moments(h)
        means = rows @ v.reshape(num_latents, -1).T
        each = jax.vmap(ppca_bounds.bound, in_axes=(None, 0, 0, None))
        return -each(params, rows, means, scale_tril).mean()

    start = np.zeros(1 + num_scales + num_latents * rows.shape[1])
    start[0] = math.log(start_std)
    slope = jax.jit(jax.value_and_grad(negative))
    found = optimize.minimize(
        lambda flat: [np.asarray(part) for part in slope(jnp.asarray(flat))],
        start,
        jac=True,
        method="BFGS",
        options={"gtol": 1e-7},
    )
    return float(np.exp(found.x[0]))


def optima() -> dict[str, Any]:
    """(d) Curves of the three quantities over the noise, and where each is greatest."""
    stds = np.linspace(*RANGE, NUM_VALUES)
    result: dict[str, Any] = {"true_std": gap_models.LINEAR_STD, "std": stds.tolist()}
    for name, profile in profiles().items():
        values = jax.vmap(profile)(jnp.log(jnp.asarray(stds)))
        found: Any = optimize.minimize_scalar(
            lambda log_std, profile=profile: -float(profile(jnp.asarray(log_std))),
            bounds=[math.log(end) for end in RANGE],
            method="bounded",
            options={"xatol": 1e-8},
        )
        result[name] = {
            "values": np.asarray(values).tolist(),
            "std": math.exp(found.x),
            "greatest": float(profile(jnp.asarray(found.x))),
        }
    gap = ppca_bounds.diagonal_gap
    theta = gap_models.linear_theta(jnp.log(gap_models.LINEAR_STD))
    result["gap_at_the_truth"] = float(jax.jit(gap)(Params(theta, ())))
    result["joint_std"] = {
        name: joint_optimum(full=name == "full", start_std=1.0)
        for name in ("full", "diagonal")
    }
    return result
