"""Theta is the truth and stays; phi climbs the bound on the rows drawn."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.command import report
from experiments.posterior_gap import models, training
from experiments.posterior_gap.config import Config
from vae_jax.training import gradient
from vae_jax.types import Params, per_example

COLUMNS = (
    report.field("", "name", width=25),
    report.field("log p", "log_p", ".4f"),
    report.field("gained", "gained", ".6f", 11),
    report.field("KL lost", "lost", ".6f", 11),
    report.field("KL left", "divergence", ".4f", 9),
    report.field("largest disagreement", "largest", ".1e", 22),
)


def run(config: Config) -> dict[str, training.Curve]:
    """What the ELBO gains and the KL loses, by model."""
    size = config.num_nodes
    problems = {
        "pPCA, full q": models.linear(full=True),
        "pPCA, diagonal q": models.linear(full=False),
        "tanh decoder, diagonal q": models.nonlinear(
            hidden=config.hidden, num_nodes=size, q_nodes=size * 3 // 5
        ),
    }
    return {name: _curve(problem, config) for name, problem in problems.items()}


def _curve(problem: models.Problem, config: Config) -> training.Curve:
    algorithm = gradient.ascent(
        per_example(training.bound_of(problem, num_samples=config.num_samples)),
        gradient.of_phi(gradient.adam(config.learning_rate)),
    )
    start = training.start(problem, config, seed=config.seed)
    encode, x = training.encoder(problem), start.train[: config.num_test]

    def measure(state: gradient.AscentState) -> dict[str, float]:
        theta, h = state.params.generative, encode(state.params, x)
        moved = jax.tree.map(lambda a, b: jnp.abs(a - b).max(), theta, start.truth)
        return {
            **training.measured(problem, start.truth, h, x)._asdict(),
            "theta_moved": float(max(jax.tree.leaves(moved))),
        }

    params = Params(start.truth, start.params.recognition)
    curve = training.runner(algorithm, config)(start.key, params, start.train, measure)
    bound, divergence = np.array(curve["bound"]), np.array(curve["divergence"])
    gained, lost = bound - bound[0], divergence[0] - divergence
    return {
        **curve,
        "gained": gained.tolist(),
        "lost": lost.tolist(),
        "largest_difference": float(np.abs(gained - lost).max()),
    }


def table(result: dict[str, training.Curve]) -> str:
    """The end of each curve."""
    rows = [
        {
            "name": name,
            **{
                k: values[-1] for k, values in curve.items() if isinstance(values, list)
            },
            "largest": max(curve["discrepancy"]),
        }
        for name, curve in result.items()
    ]
    head = "\nfrozen: theta stays, phi is trained (nats per row)\n"
    return head + report.table(COLUMNS, rows)


def figures(result: dict[str, training.Curve]) -> dict[str, Any]:
    """log p, ELBO and KL of each model."""
    figure = training.sandwich(result, x_label="steps of phi, theta frozen")
    return {"frozen": figure}
