"""Runs that skip steps: what they count, where it stands, and when they end."""

import dataclasses
import math

import numpy as np
import pytest

from experiments import train
from experiments.choices.config import Config
from experiments.command import cli
from experiments.runs import fit, runs
from tests.tiny import events, metrics, saved_arrays, tiny

pytestmark = pytest.mark.uses_optax
NORM = 7.2  # that some steps of the digits run are above, and some are not


def skipping(path, **changes):
    changes = {"learning_rate": 1e-3, "average_decay": 0.9, **changes}
    return tiny(path, **{"skip_norm": NORM, **changes})


@pytest.mark.slow
def test_a_run_counts_the_steps_that_it_skips_and_resumes_bit_for_bit(tmp_path, capsys):
    whole = skipping(tmp_path / "whole", num_epochs=3, progress=True)
    assert train.main(whole) == 0
    said = capsys.readouterr()
    halves = skipping(tmp_path / "halves", num_epochs=1)
    assert train.main(halves) == 0
    assert train.main(dataclasses.replace(halves, num_epochs=3)) == 0
    assert metrics(halves.workdir) == metrics(whole.workdir)
    for x, y in zip(*map(saved_arrays, (whole, halves)), strict=True):
        np.testing.assert_array_equal(x, y)

    rows = metrics(whole.workdir)
    counts = [row["skipped_steps"] for row in rows]
    assert np.cumsum(counts).tolist() == [row["total_skipped_steps"] for row in rows]
    assert 0 < counts[0] < rows[0]["step"]
    run = runs.build(whole)
    _, info = runs.scan(run)(runs.initial(run).run, *runs.feed(run).at(0))
    is_taken = np.asarray(info.skips.in_a_row) == 0
    for name, values in info._asdict().items():
        if name in rows[0]:
            expected = np.asarray(values)[is_taken].mean()
            assert rows[0][name] == pytest.approx(expected, rel=1e-6)
    last = rows[-1]["total_skipped_steps"]
    assert f"skipped {last} of {rows[-1]['step']} steps" in said.out
    assert f"total_skipped_steps {last}" in said.err
    assert events(tmp_path / "whole")["total_skipped_steps"][-1][1] == last
    saved = fit.restore(runs.build(whole))
    assert int(saved.run.inner.skips.total) == last


@pytest.mark.slow
def test_a_run_without_the_flag_has_no_count(tmp_path):
    config = tiny(tmp_path, num_epochs=1)
    assert train.main(config) == 0
    assert not [name for name in metrics(config.workdir)[0] if "skipped" in name]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("flags", "said"),
    [
        ({"skip_norm": 1e-6}, "the 100 steps up to step 100 were all skipped"),
        (  # the first step leaves the range of floats
            {"skip_norm": math.inf, "optimizer": "sgd", "learning_rate": 1e38},
            "the 100 steps up to step 101 were all skipped",
        ),
    ],
)
def test_a_run_that_skips_all_its_steps_ends_and_says_so(tmp_path, flags, said):
    config = skipping(tmp_path, num_epochs=20, **flags)
    with pytest.raises(cli.UsageError, match=said) as error:
        train.main(config)
    assert "larger --skip_norm" in str(error.value)


@pytest.mark.slow
def test_runs_together_skip_each_on_its_own(tmp_path, capsys):
    config = skipping(tmp_path / "a", num_seeds=4, num_epochs=2)
    assert train.main(config) == 0
    (row, *_) = metrics(config.workdir)
    each = row["each_total_skipped_steps"]
    assert len(set(each)) > 1
    assert row["total_skipped_steps"] == np.mean(each)
    assert "skipped [" in capsys.readouterr().out
    forever = skipping(tmp_path / "b", sweep="learning_rate=1e-3,1e38", num_epochs=20)
    forever = dataclasses.replace(forever, optimizer="sgd", skip_norm=math.inf)
    with pytest.raises(cli.UsageError, match=r"run with learning_rate=1e\+38, seed=0"):
        train.main(forever)


def test_a_norm_that_no_step_has_is_refused():
    for value in (-1.0, math.nan):
        with pytest.raises(ValueError, match="--skip_norm must"):
            Config(skip_norm=value)
    with pytest.raises(
        ValueError, match="--skip_norm has no effect with --algorithm=vem"
    ):
        Config(skip_norm=1.0, algorithm="vem")
