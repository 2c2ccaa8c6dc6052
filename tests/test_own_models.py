"""--model=MODULE:FUNCTION: models of one's own in every command on a workdir."""

import dataclasses
import importlib
import json
import re
import sys
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments import evaluate, reconstruct, train
from experiments.choices import models
from experiments.choices.config import Config
from experiments.command import cli
from experiments.completion import command as completion
from experiments.export import cards
from experiments.export import command as export
from experiments.generate import command as generate
from experiments.runs import comparison, fit, new_rows, protocol, runs, trained_runs
from tests.sources import text
from tests.tiny import metrics, saved_arrays, tiny
from vae_jax import vae
from vae_jax.types import Model

pytestmark = pytest.mark.uses_optax

# A network of NNX, and models that are of no use.
MORE = """
import jax
from flax import nnx
from vae_jax import flows, networks


def of_nnx(make):
    def init(key):
        return nnx.split(make(nnx.Rngs(key)), nnx.Param)[1]

    structure = nnx.split(make(nnx.Rngs(0)), nnx.Param)[0]
    return Network(init, lambda params, x: nnx.merge(structure, params)(x.reshape(-1)))


def affine(config, x_shape):
    p = likelihoods.normal_learned_std(x_shape, initial_std=config.std, min_std=0.1)
    q = posteriors.flow(posteriors.diag_normal(2), flows.planar(2))
    decoder = of_nnx(lambda rngs: nnx.Linear(2, p.width, rngs=rngs))
    encoder = of_nnx(lambda rngs: nnx.Linear(64, q.width, rngs=rngs))
    return vae.model(
        vae.decoder_model(decoder, priors.standard_normal(2), p),
        vae.encoder_model(encoder, q),
    )


def bits(config, x_shape):
    p, decoder = likelihoods.bernoulli(x_shape), networks.linear(3, 64)
    return vae.model(
        vae.decoder_model(decoder, priors.bernoulli(3), p),
        vae.encoder_model(networks.linear(64, 3), posteriors.bernoulli(3)),
    )


def pair(config, x_shape):
    return conv(config, x_shape).generative, conv(config, x_shape).recognition


def two_sizes(config, x_shape):
    narrow = conv(config, x_shape)
    q = posteriors.diag_normal(config.num_latents + 1)
    return vae.model(
        narrow.generative, vae.encoder_model(network(Encoder(q.width), x_shape), q)
    )


def of_other_x(config, x_shape):
    return conv(config, (2, 32))


def plain(config, x_shape):
    p, decoder = likelihoods.bernoulli(x_shape), networks.linear(2, 64)
    return vae.model(
        vae.decoder_model(decoder, priors.standard_normal(2), p),
        vae.encoder_model(networks.linear(64, 4), posteriors.diag_normal(2)),
    )


def flattened(config, x_shape):
    model = plain(config, x_shape)
    mean = model.generative.mean_observation
    generative = model.generative._replace(
        mean_observation=lambda params, z: mean(params, z).reshape(-1)
    )
    return vae.model(generative, model.recognition)


def wide(config, x_shape):
    p, decoder = likelihoods.bernoulli(x_shape), networks.linear(2, 63)
    return vae.model(
        vae.decoder_model(decoder, priors.standard_normal(2), p),
        conv(config, x_shape).recognition,
    )


def silent(config, x_shape):
    model = conv(config, x_shape)
    return vae.model(model.generative._replace(quantity=None), model.recognition)


def summed(config, x_shape):
    model = plain(config, x_shape)
    terms = model.generative.log_likelihood_terms
    generative = model.generative._replace(
        log_likelihood_terms=lambda params, x, z: terms(params, x, z).sum()
    )
    return vae.model(generative, model.recognition)


def refuses(config, x_shape):
    raise ValueError("--hidden must hold two sizes")


of_three, constant = lambda config, x_shape, more: None, 3
"""


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """The current folder, with the README's module and more of them."""
    pattern = r"```python\n(.*?)```"
    (example,) = re.findall(pattern, text("experiments/README.md"), flags=re.DOTALL)
    (tmp_path / "own_networks.py").write_text(example + MORE)
    (tmp_path / "broken_networks.py").write_text("import no_such_package\n")
    (tmp_path / "half_networks.py").write_text("def conv(:\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [path for path in sys.path if path])
    importlib.invalidate_caches()
    yield tmp_path
    sys.modules.pop("own_networks", None)


def read(path):
    return json.loads(path.read_text())


@pytest.mark.slow
def test_the_readmes_model_goes_through_every_command(folder, capsys):
    config = tiny(folder / "run", model="own_networks:conv", num_latents=3)
    assert train.main(dataclasses.replace(config, num_epochs=1)) == 0
    assert train.main(config) == 0
    whole = tiny(folder / "whole", model="own_networks:conv", num_latents=3)
    assert train.main(whole) == 0
    assert metrics(config.workdir) == metrics(whole.workdir)
    for resumed, straight in zip(
        saved_arrays(config), saved_arrays(whole), strict=True
    ):
        assert np.array_equal(resumed, straight)
    assert "--model=own_networks:conv\n" in (folder / "run" / "flags.txt").read_text()
    stamp = read(folder / "run" / "run.json")["protocol"]
    assert stamp["likelihood"] == "own_networks:conv"
    assert stamp["quantity"] == "log-likelihood"
    assert (
        "--model=own_networks:conv: a row's number is a log-l"
        in capsys.readouterr().out
    )

    on: dict[str, Any] = {"workdir": config.workdir}
    few: dict[str, Any] = {
        "num_images": 4,
        "importance_samples": 10,
        "num_temperatures": 3,
    }
    evaluate.main(evaluate.Config(**on, **few, evidence=("is", "ais"), num_chains=2))
    result = read(folder / "run" / "evaluation_test_4_images.json")
    assert len(result["kl_per_latent"]) == 3
    assert set(result["evidence"]) == {"is", "ais"}
    reconstruct.main(reconstruct.Config(**on, num=3))
    generate.main(generate.Config(**on, num=4))
    completion.main(completion.Config(**on, num_images=2, num_draws=2))
    pictures = ("samples", "reconstructions", "training_curves", "traversal")
    assert all((folder / "run" / f"{name}.png").is_file() for name in pictures)
    for what in ("model", "encoder", "log_weight"):
        export.main(export.Config(**on, what=what))
    model, params = cards.load_model(folder / "run" / "model.safetensors")
    trained = trained_runs.load(config.workdir, checkpoint="last")[0]
    assert jax.tree.all(jax.tree.map(np.array_equal, params, trained.params))
    assert isinstance(model, Model)


AFFINE: dict[str, Any] = {
    "model": "own_networks:affine",
    "binarization": "none",
    "std": 0.5,
}


@pytest.mark.slow
def test_a_network_of_nnx_is_trained_and_draws_pictures(folder):
    train.main(tiny(folder / "run", estimator="sgvb_a", **AFFINE))
    assert (folder / "run" / "samples.png").is_file()


@pytest.mark.slow
def test_a_model_says_by_itself_what_fits_and_what_its_numbers_are(folder):
    config = tiny(folder / "run", estimator="sgvb_a", **AFFINE)
    run = runs.build(config)
    assert run.data.quantity == "log-density"
    assert run.parts.model.kl is None
    params = run.model.init(jax.random.key(0))
    assert params.generative["likelihood"]["log_std"] == pytest.approx(np.log(0.5))
    with pytest.raises(
        cli.UsageError, match="--estimator=sgvb_b does not fit --model=own"
    ):
        runs.build(tiny(folder / "run", **AFFINE))
    bits: dict[str, Any] = {"model": "own_networks:bits"}
    assert runs.build(tiny(folder / "bits", estimator="disarm", num_samples=2, **bits))
    with pytest.raises(cli.UsageError, match=r"--estimator=iwae .* are discrete"):
        runs.build(tiny(folder / "bits", estimator="iwae", **bits))
    with pytest.raises(cli.UsageError, match=r"--algorithm=mcem .* are discrete"):
        runs.build(tiny(folder / "bits", algorithm="mcem", **bits))
    with pytest.raises(cli.UsageError, match="give --binarization=none for its values"):
        runs.build(
            tiny(folder / "run", model="own_networks:affine", estimator="sgvb_a")
        )


@pytest.mark.slow
@pytest.mark.parametrize(
    ("changes", "baseline"),
    [
        ({"estimator": "nvil", "num_samples": 2}, True),
        pytest.param(
            {"algorithm": "full_vb", "weight_decay": 1.0}, False, marks=pytest.mark.slow
        ),
        pytest.param({"algorithm": "wake_sleep"}, False, marks=pytest.mark.slow),
        pytest.param({"algorithm": "mcem"}, False, marks=pytest.mark.slow),
        ({"algorithm": "vem", "posterior": "full_normal"}, False),
        ({"missing": "nan", "missing_rate": 0.2}, False),
        ({"num_seeds": 2}, False),
    ],
)
def test_the_fits_take_a_model_of_ones_own(folder, changes, baseline):
    """Whatever q is found or learned, z is that of the model."""
    config = tiny(folder / "run", model="own_networks:conv", **changes)
    run = runs.build(config)
    params = run.model.init(jax.random.key(0))
    vae.check_latents(run.model, params, jnp.zeros((8, 8)))
    assert (
        ("baseline" in params.recognition) == baseline if params.recognition else True
    )
    runs.scan(run)
    jax.eval_shape(lambda: runs.initial(run))


def test_a_model_whose_terms_are_of_no_entry_takes_no_holes(folder):
    flags = Config(model="own_networks:summed")
    models.check_masked(dataclasses.replace(flags, model="own_networks:plain"), (8, 8))
    message = r"--model=own_networks:summed has terms of shape \(\) for x of \(8, 8\)"
    with pytest.raises(ValueError, match=message):
        models.check_masked(flags, (8, 8))
    with pytest.raises(ValueError, match=message):
        models.build(dataclasses.replace(flags, missing="nan"), (8, 8))


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("own_networks", "--model=own_networks: give MODULE:FUNCTION"),
        ("own_networks:", "give MODULE:FUNCTION"),
        (
            "no_networks:conv",
            "no_networks does not import .*No module named 'no_networks",
        ),
        ("broken_networks:conv", "does not import .*No module named 'no_such_package'"),
        ("half_networks:conv", "half_networks does not import .SyntaxError"),
        ("own_networks:cnv", r"own_networks has no function cnv\(config, x_shape\)"),
        ("own_networks:constant", "has no function constant"),
        ("own_networks:of_three", "has no function of_three.*'more'"),
        ("own_networks:pair", "builds a tuple: return a vae_jax.types.Model"),
        (
            "own_networks:two_sizes",
            r"x of shape \(8, 8\): ValueError: the recognition model draws z",
        ),
        (
            "own_networks:of_other_x",
            r"line 1\d of .*own_networks.py: ScopeParamShapeErr",
        ),
        (
            "own_networks:flattened",
            r"a mean of x of \(64,\): z must be flat, and x is of \(8, 8\)",
        ),
        (
            "own_networks:wide",
            "the decoder gives 63 entries, but the likelihood reads 64",
        ),
        ("own_networks:silent", "a model without generative.quantity"),
        ("own_networks:refuses", r"line \d+ of .*: ValueError: --hidden must hold two"),
    ],
)
def test_what_is_no_model_of_the_data_is_refused_in_a_line(folder, name, said):
    with pytest.raises(cli.UsageError, match=said):
        train.main(tiny(folder / "run", model=name))
    assert not (folder / "run").exists()


def test_a_workdir_keeps_to_its_model(folder):
    config = tiny(folder / "run", model="own_networks:plain")
    fit.claim(config)
    with pytest.raises(cli.UsageError, match="--model=own_networks:plain there, "):
        train.main(tiny(folder / "run"))
    (folder / "own_networks.py").rename(folder / "elsewhere.py")
    sys.modules.pop("own_networks")
    with pytest.raises(
        cli.UsageError, match="--model=own_networks:plain: own_networks "
    ):
        reconstruct.main(reconstruct.Config(workdir=config.workdir))


def test_the_flags_of_a_model_are_its_own_to_read_and_the_others_mean_what_they_do():
    assert Config(model="a:b", std=0.3, flow_layers=2, min_std=0.2, beta=2.0)
    with pytest.raises(
        ValueError, match="--alpha has no effect with --estimator=sgvb_b"
    ):
        Config(model="a:b", alpha=0.1)
    with pytest.raises(
        ValueError, match="--encoder_hidden has no effect with --algorithm"
    ):
        Config(model="a:b", encoder_hidden=(3,), algorithm="mcem")


def test_data_are_held_against_the_model(folder):
    np.savez(
        "own.npz", train=np.linspace(0, 255, 640, dtype=np.float32).reshape(10, 8, 8)
    )
    config = Config(model="own_networks:conv", dataset="npz:own.npz")
    with pytest.raises(ValueError, match=r"--model=.*the train split .* \[0, 255\]"):
        protocol.load(config)
    other = dataclasses.replace(config, model="own_networks:affine", squash_mean=True)
    data = protocol.load(other)
    assert data.quantity == "log-density"
    np.savez("rows.npz", data.source.train[:3])
    assert len(new_rows.read("rows.npz", other.settled, data).rows) == 3
    assert re.match("own_networks", protocol.stamp(other, data)["likelihood"])
    assert models.quantity(config, (8, 8))(np.array([0.0, 1.0])) == "log-likelihood"


def test_a_comparison_takes_none():
    flags = comparison.ComparisonFlags(run_flags="--model=own_networks:conv")
    with pytest.raises(cli.UsageError, match="--model=own_networks:conv need not read"):
        flags.base()
