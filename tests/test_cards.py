"""experiments.export.cards: what a model's file says, and the model rebuilt from it."""

import json

import jax
import numpy as np
import pytest

from experiments.export import cards
from experiments.runs import protocol
from tests.architectures import ARCHITECTURES, TINY, untrained
from vae_jax import artifacts
from vae_jax.data import csv_tables


@pytest.fixture(scope="module")
def digits():
    """The data that every model here is built for."""
    return protocol.load(TINY)


def marks(name):
    """Of an architecture's test: four of them stand for the rest in the fast suite."""
    results = [pytest.mark.uses_optax] if name == "vem" else []
    quick = {"mlp", "iaf", "vamp", "ladder"}
    return results if name in quick else [*results, pytest.mark.slow]


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=marks(name)) for name in ARCHITECTURES]
)
def test_a_model_of_any_architecture_comes_back_bit_for_bit(tmp_path, digits, name):
    trained = untrained(digits, **ARCHITECTURES[name])
    path = tmp_path / "model.safetensors"
    artifacts.save_model(path, trained.params, cards.of_trained(trained))
    model, params = cards.load_model(path)
    assert jax.tree.structure(params) == jax.tree.structure(trained.params)
    for a, b in zip(*map(jax.tree.leaves, (params, trained.params)), strict=True):
        assert a.dtype == b.dtype
        assert np.asarray(a).tobytes() == np.asarray(b).tobytes()
    inputs = artifacts.KEY_DATA, cards.rows(trained)
    programs = [  # the same text is the same function, with no need to compile it
        jax.jit(artifacts.log_weight(records, params)).lower(*inputs).as_text()
        for records in (model, trained.model)
    ]
    assert programs[0] == programs[1]


def test_an_infinite_flag_is_carried_in_a_card(tmp_path, digits):
    trained = untrained(digits, estimator="renyi", alpha=-np.inf, num_samples=2)
    path = tmp_path / "model.safetensors"
    artifacts.save_model(path, trained.params, cards.of_trained(trained))
    assert artifacts.read_model(path)[1]["flags"]["alpha"] == "-inf"
    cards.load_model(path)


@pytest.mark.parametrize(
    ("binarization", "offset", "said"),
    [
        ("none", 0.0, "x = stored / 16"),
        ("none", 0.5, "x = (stored + 0.5) / 16"),
        ("static", 0.0, "x = 1 with probability stored / 16, else 0"),
        ("dynamic", 0.0, "x = 1 with probability stored / 16, else 0"),
    ],
)
def test_the_map_from_stored_values_to_x_is_said(digits, binarization, offset, said):
    trained = untrained(digits, binarization=binarization)
    source = digits.source._replace(offset=offset)
    trained = trained._replace(data=digits._replace(source=source))
    assert cards.observation(trained)["value"] == said
    assert cards.observation(trained)["holes"].startswith("none")


def test_a_model_of_partial_observations_says_what_marks_a_hole(digits):
    said = cards.observation(untrained(digits, missing="nan", estimator="iwae"))
    assert said["holes"] == "NaN marks a missing entry"


def test_a_model_of_a_table_names_its_columns_and_their_levels(digits):
    trained = untrained(digits)
    assert "columns" not in cards.observation(trained)
    columns = (
        csv_tables.Column("city", "categorical", ("Bonn", "Ulm")),
        csv_tables.Column("kind", "label", ("a", "b")),
        csv_tables.Column("age", "normal"),
    )
    source = digits.source._replace(columns=columns)
    said = cards.observation(trained._replace(data=digits._replace(source=source)))
    assert json.loads(json.dumps(said["columns"])) == [
        {"name": "city", "family": "categorical", "levels": ["Bonn", "Ulm"]},
        {"name": "age", "family": "normal", "levels": []},
    ]


@pytest.mark.parametrize(
    ("card", "said"),
    [
        ({"x": {"shape": [8, 8]}}, "its card has no 'flags'"),
        ({"flags": {"warp": 1, "a": 2}, "x": {"shape": [8]}}, "not know: a, warp"),
        ({"flags": {"num_latents": 0}, "x": {"shape": [8]}}, "--num_latents must be"),
    ],
)
def test_a_card_that_rebuilds_nothing_is_refused(tmp_path, card, said):
    artifacts.save_model(tmp_path / "a", {"w": np.ones(1)}, card)  # pyright: ignore
    with pytest.raises(ValueError, match=said):
        cards.load_model(tmp_path / "a")
