"""A run's diary: metrics as JSON lines and TensorBoard events, and its progress."""

import datetime
import json
import os
import re
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple, TextIO, cast

import numpy as np

from vae_jax import writing

METRICS = "metrics.jsonl"
"""The file of metrics in a run's directory."""


class Journal(NamedTuple):
    """Where a run's metrics go.

    Attributes:
        write: takes up one row, with "step".
        close: after the last row.
    """

    write: Callable[[Mapping[str, Any]], None]
    close: Callable[[], None]


class Progress(NamedTuple):
    """What tells a person how far a run is.

    Attributes:
        update: done, **shown: name=number.
        close: after the last update.
    """

    update: Callable[..., None]
    close: Callable[[], None]


def open(directory: str | os.PathLike[str], *, resume_step: int | None) -> Journal:
    """Opens a directory's metrics.jsonl and TensorBoard events for writing.

    A run that goes on from step s keeps its rows up to s and drops later ones, and a
    last line that a kill cut short; TensorBoard is told to forget those steps too. So
    each step is there once, provided that a step's row is written before its
    checkpoint is saved.

    `write(row)` hands the row to the operating system before it returns, so a kill of
    the process loses nothing written. Rows need an integer "step", which
    must grow. Numbers and arrays of NumPy and JAX become plain JSON; NaN and the
    infinities, which JSON lacks, become null. TensorBoard gets the finite numbers
    under their names in the row.

    Args:
        directory: the run's; made if it is not there.
        resume_step: the step of the checkpoint that the run goes on from; None starts
            afresh and drops every row.

    Raises:
        ValueError: a complete line of metrics.jsonl is not a row; from `write`, a row
            without a step, or with one that is not beyond the last.
        OSError: the directory cannot be written.
    """
    last = -1 if resume_step is None else resume_step
    directory = Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    path = directory / METRICS
    earlier = [row for row in read(directory) if row["step"] <= last]
    with writing.atomically(path) as whole:
        whole.write("".join(map(_line, earlier)).encode())
    file = path.open("a")
    scalars = _scalars(directory, purge_step=last + 1)
    written = max([last, *(row["step"] for row in earlier)])

    def write(row: Mapping[str, Any]) -> None:
        nonlocal written
        plain = _plain(row)
        step = plain.get("step")
        if type(step) is not int:
            raise ValueError(f'a row needs an integer "step", got {step!r}')
        if step <= written:
            raise ValueError(f"step {step} is not beyond the last row's, {written}")
        file.write(_line(plain))
        file.flush()
        written = step
        scalars.write(plain)

    def close() -> None:
        file.close()
        scalars.close()

    return Journal(write, close)


def read(directory: str | os.PathLike[str]) -> list[dict[str, Any]]:
    """The rows of a directory's metrics.jsonl; [] if there is none.

    A last line without its end is a row that a kill cut short, and is left out.

    Raises:
        ValueError: another line is not a row; the message says which.
    """
    path = Path(directory) / METRICS
    if not path.exists():
        return []
    complete = path.read_text(errors="replace").split("\n")[:-1]
    return [_row(path, number, line) for number, line in enumerate(complete, start=1)]


def progress(
    total: int,
    *,
    initial: int = 0,
    unit: str = "epoch",
    seconds: float = 10.0,
    stream: TextIO | None = None,
) -> Progress:
    """Shows how far a run is: a bar on a terminal, plain lines anywhere else.

    `update(done, bound=-98.3)` sets the count, `initial` included, and the numbers
    shown beside it; both forms tell the time left, plain lines from the second update
    on, as what comes before the first includes compilation.

    Args:
        total: the count at which the run is done.
        initial: the count it starts at; not zero in a run that goes on.
        unit: what is counted.
        seconds: the least time between two plain lines. The first and the last update
            are always shown.
        stream: where to; standard error if None.
    """
    shown_on = sys.stderr if stream is None else stream
    if shown_on.isatty():
        return _bar(total, initial, unit, shown_on)
    return _lines(total, unit, seconds, shown_on)


def _scalars(directory: Path, *, purge_step: int) -> Journal:
    """A new file of TensorBoard events, which takes the numbers of plain rows.

    tensorboardX's own SummaryWriter hands events to a thread, and a kill loses those
    that wait there; its EventsWriter has them on the disk in about a millisecond.
    """
    from tensorboardX import event_file_writer
    from tensorboardX.proto import event_pb2, summary_pb2

    event, summary = cast(Any, event_pb2), cast(Any, summary_pb2)  # made at run time
    # TensorBoard reads files in the order of their names, which hold the clock's time
    # behind the prefix; a clock may stand still or go backwards, a number does not.
    numbers = re.findall(r"events\.part(\d{5})\.", " ".join(os.listdir(directory)))
    prefix = f"events.part{max(map(int, numbers), default=0) + 1:05d}"
    events = event_file_writer.EventsWriter(str(directory / prefix), f".{os.getpid()}")

    def append(step: int, **content: Any) -> None:
        events.write_event(event.Event(step=step, wall_time=time.time(), **content))
        events.flush()

    def write(row: Mapping[str, Any]) -> None:
        values = [
            summary.Summary.Value(tag=name, simple_value=value)
            for name, value in row.items()
            if name != "step" and type(value) in (int, float)
        ]
        append(row["step"], summary=summary.Summary(value=values))

    def close() -> None:
        events.close()

    # TensorBoard takes a start to mean: forget this step and what follows.
    start = event.SessionLog(status=event.SessionLog.START)
    append(purge_step, session_log=start)
    return Journal(write, close)


def _bar(total: int, initial: int, unit: str, stream: TextIO) -> Progress:
    import tqdm

    bar = tqdm.tqdm(
        total=total, initial=initial, unit=unit, file=stream, dynamic_ncols=True
    )

    def update(done: int, **numbers: float) -> None:
        bar.set_postfix_str(_shown(numbers), refresh=False)
        bar.update(done - bar.n)

    return Progress(update, bar.close)


def _lines(total: int, unit: str, seconds: float, stream: TextIO) -> Progress:
    printed, waiting = float("-inf"), ""
    first: tuple[float, int] | None = None  # what came before it includes compilation

    def update(done: int, **numbers: float) -> None:
        nonlocal printed, waiting, first
        now = time.monotonic()
        first = first or (now, done)
        parts = [f"{unit} {done}/{total}", _shown(numbers)]
        if first[1] < done < total:
            left = (now - first[0]) / (done - first[1]) * (total - done)
            parts.append(f"{datetime.timedelta(seconds=round(left))} left")
        waiting = ", ".join(part for part in parts if part)
        if now - printed >= seconds or done >= total:
            printed = now
            close()

    def close() -> None:
        nonlocal waiting
        if waiting:
            print(waiting, file=stream, flush=True)
        waiting = ""

    return Progress(update, close)


def _shown(numbers: Mapping[str, float]) -> str:
    return ", ".join(
        f"{name} {value}" if isinstance(value, int) else f"{name} {value:.2f}"
        for name, value in numbers.items()
    )


def _plain(row: Mapping[str, Any]) -> dict[str, Any]:
    """A row in JSON's own types: arrays as lists, NaN and the infinities as None."""
    text = json.dumps(dict(row), default=lambda array: np.asarray(array).tolist())
    return json.loads(text, parse_constant=lambda name: None)


def _line(row: Mapping[str, Any]) -> str:
    return json.dumps(row, allow_nan=False) + "\n"


def _row(path: Path, number: int, line: str) -> dict[str, Any]:
    try:
        row = json.loads(line)
        if type(row["step"]) is int:
            return row
    except (ValueError, TypeError, KeyError):
        pass
    raise ValueError(f"{path}, line {number} is not a row of metrics; remove the line")
