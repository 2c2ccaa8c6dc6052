"""What a comparison leaves: a folder claimed first, results with their origin."""

import dataclasses
import pathlib
from typing import Any

from experiments import cli, protocol, rundir


def claim(workdir: str) -> pathlib.Path:
    """Creates the folder, before minutes of work turn out to have nowhere to go.

    Raises:
        UsageError: if it is a file or cannot be written.
    """
    folder = pathlib.Path(workdir).expanduser()
    with cli.user_errors():
        rundir.make(folder)
    return folder


def write(path: pathlib.Path, config: Any, result: dict[str, Any]) -> None:
    """Writes a result as JSON, with its flags, the versions and the device."""
    content = {
        **result,
        "config": dataclasses.asdict(config),
        "environment": protocol.environment(),
    }
    with cli.user_errors():
        rundir.write_json(path, content)
    print(f"written to {path.parent}")
