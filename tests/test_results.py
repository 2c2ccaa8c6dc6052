"""What commands write: JSON, under names that are true, and nothing over the whole."""

import json
import math
from typing import Any, NamedTuple

import jax
import numpy as np
import pytest

from experiments import evaluate
from experiments.command import cli, report
from experiments.measures import measure
from experiments.representation import command as representation
from experiments.runs import comparison, protocol, trained_runs
from tests.tiny import saved, tiny

pytestmark = pytest.mark.uses_optax


def read(path) -> dict:
    """The content of a JSON file, in which a bare NaN is an error."""

    def refuse(name: str):
        raise ValueError(f"{path} holds {name}")

    return json.loads(path.read_text(), parse_constant=refuse)


@pytest.fixture
def workdir(tmp_path):
    """A run on digits, saved before its first step."""
    config = tiny(tmp_path / "run", progress=False)
    saved(config)
    return tmp_path / "run"


def test_a_number_that_is_not_finite_is_null(tmp_path):
    content = {"b": (1.5, math.nan), "a": {"c": math.inf, "d": None, "e": "NaN"}}
    report.write_json(tmp_path / "a.json", content)
    wanted = {"b": [1.5, None], "a": {"c": None, "d": None, "e": "NaN"}}
    assert read(tmp_path / "a.json") == wanted


class Point(NamedTuple):
    """A record of a result."""

    epoch: int
    bound: float | None = None


def test_records_are_written_as_dictionaries_wherever_they_are(tmp_path):
    content = {"a": Point(1, math.nan), "b": [{"c": (Point(2, 0.5),)}]}
    wanted = {
        "a": {"epoch": 1, "bound": None},
        "b": [{"c": [{"epoch": 2, "bound": 0.5}]}],
    }
    report.write_json(tmp_path / "a.json", content)
    assert read(tmp_path / "a.json") == wanted
    cached = report.cached(tmp_path / "b.json", {}, lambda: content)
    assert cached == report.cached(tmp_path / "b.json", {}, lambda: pytest.fail("read"))
    assert math.isnan(cached["a"].pop("bound"))


def test_rows_are_printed_as_they_come_and_read_by_name(capsys):
    columns = [report.field("n", "epoch", width=4), report.field("b", "bound", ".1f")]

    def rows():
        assert capsys.readouterr().out == "n             b\n"
        yield Point(1, 2.0)
        assert capsys.readouterr().out == "1           2.0\n"
        yield Point(2)

    points = report.printed(columns, rows())
    assert capsys.readouterr().out == "2\n"
    assert report.by_name(points) == {"epoch": [1, 2], "bound": [2.0, None]}
    assert report.table(columns, [{"epoch": 3}]).endswith("\n3")


def test_measurements_that_were_kept_are_what_they_were_when_made(tmp_path):
    path, flags = tmp_path / "part.json", {"alpha": -math.inf, "sizes": (1, 2)}
    made = {"z": [1.0, math.nan], "a": 2.0}
    for make in (lambda: made, lambda: pytest.fail("measured a second time")):
        results = report.cached(path, flags, make)
        np.testing.assert_equal(results, made)
        assert [*results] == ["z", "a"]
    read(path)
    report.write_json(path, {"points": [{"epoch": 1, "bound": math.nan}]})
    (point,) = comparison._read(path, {})
    assert math.isnan(point["bound"])


@pytest.mark.slow
def test_a_cross_entropy_has_no_elbo_and_no_error_of_one(tmp_path):
    nats = {"elbo": -3.0, "bound": -4.0, "reconstruction": -2.0, "kl": 1.0}
    bits, grays = (
        protocol.load(tiny(tmp_path, binarization=name))
        for name in ("threshold", "none")
    )
    assert bits.labeled(nats) == nats | bits.in_bits(nats)
    assert grays.labeled({"importance_bound": -5.0, **nats}) == {
        "importance_cross_entropy_objective": -5.0,
        "cross_entropy_objective": -4.0,
        "cross_entropy": 2.0,
        "kl": 1.0,
    }
    config = tiny(tmp_path / "run", binarization="none")
    saved(config)
    (trained,) = trained_runs.load(config.workdir, checkpoint="last")
    key = jax.random.key(0)
    results = measure.bound(key, trained, split="test", num_samples=1, num_images=20)
    assert [*results] == [
        "cross_entropy_objective",
        "cross_entropy_objective_standard_error",
        "cross_entropy",
        "kl",
    ]
    assert results["cross_entropy"] > 0.0
    objective = -results["cross_entropy"] - results["kl"]
    np.testing.assert_allclose(results["cross_entropy_objective"], objective)


QUICK: dict[str, Any] = {"eval_samples": 1, "importance_samples": 0}


@pytest.mark.slow
def test_what_is_of_some_images_is_not_written_over_what_is_of_all(workdir, capsys):
    folder = {"workdir": str(workdir)}
    assert evaluate.main(evaluate.Config(**folder, **QUICK)) == 0
    whole = (workdir / "evaluation_test.json").read_text()
    some = evaluate.Config(**folder, **QUICK, num_images=20)
    assert evaluate.main(some) == 0
    assert (workdir / "evaluation_test.json").read_text() == whole
    path = workdir / "evaluation_test_20_images.json"
    assert read(path)["num_images"] == 20
    assert path.with_suffix(".txt").exists()
    assert f"written to {path}, .txt\n" in capsys.readouterr().out
    path.unlink()
    every = evaluate.Config(**folder, **QUICK, num_images=447, member=0, seed=1)
    assert evaluate.main(every) == 0
    assert read(workdir / "evaluation_test.json")["seed"] == 1
    assert not list(workdir.glob("evaluation_test_*.json"))


@pytest.mark.slow
def test_what_is_of_one_run_is_not_written_over_what_is_of_all(tmp_path):
    config = tiny(tmp_path / "run", num_seeds=2)
    saved(config)
    folder = {"workdir": config.workdir, "num_images": 20, **QUICK}
    for member in (-1, 1):
        assert evaluate.main(evaluate.Config(**folder, member=member)) == 0
    name = "evaluation_test_20_images"
    assert len(read(tmp_path / "run" / f"{name}.json")["runs"]) == 2
    assert read(tmp_path / "run" / f"{name}_member_1.json")["member"] == 1


@pytest.mark.slow
def test_one_test_row_is_evaluated_without_an_error_and_compared_with_none(tmp_path):
    bits = np.random.default_rng(0).integers(0, 2, (21, 4, 4), np.uint8)
    np.savez(tmp_path / "a.npz", train=bits[:20], test=bits[20:])
    name = f"npz:{tmp_path / 'a.npz'}"
    config = tiny(tmp_path / "run", dataset=name, batch_size=10)
    saved(config)
    folder = config.workdir
    assert evaluate.main(evaluate.Config(workdir=folder, **QUICK)) == 0
    result = read(tmp_path / "run" / "evaluation_test.json")
    assert result["elbo_standard_error"] is None
    assert result["active_units"] is None
    with pytest.raises(cli.UsageError, match=r"the test split of .* a single row"):
        representation.main(representation.Config(workdir=folder))
    single = representation.Config(workdir=folder, num_train=1)
    with pytest.raises(cli.UsageError, match=r"the train split of .* a single row"):
        representation.main(single)
