"""Tables of scores of a run: their numbers, their files, and what has none."""

import csv
import dataclasses
import json
from typing import Any

import jax
import numpy as np
import pytest
from sklearn import metrics

from experiments.anomaly import command, config, measurements, scores
from experiments.command import cli
from tests.tiny import saved, tiny
from vae_jax.data import sources

pytestmark = pytest.mark.uses_optax

FLAGS: dict[str, Any] = {
    "false_alarm_rate": 0.1,
    "num_images": 40,
    "eval_samples": 4,
    "importance_samples": 8,
}
CHEAP: dict[str, Any] = {**FLAGS, "scores": ("kl",)}


def _saved(path, **changes) -> str:
    """The workdir of a run that is saved before its first step."""
    return str(saved(tiny(path, **changes)))


def _npz(path, **arrays) -> str:
    np.savez(path, **arrays)
    return str(path)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A run of two seeds, and rows of digits with their labels."""
    path = tmp_path_factory.mktemp("anomaly")
    with jax.numpy_dtype_promotion("standard"):
        _saved(path / "run", num_seeds=2)
    source = sources.load("digits")
    rows, labels = source.test[:60] / np.float32(16.0), source.labels["test"][:60]
    _npz(path / "rows.npz", test=rows, test_labels=labels)
    _npz(path / "plain.npz", test=rows)
    return path


def _config(folder, input_name: str = "rows.npz", **flags) -> config.Config:
    rows = str(folder / input_name) if input_name else ""
    return config.Config(workdir=str(folder / "run"), input=rows, **flags)


@pytest.fixture(scope="module")
def measured(folder):
    """The result of every cheap score of both seeds, and the path of its files."""
    names = ("elbo", "log_p", "reconstruction", "kl", "ratio", "complexity", "waic")
    flags: dict[str, Any] = {
        "scores": (*names, "typicality", "mahalanobis"),
        "outlier_labels": (3, 7),
        "background": str(folder / "run"),
    }
    with jax.numpy_dtype_promotion("standard"):
        assert command.main(_config(folder, **FLAGS | flags)) == 0
    (path,) = (folder / "run").glob(
        "anomaly_rows_*_labels_3_7_num_images_40_elbo_*.json"
    )
    return json.loads(path.read_text()), path.with_suffix("")


@pytest.mark.slow
def test_the_table_is_that_of_the_written_scores(measured):
    result, path = measured
    arrays = np.load(path.with_suffix(".npz"))
    outlier = arrays["outlier"]
    labels = sources.load("digits").labels["test"][:60]
    np.testing.assert_array_equal(outlier, np.isin(labels, (3, 7)))
    assert result["num_rows"] == {"train": 40, "valid": 40, "test": 40, "input": 60}
    for one in result["runs"]:
        name = "_".join(filter(None, (one["score"], one["run"])))
        values = arrays[f"{name}_input"]
        area = metrics.roc_auc_score(outlier, values)
        np.testing.assert_allclose(one["auroc"], area, err_msg=name)
        assert one["auroc_lower"] <= area <= one["auroc_upper"]
        alarms = arrays[f"{name}_test"] > one["threshold"]
        np.testing.assert_allclose(one["false_alarms"], alarms.mean())
        p_values = arrays[f"{name}_input_p_value"]
        np.testing.assert_array_equal(p_values <= 0.1, values > one["threshold"])
        np.testing.assert_allclose(one["flagged"], (p_values <= 0.1)[outlier].mean())
    for row in result["table"]:
        of_runs = [o["auroc"] for o in result["runs"] if o["score"] == row["score"]]
        assert len(of_runs) == (1 if row["score"] == "waic" else 2)
        np.testing.assert_allclose(row["auroc"], np.mean(of_runs))
        if len(of_runs) == 2:
            np.testing.assert_allclose(row["auroc_deviation"], np.std(of_runs, ddof=1))


@pytest.mark.slow
def test_the_scores_are_made_of_each_other_as_they_are_defined(measured):
    arrays = np.load(measured[1].with_suffix(".npz"))
    log_p = np.stack([-arrays[f"log_p_seed={seed}_input"] for seed in (0, 1)])
    expected = log_p.var(axis=0, ddof=1) - log_p.mean(axis=0)
    np.testing.assert_allclose(arrays["waic_input"], expected)
    parts = arrays["kl_seed=1_input"] + arrays["reconstruction_seed=1_input"]
    np.testing.assert_allclose(arrays["elbo_seed=1_input"], parts, rtol=1e-5)
    # The background is the first seed, which so meets itself under the same noise.
    np.testing.assert_array_equal(arrays["ratio_seed=0_input"], 0.0)
    np.testing.assert_allclose(arrays["ratio_seed=1_input"], log_p[0] - log_p[1])
    bits = -log_p[0] / np.log(2.0) - arrays["complexity_seed=0_input"]
    assert ((bits > 400) & (np.abs(bits / 8 - np.round(bits / 8)) < 1e-6)).all()


@pytest.mark.slow
def test_a_line_for_each_row_says_where_it_stands(measured):
    arrays = np.load(measured[1].with_suffix(".npz"))
    with measured[1].with_suffix(".csv").open() as file:
        lines = list(csv.DictReader(file))
    assert [line["split"] for line in lines] == ["test"] * 40 + ["input"] * 60
    test, to_score = lines[:40], lines[40:]
    assert [int(line["row"]) for line in test] == [i * 447 // 40 for i in range(40)]
    labels = sources.load("digits").labels["test"][:60]
    assert [int(line["label"]) for line in to_score] == labels.tolist()
    assert [int(line["outlier"]) for line in to_score] == arrays["outlier"].tolist()
    for line, value in zip(to_score, arrays["kl_seed=0_input"], strict=True):
        assert float(line["kl_seed=0_score"]) == value
        below = float(line["kl_seed=0_p_value"]) <= 0.1
        assert line["kl_seed=0_flagged"] == str(int(below))


@pytest.mark.slow
def test_curves_histograms_and_the_strangest_images_are_drawn(measured):
    for name in ("roc", "histograms", "images"):
        picture = measured[1].with_name(f"{measured[1].name}_{name}.png")
        assert picture.read_bytes().startswith(b"\x89PNG")


@pytest.mark.slow
def test_a_data_sets_rows_of_some_labels_are_outliers(folder, capsys):
    flags: dict[str, Any] = {
        "outlier_dataset": "digits",
        "outlier_labels": (0,),
        "member": 0,
    }
    assert command.main(_config(folder, "", **CHEAP | flags)) == 0
    said = capsys.readouterr().out
    assert "40 rows, 40 outliers against 40 of test" in said
    (path,) = (folder / "run").glob("anomaly_digits_*_member_0.csv")
    with path.open() as file:
        lines = [line for line in csv.DictReader(file) if line["split"] == "input"]
    labels = sources.load("digits").labels["test"]
    assert {line["label"] for line in lines} == {"0"}
    assert (labels[[int(line["row"]) for line in lines]] == 0).all()


@pytest.mark.slow
def test_rows_of_unknown_kind_are_flagged_without_an_auroc(folder, capsys):
    assert command.main(_config(folder, "plain.npz", member=0, **CHEAP)) == 0
    said = capsys.readouterr().out
    assert "not known: no AUROC" in said
    assert "AUROC " not in said
    assert "flagged" in said
    assert not [*(folder / "run").glob("anomaly_plain*roc.png")]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("flags", "said"),
    [
        ({"outlier_labels": (11,)}, "=11: --input=.* has the labels 0, 1, 2"),
        ({"scores": ("ratio",)}, "needs a model to compare with: --background"),
        ({"scores": ("waic",), "member": 1}, "waic is of runs that trained together"),
        (
            {"false_alarm_rate": 0.01},
            "^--false_alarm_rate=0.01: no row .* by 40 calibration rows: give at least "
            r"99, .* \(rows: --valid_size of training, at most --num_images\)$",
        ),
    ],
    ids=str,
)
def test_what_these_rows_cannot_say_is_one_line(folder, flags, said):
    with pytest.raises(cli.UsageError, match=said):
        command.main(_config(folder, **CHEAP | flags))


@pytest.mark.slow
def test_an_auroc_of_rows_without_labels_is_one_line(folder):
    flags: dict[str, Any] = {**CHEAP, "outlier_labels": (1,)}
    with pytest.raises(cli.UsageError, match=r"plain.npz has no labels .* test_labels"):
        command.main(_config(folder, "plain.npz", **flags))


@pytest.mark.slow
def test_no_rows_to_score_is_one_line(folder):
    with pytest.raises(cli.UsageError, match="no rows to score: give --input, or"):
        command.main(_config(folder, ""))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arrays", "said"),
    [
        ({"test": np.zeros((4, 7, 8), np.float32)}, r"shape \(7, 8\), .* \(8, 8\)"),
        (
            {"test": np.full((4, 8, 8), 3.0, np.float32)},
            r"--likelihood=bernoulli .*\[0",
        ),
    ],
    ids=["shape", "scale"],
)
def test_rows_that_do_not_fit_the_run_are_one_line(folder, tmp_path, arrays, said):
    rows = _npz(tmp_path / "a.npz", **arrays)
    with pytest.raises(cli.UsageError, match=rf"--input=.*a\.npz: .*{said}"):
        command.main(dataclasses.replace(_config(folder, **CHEAP), input=rows))
    flags: dict[str, Any] = {
        "outlier_dataset": f"npz:{_npz(tmp_path / 'b.npz', train=arrays['test'])}"
    }
    with pytest.raises(cli.UsageError, match=rf"--outlier_dataset=.*b\.npz: .*{said}"):
        command.main(_config(folder, "", **CHEAP | flags))


def test_rows_of_another_binarization_are_one_line(tmp_path):
    bits = np.tile(np.eye(8, dtype=np.uint8), (5, 1, 1))
    dataset = _npz(tmp_path / "bits.npz", train=bits, valid=bits, test=bits)
    _saved(tmp_path / "run", dataset=f"npz:{dataset}", batch_size=5)
    rows = _npz(tmp_path / "gray.npz", test=np.full((4, 8, 8), 0.3, np.float32))
    flags: dict[str, Any] = {"workdir": str(tmp_path / "run"), "input": rows}
    with pytest.raises(cli.UsageError, match=r"gray\.npz: .*would be a cross-entropy"):
        command.main(config.Config(**CHEAP | flags))


@pytest.mark.slow
@pytest.mark.parametrize("split", ["valid", "test"])
def test_a_run_without_held_out_rows_is_one_line(tmp_path, split):
    bits = np.tile(np.eye(8, dtype=np.uint8), (5, 1, 1))
    splits = {name: bits for name in ("train", "valid", "test") if name != split}
    dataset = _npz(tmp_path / "bits.npz", **splits)
    _saved(tmp_path / "run", dataset=f"npz:{dataset}", batch_size=5)
    rows = _npz(tmp_path / "rows.npz", test=bits)
    flags: dict[str, Any] = {"workdir": str(tmp_path / "run"), "input": rows}
    with pytest.raises(cli.UsageError, match=f"has no {split} rows, on which the rate"):
        command.main(config.Config(**CHEAP | flags))


@pytest.mark.slow
def test_scores_that_a_model_has_not_are_one_line(tmp_path):
    reals: dict[str, Any] = {"likelihood": "normal_learned_std", "binarization": "none"}
    _saved(tmp_path / "run", **reals)
    flags: dict[str, Any] = {
        "workdir": str(tmp_path / "run"),
        "outlier_dataset": "digits",
    }
    flags["scores"] = ("complexity",)
    with pytest.raises(cli.UsageError, match=r"log-density of .* has no code"):
        command.main(config.Config(**CHEAP | flags))
    _saved(tmp_path / "gray", binarization="none")
    flags |= {"workdir": str(tmp_path / "gray"), "scores": ("kl", "typicality")}
    with pytest.raises(cli.UsageError, match=r"typicality needs log p.*--scores=kl$"):
        command.main(config.Config(**CHEAP | flags))
    _saved(tmp_path / "codes", posterior="finite_scalar", estimator="sgvb_a")
    flags |= {"workdir": str(tmp_path / "codes"), "scores": ("log_p",)}
    with pytest.raises(cli.UsageError, match=r"is a point mass: give --scores=elbo$"):
        command.main(config.Config(**CHEAP | flags))
    flags |= {"scores": ("ratio",), "background": str(tmp_path / "run")}
    _saved(tmp_path / "bits")
    flags["workdir"] = str(tmp_path / "bits")
    with pytest.raises(cli.UsageError, match=r"--background=.*a log-density, and .*"):
        command.main(config.Config(**CHEAP | flags))


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        ({"input": "a", "outlier_dataset": "b"}, "give one of the two"),
        ({"input": "a", "false_alarm_rate": 1.0}, "must be between 0 and 1"),
        ({"input": "a", "scores": ()}, "at least one"),
        ({"input": "a", "scores": ("elb",)}, "did you mean elbo"),
        ({"input": "a", "background": "b"}, "read by --scores=ratio alone"),
        ({"input": "a", "importance_samples": 501}, "multiple"),
        ({"input": "a", "regret_steps": 5}, "no effect with --scores=elbo,log_p,"),
        ({"input": "a", "codec": "webp"}, "it is read by complexity"),
    ],
    ids=str,
)
def test_flags_that_do_not_go_together_are_refused(flags: dict[str, Any], said):
    with pytest.raises(ValueError, match=said):
        config.Config(**flags)


@pytest.mark.slow
def test_regret_is_of_normal_posteriors_and_not_below_zero_but_for_noise(
    folder, tmp_path
):
    flags: dict[str, Any] = {"scores": ("regret",), "member": 0, "eval_samples": 200}
    assert command.main(_config(folder, **FLAGS | flags)) == 0
    (path,) = (folder / "run").glob("anomaly_rows_*40_regret_*member_0.npz")
    regret = np.load(path)["regret_input"]
    assert regret.shape == (60,)
    assert np.median(regret) > 0.1  # the encoder has not been trained
    assert regret.min() > -0.5
    _saved(tmp_path / "flow", posterior="iaf", estimator="sgvb_a")
    flow: dict[str, Any] = {"workdir": str(tmp_path / "flow"), "scores": ("regret",)}
    with pytest.raises(cli.UsageError, match=r"regret .* is flow"):
        command.main(dataclasses.replace(_config(folder, **CHEAP), **flow))


def test_every_score_names_measurements_that_there_are():
    needed = {name for score in scores.SCORES.values() for name in score.needs}
    assert needed <= set(measurements.MEASUREMENTS)
