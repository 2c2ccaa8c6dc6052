"""Bits per dimension: what has them, of what they are, and where a run tells them."""

import json
import math
import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments import evaluate, train
from experiments.choices import models
from experiments.choices.config import Config
from experiments.runs import fit, protocol
from tests.tiny import metrics, tiny
from vae_jax.plots import curves, files

pytestmark = pytest.mark.uses_optax

# Decoder outputs of zero are the uniform distribution, whose bits are known.
UNIFORM: dict[str, tuple[dict[str, Any], float]] = {
    "fair bits": ({"binarization": "threshold"}, 1.0),
    "17 values": (
        {"likelihood": "categorical", "num_values": 17, "binarization": "grid"},
        math.log2(17),
    ),
    "uniform density": (
        {"likelihood": "continuous_bernoulli", "binarization": "dequantized"},
        math.log2(17),
    ),
}
VALUES = "bits per dimension are -nats / (64 ln 2), of the values themselves"
BOUND = (
    "bits per dimension are log2 17 - nats / (64 ln 2), a bound on the discrete "
    "log-probability of the 17 stored values"
)


@pytest.mark.slow
@pytest.mark.parametrize("case", UNIFORM)
def test_the_uniform_distribution_has_the_bits_of_its_values(tmp_path, case):
    flags, exact = UNIFORM[case]
    config = tiny(tmp_path, **flags)
    data = protocol.load(config)
    likelihood = models.likelihood(config, data.x_shape)
    x = data.prepared.value(jnp.asarray(data.prepared.test[0]))
    log_p = likelihood.log_prob_terms((), jnp.zeros(likelihood.width), x).sum()
    labeled = data.labeled({"elbo": log_p, "log_p": log_p, "kl": 0.0})
    np.testing.assert_allclose(labeled["bits_per_dimension"], exact, rtol=1e-5)
    np.testing.assert_allclose(labeled["log_p_bits_per_dimension"], exact, rtol=1e-5)
    assert data.units == f"nats per example; {BOUND if 'uni' in case else VALUES}"
    assert protocol.stamp(config.settled, data)["units"] == data.units


@pytest.mark.slow
def test_bytes_have_eight_bits(tmp_path):
    shades = np.random.default_rng(0).integers(0, 256, (40, 4, 3), np.uint8)
    np.savez(tmp_path / "own.npz", train=shades)
    both: list[dict[str, Any]] = [
        {"likelihood": "categorical"},
        {"likelihood": "continuous_bernoulli", "binarization": "dequantized"},
    ]
    for flags in both:
        config = Config(dataset=f"npz:{tmp_path / 'own.npz'}", **flags)
        data = protocol.load(config)
        likelihood = models.likelihood(config, data.x_shape)
        batch = data.prepared.take(
            jax.random.key(0), jnp.asarray(data.prepared.train), jnp.arange(1)
        )
        h = jnp.zeros(likelihood.width)
        log_p = likelihood.log_prob_terms((), h, batch.x[0]).sum()
        np.testing.assert_allclose(
            data.in_bits({"bound": log_p})["bits_per_dimension"], 8.0, rtol=1e-6
        )


@pytest.mark.parametrize(
    "flags",
    [
        {"likelihood": "normal", "binarization": "none"},
        {"likelihood": "normal", "binarization": "grid"},
        {"likelihood": "continuous_bernoulli", "binarization": "threshold"},
        {"binarization": "none"},  # a cross-entropy
        {"binarization": "grid"},
        {"missing": "nan", "missing_rate": 0.2},
    ],
    ids=str,
)
def test_what_has_none_is_told_in_nats_alone(flags):
    data = protocol.load(Config(**flags))
    assert data.units == "nats per example"
    assert not data.in_bits({"bound": -3.0, "log_p": -3.0})
    assert "bits" not in " ".join(data.labeled({"bound": -3.0, "elbo": -4.0}))


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        ({"binarization": "dequantized"}, "--likelihood=bernoulli is none: take"),
        (
            {"binarization": "dequantized", "likelihood": "discretized_logistic"},
            "--likelihood=discretized_logistic is none: take --binarization=grid",
        ),
        (
            {"likelihood": "discretized_logistic"},
            "take --binarization=grid --num_values=17",
        ),
        (
            {"likelihood": "categorical", "num_values": 9, "binarization": "none"},
            "take --binarization=grid --num_values=17",
        ),
        ({"likelihood": "normal"}, "--binarization=none .* dequantized for a bound"),
    ],
    ids=str,
)
def test_what_has_no_number_says_what_has(flags, said):
    with pytest.raises(ValueError, match=said):
        protocol.load(Config(**flags))


def test_stored_values_are_read_as_their_likelihood_needs_them(tmp_path, capsys):
    flags = {"likelihood": "discretized_logistic", "num_values": 17}
    assert fit.claim(tiny(tmp_path, **flags)).config.binarization == "grid"
    said = capsys.readouterr().out
    assert "--binarization=grid: x = stored / 16; --likelihood=discr" in said
    assert VALUES in said


@pytest.mark.slow
@pytest.mark.parametrize(
    ("flags", "said"),
    [
        ({"likelihood": "discretized_logistic", "num_values": 17}, VALUES),
        ({"likelihood": "normal", "binarization": "dequantized"}, BOUND),
    ],
    ids=str,
)
def test_a_run_tells_them_beside_its_nats(tmp_path, capsys, monkeypatch, flags, said):
    panels, titles = {}, []
    draw = curves.training_curves
    save = files.save

    def seen(rows, **settings):
        panels.update(settings["panels"])
        return draw(rows, **settings)

    def saved(figure, path):
        titles.append(figure.get_suptitle())
        save(figure, path)

    monkeypatch.setattr(curves, "training_curves", seen)
    monkeypatch.setattr(files, "save", saved)
    config = tiny(tmp_path / "run", **flags, watch="importance", progress=True)
    assert train.main(config) == 0
    shown = capsys.readouterr()
    assert re.search(
        r"bound -[\d.]+, bits_per_dimension [\d.]+, .*valid_bits", shown.err
    )
    assert shown.out.count(said) == 2  # at the opening and at the end
    data = protocol.load(config)
    for row in metrics(config.workdir):
        for nats, bits in (
            ("bound", "bits_per_dimension"),
            ("valid_bound", "valid_bits_per_dimension"),
            ("valid_importance_bound", "valid_importance_bits_per_dimension"),
        ):
            wanted = data.in_bits({"bound": row[nats]})["bits_per_dimension"]
            np.testing.assert_allclose(row[bits], wanted, rtol=1e-6)
    assert panels["bits per dimension"] == [
        "bits_per_dimension",
        "valid_bits_per_dimension",
    ]
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    wanted = data.in_bits({"elbo": result["elbo"]})["bits_per_dimension"]
    np.testing.assert_allclose(result["bits_per_dimension"], wanted, rtol=1e-6)
    assert result["protocol"]["units"].endswith(said)
    caption = f"; test bound {wanted:.2f} bits/dim"
    assert sum(caption in " ".join(title.split()) for title in titles) == 2
    some: dict[str, Any] = {"importance_samples": 20, "num_images": 20}
    assert evaluate.main(evaluate.Config(workdir=config.workdir, **some)) == 0
    path = tmp_path / "run" / "evaluation_test_20_images.json"
    result = json.loads(path.read_text())
    wanted = data.in_bits({"log_p": result["log_p"]})["log_p_bits_per_dimension"]
    np.testing.assert_allclose(result["log_p_bits_per_dimension"], wanted, rtol=1e-6)
    text = path.with_suffix(".txt").read_text()
    assert said in text
    assert f"{wanted:.4f}" in text.split("log p(x), nats")[1]
