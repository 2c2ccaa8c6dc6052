"""Convolutions, learned priors, stored values and averages, from the command line."""

import dataclasses
import json
import pathlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments import evaluate, reconstruct, train
from experiments.choices import models
from experiments.choices.config import Config
from experiments.command import cli
from experiments.generate import command as generate
from tests.tiny import saved_arrays, tiny

pytestmark = pytest.mark.uses_optax

MAPS = {"width": 4, "num_blocks": 1, "activation": "elu"}
STORED = {"binarization": "none", "num_values": 17, "network": "conv", **MAPS}
RUNS = {
    "resnet, flow prior": {
        "network": "resnet",
        "prior": "flow",
        "prior_layers": 2,
        "prior_units": 4,
        "estimator": "sgvb_a",
        "kl_warmup": 1,
        "average_decay": 0.9,
        **MAPS,
        "optimizer": "adamax",
        "schedule": "cosine",
        "warmup_steps": 3,
        "final_rate": 0.1,
    },
    "autoregressive prior": {
        "prior": "autoregressive",
        "prior_layers": 2,
        "prior_units": 4,
        "estimator": "iwae",
    },
    "logistic": {"likelihood": "discretized_logistic", **STORED},
    "mixture": {
        "likelihood": "discretized_logistic_mixture",
        "num_logistics": 2,
        **STORED,
    },
    "categorical": {"likelihood": "categorical", **STORED},
    "continuous": {"likelihood": "continuous_bernoulli", "binarization": "none"},
    "laplace": {"likelihood": "laplace", "binarization": "none"},
    "student t": {"likelihood": "student_t", "degrees": 3.0, "binarization": "none"},
}


@pytest.mark.slow
@pytest.mark.parametrize("name", RUNS)
def test_each_trains_is_taken_up_and_is_evaluated(tmp_path, name):
    config = tiny(tmp_path / "whole", **RUNS[name])
    assert train.main(config) == 0
    whole = saved_arrays(config)
    short = dataclasses.replace(config, workdir=str(tmp_path / "parts"), num_epochs=1)
    if short.schedule == "constant":  # a cosine ends elsewhere
        assert train.main(short) == 0
        longer = dataclasses.replace(short, num_epochs=config.num_epochs)
        assert train.main(longer) == 0
        for part, array in zip(saved_arrays(longer), whole, strict=True):
            np.testing.assert_array_equal(part, array)
    folder: dict[str, Any] = {"workdir": str(tmp_path / "whole")}
    assert evaluate.main(evaluate.Config(**folder, importance_samples=20)) == 0
    result = json.loads((tmp_path / "whole" / "evaluation_test.json").read_text())
    assert np.isfinite(result["log_p"])
    assert reconstruct.main(reconstruct.Config(**folder, num=3)) == 0
    assert generate.main(generate.Config(**folder, num=3)) == 0


def test_a_stored_value_beside_the_grid_is_refused():
    with pytest.raises(cli.UsageError, match="16 values needs x = k / 15"):
        train.main(
            tiny(pathlib.Path("unused"), **RUNS["logistic"] | {"num_values": 16})
        )


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({"width": 8}, "--width has no effect with --network=mlp"),
        (
            {"network": "conv", "init": "normal_0.1"},
            "--init has no effect with --network=conv",
        ),
        (
            {"network": "gated_mlp", "activation": "relu"},
            "--activation has no effect with --network=gated_mlp",
        ),
        (
            {"network": "residual_mlp", "encoder_hidden": (9,)},
            "--encoder_hidden has no effect with --network=residual_mlp",
        ),
        (
            {"prior_layers": 3},
            "--prior_layers has no effect with --prior=standard_normal",
        ),
        ({"num_values": 17}, "--num_values has no effect with --likelihood=bernoulli"),
        ({"prior": "flow"}, "needs the closed-form KL"),
        ({"average_decay": 1.0}, "--average_decay must be"),
        (
            {"average_decay": 0.9, "algorithm": "mcem"},
            "--average_decay has no effect with --algorithm=mcem",
        ),
        ({"final_rate": 0.1}, "--final_rate has no effect with --schedule=constant"),
    ],
)
def test_what_nothing_reads_is_refused(flags, message):
    with pytest.raises(ValueError, match=message):
        Config(**flags)


def test_couplings_need_two_latents():
    flags = {"prior": "flow", "estimator": "sgvb_a", "num_latents": 1}
    with pytest.raises(cli.UsageError, match="--num_latents of 2 or more"):
        train.main(tiny(pathlib.Path("unused"), **flags))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("flags", "names"),
    [
        (
            {"network": "gated_mlp", "hidden": (6, 5), "encoder_hidden": (4,)},
            (["hidden_0", "output"], ["hidden_0", "hidden_1", "output"]),
        ),
        (
            {"network": "residual_mlp", "width": 6, "num_blocks": 1},
            2 * (["first_0", "input", "output", "second_0"],),
        ),
    ],
    ids=lambda value: value.get("network", "") if isinstance(value, dict) else "",
)
def test_a_network_by_its_name_is_that_network_both_ways(flags, names):
    config = dataclasses.replace(tiny(pathlib.Path("unused")), **flags)
    model = models.build(config, (8, 8)).model
    params = model.init(jax.random.key(0))
    layers = sorted(params.recognition["encoder"]), sorted(params.generative["decoder"])
    assert layers == names
    x = jnp.linspace(0.0, 1.0, 64).reshape(8, 8)
    h = model.recognition.encode(params, x)
    draw = model.draw(jax.random.key(1), params, x, h)
    assert draw.log_likelihood.shape == (8, 8)
