import io
import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest

from tests.tiny import events
from vae_jax.training import journal


def write_rows(directory, steps, *, resume_step=None, **numbers):
    diary = journal.open(directory, resume_step=resume_step)
    for step in steps:
        diary.write({"step": step, "bound": -float(step), **numbers})
    diary.close()


def test_rows_come_back_as_they_were_written(tmp_path):
    row = {"step": 3, "bound": -98.123456789, "epoch": 1, "seconds": 0.25, "note": "a"}
    diary = journal.open(tmp_path, resume_step=None)
    diary.write(row)
    assert journal.read(tmp_path) == [row]
    diary.close()
    assert journal.read(tmp_path) == [row]
    assert journal.read(tmp_path / "not there") == []


def test_numbers_and_arrays_of_numpy_and_jax_become_plain_json(tmp_path):
    diary = journal.open(tmp_path, resume_step=None)
    kl = np.array([0.5, np.nan], np.float32)
    diary.write({"step": np.int64(1), "bound": jnp.float32(-1.5), "kl": kl})
    diary.close()
    text = (tmp_path / "metrics.jsonl").read_text()
    assert text == '{"step": 1, "bound": -1.5, "kl": [0.5, null]}\n'


def test_what_json_lacks_becomes_null_and_stays_out_of_tensorboard(tmp_path):
    diary = journal.open(tmp_path, resume_step=None)
    for step, value in enumerate((np.nan, -np.inf, jnp.inf, 2.0)):
        diary.write({"step": step, "bound": value})
    diary.close()

    def refuse(name):
        raise AssertionError(name)

    lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
    rows = [json.loads(line, parse_constant=refuse) for line in lines]
    assert [row["bound"] for row in rows] == [None, None, None, 2.0]
    assert events(tmp_path) == {"bound": [(3, 2.0)]}


def test_after_a_resume_each_step_is_there_once(tmp_path):
    write_rows(tmp_path, range(6), valid_bound=1.0)
    write_rows(tmp_path, range(3, 8), resume_step=2, valid_bound=2.0)
    rows = journal.read(tmp_path)
    assert [row["step"] for row in rows] == list(range(8))
    assert [row["valid_bound"] for row in rows] == [1.0] * 3 + [2.0] * 5
    seen = events(tmp_path)
    assert seen["bound"] == [(step, -float(step)) for step in range(8)]
    assert seen["valid_bound"] == [(s, 1.0) for s in range(3)] + [
        (s, 2.0) for s in range(3, 8)
    ]


@pytest.mark.parametrize("later", [-1e9, -3600.0, 0.0, 1e9])
def test_after_a_resume_on_a_clock_that_jumped_each_step_is_there_once(
    tmp_path, monkeypatch, later
):
    monkeypatch.setattr(time, "time", lambda: 1.7e9)
    write_rows(tmp_path, range(6), valid_bound=1.0)
    monkeypatch.setattr(time, "time", lambda: 1.7e9 + later)
    write_rows(tmp_path, range(3, 8), resume_step=2, valid_bound=2.0)
    assert [row["step"] for row in journal.read(tmp_path)] == list(range(8))
    expected = [(s, 1.0) for s in range(3)] + [(s, 2.0) for s in range(3, 8)]
    assert events(tmp_path)["valid_bound"] == expected


def test_a_fresh_start_drops_the_old_rows(tmp_path):
    write_rows(tmp_path, range(4))
    write_rows(tmp_path, [0, 1], resume_step=None)
    assert [row["step"] for row in journal.read(tmp_path)] == [0, 1]
    assert events(tmp_path)["bound"] == [(0, 0.0), (1, -1.0)]


def test_a_half_written_last_line_is_dropped(tmp_path):
    write_rows(tmp_path, range(3))
    path = tmp_path / "metrics.jsonl"
    path.write_text(path.read_text() + '{"step": 3, "bo')
    assert [row["step"] for row in journal.read(tmp_path)] == [0, 1, 2]
    write_rows(tmp_path, [3], resume_step=2)
    assert [row["step"] for row in journal.read(tmp_path)] == [0, 1, 2, 3]


@pytest.mark.parametrize("line", ["not json", "[1]", '{"bound": 1}', '{"step": "a"}'])
def test_a_damaged_line_is_named(tmp_path, line):
    write_rows(tmp_path, range(2))
    path = tmp_path / "metrics.jsonl"
    path.write_text(f"{line}\n" + path.read_text())
    with pytest.raises(ValueError, match=r"metrics.jsonl, line 1 is not a row"):
        journal.read(tmp_path)


def test_a_row_needs_a_step_beyond_the_last(tmp_path):
    write_rows(tmp_path, range(4))
    diary = journal.open(tmp_path, resume_step=2)
    for step in (1, 2):
        with pytest.raises(ValueError, match=f"step {step} is not beyond"):
            diary.write({"step": step})
    for row in ({"bound": 1.0}, {"step": 1.5}, {"step": None}):
        with pytest.raises(ValueError, match='integer "step"'):
            diary.write(row)
    diary.close()
    assert [row["step"] for row in journal.read(tmp_path)] == [0, 1, 2]


KILLED = """
import os, signal, sys
from vae_jax.training import journal
diary = journal.open(sys.argv[1], resume_step=None)
for step in range(5):
    diary.write({"step": step, "bound": -1.0})
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_a_kill_loses_no_row_that_was_written(tmp_path):
    root = Path(journal.__file__).parents[2]
    command = [sys.executable, "-c", KILLED, str(tmp_path)]
    assert subprocess.run(command, cwd=root).returncode == -signal.SIGKILL
    assert [row["step"] for row in journal.read(tmp_path)] == list(range(5))
    assert [step for step, _ in events(tmp_path)["bound"]] == list(range(5))


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_a_pipe_gets_plain_lines(capsys):
    stream = io.StringIO()
    shown = journal.progress(3, seconds=0.0, stream=stream)
    shown.update(1, bound=-98.345)
    time.sleep(0.01)
    shown.update(3, bound=-97.0)
    shown.close()
    lines = stream.getvalue().split("\n")
    assert lines[0] == "epoch 1/3, bound -98.34"
    assert lines[1:] == ["epoch 3/3, bound -97.00", ""]
    assert capsys.readouterr() == ("", "")


def test_a_pipe_gets_few_lines_but_the_first_and_the_last():
    stream = io.StringIO()
    shown = journal.progress(100, initial=40, unit="step", seconds=1e3, stream=stream)
    for done in range(41, 100):
        shown.update(done)
    assert stream.getvalue() == "step 41/100\n"
    shown.close()
    assert stream.getvalue().splitlines()[1:] == ["step 99/100, 0:00:00 left"]
    shown.close()
    assert len(stream.getvalue().splitlines()) == 2


def test_the_time_left_does_not_count_what_came_before_the_first_update():
    stream = io.StringIO()
    shown = journal.progress(1000, seconds=0.0, stream=stream)
    time.sleep(0.2)  # compilation; at its rate 998 updates would take minutes
    shown.update(1)
    shown.update(2)
    assert stream.getvalue().splitlines()[-1].endswith("0:00:00 left")


def test_a_terminal_gets_a_bar_with_the_bound_and_the_time_left():
    stream = Terminal()
    shown = journal.progress(10, initial=4, stream=stream)
    time.sleep(0.12)
    shown.update(5, bound=-98.3)
    shown.close()
    last = stream.getvalue().rstrip("\n").split("\r")[-1]
    assert "50%" in last
    assert "5/10" in last
    assert "bound -98.30" in last
    assert "<" in last


def test_the_time_left_is_that_of_the_updates_to_come(monkeypatch):
    clock = iter([100.0, 110.0, 130.0])
    monkeypatch.setattr(journal.time, "monotonic", lambda: next(clock))
    stream = io.StringIO()
    shown = journal.progress(10, seconds=0.0, stream=stream)
    for done in (2, 4, 8):
        shown.update(done)
    assert [line.rpartition(", ")[2] for line in stream.getvalue().splitlines()] == [
        "epoch 2/10",
        "0:00:30 left",  # six more at five seconds each
        "0:00:10 left",
    ]
