"""Classifiers on the test rows: M2's, those without a model, and analogies by M2."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from experiments.measures import measure
from experiments.runs import trained_runs
from experiments.runs.trained_runs import Trained
from experiments.semi_supervised.spaces import Nets, Space
from vae_jax import compilation
from vae_jax.data import batches
from vae_jax.estimators import semi_supervised
from vae_jax.evaluation import calibration, probes
from vae_jax.types import Params

NUM_SHOWN = 8  # rows of the picture
NEIGHBORS = 1


class Judged(NamedTuple):
    """A classifier on the test rows.

    Attributes:
        error: share of rows whose likeliest class is another.
        calibration_error: mean of |confidence - accuracy|, over bins of the likeliest
            class's probability.
    """

    error: float
    calibration_error: float


def judge_of(
    nets: Nets, space: Space, labels: np.ndarray
) -> Callable[[Params], Judged]:
    """params -> q(y | x) on the test rows."""

    def predict(params: Params, x: Array) -> Array:
        return jnp.exp(semi_supervised.log_classes(nets.classifier, params, x))

    each = compilation.program(jax.vmap(predict, (None, 0)))

    def judge(params: Params) -> Judged:
        probabilities = np.asarray(each(params, space.test))
        right = (probabilities.argmax(axis=1) == labels).astype(float)
        confidence = np.minimum(probabilities.max(axis=1), 1.0)
        bins = calibration.reliability(confidence, right)
        error = calibration.expected_calibration_error(bins)
        return Judged(1.0 - float(right.mean()), error)

    return judge


def analogies(nets: Nets, params: Params, x: Array) -> list[np.ndarray]:
    """Some x [R, 1, *X], and E[x | z, y] [R, C, *X] of every class at each one's z.

    That is the mean of q(z | x, y) at the class that the classifier takes x for.
    """
    x = x[batches.at_equal_distances(len(x), min(NUM_SHOWN, len(x)))]
    classes = jnp.eye(nets.num_classes)

    def of_row(x: Array) -> Array:
        log_q = semi_supervised.log_classes(nets.classifier, params, x)
        recognition = nets.at(classes[log_q.argmax()]).recognition
        assert recognition.moments is not None
        z, _ = recognition.moments(params, recognition.encode(params, x))
        each = jax.vmap(lambda c: nets.at(c).generative.mean_observation(params, z))
        return each(classes)

    of_rows = compilation.program(jax.vmap(of_row))
    return [np.asarray(x)[:, None], np.asarray(of_rows(x))]


def plain_errors(m1: Trained, draws: np.ndarray) -> dict[str, list[float]]:
    """Of each draw: nearest neighbors and regression, on pixels and on M1's codes."""
    rows = {n: trained_runs.spread_rows(m1, split=n) for n in ("train", "test")}
    value, labels = m1.data.prepared.value, m1.data.prepared.labels
    spaces = {
        "pixels": {
            n: np.asarray(value(x)).reshape(len(x), -1) for n, x in rows.items()
        },
        "M1's codes": {
            n: measure.codes(jax.random.key(0), m1, x) for n, x in rows.items()
        },
    }
    errors: dict[str, list[float]] = {}
    for name, space in spaces.items():
        near, regression = [], []
        for of_draw in draws:
            train = probes.Labeled(space["train"][of_draw], labels["train"][of_draw])
            test = probes.Labeled(space["test"], labels["test"])
            vote = probes.nearest_neighbors(train, test, num_neighbors=NEIGHBORS)
            near.append(1.0 - vote)
            regression.append(1.0 - probes.linear_probe(train, test).accuracy)
        errors[f"nearest neighbors, {name}"] = near
        errors[f"logistic regression, {name}"] = regression
    return errors
