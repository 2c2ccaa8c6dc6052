"""Errors say what is wrong where it is, and the flag or file that mends it."""

import dataclasses
import os
import signal
import subprocess
import sys
import warnings

import numpy as np
import pytest

from experiments import evaluate, reconstruct, tighter_bounds, train
from experiments.choices.config import Config
from experiments.command import cli, report
from experiments.runs import contexts, rundir
from tests.tiny import saved, tiny
from vae_jax.data import sources

pytestmark = pytest.mark.uses_optax
ROOT = os.path.dirname(os.path.dirname(os.path.dirname(cli.__file__)))


@pytest.fixture
def workdir(tmp_path):
    """A run on twelve rows without a validation split, saved before its first step."""
    bits = np.random.default_rng(0).integers(0, 2, (32, 4, 4), np.uint8)
    np.savez(tmp_path / "own.npz", train=bits[:20], test=bits[20:])
    dataset = f"npz:{tmp_path / 'own.npz'}"
    return str(saved(tiny(tmp_path / "run", dataset=dataset, batch_size=10)))


def test_a_folder_without_a_run_is_not_said_to_be_trained_by_its_name_alone(tmp_path):
    said = (
        r"runs/binarized_mnist holds no run .*: name the folder of one, or give .* "
        r"--workdir=.*runs/binarized_mnist and the data set .*--dataset, or a"
    )
    folder = str(tmp_path / "runs" / "binarized_mnist")
    with pytest.raises(cli.UsageError, match=said):
        evaluate.main(evaluate.Config(workdir=folder))


@pytest.mark.slow
def test_an_empty_split_is_named_and_no_number_that_nobody_gave(workdir):
    said = r"has no rows in its valid split: train, test may be chosen"
    for config in (
        evaluate.Config(workdir=workdir, split="valid"),
        reconstruct.Config(workdir=workdir, split="valid"),
    ):
        main = sys.modules[type(config).__module__].main
        with pytest.raises(cli.UsageError, match=said) as error:
            main(config)
        assert "--num" not in str(error.value)


def test_a_file_in_the_place_of_a_run_is_named(tmp_path):
    path = tmp_path / "table.csv"
    path.write_text("a,b")
    with pytest.raises(cli.UsageError, match=f"^--workdir={path} is a file: name"):
        evaluate.main(evaluate.Config(workdir=str(path)))


def test_more_rows_than_there_are_name_the_flag_of_the_command(workdir):
    said = r"--num_images=13 is more than the 12 rows of the test split of npz:.*: give"
    with pytest.raises(cli.UsageError, match=said):
        evaluate.main(evaluate.Config(workdir=workdir, num_images=13))
    with pytest.raises(cli.UsageError, match=r"--num=13 is more than the 12 rows of"):
        reconstruct.main(reconstruct.Config(workdir=workdir, num=13))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("--nosuch=1", "nosuch"),
        ("garbage", "unexpected arguments: garbage"),
        ("--learning_rate=fast", "flag --learning_rate=fast"),
        ("--batch_size=0", "--batch_size must be positive, got 0"),
        ("\x00\xff", ""),
    ],
)
def test_a_line_that_is_no_flag_is_named_with_its_file(tmp_path, workdir, line, said):
    path = os.path.join(workdir, rundir.FLAGS)
    with open(path, "ab") as file:
        file.write(line.encode("latin-1"))
    with pytest.raises(cli.UsageError) as error:
        evaluate.main(evaluate.Config(workdir=workdir))
    assert str(error.value).startswith(f"{path}: ")
    assert str(error.value).count(path) == 1
    assert said in str(error.value)


def test_a_flag_file_on_the_command_line_is_named_where_it_is_at_fault(tmp_path):
    good, bad = tmp_path / "good.flags", tmp_path / "bad.flags"
    good.write_text("--batch_size=7\n")
    bad.write_text("--batch_size=7\n--latents=3\n")
    for files, flag, named in (
        ([good, bad], "--seed=1", f"{bad}: --latents is no flag; did you mean"),
        ([good], "--sed=1", "--sed is no flag"),
        ([good], "--batch_size=0", "--batch_size must be positive, got 0"),
        ([tmp_path / "none"], "--seed=1", "none"),
    ):
        argv = ["train", *(f"--flagfile={path}" for path in files), flag]
        with pytest.raises(cli.UsageError) as error:
            cli.parse(Config, argv)
        assert named in str(error.value)
        assert str(error.value).startswith(str(bad)) == (bad in files)


@pytest.mark.parametrize("flag", ["learning_rate", "std", "checkpoint_seconds"])
def test_a_number_that_is_none_is_named_with_its_flag(flag):
    with pytest.raises(cli.UsageError, match=rf"--{flag}=fast"):
        cli.parse(Config, ["train", f"--{flag}=fast"])


def test_a_number_that_is_not_whole_is_named_with_its_flag():
    with pytest.raises(
        cli.UsageError, match=r"--num_latents=1\.5: must be a whole number"
    ):
        cli.parse(Config, ["train", "--num_latents=1.5"])


def test_images_without_labels_are_told_where_these_come_from():
    images = sources.load("digits")._replace(name="images:gray", labels={})
    with pytest.raises(ValueError, match="no labels: put images into a folder a class"):
        contexts.of_labels(images)


def test_a_warning_is_one_line(monkeypatch, capsys):
    def main(config):
        del config
        warnings.simplefilter("always")
        warnings.warn("files are\nleft out", stacklevel=1)

    monkeypatch.setattr(sys, "argv", ["l"])
    with pytest.raises(SystemExit):
        cli.run(Lists, main)
    assert capsys.readouterr().err == "warning: files are left out\n"


def test_an_estimator_that_wants_more_samples_names_their_flag(tmp_path):
    said = "^vimco of --num_samples=1: num_samples must be 2 or more"
    with pytest.raises(cli.UsageError, match=said):
        train.main(tiny(tmp_path / "run", estimator="vimco"))


def test_a_folder_to_write_in_is_named_by_its_flag(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(cli.UsageError, match=r"^--workdir=.*file is a file: name"):
        report.claim(tmp_path / "file")
    with pytest.raises(cli.UsageError, match=r"^--out=.*file is a file: name"):
        report.claim(tmp_path / "file", flag="out")


@dataclasses.dataclass(frozen=True)
class Lists(cli.Flags):
    """Flags that are lists, and a multiple."""

    parts: tuple[str, ...] = cli.flag(
        ("a", "bias"), "", choices=("a", "bias"), empty=False
    )
    sizes: tuple[int, ...] = cli.flag((1,), "", empty=False)
    more: tuple[int, ...] = cli.flag((), "")
    steps: int = cli.flag(20, "", multiple=10)


def test_a_list_of_names_is_read_and_written():
    lists = cli.parse(Lists, ["l", "--parts=bias", "--more="])
    assert (lists.parts, lists.more) == (("bias",), ())
    lines = cli.write_flagfile(lists).splitlines()
    assert "--parts=bias" in lines
    assert cli.parse(Lists, ["l", *lines]) == lists
    assert "--parts=a,bias\n       Some of a, bias." in cli._help(Lists, __name__)


def test_a_switch_is_described_as_what_it_does_when_it_is_on():
    @dataclasses.dataclass(frozen=True)
    class Switches(cli.Flags):
        quick: bool = cli.flag(False, "Leave half of it out.")
        kind: str = cli.flag("", "Of it.", choices=("", "a"))

    said = cli._help(Switches, __name__)
    assert "--[no]quick (off)\n      Leave half of it out.\n" in said
    assert "Of it. One of a.\n" in said


@pytest.mark.parametrize(
    ("flag", "said"),
    [
        ("--parts=a,bia", r"--parts=bia is unknown; known: a, bias; did you mean bias"),
        ("--parts=", "--parts must hold at least one item"),
        ("--sizes=", "--sizes must hold at least one item"),
        ("--steps=15", "--steps must be a multiple of 10, got 15"),
    ],
)
def test_a_list_or_a_multiple_is_refused_at_its_flag(flag, said):
    with pytest.raises(cli.UsageError, match=said):
        cli.parse(Lists, ["l", flag])


def test_a_list_of_rates_names_its_flag():
    with pytest.raises(cli.UsageError, match="--learning_rates: fast is no number"):
        cli.parse(tighter_bounds.Config, ["t", "--learning_rates=1e-3,fast"])


ENDLESS = (
    "from experiments.command import cli\n"
    "from experiments.runs import rundir\n"
    "from experiments.benchmark.layouts import Config\n"
    "def main(config):\n"
    "    with cli.user_errors(), rundir.storage_errors(config):\n"
    "        while True:\n            print('a line')\n"
    "cli.run(Config, main)"
)


@pytest.mark.parametrize(
    "command",
    [
        ["-c", ENDLESS],
        ["-m", "experiments.train", "--help"],
    ],
)
@pytest.mark.slow
def test_output_that_nobody_reads_on_ends_a_command_without_a_word(command):
    process = subprocess.Popen(
        [sys.executable, *command],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert process.stdout is not None
    assert process.stderr is not None
    if "-c" in command:
        assert process.stdout.readline() == b"a line\n"
    process.stdout.close()
    assert process.stderr.read() == b""
    assert process.wait(timeout=60.0) == 128 + signal.SIGPIPE


def test_a_workdir_that_cannot_be_created_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(cli.UsageError, match=r"--workdir=.*below cannot be created: "):
        report.claim(str(tmp_path / "file" / "below"))
