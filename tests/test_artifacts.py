"""Files of models and functions: what comes back, and what is refused."""

import json
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy

from tests import problems, testing
from vae_jax import (
    artifacts,
    flows,
    likelihoods,
    networks,
    posteriors,
    priors,
    vae,
)

CARD = {"about": "rings, in °", "numbers": [1, 0.1, 1e-300], "nested": {"b": 1, "a": 2}}


def initial(model):
    return jax.jit(model.init)(jax.random.key(3))


def learned_everywhere():
    """Parameters in every place: prior, likelihood, encoder, decoder and flows."""
    layers = [
        flows.inverse_autoregressive(networks.made(2, (3,)), 2),
        flows.reverse(2),
        flows.inverse_autoregressive(networks.made(2, (3,)), 2),
    ]
    posterior = posteriors.flow(posteriors.diag_normal(2), flows.chain(*layers))
    generative = vae.decoder_model(
        networks.mlp(2, (3,), 4),
        priors.normal_mixture(2, 3),
        likelihoods.normal_learned_std((2, 2)),
    )
    encoder = networks.mlp(4, (3,), posterior.width)
    return vae.model(generative, vae.encoder_model(encoder, posterior))


@pytest.fixture(scope="module")
def small():
    """A small model, and its parameters."""
    model = vae.model(*problems.bernoulli_vae())
    return model, initial(model)


def saved(path, small):
    """A file of `small`, as one that is there to be damaged."""
    artifacts.save_model(path, small[1], CARD)
    return path


def load(path, small):
    return artifacts.load_model(path, lambda card: small[0])


def rewritten(path, change):
    """Saves a model's file anew with other arrays, and a digest that fits them."""
    arrays, card = artifacts.read_model(path)
    change(arrays)
    named = {}
    for name, array in arrays.items():
        *above, last = name.split("/")
        place = named
        for part in above:
            place = place.setdefault(part, {})
        place[last] = array
    artifacts.save_model(path, named, card)  # pyright: ignore


# Models


@pytest.mark.slow
def test_a_model_comes_back_bit_for_bit_with_its_card(tmp_path):
    model = learned_everywhere()
    params, path = initial(model), tmp_path / "model.safetensors"
    artifacts.save_model(path, params, CARD)
    cards = []

    def remembering(card):
        cards.append(card)
        return model

    again, loaded = artifacts.load_model(path, remembering)
    assert again is model
    assert cards == [CARD]
    assert jax.tree.structure(loaded) == jax.tree.structure(params)
    for a, b in zip(jax.tree.leaves(loaded), jax.tree.leaves(params), strict=True):
        assert a.dtype == b.dtype
        assert np.asarray(a).tobytes() == np.asarray(b).tobytes()
    names = set(safetensors.numpy.load_file(path))
    assert {
        "generative/decoder/hidden_0/kernel",
        "generative/likelihood/log_std",
        "recognition/posterior/flow/2/output/bias",
    } < names
    assert len(names) == len(jax.tree.leaves(params))


@pytest.mark.parametrize(
    "dtype", [np.float32, np.float64, np.float16, jnp.bfloat16, np.int32, np.bool_]
)
def test_every_dtype_and_shape_is_kept(tmp_path, dtype):
    tree = {
        "transposed": np.arange(6).reshape(2, 3).astype(dtype).T,
        "scalar": np.ones((), dtype),
        "empty": np.zeros((0, 4), dtype),
    }
    artifacts.save_model(tmp_path / "a", tree, {})  # pyright: ignore
    arrays, _ = artifacts.read_model(tmp_path / "a")
    for name, array in tree.items():
        assert (arrays[name].dtype, arrays[name].shape) == (array.dtype, array.shape)
        np.testing.assert_array_equal(arrays[name], array)


def test_double_precision_is_kept_or_refused_and_never_rounded(tmp_path):
    with jax.enable_x64(True):
        problem = problems.linear_gaussian()
        model, params = problem.model, problem.params
        artifacts.save_model(tmp_path / "a", params, CARD)
        loaded = artifacts.load_model(tmp_path / "a", lambda card: model)[1]
        for a, b in zip(jax.tree.leaves(loaded), jax.tree.leaves(params), strict=True):
            assert a.dtype == jnp.float64
            np.testing.assert_array_equal(a, b)
    with pytest.raises(ValueError, match=r"bias is float64: load it under jax\.enable"):
        artifacts.load_model(tmp_path / "a", lambda card: model)


def test_an_array_that_is_missing_unknown_or_of_another_shape_is_named(tmp_path, small):
    name = "generative/decoder/output/bias"
    changes = {
        f"the array {name} is missing": lambda arrays: arrays.pop(name),
        f"{name}s is unknown to the model": lambda arrays: arrays.update(
            {f"{name}s": arrays[name]}
        ),
        rf"{name} has shape \(5,\), and the model of its card \(6,\)": (
            lambda arrays: arrays.update({name: arrays[name][:5]})
        ),
    }
    for said, change in changes.items():
        path = saved(tmp_path / "a", small)
        rewritten(path, change)
        with pytest.raises(ValueError, match=said):
            load(path, small)


def test_a_change_of_any_byte_and_a_cut_at_any_byte_are_refused(tmp_path):
    path = tmp_path / "a"
    artifacts.save_model(path, {"w": np.arange(3.0)}, {"x": 1})  # pyright: ignore
    whole = path.read_bytes()
    for at in range(len(whole)):
        damaged = bytearray(whole)
        damaged[at] ^= 1 << at % 8
        for content in (damaged, whole[:at]):
            path.write_bytes(content)
            with pytest.raises(ValueError, match=r"damaged|no vae_jax model|version"):
                artifacts.read_model(path)
    path.write_bytes(whole)
    assert artifacts.read_model(path)[1] == {"x": 1}


def test_files_of_others_and_of_other_versions_are_refused(tmp_path, small):
    path = tmp_path / "a"
    safetensors.numpy.save_file({"w": np.zeros(3)}, path)
    with pytest.raises(ValueError, match="no vae_jax model file: its format is None"):
        artifacts.read_model(path)
    metadata = {"format": "vae_jax model", "version": "2", "of the future": "{}"}
    safetensors.numpy.save_file({"w": np.zeros(3)}, path, metadata)
    with pytest.raises(ValueError, match="version 2 of its format, and this vae_jax"):
        load(path, small)
    path.write_bytes(b"PK\x03\x04 something else")
    with pytest.raises(ValueError, match="is damaged, or no safetensors"):
        load(path, small)
    with pytest.raises(FileNotFoundError, match="none"):
        load(tmp_path / "none", small)


@pytest.mark.parametrize(
    ("tree", "card", "said"),
    [
        ({"a": 0.5}, {}, "a is no array of numbers"),
        ({"a": jax.eval_shape(jax.random.key, 0)}, {}, "a is no array of numbers"),
        ({"a/b": np.ones(1), "a": {"b": np.ones(1)}}, {}, "two arrays have the path"),
        ({"a": np.ones(1)}, {"elbo": float("nan")}, "the card is no JSON"),
        ({"a": np.ones(1)}, {"rows": np.ones(1)}, "the card is no JSON"),
    ],
)
def test_what_cannot_be_saved_is_refused_and_nothing_written(
    tmp_path, tree, card, said
):
    with pytest.raises(ValueError, match=said):
        artifacts.save_model(tmp_path / "a", tree, card)
    assert not list(tmp_path.iterdir())


def test_a_write_that_fails_leaves_the_old_file_and_nothing_else(
    tmp_path, small, monkeypatch
):
    path = saved(tmp_path / "a", small)
    before = path.read_bytes()

    def full(*paths):
        raise OSError("no space left")

    monkeypatch.setattr("os.replace", full)
    with pytest.raises(OSError, match="no space"):
        artifacts.save_model(path, small[1], {"another": "card"})
    assert [path.name for path in tmp_path.iterdir()] == ["a"]
    assert path.read_bytes() == before


# Functions


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """A function with an array baked in, its artifact, and the card's path."""
    path = tmp_path_factory.mktemp("functions") / "scale.stablehlo"
    scale = jnp.arange(1.0, 4.0)

    def function(x, y):
        return x * scale[:, None], jnp.sum(y)

    inputs = {
        "x": jax.ShapeDtypeStruct((3, 2), np.float32),
        "y": jax.ShapeDtypeStruct((), np.int32),
    }
    artifacts.save_function(path, function, inputs, CARD)
    return function, path, path.with_name("scale.stablehlo.json")


@pytest.fixture
def copied(exported, tmp_path):
    """The two files of an artifact, to be damaged."""
    copies = [tmp_path / path.name for path in exported[1:]]
    for path, copy in zip(exported[1:], copies, strict=True):
        copy.write_bytes(path.read_bytes())
    return copies


def test_a_function_takes_any_batch_size_and_equals_a_loop(exported):
    function, path, _ = exported
    call = artifacts.load_function(path).call
    for size in (1, 2, 5):
        x = jax.random.normal(jax.random.key(size), (size, 3, 2))
        y = jnp.arange(size, dtype=jnp.int32)
        for got, wanted in zip(call(x, y), jax.vmap(function)(x, y), strict=True):
            assert got.dtype == wanted.dtype
            np.testing.assert_array_equal(got, wanted)


def test_the_card_names_inputs_outputs_and_platforms(exported):
    card = artifacts.load_function(exported[1]).card
    assert CARD.items() <= card.items()
    assert card["inputs"] == [
        {"name": "x", "shape": ["B", 3, 2], "dtype": "float32"},
        {"name": "y", "shape": ["B"], "dtype": "int32"},
    ]
    assert card["outputs"] == [
        {"shape": ["B", 3, 2], "dtype": "float32"},
        {"shape": ["B"], "dtype": "int32"},
    ]
    assert card["platforms"] == ["cpu", "cuda", "tpu"]


@pytest.mark.parametrize("which", [0, 1], ids=["artifact", "card"])
def test_a_changed_or_cut_artifact_or_card_is_refused(copied, which):
    whole = copied[which].read_bytes()
    for at in range(0, len(whole) - 1, len(whole) // 50):
        damaged = bytearray(whole)
        damaged[at] ^= 1
        for content in (damaged, whole[:at]):
            copied[which].write_bytes(content)
            if which == 1 and _same_json(content, whole):
                continue  # white space between the lines has no effect
            with pytest.raises(ValueError, match=re.escape(str(copied[0]))):
                artifacts.load_function(copied[0])


def _same_json(content, whole):
    try:
        return json.loads(content) == json.loads(whole)
    except ValueError:
        return False


def test_an_artifact_beside_the_card_of_another_is_refused(copied):
    written = json.loads(copied[1].read_text())
    copied[1].write_text(json.dumps(written | {"sha256": "0" * 64}))
    with pytest.raises(ValueError, match=r"not the artifact of scale\.stablehlo\.json"):
        artifacts.load_function(copied[0])
    copied[1].unlink()
    with pytest.raises(FileNotFoundError, match=r"no card beside it, scale\.stable"):
        artifacts.load_function(copied[0])


def test_an_artifact_of_another_version_is_refused(copied, monkeypatch):
    written = json.loads(copied[1].read_text())
    copied[1].write_text(json.dumps(written | {"version": 7}))
    with pytest.raises(ValueError, match="version 7 of its format, and this vae_jax"):
        artifacts.load_function(copied[0])
    copied[1].write_text(json.dumps(written | {"format": "a picture"}))
    with pytest.raises(ValueError, match="no vae_jax function file"):
        artifacts.load_function(copied[0])
    copied[1].write_text(json.dumps(written))
    monkeypatch.setattr("jax.export.minimum_supported_calling_convention_version", 1000)
    with pytest.raises(ValueError, match=r"calling convention .* reads 1000"):
        artifacts.load_function(copied[0])


def test_the_sampler_draws_z_and_then_x(x64):
    problem = problems.linear_gaussian(num_features=2, std=0.8)
    draw = artifacts.sampler(problem.generative, problem.params)
    keys = jax.random.split(jax.random.key(0), 20_000)
    x = jax.jit(jax.vmap(draw))(jax.random.key_data(keys))
    layer = problem.params.generative["decoder"]["output"]
    w, b = layer["kernel"].T, layer["bias"]
    testing.assert_mean_equals(x, b)
    outer = (x - b[None])[:, :, None] * (x - b[None])[:, None]
    testing.assert_mean_equals(outer, w @ w.T + 0.64 * jnp.eye(2))


def test_under_the_exact_posterior_every_log_weight_is_log_p_of_x(x64):
    problem = problems.linear_gaussian()
    model = vae.model(problem.generative, problem.exact)
    weigh = artifacts.log_weight(model, problem.params)
    keys = jax.random.key_data(jax.random.split(jax.random.key(0), 5))
    x = jax.random.normal(jax.random.key(1), (5, 2))
    log_p = jax.jit(jax.vmap(problem.log_p, (None, 0)))(problem.params, x)
    np.testing.assert_allclose(jax.jit(jax.vmap(weigh))(keys, x), log_p, rtol=1e-9)


def test_weights_average_to_p_of_x(x64):
    problem = problems.linear_gaussian()
    wide = problems.widened(problem.exact, log_factor=0.3, shift=0.2)
    model = vae.model(problem.generative, wide)
    weigh = artifacts.log_weight(model, problem.params)
    keys = jax.random.key_data(jax.random.split(jax.random.key(2), 20_000))
    x = jnp.array([0.7, -0.4])
    log_w = jax.jit(jax.vmap(weigh, in_axes=(0, None)))(keys, x)
    testing.assert_mean_equals(
        jnp.exp(log_w), jnp.exp(problem.log_p(problem.params, x))
    )
