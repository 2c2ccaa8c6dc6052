"""What codes are good for: the script, run in process on tiny models."""

import dataclasses
import json
import re

import jax
import numpy as np
import pytest

from experiments import train
from experiments.command import cli
from experiments.measures import measure
from experiments.representation import command as representation
from experiments.runs import collapse, trained_runs
from tests.tiny import tiny
from vae_jax.training import journal

pytestmark = pytest.mark.uses_optax

SMALL = representation.Config(
    few_labels=(10, 40, 900), few_draws=2, surgery_rows=40, num_queries=3, num_test=200
)


def read(path):
    return json.loads(path.read_text())


@pytest.fixture(scope="module")
def seeds(tmp_path_factory):
    """Two tiny runs that differ in their seed."""
    path = tmp_path_factory.mktemp("representation")
    with jax.numpy_dtype_promotion("standard"):
        for seed in (0, 1):
            config = tiny(path / str(seed), seed=seed, num_epochs=3, learning_rate=0.01)
            assert train.main(config) == 0
    return path / "0", path / "1"


@pytest.fixture
def unlabeled(tmp_path):
    """A data set of vectors, without labels and without a test split."""
    rows = np.random.default_rng(0).random((60, 5), np.float32)
    np.savez(tmp_path / "rows.npz", train=rows)
    return f"npz:{tmp_path / 'rows.npz'}"


@pytest.mark.slow
def test_codes_are_judged_beside_pixels_and_components_of_the_same_size(seeds, capsys):
    config = dataclasses.replace(SMALL, workdir=str(seeds[0]))
    assert representation.main(config) == 0
    said = capsys.readouterr().out
    result = read(seeds[0] / "representation_200_images.json")
    assert result["sizes"] == {"pixels": 64, "pca": 2, "codes": 2}
    assert (result["num_train"], result["num_test"]) == (1000, 200)
    assert "first 1000 training rows, judged on the first 200 rows of test" in said
    for columns in result["metrics"].values():
        assert set(representation.COLUMNS) <= set(columns)
        assert all(-0.1 < value <= 1.0 for value in columns.values())
    assert result["metrics"]["pixels"]["linear_probe"] > 0.7
    assert [*result["few_labels"]["codes"]] == ["10", "40", "900"]
    assert all(len(draws) == 2 for draws in result["few_labels"]["pca"].values())
    latents = result["latents"]
    assert 0.0 <= latents["mutual_information"] <= np.log(40) + 1e-3
    total = latents["mutual_information"] + latents["marginal_kl"]
    np.testing.assert_allclose(latents["mean_kl"], total, rtol=1e-4)
    for name in ("mean_kl", "mutual_information", "marginal_kl"):
        at, error = (latents[name + ending] for ending in ("", "_error"))
        assert re.search(
            rf"{at:.2f}( nats, in two parts)? \((standard error over z )?{error:.3f}",
            said,
        )
    for name in ("latents_{}.png", "neighbors_{}.png", "representation_{}.txt"):
        assert (seeds[0] / name.format("200_images")).stat().st_size > 0


@pytest.mark.slow
def test_several_seeds_have_a_mean_and_a_spread(seeds, capsys):
    folders = tuple(map(str, seeds))
    config = dataclasses.replace(SMALL, workdirs=folders, few_labels=(10,))
    assert representation.main(config) == 0
    assert "mean ± spread of 2 runs" in capsys.readouterr().out
    both = read(seeds[0] / "representation_seeds_200_images.json")["runs"]
    alone = read(seeds[1] / "representation_200_images.json")
    assert both[1]["metrics"] == alone["metrics"]
    text = (seeds[0] / "representation_seeds_200_images.txt").read_text()
    probes = [run["metrics"]["codes"]["linear_probe"] for run in both]
    assert f"{np.mean(probes):.3f} ± {np.std(probes, ddof=1):.3f}" in text


@pytest.mark.slow
def test_without_labels_the_labeled_metrics_are_skipped_and_a_line_says_so(
    tmp_path, unlabeled, capsys
):
    config = tiny(
        tmp_path / "run",
        dataset=unlabeled,
        batch_size=10,
        likelihood="normal",
        binarization="none",
    )
    train.main(config)
    small = dataclasses.replace(SMALL, workdir=config.workdir, num_test=10_000)
    assert representation.main(small) == 0
    said = capsys.readouterr().out
    assert "labeled metrics are skipped" in said
    assert "the train split of npz:" in said
    assert "rows.npz has no labels" in said
    assert "are no images: not drawn" in said
    result = read(tmp_path / "run" / "representation.json")
    assert "metrics" not in result
    assert result["latents"]["mean_kl"] > 0.0
    assert (tmp_path / "run" / "latents.png").exists()


@pytest.mark.parametrize(
    "changes",
    [
        {"posterior": "planar", "flow_layers": 1, "estimator": "sgvb_a"},
        {"posterior": "bernoulli", "estimator": "disarm", "num_samples": 2},
        {"ladder": ("3", "2"), "num_latents": 16},
        {"posterior": "full_normal", "estimator": "iwae", "num_latents": 1},
    ],
    ids=["flow", "bits", "ladder", "full covariance, one latent"],
)
@pytest.mark.slow
def test_any_posterior_has_codes(tmp_path, changes, capsys):
    config = tiny(tmp_path / "run", num_epochs=1, **changes)
    train.main(config)
    small = dataclasses.replace(
        SMALL, workdir=config.workdir, num_test=60, num_train=200, few_labels=(10,)
    )
    assert representation.main(small) == 0
    assert "labeled metrics are skipped" not in capsys.readouterr().out
    name = "representation_num_train_200_60_images.json"
    result = read(tmp_path / "run" / name)
    width = sum(map(int, config.ladder)) or config.num_latents
    assert result["sizes"]["codes"] == width
    has_units = config.posterior == "bernoulli" or bool(config.ladder)
    assert ("active_units" in result["latents"]) == has_units


@pytest.mark.slow
def test_codes_are_the_same_at_every_call_unless_they_are_sampled(seeds):
    trained = trained_runs.load(seeds[0], checkpoint="last")[0]
    data = trained_runs.rows(trained, split="test", num_images=7)
    keys = jax.random.split(jax.random.key(0), 4)
    first, second = (measure.codes(key, trained, data) for key in keys[:2])
    np.testing.assert_array_equal(first, second)
    sampled, other = (
        measure.codes(key, trained, data, sampled=True) for key in keys[2:]
    )
    assert first.shape == sampled.shape == (7, 2)
    assert not np.array_equal(sampled, other)


def test_runs_that_differ_in_more_than_their_seed_are_refused(tmp_path):
    for name, hidden in (("a", (8,)), ("b", (9,))):
        (tmp_path / name).mkdir()
        config = tiny(tmp_path / name, hidden=hidden, seed=len(name))
        (tmp_path / name / "flags.txt").write_text(cli.write_flagfile(config))
    folders = (str(tmp_path / "a"), str(tmp_path / "b"))
    with pytest.raises(cli.UsageError, match=r"--hidden=\(8,\) and \(9,\)"):
        representation.main(dataclasses.replace(SMALL, workdirs=folders))


def test_a_workdir_without_a_run_is_refused(tmp_path):
    with pytest.raises(cli.UsageError, match="holds no run"):
        representation.main(dataclasses.replace(SMALL, workdir=str(tmp_path)))


@pytest.mark.parametrize("name", ["num_neighbors", "num_clusters"])
@pytest.mark.slow
def test_more_neighbors_or_clusters_than_rows_are_refused(seeds, name):
    changes = {name: 21, "num_train": 20, "workdir": str(seeds[0])}
    with pytest.raises(cli.UsageError, match=f"--{name}=21 is more than the 20"):
        representation.main(dataclasses.replace(SMALL, **changes))


@pytest.mark.parametrize(
    ("flag", "said"),
    [
        ("--num_neighbors=0", "--num_neighbors must be positive, got 0"),
        ("--num_train=-1", "--num_train must not be negative, got -1"),
        ("--num_test=1", "--num_test must be 0, for all, or 2 or more"),
        ("--surgery_samples=1", "--surgery_samples must be 2 or more"),
        ("--few_labels=10,0", "--few_labels must hold positive sizes"),
        ("--codes=median", "codes"),
    ],
)
def test_a_number_that_makes_no_measurement_is_named(flag, said):
    with pytest.raises(cli.UsageError, match=said):
        cli.parse(representation.Config, ["representation", flag])


@pytest.mark.slow
def test_a_collapsed_posterior_is_told_once_and_journaled(tmp_path, capsys):
    config = tiny(tmp_path / "run", beta=100.0, learning_rate=0.03, num_epochs=12)
    train.main(config)
    said = capsys.readouterr().out
    assert said.count("warning: posterior collapse at epoch") == 1
    rows = journal.read(config.workdir)
    assert [row["collapsed"] for row in rows] == [
        float(row["valid_kl"] < collapse.COLLAPSED or row["valid_active_units"] == 0.0)
        for row in rows
    ]
    assert rows[-1]["collapsed"] == 1.0


@pytest.mark.slow
def test_a_posterior_that_is_used_is_no_collapse(seeds):
    rows = journal.read(seeds[0])
    assert [row["collapsed"] for row in rows] == [0.0] * 3
