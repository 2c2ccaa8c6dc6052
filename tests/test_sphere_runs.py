"""Latents on a sphere, from flags to measurements."""

import dataclasses
import json
import pathlib

import pytest

from experiments import compress, evaluate, reconstruct, train
from experiments.choices import estimators
from experiments.choices.config import Config
from experiments.choices.densities import POSTERIORS
from experiments.command import cli
from experiments.completion.config import Config as Completion
from experiments.completion.methods import check
from experiments.generate import command as generate
from experiments.measures import fitted_prior
from experiments.runs import trained_runs
from tests.tiny import metrics, tiny

pytestmark = pytest.mark.uses_optax
SPHERE = {"posterior": "power_spherical", "num_latents": 3}


@pytest.mark.slow
def test_a_sphere_trains_and_what_moves_through_all_of_space_is_refused(
    tmp_path, capsys
):
    config = tiny(tmp_path / "run", **SPHERE)
    assert train.main(config) == 0
    rows = metrics(config.workdir)
    assert all(0.0 < row["kl"] < row["reconstruction"] * -1.0 for row in rows)
    which = evaluate.Config(
        config.workdir, num_images=40, eval_samples=2, importance_samples=20
    )
    assert evaluate.main(which) == 0
    path = pathlib.Path(config.workdir, "evaluation_test_40_images.json")
    result = json.loads(path.read_text())
    assert result["log_p"] > result["elbo"]
    for method in ("ais", "bdmc", "hmc_density"):
        asked = dataclasses.replace(which, evidence=(method,))
        with pytest.raises(cli.UsageError, match=r"is power_spherical: give is$"):
            evaluate.evaluate(asked)
    capsys.readouterr()
    drawing = generate.Config(workdir=config.workdir, num=4)
    assert generate.main(drawing) == 0
    assert "no paths of latents" in capsys.readouterr().out
    with pytest.raises(cli.UsageError, match="use --sampler=prior"):
        generate.main(dataclasses.replace(drawing, sampler="mixture"))
    assert reconstruct.main(reconstruct.Config(workdir=config.workdir, num=4)) == 0
    with pytest.raises(cli.UsageError, match=r"power_spherical .* has no code"):
        compress.main(compress.Config(workdir=config.workdir))
    trained = trained_runs.load(tmp_path / "run", checkpoint="last")[0]
    with pytest.raises(ValueError, match="with priors of its own"):
        fitted_prior.check(trained, "flow")
    with pytest.raises(ValueError, match="give --proposal=encoder"):
        check(Completion(workdir=config.workdir, proposal="chain"), trained)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({"estimator": "uha"}, "does not fit --posterior=power_spherical"),
        ({"estimator": "free_bits"}, "does not fit --posterior=power_spherical"),
        ({"algorithm": "mcem"}, "--algorithm=mcem does not fit"),
        ({"prior": "flow"}, "has its own prior$"),
        ({"ladder": ("3", "2"), "num_latents": 16}, "is of one layer, not of --ladder"),
        (
            {"posterior_std": 0.5},
            "--posterior_std has no effect with --posterior=power",
        ),
    ],
)
def test_what_does_not_go_with_a_sphere_is_refused(flags, message):
    with pytest.raises(ValueError, match=message):
        Config(**SPHERE | flags).refuse()


def test_the_closed_kl_and_the_reparameterized_estimators_are_offered():
    fitting = estimators.fitting(POSTERIORS["power_spherical"].traits)
    assert {"sgvb_a", "sgvb_b", "iwae", "dreg", "score_function"} <= {*fitting}
