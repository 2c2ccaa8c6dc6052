"""Who may import whom in experiments/: four homes, and the commands above them.

A room is what lies directly under experiments/: a home, or a command, which is a file
or a package. No command imports another. `benchmark` imports what it likes, and nothing
imports it.
"""

import ast
import dataclasses
import pathlib
import sys

import pytest

from experiments.choices.config import Config
from experiments.command import cli
from experiments.runs import runs
from tests import sources
from tests.sources import SCRIPTS

HOMES = ("command", "choices", "runs", "measures")  # each imports itself, and the left
FREE = "benchmark"
FORM = ("__init__", "__main__", "command")  # of a command that is a package
MOST_FLOORS = 6  # of rooms
MOST_FILES = 15  # of the longest chain of files; never to be raised
MOST_READERS = 5  # files between a flag of the model and the model


def layers(path, tree):
    """Targets in experiments/ that a file there must not import."""
    room = sources.parts(path)[1]
    allowed = HOMES[: HOMES.index(room) + 1] if room in HOMES else (*HOMES, room)
    for target in sources.imports(path, tree):
        top, *rest = target.split(".")
        if top == "experiments" and (not rest or rest[0] not in allowed):
            if room == FREE and rest:
                continue
            yield target


def graph(trees):
    """{module: the modules of `trees` that it imports} from {path: tree}."""
    names = {path: ".".join(sources.parts(path)) for path in trees}
    results = {}
    for path, tree in trees.items():
        targets = {t for full in sources.imports(path, tree) for t in _prefixes(full)}
        results[names[path]] = targets & set(names.values())
    return results


def _prefixes(target):
    """A module's name, and what it may be the name of something in."""
    return target, target.rpartition(".")[0]


def circle(imported):
    """The modules of one circle of imports; empty if there is none."""
    left = dict(imported)
    while leaves := [name for name, targets in left.items() if not targets & set(left)]:
        for name in leaves:
            del left[name]
    while importers := [
        name for name in left if not any(name in targets for targets in left.values())
    ]:
        for name in importers:
            del left[name]
    return sorted(left)


def chain(imported):
    """The longest chain of imports, from its top to what imports nothing of ours."""
    longest = {}

    def below(name):
        if name not in longest:
            chains = [below(target) for target in imported[name]]
            longest[name] = [name, *max(chains, key=len, default=[])]
        return longest[name]

    return max((below(name) for name in imported), key=len, default=[])


def rooms(imported):
    """{room: the others that it imports} from the graph of modules."""
    results = {}
    for module, targets in imported.items():
        room = module.split(".")[1]
        results.setdefault(room, set()).update(t.split(".")[1] for t in targets)
    return {room: targets - {room} for room, targets in results.items()}


# The code against the rules


@pytest.mark.slow
def test_imports_go_down():
    sources.assert_kept(layers, SCRIPTS)


def test_no_circle_and_few_floors():
    assert not circle(graph({path: sources.tree(path) for path in SCRIPTS}))
    free = f"experiments/{FREE}/"
    paths = [path for path in SCRIPTS if not path.startswith(free)]
    imported = graph({path: sources.tree(path) for path in paths})
    assert "experiments.choices.config" in imported["experiments.choices.models"]
    between = rooms(imported)
    assert between["runs"] == {"choices", "command"}
    assert not circle(between)
    assert len(chain(between)) <= MOST_FLOORS
    assert len(chain(imported)) <= MOST_FILES


def test_what_lies_directly_below_is_a_home_or_a_command():
    for path in SCRIPTS:
        _, room, *below = sources.parts(path)
        if below and room not in (*HOMES, FREE):
            assert {f"experiments/{room}/{name}.py" for name in FORM} <= set(SCRIPTS)
        elif not below and room != "__init__":
            assert 'if __name__ == "__main__":' in (sources.ROOT / path).read_text()
    assert all((sources.ROOT / "experiments" / home).is_dir() for home in HOMES)


def test_few_files_read_a_flag_of_the_model_on_its_way_to_the_model():
    """From the command line: the command, then who reads it, then who builds it."""
    command = sources.ROOT / "experiments" / "train.py"
    readers = {str(command)}

    @dataclasses.dataclass(frozen=True)
    class Watched(Config):
        def __getattribute__(self, name):
            if name == "posterior":
                readers.add(sys._getframe(1).f_code.co_filename)
            return super().__getattribute__(name)

    argv = [str(command), "--posterior=iaf", "--estimator=sgvb_a"]
    built = runs.build(cli.parse(Watched, argv)).parts.model
    assert built.recognition.family.name == "flow"
    row = sys.modules["experiments.choices.densities"].POSTERIORS["iaf"]
    readers.add(row.build.__code__.co_filename)
    of_ours = {path for path in readers if "experiments" in pathlib.Path(path).parts}
    assert {"refusals", "models", "densities"} < {pathlib.Path(p).stem for p in of_ours}
    assert len(of_ours) <= MOST_READERS


# The rules against code that breaks them


@pytest.mark.parametrize(
    ("path", "source"),
    [
        ("experiments/command/a.py", "from experiments.choices import config"),
        ("experiments/choices/a.py", "from experiments.runs.run import Run"),
        ("experiments/choices/a.py", "from ..runs import run"),
        ("experiments/runs/a.py", "import experiments.measures.measure"),
        ("experiments/runs/a.py", "def f():\n  from experiments import train"),
        ("experiments/measures/a.py", "from experiments.em import densities"),
        ("experiments/measures/a.py", "from experiments.benchmark import rounds"),
        ("experiments/train.py", "from experiments import evaluate"),
        ("experiments/train.py", "from experiments import __main__"),
        ("experiments/em/a.py", "from experiments.evidence import cases"),
        ("experiments/em/__main__.py", "import_module('experiments.train')"),
        ("experiments/em/a.py", "import experiments"),
        ("experiments/benchmark/a.py", "import experiments"),
        ("experiments/__main__.py", "from experiments import train"),
    ],
)
def test_an_import_upward_or_sideways_is_found(path, source):
    assert list(layers(path, ast.parse(source)))


@pytest.mark.parametrize(
    ("path", "source"),
    [
        ("experiments/command/a.py", "from experiments.command import flags"),
        ("experiments/choices/a.py", "from experiments.command.flags import flag"),
        ("experiments/measures/a.py", "from experiments.choices import models"),
        ("experiments/em/command.py", "from experiments.em import densities"),
        ("experiments/em/command.py", "from . import densities\nimport vae_jax.vae"),
        ("experiments/train.py", "from experiments.measures import validation"),
        ("experiments/benchmark/a.py", "from experiments import train"),
    ],
)
def test_imports_downward_pass(path, source):
    assert not list(layers(path, ast.parse(source)))


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({"a": "import b", "b": "import c", "c": "import b"}, ["b", "c"]),
        ({"a": "if TYPE_CHECKING:\n  from b import B", "b": "import a"}, ["a", "b"]),
        ({"p/a": "from . import b", "p/b": "from p.a import A"}, ["p.a", "p.b"]),
        ({"a": "import b, c", "b": "import c", "c": "import d"}, []),
    ],
)
def test_a_circle_is_found(files, expected):
    trees = {f"{name}.py": ast.parse(text) for name, text in files.items()}
    assert circle(graph(trees)) == expected


def test_floors_are_counted():
    files = {
        "p/a": "from experiments.p import b",
        "p/b": "from experiments.q import c, d",
        "q/c": "import experiments.q.d",
        "q/d": "",
    }
    imported = graph(
        {f"experiments/{name}.py": ast.parse(text) for name, text in files.items()}
    )
    assert chain(imported) == [f"experiments.{n}" for n in ("p.a", "p.b", "q.c", "q.d")]
    assert rooms(imported) == {"p": {"q"}, "q": set()}
    assert chain(rooms(imported)) == ["p", "q"]
