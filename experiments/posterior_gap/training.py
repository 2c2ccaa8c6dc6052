"""What the parts of `experiments.posterior_gap` that train have in common."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from experiments.command import report
from experiments.posterior_gap import models
from experiments.posterior_gap.config import STRETCH, Config
from vae_jax import compilation
from vae_jax.estimators import sgvb
from vae_jax.plots import gaps
from vae_jax.training import loop
from vae_jax.types import Algorithm, ExampleObjective, Params, PRNGKey, PyTree

Curve: TypeAlias = dict[str, Any]
"""name -> its values at each point, beside what is said of the whole curve."""


class Start(NamedTuple):
    """One seed's truth, the rows drawn from it, and where training starts."""

    truth: PyTree
    train: Array
    test: Array
    params: Params
    key: PRNGKey  # of the run's noise


def start(problem: models.Problem, config: Config, *, seed: int) -> Start:
    """Drawn from the seed."""
    keys = jax.random.split(jax.random.key(seed), 6)
    truth, (generative, recognition, *_) = problem.truth(keys[0]), problem.model
    return Start(
        truth,
        models.sample(keys[3], problem, truth, config.num_rows),
        models.sample(keys[4], problem, truth, config.num_test),
        Params(generative.init(keys[1]), recognition.init(keys[2])),
        keys[5],
    )


def points(config: Config) -> list[int]:
    """Steps at which is measured: 0, then evenly in logarithm, in whole stretches."""
    spaced = np.geomspace(STRETCH, config.num_steps, config.num_points - 1)
    return sorted({0} | {STRETCH * round(step / STRETCH) for step in spaced})


def bound_of(problem: models.Problem, *, num_samples: int) -> ExampleObjective:
    """AEVB's estimator: B where q is a diagonal normal, A where it is a full one."""
    if problem.posterior.family.name == "diag_normal":
        return sgvb.sgvb_b(problem.model, num_samples=num_samples)
    return sgvb.sgvb_a(problem.model, num_samples=num_samples)


def runner(algorithm: Algorithm, config: Config) -> Callable[..., Curve]:
    """(key, params, x, measure) -> what is measured of the state at each point.

    Compiled once for all seeds.
    """
    scan = loop.scan(algorithm, loop.take_rows)
    order = jnp.broadcast_to(jnp.arange(config.num_rows), (STRETCH, config.num_rows))

    def run(
        key: PRNGKey,
        params: Params,
        x: Array,
        measure: Callable[[Any], dict[str, float]],
    ) -> Curve:
        # Methods that are compared start from one key.
        state = loop.start(jax.random.clone(key), algorithm, params)
        rows = []
        for point in points(config):
            while int(state.step) < point:
                state, _ = scan(state, x, order)
            rows.append({"step": point, **measure(state.inner)})
        return report.by_name(rows)

    return run


def encoder(problem: models.Problem) -> Callable[[Params, Array], Array]:
    """Compiles (params, x [N, P]) -> h [N, H]."""
    return compilation.program(
        jax.vmap(problem.model.recognition.encode, in_axes=(None, 0))
    )


class Numbers(NamedTuple):
    """Means of the three exact numbers over rows, nats."""

    log_p: float
    bound: float
    divergence: float
    discrepancy: float  # the largest |log p - bound - divergence| of a row


def measured(problem: models.Problem, theta: PyTree, h: Array, x: Array) -> Numbers:
    """Each of the three by a way of its own: none is formed from the others."""
    log_p, bound, divergence = (
        np.asarray(of_rows(theta, h, x))
        for of_rows in (problem.log_p, problem.bound, problem.divergence)
    )
    return Numbers(
        *(float(log_p.mean()), float(bound.mean()), float(divergence.mean())),
        float(np.abs(log_p - bound - divergence).max()),
    )


def std(theta: PyTree) -> float:
    """Of the noise."""
    return float(jnp.exp(theta["likelihood"]["log_std"]))


def sandwich(curves: Mapping[str, Curve], *, x_label: str) -> Any:
    """log p, ELBO and KL of each curve, in a column of its own."""
    columns: dict[str, Any] = {
        title: [
            np.array(curve[name]) for name in ("step", "log_p", "bound", "divergence")
        ]
        for title, curve in curves.items()
    }
    return gaps.sandwich(columns, x_label=x_label, y_label="nats per row")
