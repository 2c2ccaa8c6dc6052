"""The same steps of theta after more and more inference; curves by method."""

from functools import partial
from typing import Any

import numpy as np
from jaxtyping import Array

from experiments.command import report
from experiments.posterior_gap import models, training
from experiments.posterior_gap.config import Config
from vae_jax.evaluation import exact
from vae_jax.inference import alternating, variational_em
from vae_jax.plots import gaps
from vae_jax.training import gradient
from vae_jax.types import Algorithm, PyTree, per_example

EXACT_NODES = 40  # a side of the grid that theta alone climbs log p(x) on
COLUMNS = (
    report.field("", "name", width=11),
    report.field("step", "step", width=12),
    report.field("train log p", "log_p", ".4f", 12),
    report.field("test log p", "test_log_p", ".4f", 12),
    report.field("train KL", "divergence", ".4f", 12),
    report.field("std", "std", ".4f", 12),
)


def methods(problem: models.Problem, config: Config) -> dict[str, Algorithm]:
    """From lagging to exact inference: name -> what makes one step of theta each."""
    bound = per_example(training.bound_of(problem, num_samples=config.num_samples))
    adam, generative = gradient.adam(config.learning_rate), problem.model.generative
    log_p = exact.grid_quadrature(
        generative, num_latents=models.NUM_LATENTS, num_nodes=EXACT_NODES, limit=4.5
    )
    return {
        **{
            f"k = {k}": alternating.alternating(bound, adam, num_inner=k)
            for k in config.inner_steps
        },
        "converged": variational_em.variational_em(
            generative,
            problem.posterior,
            adam,
            num_data=config.num_rows,
            num_samples=config.num_samples,
            num_steps=config.search_steps,
        ),
        "exact": gradient.ascent(
            per_example(lambda key, params, x: log_p(params, x)), adam
        ),
    }


def run(config: Config) -> dict[str, list[training.Curve]]:
    """A curve of each method for each seed."""
    size = config.num_nodes
    problem = models.nonlinear(
        hidden=config.hidden, num_nodes=size, q_nodes=size * 3 // 10
    )
    encode, result = training.encoder(problem), {}
    starts = {seed: training.start(problem, config, seed=seed) for seed in config.seeds}

    def log_p(theta: PyTree, x: Array) -> float:
        return float(problem.log_p(theta, (), x).mean())

    def measure(name: str, start: training.Start, state: Any) -> dict[str, float]:
        theta, x = state.params.generative, start.train[: config.num_test]
        train = log_p(theta, start.train)
        if name == "exact":  # its q is the posterior: the bound is log p(x)
            numbers = training.Numbers(train, train, 0.0, 0.0)
        else:
            searched = name == "converged"
            h = state.memory[: len(x)] if searched else encode(state.params, x)
            numbers = training.measured(problem, theta, h, x)._replace(log_p=train)
        test = {"test_log_p": log_p(theta, start.test), "std": training.std(theta)}
        return {**numbers._asdict(), **test}

    for name, algorithm in methods(problem, config).items():
        run_one = training.runner(algorithm, config)
        result[name] = [
            {
                "seed": seed,
                "true_log_p": log_p(start.truth, start.train),
                "true_test_log_p": log_p(start.truth, start.test),
                **run_one(
                    start.key, start.params, start.train, partial(measure, name, start)
                ),
            }
            for seed, start in starts.items()
        ]
    return result


def table(result: dict[str, list[training.Curve]]) -> str:
    """Where each method stands half way (in logarithms) and at the end."""
    num_points = len(next(iter(result.values()))[0]["step"])
    names = ("log_p", "test_log_p", "divergence", "std")
    rows = [
        {
            "name": method,
            "step": curves[0]["step"][at],
            **{name: np.mean([curve[name][at] for curve in curves]) for name in names},
        }
        for method, curves in result.items()
        for at in (num_points // 2, num_points - 1)
    ]
    head = "\nlagging: means over seeds at equal steps of theta (nats per row)\n"
    return head + report.table(COLUMNS, rows)


def figures(result: dict[str, list[training.Curve]]) -> dict[str, Any]:
    """log p(x) less the truth's, train and test, and the KL that is left."""

    def lines(name: str, true: str = "") -> dict[str, Any]:
        """The curves of a number, less the truth's where that is named."""
        return {
            method: (
                np.array(curves[0]["step"]),
                np.array([np.array(c[name]) - c.get(true, 0.0) for c in curves]),
            )
            for method, curves in result.items()
            if true or method != "exact"
        }

    divergence = "train: KL(q || posterior)"
    figure = gaps.seeds(
        {
            "train: log p(x) less the truth's": lines("log_p", "true_log_p"),
            "test: log p(x) less the truth's": lines("test_log_p", "true_test_log_p"),
            divergence: lines("divergence"),
        },
        x_label="steps of theta",
        y_label="nats per row",
        log=(divergence,),
    )
    return {"lagging": figure}
