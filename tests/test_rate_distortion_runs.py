"""Curves of runs: what the table says, what is written, and runs that have none."""

import csv
import json
from typing import Any

import jax
import numpy as np
import pytest

from experiments import rate_distortion
from experiments.command import cli
from tests.tiny import saved, tiny

pytestmark = pytest.mark.uses_optax

FLAGS: dict[str, Any] = {
    "betas": (0.2, 1.0, 3.0),
    "num_images": 4,
    "num_chains": 4,
    "num_temperatures": 12,
    "num_leapfrog": 3,
    "eval_samples": 50,
}


def _saved(path, **changes) -> str:
    """The workdir of a run that is saved before its first step."""
    return str(saved(tiny(path, **changes)))


def _config(folder, *names: str, **flags) -> rate_distortion.Config:
    workdirs = tuple(str(folder / name) for name in names)
    folders = {"workdir": str(folder / "out"), "workdirs": workdirs}
    return rate_distortion.Config(**folders, **FLAGS | flags)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Two runs of digits, and the curves of both."""
    path = tmp_path_factory.mktemp("rates")
    with jax.numpy_dtype_promotion("standard"):
        _saved(path / "a")
        _saved(path / "b", seed=1, num_latents=1)
        config = _config(path, "a", "b", num_simulated=4)
        assert rate_distortion.main(config) == 0
    return path


@pytest.mark.slow
def test_each_run_has_a_curve_below_its_encoder(folder):
    result = json.loads((folder / "out" / "rate_distortion.json").read_text())
    rows = result["curves"]
    assert [row["run"] for row in rows] == ["a"] * 4 + ["b"] * 4
    assert [row["beta"] for row in rows] == ["0.2", "1", "3", "encoder"] * 2
    for row in rows:
        if row["beta"] != "encoder":
            total = row["rate"] + float(row["beta"]) * row["distortion"]
            np.testing.assert_allclose(total, -row["log_z"], rtol=1e-5)
            continue
        of_run = [r for r in rows if r["run"] == row["run"]][:3]
        tangents = [-r["log_z"] - float(r["beta"]) * row["distortion"] for r in of_run]
        above = row["rate"] - max(*tangents, 0.0)
        np.testing.assert_allclose(row["rate_above_curve"], above, atol=1e-6)
        assert above > 0.05  # it has not been trained
    assert [row["beta"] for row in result["simulated"]] == ["0.2", "1"] * 2
    for row in result["simulated"]:
        np.testing.assert_allclose(row["forward_rate"], row["reverse_rate"], atol=1.5)


@pytest.mark.slow
def test_the_same_is_a_table_a_csv_file_and_a_picture(folder):
    path = folder / "out" / "rate_distortion"
    result = json.loads(path.with_suffix(".json").read_text())
    with path.with_suffix(".csv").open() as file:
        lines = list(csv.DictReader(file))
    for line, row in zip(lines, result["curves"], strict=True):
        assert float(line["rate"]) == row["rate"]
        assert line["rate_above_curve"] == str(row.get("rate_above_curve", ""))
    text = path.with_suffix(".txt").read_text()
    assert f"{result['curves'][3]['rate_above_curve']:.3f}" in text
    assert f"{result['simulated'][0]['reverse_rate']:.3f}" in text
    assert path.with_suffix(".png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("changes", "flags"),
    [
        ({}, {"distortion": "squared_error", "betas": (0.5, 5.0)}),
        ({"posterior": "bernoulli", "estimator": "vimco", "num_samples": 2}, {}),
    ],
    ids=["squared_error", "bits"],
)
def test_other_distortions_and_latents_have_curves(tmp_path, changes, flags):
    _saved(tmp_path / "a", **changes)
    assert rate_distortion.main(_config(tmp_path, "a", **flags)) == 0
    result = json.loads((tmp_path / "out" / "rate_distortion.json").read_text())
    first, *_, last, encoder = result["curves"]
    assert 0.0 <= first["rate"] < last["rate"] + 0.2
    assert encoder["distortion"] > 0.0


@pytest.mark.slow
def test_runs_of_different_rows_are_one_line(folder):
    _saved(folder / "static", binarization="static")
    with pytest.raises(cli.UsageError, match=r"static was trained on other data, or"):
        rate_distortion.main(_config(folder, "a", "static"))


@pytest.mark.slow
def test_what_has_no_log_p_or_no_rows_is_one_line(folder):
    _saved(folder / "gray", binarization="none")
    with pytest.raises(cli.UsageError, match="no likelihood to bound"):
        rate_distortion.main(_config(folder, "gray"))
    with pytest.raises(cli.UsageError, match="=1000 is more than the 447 rows"):
        rate_distortion.main(_config(folder, "a", num_images=1000))


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        ({"betas": (1.0, 0.5)}, "betas must be positive, finite and rising"),
        ({"num_temperatures": 3}, "=3 is below the number of betas, 9"),
        ({"num_simulated": 2, "betas": (0.5,)}, "--betas=0.5: the walk back starts at"),
        ({"num_simulated": 2, "distortion": "squared_error"}, "images are drawn from"),
        ({"workdirs": ()}, "at least one"),
        ({"distortion": "nats"}, "known: likelihood, squared_error"),
    ],
    ids=str,
)
def test_flags_that_do_not_go_together_are_refused(flags: dict[str, Any], said):
    with pytest.raises(ValueError, match=said):
        rate_distortion.Config(**flags)
