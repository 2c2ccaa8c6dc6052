"""Models with exact answers, for the table of estimators."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from tests import problems
from vae_jax import networks, vae
from vae_jax.estimators import relax, uha

NAN = float("nan")


class Case(NamedTuple):
    """A model with exact answers and three of its examples."""

    make: Callable[[], Any]  # -> generative, recognition, params, closed forms
    xs: list[list[float]]


BASELINE = networks.linear(5, 1, initializer=networks.normal(std=0.5))


def _with_baseline():
    problem = problems.binary_model()
    recognition = vae.with_baseline(problem.model, BASELINE).recognition
    baseline = recognition.init(jax.random.key(7))["baseline"]
    phi = problem.params.recognition | {"baseline": baseline}
    params = problem.params._replace(recognition=phi)
    return problem._replace(recognition=recognition, params=params)


CONTROL = networks.mlp(6, (3,), 1, initializer=networks.normal(std=0.8))


def _with_control():
    problem = problems.binary_model(num_latents=1)
    model = relax.with_control(problem.model, CONTROL, temperature=0.7)
    control = model.recognition.init(jax.random.key(8))["control"]
    control["strength"] = 0.6 * control["strength"]
    phi = problem.params.recognition | {"control": control}
    params = problem.params._replace(recognition=phi)
    return problem._replace(recognition=model.recognition, params=params)


def _with_path():
    problem = problems.linear_gaussian(num_latents=2)
    model = uha.with_path(problem.model, num_temperatures=3, step_size=0.4, eta=0.7)
    path = model.recognition.init(jax.random.key(0))["path"]
    path["logits"] += jnp.array([0.3, -0.5, 0.1])
    path["log_step_size"] += jnp.array([-0.4, 0.1, 0.3])
    phi = problem.params.recognition | {"path": path}
    params = problem.params._replace(recognition=phi)
    return problem._replace(recognition=model.recognition, params=params)


PAIRS = [[0.4, -1.0], [-0.7, 0.2], [1.1, 0.3]]
BITS = [[1.0, 0.0, 1.0, 1.0, 0.0], [0.0, 1.0, 1.0, 0.0, 1.0], [1.0, 1.0, 0.0, 0.0, 0.0]]
NORMAL = Case(problems.linear_gaussian, PAIRS)
WITH_PATH = Case(_with_path, PAIRS)
NORMALS = Case(lambda: problems.linear_gaussian(num_latents=2), PAIRS)
SAMPLED_KL = Case(
    lambda: problems.without_closed_forms(problems.linear_gaussian(num_latents=2)),
    PAIRS,
)
HOLES = Case(
    lambda: problems.linear_gaussian(num_features=3),
    [[0.7, NAN, -0.4], [NAN, NAN, 1.0], [0.2, -0.3, 0.5]],
)
BINARY = Case(problems.binary_model, BITS)
TWO_BITS = Case(lambda: problems.binary_model(num_latents=2), BITS)
WITH_BASELINE = Case(_with_baseline, BITS)
WITH_CONTROL = Case(_with_control, BITS)
LEARNED_PRIOR = Case(problems.learned_prior, PAIRS)
CLASSES = Case(lambda: problems.categorical_model(num_latents=1), BITS)
