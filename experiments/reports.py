"""What a comparison leaves: a folder claimed first, results with their origin."""

import dataclasses
import pathlib
from collections.abc import Callable
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


def kept(path: pathlib.Path, flags: dict[str, Any], make: Callable[[], Any]) -> Any:
    """The result in a file that was made with the same flags, else made and written.

    So a comparison that was interrupted continues behind its last finished part.

    Raises:
        UsageError: if the file is damaged or cannot be written.
    """
    flags = rundir.plain(flags)
    if path.is_file():
        found = rundir.read_json(path)
        if found.get("config") == flags:
            return rundir.measured(found["result"])
    result = make()
    with cli.user_errors():
        rundir.write_json(path, {"config": flags, "result": result})
    return result
