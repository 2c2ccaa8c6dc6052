"""The scripts, run in process with tiny configurations."""

import dataclasses
import json

import jax
import numpy as np
import pytest

from experiments import evaluate, reconstruct, train
from experiments.choices.config import Config
from experiments.choices.densities import PRIORS
from experiments.command import cli
from experiments.generate import command as generate
from experiments.measures import measure, validation
from experiments.runs import protocol, rundir, runs, trained_runs
from tests.tiny import FLAGS, TINY, metrics, saved_arrays, tiny
from vae_jax.plots import curves
from vae_jax.training import journal

pytestmark = pytest.mark.uses_optax


@pytest.fixture(scope="module")
def trained_workdir(tmp_path_factory):
    """One tiny trained run that several tests read."""
    path = tmp_path_factory.mktemp("runs") / "tiny"
    with jax.numpy_dtype_promotion("standard"):
        assert train.main(tiny(path)) == 0
    return path


def test_the_required_flag_files_are_there():
    names = {path.stem for path in (FLAGS / "train").glob("*.flags")}
    wanted = "digits mnist binarized_mnist fashion_mnist frey_face aevb_mnist"
    assert set(wanted.split()) <= names


def test_a_flag_file_gives_way_to_a_later_flag(tmp_path):
    path = tmp_path / "a.flags"
    path.write_text("# comment\n--num_samples=50\n--hidden=3,4\n--batch_size=7\n")
    argv = ["train", f"--flagfile={path}", "--batch_size=8"]
    wanted = Config(num_samples=50, hidden=(3, 4), batch_size=8)
    assert cli.parse(Config, argv) == wanted


def test_a_written_flag_file_parses_back(tmp_path):
    config = dataclasses.replace(TINY, hidden=(), resume=False, data_dir="a b")
    path = tmp_path / "flags.txt"
    path.write_text(cli.write_flagfile(config))
    assert cli.parse(Config, ["train", f"--flagfile={path}"]) == config


@pytest.mark.parametrize(
    ("flag", "said"),
    [
        (
            "--lerning_rate=1",
            "--lerning_rate is no flag; did you mean --learning_rate",
        ),
        ("--norezume", "--norezume is no flag; did you mean --noresume"),
        ("--qqqqqq=1", "--qqqqqq is no flag$"),
        ("--batch_size=many", "batch_size"),
        ("--batch_size=0", "--batch_size must be positive, got 0"),
        ("--num_latents=-3", "--num_latents must be positive, got -3"),
        ("--weight_decay=-1", "--weight_decay must not be negative"),
        ("--hidden=3,x", "--hidden=3,x"),
        ("--seed=3000000000", "--seed=3000000000 does not fit into 32 bits"),
        ("--hidden=3,0", "--hidden must hold positive sizes"),
        ("--optimizer=adm", "--optimizer=adm is unknown; .* did you mean adam"),
        ("--prior=qqqqqq", "--prior=qqqqqq is unknown; known: .* exemplar$"),
        ("--learning_rate=nan", "--learning_rate must be positive"),
        ("--flagfile=no.flags", "no.flags"),
        ("leftover", "unexpected arguments: leftover"),
    ],
)
def test_a_bad_flag_is_named(flag, said):
    with pytest.raises(cli.UsageError, match=said.replace("(", r"\(")):
        cli.parse(Config, ["train", flag])


def test_kl_warmup_is_refused_where_the_bound_has_no_kl():
    with pytest.raises(cli.UsageError, match="it is read by sgvb_a, sgvb_b"):
        cli.parse(Config, ["train", "--estimator=iwae", "--kl_warmup=3"])


@pytest.mark.slow
def test_a_run_writes_its_files(trained_workdir):
    names = {path.name.split(".part")[0] for path in trained_workdir.iterdir()}
    assert names == {
        *("flags.txt", "run.json", "metrics.jsonl", "events", "checkpoints"),
        *("result.json", "training_curves.png", "reconstructions.png"),
        *("samples.png", "manifold.png", "lock"),
    }
    rows = journal.read(trained_workdir)
    assert [row["step"] for row in rows] == [10, 20]
    for name in ("bound", "reconstruction", "kl", "gradient_norm", "valid_bound"):
        assert np.isfinite(rows[0][name])
    np.testing.assert_allclose(
        rows[0]["bound"], rows[0]["reconstruction"] - rows[0]["kl"], rtol=1e-9
    )
    stamp = json.loads((trained_workdir / "run.json").read_text())["protocol"]
    assert stamp["split_sizes"] == {"train": 1000, "valid": 350, "test": 447}
    assert stamp["quantity"] == "log-likelihood"


@pytest.mark.slow
def test_fewer_images_lie_at_equal_distances_in_the_split(trained_workdir):
    # The first rows of some splits are all of one class.
    trained = trained_runs.load(trained_workdir, checkpoint="last")[0]
    rows = trained_runs.rows(trained, split="test")[np.array([0, 89, 178, 268, 357])]
    kl = trained.model.kl
    assert kl is not None

    def of_row(row):
        x = trained.data.prepared.value(row)
        return kl(trained.params, trained.model.recognition.encode(trained.params, x))

    expected = np.mean([of_row(row) for row in rows], axis=0)
    measured = measure.latents(trained, split="test", num_images=5)["kl_per_latent"]
    np.testing.assert_allclose(measured, expected, rtol=1e-5)


@pytest.mark.slow
def test_evaluate_reports_each_figure_it_promises(trained_workdir, capsys):
    config = evaluate.Config(
        workdir=str(trained_workdir), eval_samples=3, importance_samples=20
    )
    assert evaluate.main(config) == 0
    result = json.loads((trained_workdir / "evaluation_test.json").read_text())
    np.testing.assert_allclose(
        result["elbo"], result["reconstruction"] - result["kl"], rtol=1e-9
    )
    np.testing.assert_allclose(sum(result["kl_per_latent"]), result["kl"], rtol=1e-5)
    assert result["log_p"] > result["elbo"]
    assert 1.0 <= result["smallest_effective_sample_size"] <= 20.0
    assert 0 <= result["active_units"] <= 2
    assert result["protocol"]["binarization"] == "threshold"
    assert "log_p" in capsys.readouterr().out
    assert (trained_workdir / "evaluation_test.txt").read_text()


@pytest.mark.slow
def test_generate_and_reconstruct_write_arrays(trained_workdir):
    folder = str(trained_workdir)
    generate.main(generate.Config(workdir=folder, num=3, manifold_size=4))
    reconstruct.main(reconstruct.Config(workdir=folder, num=5))
    samples = np.load(trained_workdir / "samples_num_3.npz")
    assert samples["z"].shape == (3, 2)
    assert samples["x"].shape == samples["mean"].shape == (3, 8, 8)
    assert set(np.unique(samples["x"])) <= {0.0, 1.0}
    assert np.load(trained_workdir / "manifold.npz")["mean"].shape == (4, 4, 8, 8)
    arrays = np.load(trained_workdir / "reconstructions_5_images.npz")
    assert arrays["x"].shape == arrays["mean"].shape == (5, 8, 8)


@pytest.mark.slow
def test_an_extended_run_ends_bit_for_bit_as_an_unbroken_one(tmp_path):
    whole = tiny(tmp_path / "whole", num_epochs=4)
    train.main(whole)
    broken = tiny(tmp_path / "broken", num_epochs=1)
    train.main(broken)
    broken = dataclasses.replace(broken, num_epochs=4)
    train.main(broken)
    for a, b in zip(saved_arrays(whole), saved_arrays(broken), strict=True):
        np.testing.assert_array_equal(a, b)
    assert metrics(whole.workdir) == metrics(broken.workdir)


def test_the_training_seed_does_not_change_the_data(tmp_path):
    first, second = (
        runs.build(tiny(tmp_path, seed=seed, binarization="static")).data
        for seed in (0, 1)
    )
    np.testing.assert_array_equal(first.prepared.train, second.prepared.train)


def test_fewer_training_rows_are_the_first_ones_and_leave_the_rest_alone(tmp_path):
    whole, few = (
        protocol.load(tiny(tmp_path / "run", num_train=num)) for num in (0, 50)
    )
    np.testing.assert_array_equal(few.prepared.train, whole.prepared.train[:50])
    np.testing.assert_array_equal(few.prepared.test, whole.prepared.test)
    assert len(few.prepared.labels["train"]) == 50
    with pytest.raises(ValueError, match="--num_train=2000 is more than the 1000"):
        protocol.load(tiny(tmp_path / "run", num_train=2000))


@pytest.mark.parametrize(
    ("flags", "num_rows", "expected"),
    [
        ({}, 350, 10),
        ({}, 2000, 5),
        ({}, 50_000, 1),
        ({"watch": "importance"}, 50_000, 10),
        ({"valid_samples": 7}, 50_000, 7),
    ],
)
def test_many_validation_images_need_few_samples_each(flags, num_rows, expected):
    assert validation.num_samples(Config(**flags), num_rows) == expected


@pytest.mark.slow
def test_evaluation_settings_do_not_change_training(tmp_path):
    a = tiny(tmp_path / "a", valid_samples=1)
    b = tiny(tmp_path / "b", valid_samples=3, eval_samples=1)
    for config in (a, b):
        train.main(config)
    bounds = [[row["bound"] for row in metrics(c.workdir)] for c in (a, b)]
    assert bounds[0] == bounds[1]


@pytest.mark.slow
def test_a_workdir_of_other_flags_is_refused_and_kept(trained_workdir):
    before = (trained_workdir / "flags.txt").read_text()
    with pytest.raises(cli.UsageError, match="--seed=0 there, 1 now"):
        train.main(tiny(trained_workdir, seed=1))
    assert (trained_workdir / "flags.txt").read_text() == before


@pytest.mark.slow
def test_a_shorter_run_and_another_schedule_are_refused(trained_workdir):
    with pytest.raises(cli.UsageError, match="num_epochs"):
        train.main(tiny(trained_workdir, num_epochs=1))
    with pytest.raises(cli.UsageError, match="schedule"):
        train.main(tiny(trained_workdir, schedule="cosine", num_epochs=5))


@pytest.mark.slow
def test_noresume_does_not_overwrite_a_run(trained_workdir):
    with pytest.raises(cli.UsageError, match="--noresume"):
        train.main(tiny(trained_workdir, resume=False))


@pytest.mark.slow
def test_real_valued_targets_are_reported_as_cross_entropy(tmp_path, capsys):
    config = tiny(tmp_path / "ce", binarization="none")
    train.main(config)
    result = json.loads((tmp_path / "ce" / "result.json").read_text())
    assert "elbo" not in result
    assert "reconstruction" not in result
    assert result["cross_entropy"] > 0.0
    assert "bound" not in journal.read(config.workdir)[0]
    evaluated = evaluate.evaluate(evaluate.Config(workdir=config.workdir))
    assert "log_p" not in evaluated
    assert "cross_entropy" in evaluated
    assert "log-likelihood" not in capsys.readouterr().out


@pytest.mark.parametrize("name", ["normal", "normal_learned_std"])
@pytest.mark.slow
def test_the_other_likelihoods_train(tmp_path, name):
    config = tiny(tmp_path / name, likelihood=name, binarization="none", num_epochs=1)
    assert train.main(config) == 0
    assert (tmp_path / name / "result.json").exists()


@pytest.mark.parametrize(
    "changes",
    [
        {"estimator": "iwae", "num_samples": 3, "optimizer": "adagrad"},
        {"estimator": "sgvb_a", "schedule": "staircase", "optimizer": "sgd"},
        {"kl_warmup": 2, "schedule": "cosine", "clip_norm": 1.0, "weight_decay": 1.0},
        {
            "likelihood": "normal_per_pixel_std",
            "squash_mean": True,
            "binarization": "none",
            "init": "normal_0.01",
            "activation": "relu",
        },
    ],
    ids=["iwae", "sgvb_a", "warmup", "per_pixel_std"],
)
@pytest.mark.slow
def test_each_choice_of_flags_trains(tmp_path, changes, monkeypatch):
    legends, draw = [], curves.training_curves

    def drawn_with(*args, labels, **kwargs):
        legends.append(labels)
        return draw(*args, labels=labels, **kwargs)

    monkeypatch.setattr(curves, "training_curves", drawn_with)
    assert train.main(tiny(tmp_path / "run", num_epochs=1, **changes)) == 0
    row = metrics(str(tmp_path / "run"))[0]
    assert np.isfinite([row["bound"], row["kl"], row["valid_reconstruction"]]).all()
    of_the_elbo = changes.get("estimator") != "iwae"  # L_K has no such split
    assert ("reconstruction" in row) == of_the_elbo
    if of_the_elbo:
        assert legends == [{}]
    else:
        assert legends[0]["bound"] == "bound: iwae, 3 samples"
        assert legends[0]["valid_bits_per_dimension"].endswith("dimension: the ELBO")


@pytest.mark.parametrize("prior", PRIORS)
@pytest.mark.slow
def test_a_run_of_each_prior_goes_to_its_end(tmp_path, prior):
    flags = {"prior": prior, "estimator": "sgvb_a", "num_epochs": 1}
    assert train.main(tiny(tmp_path / "run", **flags)) == 0
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    assert np.isfinite(result["elbo"])


@pytest.mark.slow
def test_early_stopping_stops_keeps_the_best_and_stays_stopped(tmp_path):
    # A tiny rate: the validation bound wanders with its own noise and soon stalls.
    config = tiny(tmp_path / "run", num_epochs=60, early_stopping=3, learning_rate=1e-9)
    train.main(config)
    rows = metrics(config.workdir)
    assert len(rows) < 60
    best = max(rows, key=lambda row: row["valid_bound"])
    assert rows[-1]["epoch"] - best["epoch"] == 3
    trained = trained_runs.load(config.workdir, checkpoint="auto")[0]
    assert trained.step == best["step"]
    train.main(config)
    assert metrics(config.workdir) == rows


def test_a_workdir_without_a_run_is_a_clear_error(tmp_path):
    with pytest.raises(cli.UsageError, match="holds no run"):
        trained_runs.load(tmp_path, checkpoint="last")[0]


@pytest.mark.slow
def test_the_run_record_names_versions_and_device(trained_workdir):
    about = json.loads((trained_workdir / rundir.RUN).read_text())["environment"]
    assert about["packages"]["jax"] == jax.__version__
    assert about["device"].startswith("cpu")
