"""A trained model applied to the rows of a file, and what is written of parts."""

import dataclasses
import hashlib
import json
import pathlib
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest

from experiments import evaluate, reconstruct
from experiments.anomaly import config as anomaly
from experiments.command import cli
from experiments.completion import command as completion
from experiments.representation import command as representation
from experiments.runs import new_rows, protocol, trained_runs
from tests.tiny import saved, tiny
from vae_jax.data import batches, sources

pytestmark = pytest.mark.uses_optax

QUICK: dict[str, Any] = {"eval_samples": 1, "importance_samples": 0}
REALS = {"likelihood": "normal", "binarization": "none"}


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    """A run on digits that several tests read."""
    return str(saved(tiny(tmp_path_factory.mktemp("runs") / "run")))


@pytest.fixture
def digits(tmp_path):
    """A file of the test rows of digits, of values in [0, 1], with their labels."""
    source = sources.load("digits")
    path = tmp_path / "rows.npz"
    np.savez(path, test=source.test / 16.0, test_labels=source.labels["test"])
    return path


def content(folder) -> dict:
    """What each file of a folder holds."""
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


@pytest.mark.parametrize(
    "flags",
    [
        {"binarization": "threshold"},
        {"binarization": "static"},
        {"binarization": "dynamic", "data_seed": 3},
        REALS,
    ],
    ids=lambda flags: flags["binarization"],
)
def test_rows_of_a_file_are_stored_as_the_test_rows_of_the_run_are(
    tmp_path, digits, flags, capsys
):
    config = tiny(tmp_path / "run", **flags)
    data = protocol.load(config)
    results = new_rows.read(str(digits), config, data)
    value = data.prepared.value
    rows, wanted = (value(jnp.asarray(a)) for a in (results.rows, data.prepared.test))
    np.testing.assert_array_equal(rows, wanted)
    np.testing.assert_array_equal(results.labels, data.prepared.labels["test"])
    said = capsys.readouterr().out
    assert f"{digits}: 447 rows of float32, stored 0 to 1; --binariz" in said


def test_rows_of_another_scale_have_their_values_on_that_of_the_run(tmp_path):
    config = tiny(tmp_path / "run", **REALS)
    data = protocol.load(config)
    source = data.source._replace(offset=0.5, divisor=17.0)
    prepared = batches.prepare(source, binarization="none")
    data = data._replace(source=source, prepared=prepared)
    wanted = prepared.value(jnp.asarray(prepared.test))
    np.savez(tmp_path / "rows.npz", test=np.asarray(wanted))
    results = new_rows.read(str(tmp_path / "rows.npz"), config, data)
    rows = prepared.value(jnp.asarray(results.rows))
    np.testing.assert_allclose(rows, wanted, atol=1e-6)


@pytest.mark.slow
def test_the_same_rows_evaluate_to_the_same_numbers_under_a_name_of_their_own(
    workdir, digits, capsys
):
    config = evaluate.Config(workdir=workdir, **QUICK)
    assert evaluate.main(config) == 0
    folder = pathlib.Path(workdir)
    before = content(folder)
    assert evaluate.main(dataclasses.replace(config, input=str(digits))) == 0
    after = content(folder)
    assert {name: after[name] for name in before} == before
    digest = hashlib.sha256(digits.read_bytes()).hexdigest()
    name = f"evaluation_input_rows_{digest[:8]}"
    assert {*after} - {*before} == {f"{name}.json", f"{name}.txt"}
    whole, result = (
        json.loads(after[file]) for file in ("evaluation_test.json", f"{name}.json")
    )
    for number in ("elbo", "elbo_standard_error", "kl", "kl_per_latent"):
        assert result[number] == whole[number]
    of_file = result["protocol"].pop("input")
    assert result["protocol"] == whole["protocol"]
    wanted = {"file": str(digits), "sha256": digest, "num_rows": 447}
    assert wanted | {"missing_share": 0.0} == of_file
    assert f"{digits} (sha256 {digest[:8]}), 447 images" in capsys.readouterr().out


@pytest.mark.slow
def test_rows_are_reconstructed_beside_those_of_the_split(workdir, tmp_path):
    rows = np.random.default_rng(0).random((5, 8, 8, 1)) < 0.5
    np.savez(tmp_path / "bits.npz", anything=rows)
    config = reconstruct.Config(workdir=workdir, input=str(tmp_path / "bits.npz"))
    assert reconstruct.main(config) == 0
    (path,) = pathlib.Path(workdir).glob("reconstructions_input_bits_*.npz")
    np.testing.assert_array_equal(np.load(path)["x"], rows[..., 0])
    assert path.with_suffix(".png").exists()


@pytest.mark.slow
def test_codes_of_rows_are_judged_by_their_labels_or_without(workdir, digits, capsys):
    config = representation.Config(
        workdir=workdir, input=str(digits), num_test=60, few_labels=(10,), few_draws=1
    )
    config = dataclasses.replace(config, num_train=200, surgery_rows=20)
    before = content(pathlib.Path(workdir))
    assert representation.main(config) == 0
    of_file = content(pathlib.Path(workdir))
    new = {*of_file} - {*before}
    assert {name.partition("_")[0] for name in new} == {
        *("representation", "latents", "neighbors")
    }
    assert all("_input_rows_" in name for name in new)
    (name,) = (name for name in new if name.endswith(".json"))
    result, whole = json.loads(of_file[name]), dataclasses.replace(config, input="")
    assert representation.main(whole) == 0
    folder = pathlib.Path(workdir)
    path = folder / "representation_num_train_200_60_images.json"
    assert result["metrics"] == json.loads(path.read_text())["metrics"]
    np.savez(digits, test=sources.load("digits").test / 16.0)
    assert representation.main(config) == 0
    assert f"--input={digits} has no labels" in capsys.readouterr().out


@pytest.mark.slow
def test_rows_of_a_file_are_completed(workdir, digits):
    config = completion.Config(
        workdir=workdir,
        input=str(digits),
        methods=("importance",),
        num_images=4,
        num_draws=2,
        importance_samples=5,
        proposal="encoder",
    )
    assert completion.main(config) == 0
    (path,) = pathlib.Path(workdir).glob("completion_left_input_rows_*.json")
    result = json.loads(path.read_text())
    assert (result["split"], result["num_images"]) == ("input", 4)
    assert path.stem.endswith("_4_images")


HOLES = np.where(np.eye(8) > 0, np.nan, 0.0)[None]
ONES = np.ones((3, 8, 8))
REFUSED: dict[str, tuple[dict[str, Any], dict[str, Any], str]] = {
    "shape": (
        {"test": ONES[:, :4]},
        {},
        r"test has rows of shape \(4, 8\), the run in .* \(8, 8\)",
    ),
    "holes": ({"x": HOLES}, {}, "x row 0 holds NaN, and the run .*--missing=refuse"),
    "nothing there": (
        {"x": np.nan * ONES},
        {"missing": "nan"},
        "every entry of x is missing",
    ),
    "bytes as floats": (
        {"test": 255.0 * ONES},
        {},
        r"test has values from 255 to 255, and --likelihood=bernoulli of .* \[0, 1\]",
    ),
    "shades as stored by digits": (
        {"test": np.full((3, 8, 8), 16, np.uint8)},
        {},
        "integers up to 16, which are taken for shades .*store floats",
    ),
    "all zeros": (
        {"test": 0.1 * ONES},
        {},
        r"values from 0\.1 to 0\.1, all zeros under --binarization=threshold",
    ),
    "reals on another scale": (
        {"test": 255.0 * ONES},
        REALS,
        "values from 255 to 255, those of the run in .* are from 0 to 1: scale them",
    ),
    "several arrays": (
        {"a": ONES, "b": ONES},
        {},
        "it holds a, b: name the array of rows test, or save it alone",
    ),
    "labels of others": (
        {"x": ONES, "x_labels": np.arange(4)},
        {},
        "x labels are int64 of shape",
    ),
    "no rows": ({"test": ONES[:0]}, {}, "holds no rows"),
    "infinite": ({"test": np.inf * ONES}, REALS, "row 0 holds infinity"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_rows_that_do_not_fit_the_run_are_one_line(tmp_path, case):
    arrays, flags, said = REFUSED[case]
    path = tmp_path / "rows.npz"
    np.savez(path, **arrays)
    config = tiny(tmp_path / "run", **flags)
    data = protocol.load(config)
    with pytest.raises(cli.UsageError, match=said) as error:
        new_rows.read(str(path), config, data)
    assert str(error.value).startswith(f"--input={path}: ")
    assert "\n" not in str(error.value)


def test_rows_on_the_scale_of_another_reader_are_refused(tmp_path):
    bits, reals = np.eye(4)[None] > 0, np.linspace(-3, 3, 32, dtype=np.float32)
    np.savez(tmp_path / "bits.npz", train=np.repeat(bits, 2, 0))
    np.savez(tmp_path / "reals.npz", train=reals.reshape(2, 4, 4))
    cases = {
        "bits": (reals.reshape(2, 4, 4) / 6 + 0.5, {}, "zeros and ones"),
        "reals": (255 * bits.astype(np.uint8), REALS, "holds integers, .* store flo"),
    }
    for name, (rows, flags, said) in cases.items():
        np.savez(tmp_path / "rows.npz", rows)
        dataset = f"npz:{tmp_path / name}.npz"
        config = tiny(tmp_path / "run", dataset=dataset, **flags)
        data = protocol.load(config)
        with pytest.raises(cli.UsageError, match=said):
            new_rows.read(str(tmp_path / "rows.npz"), config, data)


def test_a_folder_and_an_archive_of_images_are_no_rows(workdir, tmp_path):
    for path in (tmp_path, tmp_path / "pictures.ZIP"):
        config = evaluate.Config(workdir=workdir, input=str(path))
        with pytest.raises(cli.UsageError, match=r"--input=.*: give an \.npz .*\.csv$"):
            evaluate.main(config)
        scored = anomaly.Config(workdir=workdir, input=str(path))
        with pytest.raises(cli.UsageError) as error:
            scored.load_all()
        said = f"; for images --outlier_dataset=images:{path}"
        assert str(error.value).endswith(said)


def test_the_range_of_bytes_is_that_of_what_is_stored(tmp_path, capsys):
    rows = np.random.default_rng(0).integers(256, size=(30, 4, 4), dtype=np.uint8)
    rows[0, 0] = 0, 255, 0, 255
    np.savez(tmp_path / "bytes.npz", train=rows, test=rows)
    dataset = f"npz:{tmp_path / 'bytes.npz'}"
    config = tiny(tmp_path / "run", dataset=dataset, **REALS)
    data = protocol.load(config)
    assert " rows of 4x4 uint8, stored 0 to 255; " in protocol.opening(config, data)
    new_rows.of_dataset(dataset, config, data)
    said = capsys.readouterr().out
    assert f"{dataset}: 30 rows of uint8, stored 0 to 255; " in said
    assert "x = stored / 255" in said


def test_a_file_that_is_not_there_and_a_split_of_it_are_one_line(workdir, tmp_path):
    config = evaluate.Config(workdir=workdir, input=str(tmp_path / "none.npz"))
    with pytest.raises(cli.UsageError, match=r"--input=.*none.npz: there is no file"):
        evaluate.main(config)
    with pytest.raises(cli.UsageError, match="--split=valid is of the run's data"):
        cli.parse(evaluate.Config, ["evaluate", "--input=a.npz", "--split=valid"])


# What is of a part is not written over the whole


def test_other_settings_of_a_command_write_files_of_other_names(workdir, tmp_path):
    np.save(tmp_path / "hole.npy", np.eye(8) > 0)
    (trained,) = trained_runs.load(workdir, checkpoint="last")
    settings: list[dict[str, Any]] = [
        {},
        {"split": "valid"},
        {"num_images": 20},
        {"num_images": 0},
        {"checkpoint": "best"},
        {"mask": "random"},
        {"mask": "random", "fraction": 0.25},
        {"mask": "block"},
        {"mask": "block", "block": 2},
        {"mask": f"npy:{tmp_path / 'hole.npy'}"},
        {"split": "train", "num_images": 100},
    ]
    names = []
    for flags in settings:
        config = completion.Config(workdir=workdir, **flags)
        names.append(completion.result_path(config, trained).name)
    assert names[0] == "completion_left"
    assert names[6] == "completion_random_0_25"
    assert names[9] == "completion_npy_hole"
    assert len({*names}) == len(names)
    changes: list[dict[str, Any]] = [
        {},
        {"num_test": 20},
        {"num_train": 20},
        {"codes": "sample"},
    ]
    names = [
        representation.result_path(
            representation.Config(workdir=workdir, **change), trained, "latents"
        ).name
        for change in changes
    ]
    assert names[0] == "latents"
    assert len({*names}) == len(names)


@pytest.mark.slow
def test_a_few_reconstructions_leave_the_others_as_they_are(workdir):
    config = reconstruct.Config(workdir=workdir)
    assert reconstruct.main(config) == 0
    before = content(pathlib.Path(workdir))
    for flags in ({"num": 3}, {"split": "valid"}):
        assert reconstruct.main(dataclasses.replace(config, **flags)) == 0
    after = content(pathlib.Path(workdir))
    assert {name: after[name] for name in before} == before
    assert {"reconstructions_3_images.npz", "reconstructions_valid.png"} <= {*after}


@pytest.mark.slow
def test_a_default_number_is_no_more_than_there_are_and_another_is_refused(tmp_path):
    bits = np.random.default_rng(0).integers(0, 2, (32, 4, 4), np.uint8)
    np.savez(tmp_path / "own.npz", train=bits[:20], test=bits[20:])
    dataset = f"npz:{tmp_path / 'own.npz'}"
    folder = str(saved(tiny(tmp_path / "run", dataset=dataset, batch_size=10)))
    assert reconstruct.main(reconstruct.Config(workdir=folder)) == 0
    assert len(np.load(tmp_path / "run" / "reconstructions.npz")["x"]) == 12
    (trained,) = trained_runs.load(folder, checkpoint="last")
    config = completion.Config(workdir=folder)
    assert config.num_rows(trained, "num_images") == 12
    assert completion.result_path(config, trained).name == "completion_left"
    for config, flag in (
        (completion.Config(workdir=folder, num_images=13), "num_images"),
        (representation.Config(workdir=folder, num_test=13), "num_test"),
    ):
        said = f"--{flag}=13 is more than the 12 rows of the test split"
        with pytest.raises(ValueError, match=said):
            config.num_rows(trained, flag)
