"""This project's training step as a contender, and the ruler of all contenders."""

import time

import jax
import jax.numpy as jnp
import numpy as np

from experiments.benchmark.contenders import Contender, Layer, Problem, Weights
from experiments.choices import algorithms, models
from experiments.choices.config import Config
from experiments.measures import measure
from vae_jax.data import batches
from vae_jax.estimators import importance, sgvb
from vae_jax.evaluation import examples
from vae_jax.training import loop
from vae_jax.types import Algorithm, Model, Params, PyTree

RULER_SAMPLES = 10  # of z per test image, for the ELBO


def unfit(problem: Problem) -> str:
    """Why the problem cannot be solved: never."""
    del problem
    return ""


def contender(name: str, problem: Problem, *, estimator: str = "") -> Contender:
    """Epochs as `experiments.train` runs them: one compiled scan over bytes."""
    del name
    model, fit = built(problem, estimator)
    scan = loop.scan(fit, take(problem))
    draw = jax.jit(batches.order, static_argnums=1, static_argnames="batch_size")
    key_run, key_order = jax.random.split(jax.random.key(0))
    data = jnp.asarray(problem.train)
    state = [loop.start(key_run, fit, params(model, problem.start))]

    def epoch() -> float:
        started = time.perf_counter()
        key = jax.random.fold_in(key_order, state[0].step)
        order = draw(key, len(data), batch_size=problem.batch_size)
        state[0], info = scan(state[0], data, order)
        jax.block_until_ready(info)
        return (time.perf_counter() - started) / problem.num_steps

    return Contender(epoch, lambda: weights(state[0].inner.params))


def built(problem: Problem, estimator: str = "") -> tuple[Model, Algorithm]:
    """The model of a problem and the algorithm that fits it."""
    config = Config(
        batch_size=problem.batch_size,
        num_latents=problem.num_latents,
        hidden=problem.hidden,
        estimator=estimator or problem.estimator,
        num_samples=problem.num_samples,
        learning_rate=problem.learning_rate,
    )
    parts = models.build(config, problem.train.shape[1:])
    steps = algorithms.Steps(len(problem.train), problem.num_steps)
    return parts.model, algorithms.build(config, parts, steps)


def take(problem: Problem) -> batches.Take:
    """Reads batches of the training rows."""
    return batches.take(divisor=problem.divisor, dynamic=problem.dynamic)


def objective(problem: Problem, reached: Weights) -> float:
    """Mean of the objective over the test rows, in nats; the ruler of every contender.

    The ELBO, or the K-sample bound where that is what is ascended. Of real-valued
    pixels it is no bound but minus a cross-entropy and a KL.
    """
    model, _ = built(problem)
    if problem.estimator == "iwae":
        num_samples = problem.num_samples
        value = importance.iwae(model, num_samples=num_samples)
    else:
        num_samples = RULER_SAMPLES
        terms = sgvb.elbo_terms(model, num_samples=num_samples)

        def elbo(key: jax.Array, params: Params, x: jax.Array) -> jax.Array:
            reconstruction, kl = terms(key, params, x)
            return reconstruction - kl

        value = elbo

    evaluate = examples.over_examples(
        value,
        batch_size=max(1, measure.DECODED_ROWS // num_samples),
        value=lambda x: x,
    )
    nats = evaluate(
        jax.random.key(1), params(model, reached), jnp.asarray(problem.test)
    )
    return float(np.asarray(nats, np.float64).mean())


def evaluator(reached: Weights, shape: tuple[int, ...], num_samples: int):
    """(images of zeros and ones [N, *X]) -> log p(x) [N] by importance sampling."""
    config = Config(
        num_latents=len(reached.decoder[0].kernel),
        hidden=tuple(len(layer.bias) for layer in reached.encoder[:-1]),
    )
    model = models.build(config, shape).model
    evaluate = measure.over_rows(
        measure.log_evidence(model, num_samples=num_samples),
        lambda x: x.astype(jnp.float32),
        num_decoded=num_samples,
    )
    at = params(model, reached)

    def log_p(images: np.ndarray) -> np.ndarray:
        return np.asarray(evaluate(jax.random.key(2), at, jnp.asarray(images)).log_p)

    return log_p


def params(model: Model, given: Weights) -> Params:
    """The model's parameters with the weights of the two perceptrons."""
    empty = model.init(jax.random.key(0))
    return Params(
        empty.generative | {"decoder": _tree(given.decoder)},
        empty.recognition | {"encoder": _tree(given.encoder)},
    )


def weights(given: Params) -> Weights:
    """The other way round, on the host."""
    host = jax.device_get(given)
    return Weights(
        _layers(host.recognition["encoder"]), _layers(host.generative["decoder"])
    )


def _tree(layers: list[Layer]) -> PyTree:
    *hidden, output = [
        {"kernel": jnp.asarray(layer.kernel), "bias": jnp.asarray(layer.bias)}
        for layer in layers
    ]
    return {f"hidden_{i}": layer for i, layer in enumerate(hidden)} | {"output": output}


def _layers(tree: PyTree) -> list[Layer]:
    names = [*(f"hidden_{i}" for i in range(len(tree) - 1)), "output"]
    return [Layer(tree[name]["kernel"], tree[name]["bias"]) for name in names]
