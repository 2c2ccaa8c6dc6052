"""The benchmark for machines that are lent for minutes."""

import dataclasses
import itertools
import json
import subprocess
import sys

import jax
import pytest

from experiments.benchmark import accelerator

pytestmark = pytest.mark.uses_optax


def test_what_is_left_of_the_accelerators_measurements_is_done_later(
    tmp_path, monkeypatch, capsys
):
    config = accelerator.Config(workdir=str(tmp_path), models=("aevb", "evidence"))
    listed = [row.name for row in accelerator.measurements(config)]
    assert listed[:2] == ["aevb_float32", "evidence_float32"]
    assert {"aevb_tf32_num_seeds_64", "aevb_tf32_batch_size_10000"} <= set(listed)
    assert not [name for name in listed[4:] if name.startswith("evidence_tf32_")]
    clock, done = iter([0.0, 1.0, 500.0]), []
    monkeypatch.setattr(accelerator.time, "monotonic", lambda: next(clock, 500.0))

    def measured(config, measurement):
        done.append(measurement.name)
        return {"ms": 1.0, "examples_per_second": 2.0}

    monkeypatch.setattr(accelerator, "measured", measured)
    assert accelerator.main(config) == 0
    assert done == listed[:1]
    assert f"{len(listed) - 1} measurements are left" in capsys.readouterr().out
    clock = itertools.repeat(0.0)
    assert accelerator.main(config) == 0
    assert done == listed
    assert "are left" not in capsys.readouterr().out
    rows = json.loads((tmp_path / "result.json").read_text())["rows"]
    assert [row["name"] for row in rows] == listed
    # Other sizes are other measurements.
    assert accelerator.main(dataclasses.replace(config, num_rows=7)) == 0
    assert done == listed * 2


def test_what_a_device_cannot_do_is_a_row(monkeypatch):
    def fails(config, measurement):
        raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: no memory\nmore")

    monkeypatch.setattr(accelerator, "of_steps", fails)
    row = accelerator.Measurement("aevb", "tf32", {})
    got = accelerator.measured(accelerator.Config(), row)
    assert got == {"error": "RESOURCE_EXHAUSTED: no memory"}


def test_every_precision_of_evidence_is_what_it_says():
    config = accelerator.Config(seconds=1e-3, importance_samples=50, num_images=4)
    full, half = (
        accelerator.measured(config, accelerator.Measurement("evidence", name, {}))
        for name in ("float32", "bfloat16")
    )
    assert 0.0 < abs(half["log_p"] - full["log_p"]) < 0.3


@pytest.mark.slow
def test_the_accelerators_command_needs_no_package_that_a_bare_machine_lacks(tmp_path):
    """Every model at tiny sizes, in a process where those packages are not there."""
    missing = "blackjax", "tensorboardX", "tensorflow_datasets", "pooch", "beartype"
    program = (
        f"import sys, runpy; sys.modules.update(dict.fromkeys({missing}));"
        "runpy.run_module('experiments.benchmark.accelerator', run_name='__main__')"
    )
    flags = {
        "workdir": tmp_path, "seconds": 1e-3, "num_rows": 20, "precisions": "tf32",
        "seeds": 2, "batch_sizes": 10, "importance_samples": 3, "num_images": 2,
    }  # fmt: skip
    listed = [f"--{name}={value}" for name, value in flags.items()]
    subprocess.run([sys.executable, "-c", program, *listed], check=True)
    rows = json.loads((tmp_path / "result.json").read_text())["rows"]
    assert len(rows) == 4 + 3 + 3
    assert all(row["examples_per_second"] > 0.0 for row in rows)
