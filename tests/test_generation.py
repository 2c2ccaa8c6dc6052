"""Samples, paths through the latent space and the measures of samples."""

import dataclasses
import json
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments import train
from experiments.command import cli
from experiments.generate import command as generate
from experiments.generate import paths, samplers
from experiments.measures import measure, pictures
from experiments.runs import trained_runs
from tests import testing
from tests.tiny import saved, tiny
from vae_jax.plots import images

pytestmark = pytest.mark.uses_optax


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    """A tiny run with three latents, of which one is hardly used."""
    path = tmp_path_factory.mktemp("generation") / "run"
    with jax.numpy_dtype_promotion("standard"):
        assert train.main(tiny(path, num_latents=3, learning_rate=0.01)) == 0
    return path


@pytest.fixture(scope="module")
def trained(workdir):
    return trained_runs.load(workdir, checkpoint="last")[0]


@pytest.mark.slow
def test_generate_writes_arrays_and_pictures_of_all(workdir, capsys):
    config = generate.Config(
        workdir=str(workdir), num=4, images=(3, 0), num_steps=5, quality=True,
        sampler="mixture", num_components=2, quality_rows=50,
    )  # fmt: skip
    assert generate.main(config) == 0
    said = capsys.readouterr().out
    assert "of interpolation _linear.png and _spherical.png" in said
    assert "50 draws of x with z from a mixture fitted to codes" in said
    between = np.load(workdir / "interpolation.npz")
    assert between["linear_z"].shape == (1, 5, 3)
    assert between["spherical_mean"].shape == (1, 5, 8, 8)
    along = np.load(workdir / "traversal.npz")
    assert along["mean"].shape == (3, 5, 8, 8)
    assert np.load(workdir / "samples_mixture_num_4.npz")["x"].shape == (4, 8, 8)
    for name in ("samples_mixture_num_4", "traversal", "interpolation_spherical"):
        assert (workdir / f"{name}.png").stat().st_size > 0
    path = workdir / "quality_mixture_quality_rows_50.json"
    result = json.loads(path.read_text())
    for space in result["spaces"].values():
        assert 0.0 <= space["precision"] <= 1.0
        assert 0.0 <= space["share_closer"] <= 1.0
        assert space["mmd"] > space["mmd_of_train"]


@pytest.mark.slow
def test_a_path_goes_from_code_to_code_and_is_decoded(trained):
    data = paths.chosen(trained, split="test", places=(5, 2))
    key_codes, key_paths = jax.random.split(jax.random.key(0))
    got = paths.between(key_paths, trained, data, num_steps=4)
    codes = measure.codes(key_codes, trained, data)
    value = trained.data.prepared.value
    np.testing.assert_array_equal(got["x"], value(trained.data.prepared.test[[5, 2]]))
    for kind in ("linear", "spherical"):
        ends = got[f"{kind}_z"][0, [0, -1]]
        np.testing.assert_allclose(ends, codes, rtol=1e-5, atol=1e-6)
        decoded = trained.model.generative.mean_observation(
            trained.params, jnp.asarray(got[f"{kind}_z"][0, 1])
        )
        np.testing.assert_allclose(got[f"{kind}_mean"][0, 1], decoded, rtol=1e-4)


@pytest.mark.slow
def test_a_traversal_moves_the_latents_of_greatest_kl_over_the_prior(trained):
    row = trained_runs.rows(trained, split="test", num_images=1)[0]
    got = paths.along(jax.random.key(0), trained, row, num_steps=3, num=2)
    kl = np.array(measure.latents(trained, split="test")["kl_per_latent"])
    np.testing.assert_array_equal(got["latents"], np.argsort(-kl)[:2])
    np.testing.assert_allclose(got["kl"], np.sort(kl)[::-1][:2], rtol=1e-4)
    code = measure.codes(jax.random.key(1), trained, row[None])[0]
    for z, latent in zip(got["z"], got["latents"], strict=True):
        others = np.arange(3) != latent
        np.testing.assert_allclose(z[:, others], np.tile(code[others], (3, 1)))
        np.testing.assert_allclose(z[[0, 2], latent], [-2.33, 2.33], atol=0.35)


@pytest.mark.slow
def test_the_mixture_has_the_moments_of_the_codes_it_is_fitted_to(trained):
    key_fit, key_draw, key_codes = jax.random.split(jax.random.key(0), 3)
    sample = samplers.of_mixture(key_fit, trained, num_components=2, num_rows=0)
    draws = jax.jit(jax.vmap(sample))(jax.random.split(key_draw, 20_000))
    data = trained_runs.rows(trained, split="train")
    codes = measure.codes(key_codes, trained, data, sampled=True)
    # The codes drawn here are others than those fitted to: a thousand of each.
    spread = 5.0 * codes.std(0) * np.sqrt(2 / 1000)
    assert (np.abs(np.mean(draws, axis=0) - codes.mean(0)) < spread).all()
    assert (np.abs(np.std(draws, axis=0) - codes.std(0)) < spread).all()


@pytest.mark.slow
def test_samples_without_a_sampler_are_of_the_prior(trained):
    draws = pictures.samples(jax.random.key(0), trained, num=500)
    testing.assert_mean_equals(draws["z"], np.zeros(3))


@pytest.mark.slow
def test_bits_are_traversed_and_neither_interpolated_nor_fitted_by_normals(
    tmp_path, capsys
):
    config = tiny(
        tmp_path / "run", posterior="bernoulli", estimator="disarm", num_samples=2
    )
    train.main(config)
    small = generate.Config(workdir=config.workdir, num=4)
    assert generate.main(small) == 0
    assert "no interpolation" in capsys.readouterr().out
    along = np.load(tmp_path / "run" / "traversal.npz")
    assert set(np.unique(along["z"])) <= {0.0, 1.0}
    assert along["mean"].shape == (2, 2, 8, 8)
    assert not (tmp_path / "run" / "interpolation.npz").exists()
    with pytest.raises(cli.UsageError, match="which this model does not have"):
        generate.main(dataclasses.replace(small, sampler="mixture"))


@pytest.mark.slow
def test_vectors_without_a_test_split_and_a_mixture_prior_are_generated(
    tmp_path, capsys
):
    rows = np.random.default_rng(0).random((60, 5), np.float32)
    np.savez(tmp_path / "rows.npz", train=rows)
    config = tiny(
        tmp_path / "run",
        dataset=f"npz:{tmp_path / 'rows.npz'}",
        batch_size=10,
        likelihood="normal",
        binarization="none",
        prior="normal_mixture",
        num_components=3,
        estimator="sgvb_a",
    )
    train.main(config)
    small = generate.Config(workdir=config.workdir, num=4)
    assert generate.main(small) == 0
    assert ".npz: no images, not drawn" in capsys.readouterr().out
    assert "variance" in np.load(tmp_path / "run" / "traversal.npz")
    assert not list((tmp_path / "run").glob("traversal.png"))
    with pytest.raises(cli.UsageError, match="--quality needs a test split"):
        generate.main(dataclasses.replace(small, quality=True))


@pytest.mark.slow
def test_an_image_out_of_range_is_named_with_the_range(trained):
    with pytest.raises(cli.UsageError, match="447 is none of the 447 rows of the test"):
        paths.chosen(trained, split="test", places=(0, 447))
    with pytest.raises(cli.UsageError, match="-1 is none of the 350 rows of the valid"):
        paths.chosen(trained, split="valid", places=(-1, 0))


@pytest.mark.slow
def test_what_the_data_cannot_give_is_one_line(workdir):
    config = generate.Config(workdir=str(workdir), num=2)
    with pytest.raises(cli.UsageError, match="--num_components=9 is more than the 8"):
        generate.main(
            dataclasses.replace(
                config, sampler="mixture", num_components=9, num_fitted=8
            )
        )
    with pytest.raises(cli.UsageError, match="--num_neighbors=50 must be below the 50"):
        generate.main(
            dataclasses.replace(config, quality=True, quality_rows=50, num_neighbors=50)
        )


def test_distances_to_rows_with_holes_are_refused_before_anything_is_drawn(tmp_path):
    folder = saved(tiny(tmp_path / "run", missing="nan", missing_rate=0.5))
    with pytest.raises(cli.UsageError, match="--quality measures distances to"):
        generate.main(generate.Config(workdir=str(folder), num=2, quality=True))
    assert not list(folder.glob("samples*"))


@pytest.mark.slow
def test_the_manifold_of_a_label_has_it_in_its_name_and_its_title(
    tmp_path, monkeypatch
):
    folder = saved(tiny(tmp_path / "run", condition="labels", binarization="dynamic"))
    titles, manifold = [], images.manifold

    def noted(sheet, **changes):
        titles.append(changes["title"])
        return manifold(sheet, **changes)

    monkeypatch.setattr(images, "manifold", noted)
    flags: dict[str, Any] = {"workdir": str(folder), "num": 2, "manifold_size": 2}
    for label in ("3", "4"):
        assert generate.main(generate.Config(label=label, **flags)) == 0
    three, four = (
        np.load(folder / f"manifold_label_{label}.npz")["mean"] for label in (3, 4)
    )
    assert np.ptp(three - four) > 1e-3
    assert [title.rpartition("; ")[2] for title in titles] == ["label 3", "label 4"]
    assert (folder / "manifold_label_3.png").is_file()
    assert not (folder / "manifold.npz").exists()


@pytest.mark.parametrize(
    ("flag", "said"),
    [
        ("--images=1,2,3", "--images must be pairs of rows, got 3"),
        ("--images=1,x", "--images=1,x"),
        ("--num_steps=1", "--num_steps must be 2 or more, got 1"),
        ("--num_fitted=-1", "--num_fitted must not be negative, got -1"),
        ("--quality_rows=0", "--quality_rows must be positive, got 0"),
        ("--num_components=3", "--num_components has no effect with --sampler=prior"),
        ("--num_neighbors=2", "no effect with --quality=false: it is read by true"),
        ("--split=holdout", "--split=holdout"),
        ("--sampler=flow", "sampler"),
    ],
)
def test_a_bad_flag_of_generate_is_named(flag, said):
    with pytest.raises(cli.UsageError, match=said):
        cli.parse(generate.Config, ["generate", flag])
