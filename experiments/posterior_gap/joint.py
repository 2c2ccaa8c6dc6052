"""AEVB on theta and phi together; a curve for each seed, measured on test rows."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from experiments.command import report
from experiments.posterior_gap import models, training
from experiments.posterior_gap.config import Config
from vae_jax import compilation, numerics, vae
from vae_jax.evaluation import exact
from vae_jax.plots import gaps
from vae_jax.training import gradient
from vae_jax.types import Params, PyTree, Scalar, per_example

TURN_NODES, FINAL_NODES = 24, 60  # a side of q's grid, to choose a rotation and after
TURN_ROWS = 100
SHOWN = ("step", "log_p", "bound", "divergence", "to_truth", "posterior_to_truth")
COLUMNS = (
    report.field("step", "step", width=6),
    *(report.field(name.replace("_", " "), name, ".4f", 18) for name in SHOWN[1:]),
)
DISTANCES = {
    "divergence": "KL(q || model's posterior)",
    "to_truth": "KL(q || true posterior)",
    "posterior_to_truth": "KL(model's || true posterior)",
}


class Distances(NamedTuple):
    """How far q and the model's own posterior are from the true one, means in nats."""

    to_truth: float  # KL(q(z | x) || p_true(R z | x))
    posterior_to_truth: float  # KL(p_theta(z | x) || p_true(R z | x)), of the same R
    degrees: float  # of R, negative where it is a reflection


def distance_to_truth(
    problem: models.Problem, *, num_nodes: int
) -> Callable[[PyTree, PyTree, Array, Array, Array], Distances]:
    r"""(truth, theta, h, x, log_p) -> distances to the true posterior, means over rows.

    The prior N(0, I) is the same for every rotation and reflection R of z, and so is
    the likelihood of a model whose decoder turns with it: no data can tell which. So
    the R of the least mean KL(q || p_true(R z | x)) is taken, over all angles in steps
    of one degree. log_p is that of the true model.
    """
    generative, size = problem.model.generative, models.NUM_LATENTS
    at_h = vae.model(generative, models.free(problem.posterior))
    coarse, fine = (
        models.over_rows(exact.elbo(at_h, num_latents=size, num_nodes=nodes))
        for nodes in (TURN_NODES, FINAL_NODES)
    )
    between = exact.divergence_between_posteriors(
        generative, num_latents=size, num_nodes=num_nodes, limit=5.0
    )

    def of_thetas(params: Params, x: Array) -> Scalar:
        theta, other = params.generative
        return between(Params(theta, ()), Params(other, ()), x)

    to_posterior = models.over_rows(of_thetas)

    @compilation.program
    def costs(rotations: Array, truth: PyTree, h: Array, x: Array) -> Array:
        """Minus the bound under the truth: the divergence less log p, which stays."""
        return jax.lax.map(
            lambda rotation: -coarse(_turned(truth, rotation), h, x).mean(), rotations
        )

    def distance(
        truth: PyTree, theta: PyTree, h: Array, x: Array, log_p: Array
    ) -> Distances:
        rotation, degrees = numerics.best_rotation(
            lambda rotations: costs(rotations, truth, h[:TURN_ROWS], x[:TURN_ROWS])
        )
        turned = _turned(truth, jnp.asarray(rotation, h.dtype))
        to_truth = (log_p - fine(turned, h, x)).mean()
        posterior_to_truth = to_posterior((theta, turned), (), x).mean()
        return Distances(float(to_truth), float(posterior_to_truth), degrees)

    return distance


def _turned(truth: PyTree, rotation: Array) -> PyTree:
    """The theta whose p(x | z) is the truth's p(x | R z)."""
    decoder = truth["decoder"]
    kernel = rotation.T @ decoder["hidden_0"]["kernel"]
    first = {**decoder["hidden_0"], "kernel": kernel}
    return {**truth, "decoder": {**decoder, "hidden_0": first}}


def run(config: Config) -> list[training.Curve]:
    """The three numbers and the distances along each seed's training."""
    size = config.num_nodes
    problem = models.nonlinear(
        hidden=config.hidden, num_nodes=size, q_nodes=size * 3 // 5
    )
    algorithm = gradient.ascent(
        per_example(training.bound_of(problem, num_samples=config.num_samples)),
        gradient.adam(config.learning_rate),
    )
    run_one, encode = training.runner(algorithm, config), training.encoder(problem)
    distance = distance_to_truth(problem, num_nodes=size)

    def curve(seed: int) -> training.Curve:
        start = training.start(problem, config, seed=seed)
        x, true_log_p = start.test, problem.log_p(start.truth, (), start.test)

        def measure(state: gradient.AscentState) -> dict[str, float]:
            theta, h = state.params.generative, encode(state.params, x)
            return {
                **training.measured(problem, theta, h, x)._asdict(),
                **distance(start.truth, theta, h, x, true_log_p)._asdict(),
                "std": training.std(theta),
            }

        points = run_one(start.key, start.params, start.train, measure)
        return {"seed": seed, "true_log_p": float(true_log_p.mean()), **points}

    return [curve(seed) for seed in config.seeds]


def table(result: list[training.Curve]) -> str:
    """Every point of every curve."""
    lines = ["\njoint: theta and phi together, test rows (nats per row)"]
    for curve in result:
        truth = curve["true_log_p"]
        lines.append(f"seed {curve['seed']}, log p of the truth {truth:.4f}")
        points = range(len(curve["step"]))
        rows = [{name: curve[name][t] for name in SHOWN} for t in points]
        lines.append(report.table(COLUMNS, rows))
    return "\n".join(lines)


def figures(result: list[training.Curve]) -> dict[str, Any]:
    """A column for each seed; and q and the model's posterior against the true one."""
    by_seed = {f"seed {curve['seed']}": curve for curve in result}
    step = np.array(result[0]["step"])
    title = "test rows, mean and range of the seeds"
    lines = {
        label: (step, np.array([curve[name] for curve in result]))
        for name, label in DISTANCES.items()
    }
    x_label = "steps of theta and phi"
    return {
        "joint": training.sandwich(by_seed, x_label=x_label),
        "distances": gaps.seeds(
            {title: lines}, x_label=x_label, y_label="nats per row", log=(title,)
        ),
    }
