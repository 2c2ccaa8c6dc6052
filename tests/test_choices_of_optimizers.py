"""The optimizers that flags can name, and the schedules and limits around them."""

import sys
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from experiments import train
from experiments.choices import algorithms, models
from experiments.choices.config import Config
from experiments.command import cli
from vae_jax.types import Params

pytestmark = pytest.mark.uses_optax
PARAMS = Params({"w": jnp.array([1.0, -2.0])}, {"v": jnp.array(3.0)})
GRADS = Params({"w": jnp.array([0.5, 0.1])}, {"v": jnp.array(-0.7)})
THEIRS = {
    "sgd": optax.sgd,
    "adagrad": lambda rate: optax.adagrad(rate, initial_accumulator_value=0.0),
    "adam": optax.adam,
    "adamax": optax.adamax,
    "adamw": lambda rate: optax.adamw(rate, weight_decay=0.2),
    "adamaxw": lambda rate: optax.adamaxw(rate, weight_decay=0.2),
    "rmsprop": optax.rmsprop,
}
DECAY: dict[str, Any] = {
    "adamw": {"decoupled_decay": 0.2},
    "adamaxw": {"decoupled_decay": 0.2},
}


def _updates(optimizer, *, num_steps=3):
    state, moves = optimizer.init(PARAMS), []
    for _ in range(num_steps):
        move, state = optimizer.update(GRADS, state, PARAMS)
        moves.append(move)
    return moves


@pytest.mark.slow
@pytest.mark.parametrize("name", algorithms.OPTIMIZERS)
def test_each_is_optaxs_own_behind_clipping_warm_up_and_schedule(name):
    flags: dict[str, Any] = {
        "schedule": "cosine",
        "final_rate": 0.1,
        "warmup_steps": 2,
        **DECAY.get(name, {}),
    }
    config = Config(
        optimizer=name,
        learning_rate=0.1,
        clip_norm=0.3,
        num_epochs=2,
        **flags,
    )
    ours = algorithms.optimizer(config, algorithms.Steps(num_data=10, per_epoch=5))
    cosine = optax.cosine_decay_schedule(0.1, 10, 0.1)

    def rate(count):
        return jnp.minimum(1.0, (count + 1) / 2) * cosine(count)

    theirs = optax.chain(optax.clip_by_global_norm(0.3), THEIRS[name](rate))
    for move, expected in zip(_updates(ours), _updates(theirs), strict=True):
        for x, y in zip(jax.tree.leaves(move), jax.tree.leaves(expected), strict=True):
            np.testing.assert_allclose(x, y, rtol=1e-5, atol=1e-8)


def test_the_schedule_of_mcem_is_over_all_updates_of_theta(monkeypatch):
    config = Config(
        algorithm="mcem",
        num_updates=3,
        optimizer="sgd",
        learning_rate=0.1,
        schedule="cosine",
        num_epochs=2,
        num_latents=2,
    )
    parts = models.build(config, (2, 2))
    optimizers = []
    monkeypatch.setattr(
        algorithms.mcem,
        "mcem",
        lambda generative, optimizer, **numbers: optimizers.append(optimizer),
    )
    algorithms.build(config, parts, algorithms.Steps(num_data=10, per_epoch=5))
    theirs = optax.sgd(optax.cosine_decay_schedule(0.1, 2 * 5 * 3))
    pairs = (_updates(o, num_steps=12) for o in (optimizers[0], theirs))
    for move, expected in zip(*pairs, strict=True):
        for x, y in zip(jax.tree.leaves(move), jax.tree.leaves(expected), strict=True):
            np.testing.assert_allclose(x, y, rtol=1e-5)


def test_the_help_of_the_optimizer_lists_each(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["train", "--help"])
    with pytest.raises(SystemExit):
        cli.run(Config, train.main)
    text = capsys.readouterr().out.partition("--optimizer")[2].partition("  --")[0]
    assert f"One of {', '.join(algorithms.OPTIMIZERS)}." in text


@pytest.mark.parametrize("optimizer", ["adam", "adamax", "sgd"])
def test_a_decay_that_nothing_reads_is_refused(optimizer):
    with pytest.raises(ValueError, match="--decoupled_decay has no effect with"):
        Config(optimizer=optimizer, decoupled_decay=0.1)


@pytest.mark.parametrize("optimizer", DECAY)
def test_no_decay_of_a_posterior_over_theta(optimizer):
    with pytest.raises(ValueError, match="takes parameters of q\\(theta\\) away"):
        Config(algorithm="full_vb", weight_decay=1.0, optimizer=optimizer)
