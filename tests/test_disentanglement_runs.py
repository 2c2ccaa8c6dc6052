"""The command that measures disentanglement, on a run before its first step."""

import json

import numpy as np
import pytest

from experiments.command import cli
from experiments.disentanglement import command, scores
from experiments.disentanglement.config import Config
from tests.tiny import saved, tiny

pytestmark = pytest.mark.uses_optax


def _saved(path, **changes) -> str:
    return str(saved(tiny(path, **changes)))


@pytest.mark.slow
def test_rows_of_the_table_are_what_was_swept_over_its_seeds(tmp_path, capsys):
    together = {"num_seeds": 2, "sweep": "beta=1,4", "estimator": "beta_tc"}
    folder = _saved(tmp_path / "tc", dataset="sprites", **together)
    cheap = ("mig_of_means", "irs", "modularity")
    config = Config(workdirs=(folder,), metrics=cheap, num_columns=3)
    assert command.main(config) == 0
    said = capsys.readouterr().out
    assert "tc beta=1" in said
    assert "tc beta=4" in said
    result = json.loads((tmp_path / "tc" / "disentanglement.json").read_text())
    assert [run["row"] for run in result["runs"]] == 2 * ["tc beta=1"] + 2 * [
        "tc beta=4"
    ]
    values = [run["scores"]["irs"] for run in result["runs"]]
    assert f"{np.mean(values[:2]):.3f} ± {np.std(values[:2], ddof=1):.3f}" in said
    ranks = result["rank_correlations"]
    assert all(ranks[name][name] == pytest.approx(1.0) for name in cheap)
    for name in ("traversals", "factors"):
        pictures = sorted(path.name for path in (tmp_path / "tc").glob(f"{name}*.png"))
        assert pictures == [f"{name}_member_0.png", f"{name}_member_2.png"]


def test_a_data_set_whose_factors_are_unknown_is_refused(tmp_path):
    folder = _saved(tmp_path / "digits", num_train=100)
    with pytest.raises(
        cli.UsageError, match="factors of --dataset=digits are not known"
    ):
        command.main(Config(workdir=folder))


def test_draws_of_a_q_that_is_no_normal_are_refused(tmp_path):
    codes = {"posterior": "finite_scalar", "estimator": "sgvb_a"}
    folder = _saved(tmp_path / "codes", dataset="sprites", **codes)
    said = r"mig_of_samples is of draws of a normal q, and this run's is finite_scalar"
    with pytest.raises(cli.UsageError, match=said):
        command.main(Config(workdir=folder))


def test_rows_that_are_judged_are_not_fitted_to():
    grid = scores.sprites.GRIDS["sprites"]
    factors = grid.factors(np.arange(grid.num_images))
    mean = np.arange(grid.num_images, dtype=float)[:, None]
    codes = scores.Codes(grid, mean, mean, factors)
    train, test = scores.split(codes, Config())
    assert (len(train.codes), len(test.codes)) == (4096, 2048)
    assert not set(train.codes[:, 0]) & set(test.codes[:, 0])
    np.testing.assert_array_equal(train.factors, factors[train.codes[:, 0].astype(int)])


def test_a_latent_is_named_after_the_factor_it_knows_most_of():
    shares = np.array([[0.1, 0.62], [0.01, 0.02]])
    assert command.latent_names(shares, ["x", "y"]) == ["z0: y 0.62", "z1: none"]
