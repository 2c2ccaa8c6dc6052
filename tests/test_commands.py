"""Every command under its published name, and the list of them."""

import ast
import dataclasses
import importlib
import itertools
import pathlib
import re
import runpy
import subprocess
import sys
import tomllib

import pytest

from experiments import __main__ as listing
from experiments import train
from experiments.command import cli

ROOT = listing.FOLDER.parent
COMMANDS = listing.commands(listing.FOLDER)
BENCHMARKS = [
    f"benchmark.{path.stem}"
    for path in sorted((listing.FOLDER / "benchmark").glob("*.py"))
    if 'if __name__ == "__main__":' in path.read_text()
]


def source(name: str) -> pathlib.Path:
    path = listing.FOLDER / name.replace(".", "/")
    return path / "command.py" if path.is_dir() else path.with_suffix(".py")


def test_a_command_is_a_file_or_a_package_that_can_be_run(tmp_path):
    for name in ("one.py", "_private.py", "two/command.py", "two/__main__.py"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(f'"""Does {name}.\n\nAt length."""\n')
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "command.py").write_text('"""Not run."""\n')
    listed = listing.commands(tmp_path)
    assert listed == {
        "one": "Does one.py.\n\nAt length.",
        "two": "Does two/command.py.\n\nAt length.",
    }


def test_the_list_has_a_line_for_each_command_and_loads_nothing():
    program = (
        "import runpy, sys\nrunpy.run_module('experiments', run_name='__main__')\n"
        "print('jax' in sys.modules)"
    )
    ran = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True
    )
    assert ran.returncode == 0, ran.stderr
    *lines, _, _, loaded = ran.stdout.splitlines()
    assert loaded == "False"
    assert {"train", "evaluate", "completion", "em"} <= set(COMMANDS)
    assert [line.split()[0] for line in lines] == list(COMMANDS)
    assert all(len(line.split()) > 3 for line in lines)


@pytest.mark.filterwarnings("ignore:'experiments:RuntimeWarning")  # loaded before
@pytest.mark.parametrize("name", [*COMMANDS, *BENCHMARKS])
def test_a_command_says_what_it_does_on_help(name, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", [name, "--help"])
    with pytest.raises(SystemExit) as left:
        runpy.run_module(f"experiments.{name}", run_name="__main__", alter_sys=True)
    assert left.value.code == 0
    text = ast.get_docstring(ast.parse(source(name).read_text()))
    assert text
    assert text in capsys.readouterr().out


def test_help_of_train_stands_under_the_headings_of_its_flags(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["train", "--help"])
    with pytest.raises(SystemExit):
        cli.run(train.Config, train.main)
    _, *sections = re.split(r"^(\S.*):$", capsys.readouterr().out, flags=re.MULTILINE)
    flags = {
        heading: re.findall(r"^  --(?:\[no\])?(\w+)", text, flags=re.MULTILINE)
        for heading, text in zip(sections[-22::2], sections[-21::2], strict=True)
    }
    assert list(flags)[:3] == ["Flags", "Data", "Model"]
    assert list(flags)[3:6] == ["Codes", "Networks of the model", "Objective"]
    assert flags["Flags"] == ["workdir"]
    assert {"likelihood", "posterior", "prior"} < set(flags["Model"])
    assert flags["Networks of the model"][0] == "network"
    assert flags["Optimization"][0] == "optimizer"
    names = [field.name for field in dataclasses.fields(train.Config)]
    assert [*itertools.chain(*flags.values())] == [*names, "flagfile"]
    assert max(map(len, flags.values())) < 25


def _config(name: str):
    """The dataclass of a command's flags."""
    inside = ".command" if (listing.FOLDER / name.replace(".", "/")).is_dir() else ""
    return importlib.import_module(f"experiments.{name}{inside}").Config


@pytest.mark.parametrize("name", [*COMMANDS, *BENCHMARKS])
def test_a_seed_is_not_negative(name):
    config = _config(name)
    names = [field.name for field in dataclasses.fields(config)]
    seeds = [name for name in names if name.endswith("seed")]
    assert not any(_taken(config, seed, "-1") for seed in seeds)


@pytest.mark.parametrize("name", [*COMMANDS, *BENCHMARKS])
def test_a_float_is_finite_at_the_flag(name):
    config = _config(name)
    floats = [f.name for f in dataclasses.fields(config) if f.type in (float, "float")]
    assert [f for f in floats if _taken(config, f, "inf")] in ([], ["skip_norm"])
    assert not any(_taken(config, flag, "nan") for flag in floats)
    assert [f for f in floats if _taken(config, f, "-inf")] in ([], ["alpha"])


def _taken(config, flag: str, value: str) -> bool:
    """Whether a value is not refused for what it is by itself."""
    try:
        cli.parse(config, ["name", f"--{flag}={value}"])
    except cli.UsageError as error:
        return not str(error).startswith(f"--{flag} must ")
    return True


def test_the_wheel_holds_every_flag_file():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    patterns = project["tool"]["setuptools"]["package-data"]["experiments"]
    packed = {path for pattern in patterns for path in listing.FOLDER.glob(pattern)}
    there = {path for path in (listing.FOLDER / "flags").rglob("*") if path.is_file()}
    assert there
    assert packed == there
