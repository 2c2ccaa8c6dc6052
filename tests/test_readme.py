"""The READMEs and the headers of flag files: their code, commands, links and sizes."""

import importlib
import importlib.util
import pathlib
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator

import jax
import pytest

from experiments.command import cli
from tests.sources import blocks
from vae_jax.types import Network

ROOT = pathlib.Path(__file__).parent.parent
READMES = ["README.md", "experiments/README.md", "vae_jax/README.md"]
FLAGS = ROOT / "experiments" / "flags"
FLAG_FILES = sorted(str(path.relative_to(FLAGS)) for path in FLAGS.rglob("*.flags"))
MAX_BYTES = 10_240
MAX_CELL = 120
RESULT = r"^# (?:Result \(.*?\b20\d\d-\d\d-\d\d\b|No result (?:yet|of its own)\b)"
MACHINE_PATH = r"(?<![\w.:/~])/(?:home|root|work|tmp|mnt|Users)/"
NUMBER = r"-?\d+(?:\.\d+)?"
SHORTER = {  # flags that are added to the README's commands when they are tested
    "experiments.train": ["--num_epochs=2", "--early_stopping=0", "--noprogress"],
    "experiments.evaluate": ["--importance_samples=100"],
    "experiments.completion": ["--num_images=4", "--num_draws=8"],
}


def text_of(readme: str) -> str:
    return (ROOT / readme).read_text()


def header_of(path: str) -> str:
    """The comment that a flag file starts with."""
    lines = (FLAGS / path).read_text().splitlines()
    size = next((i for i, line in enumerate(lines) if not line.startswith("#")), None)
    return "\n".join(lines[:size])


def command_of(name: str):
    """The module of `python -m experiments.NAME`: a file, or a folder's `command`."""
    spec = importlib.util.find_spec(f"experiments.{name}")
    assert spec is not None, name
    inside = "" if spec.submodule_search_locations is None else ".command"
    return importlib.import_module(f"experiments.{name}{inside}")


# What a program can see of a text: (what it is, its text) -> what is wrong


def wide_cells(text: str) -> Iterator[str]:
    """A table is read across: no cell is longer than a line."""
    for line in text.splitlines():
        if line.startswith("|"):
            cells = re.split(r"(?<!\\)\|", line)[1:-1]
            yield from (cell for cell in cells if len(cell.strip()) > MAX_CELL)


def broken_links(text: str, folder: pathlib.Path) -> Iterator[str]:
    """Files that are linked, shown or named as flag files are there."""
    linked = re.findall(r"\]\(([^)#:]+)[^):]*\)", text)
    shown = re.findall(r'src="([^":]+)"', text)
    named = re.findall(r"experiments/flags/[a-z0-9_/]+\.flags", text)
    paths = [folder / path for path in linked + shown] + [ROOT / path for path in named]
    yield from (str(path) for path in paths if not path.exists())


def incomplete_header(path: str, header: str) -> Iterator[str]:
    """What the file is, the command that reads it, and what that has given, dated."""
    name = str(pathlib.PurePath(path).parent).replace("/", ".")
    module = rf"^# Run: (?:\w+=\S+ )?python -m experiments\.{re.escape(name)} "
    joined = re.sub(r" \\\n#\s+", " ", header)
    run = re.search(
        module + rf".*--flagfile=experiments/flags/{re.escape(path)}(?!\S)",
        joined,
        flags=re.MULTILINE,
    )
    if not re.match(r"# (?!Run:)\w", header):
        yield "does not start with what it is"
    if not run:
        yield f"does not name its command, python -m experiments.{name}"
    if not re.search(RESULT, header, flags=re.MULTILINE):
        yield "has neither '# Result (seed, date, machine, time)' nor '# No result yet'"


def unnamed_in_results(path: str, header: str, results: str) -> Iterator[str]:
    """What was measured has a row in experiments/README.md."""
    if "\n# Result (" in header and f"(flags/{path})" not in results:
        yield "has a result that experiments/README.md does not link"


@pytest.mark.parametrize("readme", READMES)
def test_a_readme_has_short_cells_and_links_to_what_there_is(readme):
    text = text_of(readme)
    assert not list(wide_cells(text))
    assert not list(broken_links(text, (ROOT / readme).parent))


def test_the_readme_is_short_and_its_picture_small():
    assert (ROOT / "README.md").stat().st_size <= MAX_BYTES
    (picture,) = re.findall(r'src="([^"]+)"', text_of("README.md"))
    assert (ROOT / picture).stat().st_size < 60_000


@pytest.mark.parametrize("path", FLAG_FILES)
def test_a_flag_file_says_what_it_is_and_what_it_has_given(path):
    header = header_of(path)
    assert not list(incomplete_header(path, header))
    assert not list(unnamed_in_results(path, header, text_of("experiments/README.md")))


@pytest.mark.parametrize("path", FLAG_FILES)
def test_a_flag_file_is_read_by_the_command_of_its_folder(path):
    script = command_of(str(pathlib.PurePath(path).parent).replace("/", "."))
    cli.parse(script.Config, ["script", f"--flagfile={FLAGS / path}"])


def test_no_file_names_a_path_of_one_machine():
    folders = ["vae_jax", "experiments", "tests", ".ci"]
    files = [path for name in folders for path in (ROOT / name).rglob("*")]
    files += [ROOT / "README.md", ROOT / "pyproject.toml"]
    texts = [p for p in files if p.is_file() and "__pycache__" not in p.parts]
    assert {FLAGS / "train" / "digits.flags", ROOT / "vae_jax" / "vae.py"} <= set(texts)
    for path in texts:
        assert not re.search(MACHINE_PATH, path.read_text()), path


@pytest.mark.parametrize(
    ("rule", "arguments"),
    [
        (wide_cells, (f"| a | {'b' * (MAX_CELL + 1)} |",)),
        (broken_links, ("[a](gone.md#part)", ROOT)),
        (broken_links, ('<img src="gone.png">', ROOT)),
        (broken_links, ("`experiments/flags/train/gone.flags`", ROOT)),
        (incomplete_header, ("em/a.flags", "")),
        (incomplete_header, ("em/a.flags", "# A.\n# Result (2026-01-02): 1.")),
        (
            incomplete_header,
            (
                "em/a.flags",
                "# A.\n# Run: python -m experiments.em "
                "--flagfile=experiments/flags/em/b.flags\n# No result yet.",
            ),
        ),
        (
            incomplete_header,
            (
                "em/a.flags",
                "# A.\n# Run: python -m experiments.em \\\n#     "
                "--flagfile=experiments/flags/em/a.flags\n# Result (seed 0): 1.",
            ),
        ),
        (unnamed_in_results, ("em/a.flags", "# A.\n# Result (2026-01-02): 1.", "")),
    ],
)
def test_a_rule_finds_what_breaks_it(rule, arguments):
    assert list(rule(*arguments))


def test_the_rules_let_good_texts_pass():
    header = (
        "# A.\n# Run: JAX_NUM_CPU_DEVICES=2 python -m experiments.em \\\n#     "
        "--flagfile=experiments/flags/em/a.flags --data_dir=DIR\n"
        "# Result (seed 0, 2026-01-02, 2 cores, Xeon, 3 s): 1."
    )
    assert not list(incomplete_header("em/a.flags", header))
    assert not list(unnamed_in_results("em/a.flags", header, "[a](flags/em/a.flags)"))
    assert not list(wide_cells(f"| {'a' * 100} \\| b | {'c' * 100} |\n{'d' * 200}"))
    assert not list(broken_links("[a](README.md#more) [b](https://c.d/e)", ROOT))
    assert re.search(MACHINE_PATH, "from " + "/ho" + "me/somebody/data")
    assert not re.search(MACHINE_PATH, "https://a.b/home/ runs/mnt/ ~/mnt/")


# The tables of the library


def test_the_modules_table_names_every_module_and_only_what_there_is():
    table = re.findall(
        r"^\| `(\w+)` \| [^|]* \| (.*) \|$",
        text_of("vae_jax/README.md"),
        flags=re.MULTILINE,
    )
    rows = {name: re.findall(r"`([\w.]+)`", start) for name, start in table}
    there = {path.stem for path in (ROOT / "vae_jax").iterdir()}
    assert set(rows) & there == {
        name for name in there if name[0] != "_" and name not in ("README", "py")
    }
    for name in set(rows) & there:
        assert rows[name]
        for start in rows[name]:
            seen = importlib.import_module(f"vae_jax.{name}")
            assert start.split(".")[0] == name
            for part in start.split(".")[1:]:
                if not hasattr(seen, part):
                    importlib.import_module(f"{seen.__name__}.{part}")
                seen = getattr(seen, part)


# The code and the commands


@pytest.mark.slow
@pytest.mark.uses_optax
def test_the_library_examples_run(capsys):
    names: dict = {}
    (example,) = blocks("README.md", "python")
    exec(example, names)
    bound = float(re.search(r"ELBO (\S+) nats", capsys.readouterr().out)[1])  # pyright: ignore
    assert -30.0 < bound < -15.0
    (own_network,) = blocks("vae_jax/README.md", "python")
    exec(own_network, names)
    decoder = names["decoder"]
    assert isinstance(decoder, Network)
    params = decoder.init(jax.random.key(0))
    assert decoder.apply(params, jax.numpy.ones(8)).shape == (64,)


def test_set_up_is_two_single_lines_and_ci_runs_them_from_here():
    lines = [line for b in blocks("README.md", "bash") for line in b.splitlines()]
    commands = [line for line in lines if "-m venv" in line]
    assert len(commands) == 2
    assert all(command.startswith("python3 -m venv ") for command in commands)
    ci = (ROOT / ".ci" / "run").read_text()
    assert "'^python3 -m venv ' README.md" in ci
    assert "pip install" not in ci


@pytest.mark.slow
def test_each_command_runs_after_those_before_it_and_prints_its_line(tmp_path):
    """In an empty folder and in short; numbers may be others than they were."""
    for folder in ("experiments", "vae_jax"):
        (tmp_path / folder).symlink_to(ROOT / folder)
    commands, own_data = blocks("README.md", "bash")[2:4]
    steps = re.findall(
        r"^# \d+ s(?:: (.*))?\n(python (?:.|\n(?!#))*)$",
        commands + own_data,
        flags=re.MULTILINE,
    )
    assert len(steps) == (commands + own_data).count("\npython ")
    for line, command in steps:
        words = [sys.executable, *shlex.split(command)[1:]]
        words += SHORTER.get(words[2], [])
        ran = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True)
        assert ran.returncode == 0, (command, ran.stderr)
        printed = [" ".join(row.split()) for row in ran.stdout.splitlines()]
        wanted = re.sub(NUMBER, "#", line)
        masked = [re.sub(NUMBER, "#", row) for row in printed]
        assert not line or any(row.startswith(wanted) for row in masked), ran.stdout
