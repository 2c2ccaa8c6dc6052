"""Runs on tables, as a new user would start them."""

import csv
import dataclasses
import json
import pathlib
import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments import train
from experiments.anomaly import command as anomaly
from experiments.choices import models
from experiments.choices.config import Config
from experiments.command import cli
from experiments.completion import command as completion
from experiments.completion import scores
from experiments.completion.config import Config as CompletionConfig
from experiments.export import cards
from experiments.generate import command as generate
from experiments.representation import command as representation
from experiments.representation import features
from experiments.runs import fit, new_rows, protocol, rundir, runs, trained_runs
from tests.tiny import ROOT, tiny
from vae_jax.data import csv_tables
from vae_jax.training import checkpoints

pytestmark = pytest.mark.uses_optax
ROOMS = f"csv:{ROOT / 'tests' / 'rooms.csv'}"
SAID = ("rent:log_normal", "stars:ordinal")


@pytest.fixture(scope="module")
def rooms(tmp_path_factory):
    """A run on a table with holes, in one command."""
    config = tiny(tmp_path_factory.mktemp("run"), dataset=ROOMS, columns=SAID)
    assert train.main(config) == 0
    return config


def _cells(path):
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


@pytest.mark.slow
def test_a_run_keeps_its_columns_and_is_rebuilt_from_them(rooms, capsys):
    (trained,) = trained_runs.load(rooms.workdir, checkpoint="last")
    written = trained.config.columns
    assert [text.split(":")[:2] for text in written] == [
        ["area", "normal"],
        ["rent", "log_normal"],
        ["people", "negative_binomial"],
        ["balcony", "bernoulli"],
        ["kind", "categorical"],
        ["stars", "ordinal"],
    ]
    # The numbers are those of training rows alone.
    area = trained.data.prepared.train[:, 0]
    center, scale = map(float, written[0].split(":")[2:])
    np.testing.assert_allclose(center, np.nanmean(area), rtol=1e-5)
    np.testing.assert_allclose(scale, np.nanstd(area), rtol=1e-5)
    assert trained.data.quantity == "log-density"
    # The same command again takes the run up; flags alone make the model of the card.
    assert train.main(rooms) == 0
    flags: dict[str, Any] = cards.of_trained(trained)["flags"]
    config = Config(**flags)
    shapes = [
        jax.tree.map(np.shape, model.init(jax.random.key(0)))
        for model in (models.build(config, (6,)).model, trained.model)
    ]
    assert shapes[0] == shapes[1]
    capsys.readouterr()


@pytest.mark.slow
def test_samples_are_rows_of_the_table(rooms):
    config = generate.Config(workdir=rooms.workdir, num=12, num_steps=2)
    assert generate.main(config) == 0
    rows = _cells(pathlib.Path(rooms.workdir) / "samples_num_12.csv")
    assert len(rows) == 12
    for row in rows:
        assert list(row) == ["area", "rent", "people", "balcony", "kind", "stars"]
        assert (row["balcony"], row["kind"]) < ("z", "z")
        assert row["balcony"] in ("yes", "no")
        assert row["kind"] in ("flat", "house", "studio")
        assert row["stars"] in "12345"
        assert row["people"].isdigit()
        assert float(row["rent"]) > 0


@pytest.mark.slow
def test_samples_of_a_table_given_its_labels_name_them(tmp_path):
    x = np.random.default_rng(0).normal(size=(40, 2))
    kinds = ["big", '"small, or none"'] * 20
    lines = [f"{a:.6f},{kind},{b:.6f}" for (a, b), kind in zip(x, kinds, strict=True)]
    (tmp_path / "table.csv").write_text("\n".join(["size,kind,x", *lines]))
    config = tiny(
        tmp_path / "run",
        dataset=f"csv:{tmp_path / 'table.csv'}",
        columns=("kind:label",),
        condition="labels",
        batch_size=8,
    )
    run = fit.claim(config)
    said = protocol.opening(run.config, run.data)
    assert 'given its labels (0 = big, "1 = small, or none")' in said
    assert 'kind: label of 2: big, "small, or none"' in said
    checkpoints.save(run.workdir / rundir.CHECKPOINTS, 0, runs.initial(run))
    flags: dict[str, Any] = {"workdir": str(run.workdir)}
    assert generate.main(generate.Config(num=4, **flags)) == 0
    whole = _cells(run.workdir / "samples_num_4.csv")
    assert list(whole[0]) == ["size", "kind", "x"]
    assert [row["kind"] for row in whole] == ["big"] * 2 + ["small, or none"] * 2
    for label in ("1", "small, or none"):
        assert generate.main(generate.Config(num=2, label=label, **flags)) == 0
        alone = _cells(run.workdir / "samples_label_1_num_2.csv")
        assert alone == whole[2:]
    with pytest.raises(cli.UsageError, match=r"--label=tall is none of 0 = big, "):
        generate.main(generate.Config(label="tall", **flags))
    (trained,) = trained_runs.load(run.workdir, checkpoint="last")
    grades = trained.data.source._replace(classes=("1", "2"))
    graded = trained._replace(data=trained.data._replace(source=grades))
    assert graded.number_of("1") == 0
    with pytest.raises(cli.UsageError, match="--label=0 is none of 0 = 1, 1 = 2"):
        graded.number_of("0")  # a number that no row has as its name


@pytest.mark.slow
def test_holes_are_filled_and_the_rest_stays(rooms, capsys):
    flags: dict[str, Any] = {
        "workdir": rooms.workdir,
        "methods": ("importance",),
        "proposal": "encoder",
        "importance_samples": 50,
        "num_draws": 20,
        "num_images": 12,
    }
    capsys.readouterr()
    assert completion.main(CompletionConfig(**flags, mask="none")) == 0
    said = capsys.readouterr().out
    assert "empty cells are filled" in said
    assert re.search(r"^mask none: [1-9]\S*% missing, no more hidden$", said, re.M)
    assert "_importance.csv\n" in said
    folder = pathlib.Path(rooms.workdir)
    (path,) = folder.glob("completion_none*_importance.csv")
    (trained,) = trained_runs.load(rooms.workdir, checkpoint="last")
    x = np.asarray(trained_runs.spread_rows(trained, split="test", num_images=12))
    names = [c.name for c in csv_tables.observed(trained.data.source.columns)]
    for row, values in zip(_cells(path), x, strict=True):
        for name, value in zip(names, values, strict=True):
            assert row[name]
            is_hole_of_number = np.isnan(value) and name in ("area", "rent", "people")
            assert bool(row[f"{name}_low"]) == is_hole_of_number
            if name == "area" and not is_hole_of_number:
                np.testing.assert_allclose(float(row[name]), value, rtol=1e-6)
    with pytest.raises(cli.UsageError, match="--mask=left hides a part of an image"):
        completion.main(CompletionConfig(**flags))
    assert completion.main(CompletionConfig(**flags, mask="random")) == 0
    result = json.loads((folder / "completion_random_12_images.json").read_text())
    scored = {row["column"]: row for row in result["columns"]}
    assert sum(row["num_cells"] for row in scored.values()) > 20
    assert 0.0 <= scored["kind"]["error"] <= 1.0
    # Of all columns together it is that of numbers: levels have no intervals.
    numbers = [row for row in scored.values() if "coverage" in row]
    inside = sum(row["coverage"] * row["num_cells"] for row in numbers)
    share = inside / sum(row["num_cells"] for row in numbers)
    np.testing.assert_allclose(result["methods"]["importance"]["coverage"], share)
    assert "error_rate" not in result["methods"]["importance"]
    (picture,) = folder.glob("completion_random*_importance.png")
    assert picture.stat().st_size > 0


def test_figures_are_of_bits_of_counts_or_of_no_levels():
    truth = np.array([[0.0, 1.0], [1.0, 1.0]])
    hidden = np.ones((2, 2), bool)
    of_bits = scores.scores(truth, hidden, {}, truth, "log-likelihood")
    assert of_bits[scores.BASELINE]["error_rate"] == 0.25
    counts = truth * 3.0
    of_counts = scores.scores(counts, hidden, {}, counts, "log-likelihood")
    assert {"rmse", "coverage"} <= set(of_counts[scores.BASELINE])
    assert "error_rate" not in of_counts[scores.BASELINE]
    few = scores.scores(
        truth, hidden, {}, truth, "log-likelihood", are_counts=True
    )  # of a table with more, which these cells happen to be 0 or 1 of
    assert few.keys() == of_counts.keys()
    assert few[scores.BASELINE].keys() == of_counts[scores.BASELINE].keys()
    some = scores.scores(
        counts, hidden, {}, counts, "log-density", are_numbers=np.array([False, True])
    )
    assert some[scores.BASELINE] == {
        "rmse": 0.0,
        "coverage": 1.0,
        "interval_width": 0.0,
    }
    none = np.zeros(2, bool)
    levels = scores.scores(truth, hidden, {}, truth, "log-likelihood", are_numbers=none)
    assert levels[scores.BASELINE] == {}


@pytest.mark.slow
def test_the_number_of_a_table_does_not_depend_on_a_columns_unit(tmp_path):
    """Rows in meters and in millimeters: log p(x) differs by log 1000 a column."""
    rng = np.random.default_rng(0)
    rows = rng.normal(size=(60, 2)) + 3.0
    bounds = []
    for unit in (1.0, 1000.0):
        path = tmp_path / f"rows_{unit:g}.csv"
        lines = ["a,b", *(f"{a * unit:.9g},{b:.9g}" for a, b in rows)]
        path.write_text("\n".join(lines) + "\n")
        run = runs.build(tiny(tmp_path / "run", dataset=f"csv:{path}", batch_size=10))
        params = run.model.init(jax.random.key(0))
        x = run.data.prepared.test[0]
        h = run.model.recognition.encode(params, x)
        draw = run.model.draw(jax.random.key(1), params, x, h)
        bounds.append(draw.log_likelihood.sum() + draw.log_prior - draw.log_posterior)
    np.testing.assert_allclose(bounds[0] - bounds[1], np.log(1000.0), rtol=1e-4)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"dataset": "digits", "columns": SAID}, "--columns"),
        ({"dataset": "digits", "likelihood": "columns"}, "--likelihood=columns is of"),
        ({"prior": "vamp"}, "--prior=vamp is of x as it is"),
        ({"ladder": ("4", "2")}, "--ladder=4,2 is of x as it is"),
        ({"columns": ("rent",)}, "--columns=rent: write NAME:FAMILY"),
        ({"columns": ("rent:skip", "wage:normal")}, "no column is named 'wage'"),
        ({"likelihood": "poisson"}, "needs counts"),
        ({"binarization": "static"}, "static is of values of one kind: columns are"),
        ({"likelihood": "bernoulli"}, "bernoulli cannot read .* --likelihood=columns"),
    ],
)
def test_what_does_not_go_with_a_table_is_refused(tmp_path, changes, said):
    flags = dataclasses.asdict(Config()) | {"dataset": ROOMS} | changes
    with pytest.raises((ValueError, cli.UsageError), match=said) as error:
        runs.build(Config(**flags | {"workdir": str(tmp_path)}))
    assert "\n" not in str(error.value)


def test_families_are_told_where_the_likelihood_reads_them_alone(tmp_path):
    path = tmp_path / "cells.csv"
    cells = [f"{i},{'ab'[i % 2]}" for i in range(30)]
    path.write_text("\n".join(["g0,cell", *cells]))
    of_x = {
        "auto": ["g0: negative_binomial, 0 to 29", "cell: bernoulli of 2: a, b"],
        "normal": [
            "g0: numbers, 0 to 29",
            "cell: levels of 2: a, b, read as numbers 0 to 1",
        ],
    }
    for likelihood, expected in of_x.items():
        config = tiny(
            tmp_path / "run",
            dataset=f"csv:{path}",
            likelihood=likelihood,
            valid_size=0,
        )
        said = protocol.opening(config, protocol.load(config)).splitlines()[1:]
        assert [line.strip() for line in said] == expected


def test_labels_that_are_not_there_are_asked_for_by_how_a_table_has_them(tmp_path):
    path = tmp_path / "people.csv"
    lines = [f"{i}.5,{'a' if i % 2 else 'b'}" for i in range(30)]
    path.write_text("\n".join(["x,kind", *lines]))
    config = tiny(tmp_path / "run", dataset=f"csv:{path}", condition="labels")
    with pytest.raises(
        ValueError, match=r"has no labels: .* \(--columns=NAME:label\)$"
    ):
        protocol.load(config)
    of_labels = dataclasses.replace(config, columns=("kind:label",), batch_size=8)
    run = runs.build(of_labels)
    (tmp_path / "more.csv").write_text("x\n1.5\n")
    with pytest.raises(cli.UsageError, match=r"=labels\): give its column kind$"):
        new_rows.read(str(tmp_path / "more.csv"), run.config, run.data)
    np.savez(tmp_path / "own.npz", train=np.eye(8))
    config = tiny(
        tmp_path / "run", dataset=f"npz:{tmp_path / 'own.npz'}", condition="labels"
    )
    with pytest.raises(ValueError, match="no labels: store train_labels, an integer"):
        protocol.load(config)


def test_counts_of_any_array_have_their_likelihoods(tmp_path):
    rows = np.random.default_rng(0).poisson(40.0, size=(60, 4)).astype(np.float32)
    np.savez(tmp_path / "own.npz", train=rows)
    config = Config(
        dataset=f"npz:{tmp_path / 'own.npz'}",
        likelihood="negative_binomial",
        dispersion="shared",
        init_bias="data",
        batch_size=20,
    )
    data = protocol.load(config)
    assert data.quantity == "log-likelihood"
    run = runs.of_data(config.settled, data)
    params = runs.initial(run).best
    z = jnp.zeros(config.num_latents)
    mean = run.model.generative.mean_observation(params, z)
    np.testing.assert_allclose(mean, rows.mean(0), rtol=1e-4)


@pytest.mark.slow
def test_rows_of_another_csv_are_the_runs_columns_in_any_order(rooms, tmp_path):
    (trained,) = trained_runs.load(rooms.workdir, checkpoint="last")
    path = tmp_path / "more.csv"
    path.write_text("stars,kind,balcony,people,rent,area\n3,house,,4,700.5,30\n")
    rows = new_rows.read(str(path), trained.config, trained.data).rows
    np.testing.assert_allclose(rows, [[30, 700.5, 4, np.nan, 0.5, 0.5]])
    path.write_text("stars,kind,balcony,people,rent\n3,house,,4,700.5\n")
    with pytest.raises(cli.UsageError, match="no column is named 'area'"):
        new_rows.read(str(path), trained.config, trained.data)
    digits = Config(dataset="digits")
    with pytest.raises(cli.UsageError, match=r"a \.csv holds rows of tables"):
        new_rows.read(str(path), digits, protocol.load(digits))


@pytest.mark.slow
def test_codes_of_rows_with_holes_are_beside_what_the_encoder_sees(rooms):
    """Columns are standardized, and a hole is its mean: zero, as q has it."""
    (trained,) = trained_runs.load(rooms.workdir, checkpoint="last")
    config = representation.Config(workdir=rooms.workdir)
    rows = features.load_rows(config, trained)
    pair = features.of_rows(config, trained, rows)["columns"]
    assert pair.train.shape[1] == 4 + 3 + 5  # reals, counts and a bit; two of levels
    np.testing.assert_allclose(pair.train[:, 0].mean(), 0.0, atol=1e-5)
    is_hole = np.isnan(np.asarray(rows.train)[:, 0])
    assert is_hole.any()
    np.testing.assert_allclose(pair.train[is_hole, 0], 0.0, atol=1e-5)
    assert representation.main(config) == 0
    path = pathlib.Path(rooms.workdir) / "representation.json"
    assert json.loads(path.read_text())["sizes"]["columns"] == 12


@pytest.mark.slow
def test_rows_of_a_csv_are_scored_for_strangeness_holes_and_all(rooms, tmp_path):
    path = tmp_path / "more.csv"
    path.write_text(
        "area,rent,people,balcony,kind,stars\n30,700.5,1,yes,flat,3\n900,,40,,studio,1\n"
    )
    config = anomaly.Config(
        workdir=rooms.workdir,
        input=str(path),
        scores=("elbo", "log_p", "mahalanobis"),
        false_alarm_rate=0.3,
        eval_samples=20,
        importance_samples=50,
    )
    assert anomaly.main(config) == 0
    (file,) = pathlib.Path(rooms.workdir).glob("anomaly_more*.npz")
    scores = np.load(file)
    for name in config.scores:
        usual, strange = scores[f"{name}_input"]
        assert strange > usual


def test_an_npz_of_columns_is_a_table(tmp_path):
    generator = np.random.default_rng(0)
    x = np.stack([generator.normal(size=60), generator.integers(1, 4, 60)], axis=1)
    np.savez(tmp_path / "own.npz", train=x)
    config = tiny(
        tmp_path / "run",
        dataset=f"npz:{tmp_path / 'own.npz'}",
        columns=("x1:categorical",),
        batch_size=8,
    )
    run = runs.build(config)
    families = [text.split(":")[:2] for text in run.config.columns]
    assert families == [["x0", "normal"], ["x1", "categorical"]]
    assert set(run.data.prepared.train[:, 1]) == {0.0, 0.5, 1.0}
    np.savez(tmp_path / "more.npz", x=[[0.5, 3.0]])
    rows = new_rows.read(str(tmp_path / "more.npz"), run.config, run.data).rows
    np.testing.assert_array_equal(rows, [[0.5, 1.0]])
