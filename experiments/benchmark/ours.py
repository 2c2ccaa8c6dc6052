"""This project's training step as a contender, and the ruler of all contenders."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.benchmark import contenders
from experiments.benchmark.contenders import (
    LEARNING_RATE,
    Contender,
    Layer,
    Problem,
    Weights,
)
from experiments.choices import models
from experiments.choices.config import Config
from experiments.measures import measure
from experiments.runs import protocol, runs
from vae_jax.data import batches, sources
from vae_jax.estimators import importance, sgvb
from vae_jax.evaluation import examples
from vae_jax.training import loop
from vae_jax.types import Model, Params, PyTree

RULER_SAMPLES = 10  # of z per test image, for the ELBO


def config(flags: contenders.Flags, **changes: Any) -> Config:
    """The flags of experiments.train for the same problem, some of them changed."""
    names = {field.name for field in dataclasses.fields(contenders.Flags)}
    shared = names & {field.name for field in dataclasses.fields(Config)}
    of_train: dict[str, Any] = {name: getattr(flags, name) for name in shared}
    of_train |= {"learning_rate": LEARNING_RATE} | changes
    return Config(**of_train)


def built(problem: Problem, **changes: Any) -> runs.Run:
    """The run of a problem as experiments.train has it, with flags of its changed."""
    none = problem.train[:0]
    source = sources.Source(
        "benchmark", problem.train, none, none, {}, 0.0, problem.divisor, "benchmark"
    )
    binarization = problem.flags.binarization
    prepared = batches.prepare(source, binarization=binarization)
    quantity = "log-likelihood" if problem.dynamic else "cross-entropy"
    data = protocol.Dataset(source, prepared, quantity)
    return runs.of_data(config(problem.flags, **changes), data)


def contender(name: str, problem: Problem, **changes: Any) -> Contender:
    """Epochs as `experiments.train` runs them: one compiled scan over bytes."""
    del name
    run = built(problem, **changes)
    return passes(run, started(run, problem))


def passes(run: runs.Run, state: loop.RunState) -> Contender:
    """Epochs of a run, or of runs together, from that state on."""
    scan, feed = runs.scan(run), runs.feed(run)

    def epoch() -> None:
        nonlocal state
        step = int(np.max(np.asarray(state.step)))
        end = step + run.steps_per_epoch
        while step < end:
            rows, order = feed.at(step)
            state, info = scan(state, rows, order)
            step += order.shape[-2]
            jax.block_until_ready(info)

    return Contender(epoch, lambda: weights(state.inner.params))


def started(run: runs.Run, problem: Problem) -> loop.RunState:
    """The state of a single run at the weights that all contenders start from."""
    start = params(run.model, problem.start)
    return loop.start(run.keys.steps, run.algorithm, start)


def objective(problem: Problem, reached: Weights) -> float:
    """Mean of the objective over the test rows, in nats; the ruler of every contender.

    The ELBO, or the K-sample bound where that is what is ascended. Of real-valued
    pixels it is no bound but minus a cross-entropy and a KL.
    """
    model = built(problem).model
    if problem.flags.estimator == "iwae":
        num_samples = problem.flags.num_samples
        value = importance.iwae(model, num_samples=num_samples)
    else:
        num_samples = RULER_SAMPLES
        value = sgvb.elbo(model, num_samples=num_samples)
    batch_size = max(1, measure.DECODED_ROWS // num_samples)
    evaluate = examples.over_examples(value, batch_size=batch_size)
    test = jnp.asarray(problem.test)
    nats = evaluate(jax.random.key(1), params(model, reached), test)
    return float(np.asarray(nats, np.float64).mean())


def evaluator(
    reached: Weights, shape: tuple[int, ...], num_samples: int
) -> Callable[[np.ndarray], np.ndarray]:
    """(images of zeros and ones [N, *X]) -> log p(x) [N] by importance sampling."""
    latents = len(reached.decoder[0].kernel)
    hidden = tuple(len(layer.bias) for layer in reached.encoder[:-1])
    model = models.build(Config(num_latents=latents, hidden=hidden), shape).model
    evaluate = measure.over_rows(
        measure.log_evidence(model, num_samples=num_samples),
        lambda x: x.astype(jnp.float32),
        num_decoded=num_samples,
    )
    at = params(model, reached)

    def log_p(images: np.ndarray) -> np.ndarray:
        return np.asarray(evaluate(jax.random.key(2), at, jnp.asarray(images)).log_p)

    return log_p


def params(model: Model, reached: Weights) -> Params:
    """The model's parameters with the weights of the two perceptrons."""
    empty = model.init(jax.random.key(0))
    return Params(
        empty.generative | {"decoder": _tree(reached.decoder)},
        empty.recognition | {"encoder": _tree(reached.encoder)},
    )


def weights(at: Params) -> Weights:
    """The other way round, on the host."""
    host = jax.device_get(at)
    decoder, encoder = host.generative["decoder"], host.recognition["encoder"]
    return Weights(_layers(encoder), _layers(decoder))


def _tree(layers: list[Layer]) -> PyTree:
    arrays = [jax.tree.map(jnp.asarray, layer._asdict()) for layer in layers]
    return dict(zip(_names(len(layers)), arrays, strict=True))


def _layers(tree: PyTree) -> list[Layer]:
    return [Layer(**tree[name]) for name in _names(len(tree))]


def _names(number: int) -> list[str]:
    return [*(f"hidden_{i}" for i in range(number - 1)), "output"]
