"""A workdir belongs to the data that it was trained on: other data are refused."""

import json

import numpy as np
import pytest

from experiments import em_to_vae, evaluate, reconstruct, train
from experiments.command import cli, report
from experiments.completion import command as completion
from experiments.export import command as export
from experiments.generate import command as generate
from experiments.inference_gaps import command as inference_gaps
from experiments.measures import whole_run
from experiments.representation import command as representation
from experiments.runs import fit, protocol, rundir, runs, trained_runs
from tests.tiny import saved, tiny
from vae_jax.data import sources

pytestmark = pytest.mark.uses_optax
ON_A_WORKDIR = (completion, evaluate, export, generate, reconstruct, representation)


def bits(number: int) -> np.ndarray:
    return np.random.default_rng(number).integers(0, 2, (30, 4, 4), np.uint8)


def of_file(path, rows: np.ndarray, **changes):
    """The flags of a run on a file that is written first."""
    np.savez(path / "own.npz", train=rows[:20], test=rows[20:])
    return tiny(
        path / "run", dataset=f"npz:{path / 'own.npz'}", batch_size=10, **changes
    )


@pytest.fixture
def started(tmp_path):
    """A run on a file of its own, saved before its first step."""
    config = of_file(tmp_path, bits(0))
    saved(config)
    return config


def refused(dataset: str) -> str:
    return (
        rf"{dataset} does not hold the data that the run in .* was made with "
        rf"\(sha256 \w{{12}} there, \w{{12}} now\): restore them, or choose another "
        "--workdir"
    )


def test_a_replaced_file_is_not_trained_on_and_the_record_stays(tmp_path, started):
    record = (tmp_path / "run" / rundir.RUN).read_text()
    of_file(tmp_path, bits(1))
    with pytest.raises(cli.UsageError, match=refused(started.dataset)) as error:
        train.main(started)
    assert "\n" not in str(error.value)
    assert (tmp_path / "run" / rundir.RUN).read_text() == record
    of_file(tmp_path, bits(0))
    fit.claim(started)


def test_a_file_that_was_moved_is_named_anew_in_the_runs_flags(tmp_path, started):
    (tmp_path / "own.npz").rename(tmp_path / "moved.npz")
    flags = tmp_path / "run" / rundir.FLAGS
    said = rf"there is no file .*own.npz: .* {flags} has to name their new place"
    with pytest.raises(cli.UsageError, match=said):
        trained_runs.load(started.workdir, checkpoint="last")
    flags.write_text(flags.read_text().replace("own.npz", "moved.npz"))
    (trained,) = trained_runs.load(started.workdir, checkpoint="last")
    np.testing.assert_array_equal(trained.data.source.train, bits(0)[:20])


@pytest.mark.parametrize(
    "command",
    [
        pytest.param(c, marks=[] if c in (evaluate, export) else [pytest.mark.slow])
        for c in ON_A_WORKDIR
    ],
    ids=lambda c: c.__name__,
)
def test_a_replaced_file_is_not_spoken_of(tmp_path, started, command):
    of_file(tmp_path, bits(1))
    with pytest.raises(cli.UsageError, match=refused(started.dataset)):
        command.main(command.Config(workdir=started.workdir))


def test_images_of_another_shape_are_refused(tmp_path, started):
    of_file(tmp_path, bits(0).reshape(30, 2, 8))
    with pytest.raises(cli.UsageError, match=refused(started.dataset)):
        train.main(started)


def test_a_test_split_alone_that_is_another_is_refused(tmp_path, started):
    of_file(tmp_path, np.concatenate([bits(0)[:20], bits(1)[20:]]))
    with pytest.raises(cli.UsageError, match=refused(started.dataset)):
        runs.restore(runs.build(started))


@pytest.mark.slow
def test_the_same_rows_in_another_file_are_the_same_data(tmp_path, started):
    np.savez_compressed(
        tmp_path / "own.npz",
        train=bits(0)[:20].astype(np.int64),
        test=bits(0)[20:].astype(np.int64),
        test_labels=np.zeros(10, int),
    )
    fit.claim(started)
    assert runs.restore(runs.build(started)) is not None


def test_the_digest_is_of_every_split_and_of_the_scale(tmp_path):
    config = of_file(tmp_path, bits(0))
    source = sources.load(config.dataset)
    moved = source._replace(train=source.train.reshape(20, 2, 8))
    for other in (
        source._replace(divisor=2.0),
        source._replace(offset=1.0),
        source._replace(test=source.test[:9]),
        source._replace(train=source.train[::-1]),
        source._replace(valid=source.test, test=source.valid),
        source._replace(train=source.train.astype(np.float32)),
        moved,
    ):
        assert sources.digest(other) != sources.digest(source)
    assert protocol.load(config).sha256 == sources.digest(source)


def test_a_record_from_before_digests_is_said_to_be_one(tmp_path, started, capsys):
    path = tmp_path / "run" / rundir.RUN
    about = json.loads(path.read_text())
    digest = about["protocol"].pop("sha256")
    path.write_text(json.dumps(about))
    assert runs.restore(runs.build(started)) is not None
    said = capsys.readouterr().out
    assert f"note: {path} has no digest of the data" in said
    fit.claim(started)  # which records one
    assert json.loads(path.read_text())["protocol"]["sha256"] == digest
    capsys.readouterr()
    assert runs.restore(runs.build(started)) is not None
    assert "note" not in capsys.readouterr().out


def test_a_record_from_before_digests_has_the_digest_of_an_npz_file(tmp_path, started):
    path = tmp_path / "run" / rundir.RUN
    about = json.loads(path.read_text())
    del about["protocol"]["sha256"]
    path.write_text(json.dumps(about))
    of_file(tmp_path, bits(1))
    with pytest.raises(cli.UsageError, match=r"npz file own\.npz, sha256 \w+ there"):
        fit.claim(started)


def test_a_run_without_a_record_is_said_to_be_one(tmp_path, started, capsys):
    (tmp_path / "run" / rundir.RUN).unlink()
    assert runs.restore(runs.build(started)) is not None
    assert "has no digest of the data" in capsys.readouterr().out


@pytest.mark.parametrize("script", [em_to_vae, inference_gaps])
def test_a_comparison_of_other_data_is_measured_again(tmp_path, monkeypatch, script):
    keys = []

    def from_cache(path, flags, make):
        keys.append(flags)
        raise InterruptedError  # what is measured is no matter here

    monkeypatch.setattr(report, "cached", from_cache)
    monkeypatch.setattr(whole_run, "train", lambda config: (None, None))
    monkeypatch.setattr(trained_runs, "of_run", lambda *run, checkpoint: None)
    name = f"npz:{tmp_path / 'own.npz'}"
    config = {
        em_to_vae: lambda: em_to_vae.Config(workdir=str(tmp_path), dataset=name),
        inference_gaps: lambda: inference_gaps.Config(
            workdir=str(tmp_path), run_flags=f"--dataset={name}"
        ),
    }[script]()
    for number in (0, 0, 1):
        of_file(tmp_path, bits(number))
        with pytest.raises(InterruptedError):
            script.main(config)
    assert keys[0] == keys[1] != keys[2]
