"""This project's training step as a contender, and the ruler of all contenders."""

import functools
import operator
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.benchmark import contenders
from experiments.benchmark.contenders import Contender, Layer, Place, Problem, Weights
from experiments.choices import models
from experiments.choices.config import Config
from experiments.measures import measure
from experiments.runs import protocol, runs
from vae_jax.data import batches, sources
from vae_jax.estimators import importance, sgvb
from vae_jax.training import loop
from vae_jax.types import Model, Params, PyTree

RULER_SAMPLES = 10  # of z per test image, for the ELBO


def config(flags: Any, **changes: Any) -> Config:
    """The flags of experiments.train for the same problem, some of them changed."""
    changes = {"learning_rate": contenders.LEARNING_RATE} | changes
    return contenders.shared(flags, Config, **changes)


def built(problem: Problem, **changes: Any) -> runs.Run:
    """The run of a problem as experiments.train has it, with flags of its changed."""
    return run(config(problem.flags, **changes), problem.train, problem.divisor)


def run(config: Config, rows: np.ndarray, divisor: float) -> runs.Run:
    """The run of a configuration on bytes [N, *X] that are there."""
    none = rows[:0]
    source = sources.Source("rows", rows, none, none, {}, 0.0, divisor, "benchmark")
    prepared = batches.prepare(source, binarization=config.binarization)
    is_binary = config.binarization == "dynamic"
    quantity = "log-likelihood" if is_binary else "cross-entropy"
    return runs.of_data(config, protocol.Dataset(source, prepared, quantity))


def contender(name: str, problem: Problem, **changes: Any) -> Contender:
    """Epochs as `experiments.train` runs them: one compiled scan over bytes."""
    del name
    run = built(problem, **changes)
    epoch, state = passes(run, started(run, problem))
    return Contender(epoch, lambda: weights(state().inner.params, problem.layout))


def passes(
    run: runs.Run, state: loop.RunState, *, max_steps: int = runs.SCAN_STEPS
) -> tuple[Callable[[], None], Callable[[], loop.RunState]]:
    """Epochs of a run, or of runs together, from that state on, and where they are."""
    scan, feed = runs.scan(run), runs.feed(run, max_steps=max_steps)

    def epoch() -> None:
        nonlocal state
        step = int(np.max(np.asarray(state.step)))
        end = step + run.steps_per_epoch
        while step < end:
            rows, order = feed.at(step)
            state, info = scan(state, rows, order)
            step += order.shape[-2]
            jax.block_until_ready(info)

    return epoch, lambda: state


def started(run: runs.Run, problem: Problem) -> loop.RunState:
    """The state of a single run at the weights that all contenders start from."""
    start = params(run.model, problem.layout, problem.start)
    return runs.initial(run._replace(start=start)).run


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
    evaluate = measure.over_rows(value, lambda x: x, num_decoded=num_samples)
    test = jnp.asarray(problem.test)
    nats = evaluate(jax.random.key(1), params(model, problem.layout, reached), test)
    return float(np.asarray(nats, np.float64).mean())


def evaluator(
    reached: Weights, num_samples: int, *, precision: str = "float32"
) -> contenders.LogP:
    """Log p(x) by importance sampling under perceptrons."""
    num_entries, latents = (len(net[0].kernel) for net in reached)
    hidden = tuple(len(layer.bias) for layer in reached.encoder[:-1])
    flags = Config(num_latents=latents, hidden=hidden, precision=precision)
    model = models.build(flags, (num_entries,)).model
    evaluate = measure.over_rows(
        measure.log_evidence(model, num_samples=num_samples),
        lambda x: x.astype(jnp.float32),
        num_decoded=num_samples,
    )
    places = contenders.layout(
        contenders.Flags(num_latents=latents, hidden=hidden), (num_entries,)
    )
    at = params(model, places, reached)

    def log_p(images: np.ndarray) -> np.ndarray:
        rows = jnp.asarray(images.reshape(len(images), -1))
        return np.asarray(evaluate(jax.random.key(2), at, rows).log_p)

    return log_p


def params(model: Model, places: contenders.Places, reached: Weights) -> Params:
    """The weights of the two networks, where they stand: the model learns no more."""
    theta, phi = jax.eval_shape(model.init, jax.random.key(0))
    encoder, decoder = map(_tree, places, reached)
    return Params(theta | {"decoder": decoder}, phi | {"encoder": encoder})


def weights(at: Params, places: contenders.Places) -> Weights:
    """The other way round, on the host."""
    host = jax.device_get(at)
    trees = host.recognition["encoder"], host.generative["decoder"]
    return Weights(*map(_layers, places, trees))


def _tree(places: list[Place], layers: list[Layer]) -> PyTree:
    tree: dict[str, Any] = {}
    for place, layer in zip(places, layers, strict=True):
        name, _, part = place.name.partition("/")
        arrays = jax.tree.map(jnp.asarray, layer._asdict())
        if part:
            tree.setdefault(name, {})[part] = arrays
        else:
            tree[name] = arrays
    return tree


def _layers(places: list[Place], tree: PyTree) -> list[Layer]:
    return [
        Layer(**functools.reduce(operator.getitem, place.name.split("/"), tree))
        for place in places
    ]
