"""Runs of --estimator=beta_tc, factor, dip_i, dip_ii and mmd."""

import dataclasses

import numpy as np
import pytest

from experiments.choices.config import Config
from experiments.measures import validation
from experiments.runs import fit
from tests.tiny import metrics, saved_arrays, tiny

pytestmark = pytest.mark.uses_optax
SETTINGS = {
    "beta_tc": {"beta": 4.0, "sampling": "weighted"},
    "factor": {"discriminator_hidden": (8,)},
    "dip_i": {"dip_diagonal": 1.0},
    "dip_ii": {"penalty": 2.0},
    "mmd": {"kernel": "rbf", "kernel_scales": (0.5, 1.0), "info_alpha": 1.0},
}
PARTS = ("mutual_information", "total_correlation", "dimension_wise_kl")


@pytest.mark.slow
@pytest.mark.parametrize("name", SETTINGS)
def test_a_run_logs_the_elbo_and_the_parts_of_its_kl(tmp_path, name):
    """Two seeds together, a whole run and one that is continued, are the same."""
    flags = {"estimator": name, "num_seeds": 2, "num_train": 200, **SETTINGS[name]}
    config = tiny(tmp_path / "whole", **flags)
    fit.to_end(config, validation.build)
    rows = metrics(config.workdir)
    sampling = SETTINGS[name].get("sampling", "stratified")
    for row in rows:
        assert row["reconstruction"] - row["kl"] == pytest.approx(row["bound"])
        parts = [row[f"{part}_{sampling}"] for part in PARTS]
        # One is a draw of the KL, the other its closed form.
        assert sum(parts) == pytest.approx(row["kl"], abs=0.2)
        assert ("total_correlation_discriminator" in row) == (name == "factor")
    halves = dataclasses.replace(config, workdir=str(tmp_path / "halves"))
    fit.to_end(dataclasses.replace(halves, num_epochs=1), validation.build)
    fit.to_end(halves, validation.build)
    for a, b in zip(saved_arrays(config), saved_arrays(halves), strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        ({"estimator": "mmd", "info_alpha": 1.5}, "--info_alpha must be at most 1"),
        (
            {"estimator": "mmd", "penalty": 0.2, "info_alpha": 0.5},
            "--penalty=0.2 must be at least 1 - info_alpha = 0.5",
        ),
        (
            {"estimator": "factor", "weight_decay": 1.0},
            "--weight_decay does not go with --estimator=factor",
        ),
        ({"estimator": "dip_i", "posterior": "full_normal"}, "dip_i does not fit"),
        ({"estimator": "beta_tc", "prior": "vamp"}, "--estimator=beta_tc needs the"),
        ({"estimator": "mmd", "ladder": ("4", "2")}, "mmd does not fit .*--ladder"),
        (
            {"penalty": 3.0},
            "--penalty has no effect with --estimator=sgvb_b: it is read",
        ),
    ],
)
def test_what_does_not_go_together_is_refused_in_one_line(flags, said):
    with pytest.raises(ValueError, match=said) as error:
        Config(**flags)
    assert "\n" not in str(error.value)
