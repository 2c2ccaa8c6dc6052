"""What a trained ladder says of its layers, by the commands, in process."""

import dataclasses
import json

import jax
import numpy as np
import pytest

from experiments import evaluate, train
from experiments.command import cli
from experiments.generate import command as generate
from experiments.generate import samplers
from experiments.measures import layers, measure
from experiments.representation import command as representation
from experiments.runs import trained_runs
from tests.tiny import tiny

pytestmark = pytest.mark.uses_optax


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    """A tiny ladder of three layers."""
    path = tmp_path_factory.mktemp("layers") / "run"
    with jax.numpy_dtype_promotion("standard"):
        changes = {"learning_rate": 0.01, "num_epochs": 5}
        config = tiny(path, ladder=("5", "3", "2"), num_latents=16, **changes)
        assert train.main(config) == 0
    return path


@pytest.fixture(scope="module")
def trained(workdir):
    return trained_runs.load(workdir, checkpoint="last")[0]


@pytest.mark.slow
def test_evaluate_ablates_each_layer_and_prunes_the_least_latents(workdir, capsys):
    config = evaluate.Config(
        workdir=str(workdir), importance_samples=0, eval_samples=50, num_images=200
    )
    assert evaluate.main(config) == 0
    said = capsys.readouterr().out
    result = json.loads((workdir / "evaluation_test_200_images.json").read_text())
    ablation, kl = result["ablation"], result["kl_per_latent"]
    assert len(kl) == 10
    parts = np.split(np.array(kl), [5, 8])
    for i, (layer, part) in enumerate(zip(ablation["layers"], parts, strict=True), 1):
        assert (layer["layer"], layer["num_latents"]) == (i, len(part))
        np.testing.assert_allclose(layer["kl"], part.sum(), rtol=0.05)
        assert layer["active_units"] == (part > 0.01).sum()
        np.testing.assert_allclose(
            layer["bound"], ablation["bound"] - layer["lost"], rtol=1e-6
        )
        assert f"z_{i} " in said
    np.testing.assert_allclose(ablation["bound"], result["elbo"], atol=0.3)
    np.testing.assert_allclose(sum(kl), result["kl"], rtol=0.05)
    pruning = ablation["pruning"]
    assert [row["num_replaced"] for row in pruning] == list(range(11))
    assert (np.diff([row["kl"] for row in pruning]) >= 0.0).all()
    assert pruning[0]["lost"] == 0.0
    assert pruning[-1]["lost"] > max(layer["lost"] for layer in ablation["layers"])


@pytest.mark.slow
def test_images_meet_the_same_noise_with_and_without_a_layer(trained):
    which = {"split": "test", "num_samples": 3, "num_images": 40}
    result = layers.measured(jax.random.key(0), trained, **which)
    errors = [layer["lost_standard_error"] for layer in result["layers"]]
    assert 0.0 < max(errors) < 0.5
    assert result["pruning"][0]["bound"] == pytest.approx(result["bound"], rel=1e-5)


@pytest.mark.slow
def test_generate_draws_below_layers_that_stay(workdir, trained):
    config = generate.Config(
        workdir=str(workdir), num=20, num_steps=2, by_layer=True,
        temperature=(0.5, 1.0, 0.0),
    )  # fmt: skip
    assert generate.main(config) == 0
    name = "temperature_0_5_1_0"
    z = np.load(workdir / f"by_layer_{name}.npz")["z"]
    assert z.shape == (4, 10, 10)
    for num, end in enumerate((10, 8, 5, 0)):
        np.testing.assert_array_equal(z[num, :, end:], np.tile(z[3, :1, end:], (10, 1)))
    for num, end in enumerate((8, 8, 5)):  # the top has no noise at temperature 0
        assert (z[num, :, :end].std(0) > 0.0).all()
    np.testing.assert_array_equal(z[0, :, 8:], 0.0)
    assert (workdir / f"by_layer_{name}.png").stat().st_size > 0
    samples = np.load(workdir / f"samples_{name}_num_20.npz")["z"]
    np.testing.assert_array_equal(samples[:, 8:], 0.0)
    key = jax.random.key(3)
    for temperatures in ((), (1.0,)):
        sample = samplers.tempered(trained, temperatures)
        prior = trained.model.generative.sample_prior(
            jax.random.clone(key), trained.params
        )
        np.testing.assert_array_equal(sample(jax.random.clone(key)), prior)


def test_what_is_known_of_all_latents_is_not_said_of_a_layer():
    of_all = {"active_units_z1": 5.0}  # z2 is below a prior that does not factorize
    layer = slice(5, 8)
    assert representation.of_layer(of_all, 1, layer) == {"active_units": 5.0}
    assert representation.of_layer(of_all, 2, layer) == {}
    assert representation.of_layer(of_all, 0, layer) == of_all
    of_one = {"active_units": 2.0, "kl_per_latent": [1.0, 2.0]}
    assert representation.of_layer(of_one, 1, slice(0, 2)) == of_one


@pytest.mark.slow
def test_codes_of_one_layer_are_its_part_of_all(workdir, trained):
    config = representation.Config(
        workdir=str(workdir), layer=2, few_labels=(10,), few_draws=2, num_test=100
    )
    assert representation.main(config) == 0
    path = workdir / "representation_layer_2_100_images.json"
    result = json.loads(path.read_text())
    assert result["sizes"]["codes"] == 3
    whole = measure.latents(trained, split="test", num_images=100)["kl_per_latent"]
    of_layer = np.array(whole)[5:8]
    np.testing.assert_allclose(result["latents"]["kl_per_latent"], of_layer)
    assert "mean_kl" not in result["latents"]  # which is of all of z
    data = trained_runs.rows(trained, split="test", num_images=4)
    of_one, of_another = (measure.codes(k, trained, data) for k in _keys())
    np.testing.assert_array_equal(of_one, of_another)  # means, without noise
    missing = dataclasses.replace(config, layer=4)
    with pytest.raises(cli.UsageError, match="--layer=4 is none of the 3 layers"):
        representation.main(missing)


def _keys():
    return jax.random.split(jax.random.key(0))


@pytest.mark.slow
def test_one_layer_has_a_temperature_and_no_layers_that_stay(tmp_path):
    config = tiny(tmp_path / "run")
    train.main(config)
    small = generate.Config(workdir=config.workdir, num=50, temperature=(0.0,))
    assert generate.main(small) == 0
    samples = np.load(tmp_path / "run" / "samples_temperature_0_num_50.npz")
    np.testing.assert_array_equal(samples["z"], 0.0)
    with pytest.raises(cli.UsageError, match="--by_layer is of --ladder"):
        generate.main(dataclasses.replace(small, by_layer=True))
    with pytest.raises(cli.UsageError, match="one number, or one for each of the 1"):
        generate.main(dataclasses.replace(small, temperature=(0.5, 0.5)))


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--temperature=0.5,x"], "--temperature=0.5,x: .* list of numbers"),
        (["--temperature=0.5,-1"], "--temperature must not be negative"),
        (["--temperature=nan"], "--temperature"),
        (["--temperature=0.7", "--sampler=mixture"], "is of --sampler=prior"),
        (["--by_layer", "--sampler=mixture"], "--by_layer is of --sampler=prior"),
    ],
)
def test_a_wrong_temperature_or_source_is_named(flags, message):
    with pytest.raises(cli.UsageError, match=message):
        cli.parse(generate.Config, ["generate", *flags])


def test_a_list_of_numbers_is_written_and_read():
    config = generate.Config(temperature=(0.25, 1.0))
    lines = cli.write_flagfile(config).split()
    got = cli.parse(generate.Config, ["generate", "--temperature=0.25,1"])
    assert got == config
    assert "--temperature=0.25,1.0" in lines
