"""The README's code runs as it stands there."""

import pathlib
import re

import jax
import pytest

from vae_jax.types import Network

ROOT = pathlib.Path(__file__).parent.parent


def blocks(language: str) -> list[str]:
    text = (ROOT / "README.md").read_text()
    return re.findall(rf"```{language}\n(.*?)```", text, flags=re.DOTALL)


@pytest.mark.slow
@pytest.mark.uses_optax
def test_the_library_examples_run(capsys):
    names: dict = {}
    example, own_network = blocks("python")
    exec(example, names)
    bound = float(re.search(r"ELBO (\S+) nats", capsys.readouterr().out)[1])  # pyright: ignore
    assert -30.0 < bound < -15.0
    exec(own_network, names)
    decoder = names["decoder"]
    assert isinstance(decoder, Network)
    params = decoder.init(jax.random.key(0))
    assert decoder.apply(params, jax.numpy.ones(8)).shape == (64,)


def test_set_up_is_two_single_lines_and_ci_runs_them_from_here():
    lines = [line for block in blocks("bash") for line in block.splitlines()]
    commands = [line for line in lines if "-m venv" in line]
    assert len(commands) == 2
    assert all(command.startswith("python3.11 -m venv ") for command in commands)
    ci = (ROOT / ".ci" / "run").read_text()
    assert "'^python3\\.11 -m venv ' README.md" in ci
    assert "pip install" not in ci


def test_the_readme_names_only_flag_files_that_exist():
    named = re.findall(
        r"experiments/flags/\S+?\.flags", (ROOT / "README.md").read_text()
    )
    assert named
    for path in named:
        assert (ROOT / path).is_file()
