"""experiments.fit_prior: a workdir whose model differs in its prior alone."""

import dataclasses
import json
import pathlib

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments import fit_prior
from experiments.choices import estimators
from experiments.choices.densities import POSTERIORS
from experiments.command import cli
from experiments.export import cards
from experiments.measures import fitted_prior, measure
from experiments.runs import fit, protocol, trained_runs
from tests.architectures import TINY, untrained
from tests.tiny import tiny
from vae_jax import artifacts, vector_quantized

pytestmark = pytest.mark.uses_optax
SMALL = {
    "prior_layers": 2,
    "prior_units": 8,
    "num_epochs": 3,
    "learning_rate": 1e-2,
    "eval_samples": 5,
    "importance_samples": 10,
    "num_images": 40,
}


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    """A run of a few epochs and an N(0, I) prior, and a flow that was fitted to it."""
    config = tiny(tmp_path_factory.mktemp("runs") / "run", num_epochs=10)
    fit.to_end(config, lambda run: None)
    assert fit_prior.main(fit_prior.Config(workdir=config.workdir, **SMALL)) == 0
    return pathlib.Path(config.workdir)


def _load(workdir):
    (trained,) = trained_runs.load(workdir, checkpoint="auto")
    return trained


@pytest.mark.slow
def test_the_new_workdir_holds_the_model_with_the_fitted_prior(workdir, tmp_path):
    old, new = _load(workdir), _load(workdir / "fitted_flow")
    assert (new.config.prior, new.config.estimator) == ("flow", "sgvb_a")
    assert new.config.prior_layers == 2
    assert new.step == old.step
    chex.assert_trees_all_equal(new.params.recognition, old.params.recognition)
    for part in ("decoder", "likelihood"):
        chex.assert_trees_all_equal(
            new.params.generative[part], old.params.generative[part]
        )
    assert any(map(np.any, jax.tree.leaves(new.params.generative["prior"])))
    path = tmp_path / "model.safetensors"
    artifacts.save_model(path, new.params, cards.of_trained(new))
    model, params = cards.load_model(path)
    z = model.generative.sample_prior(jax.random.key(0), params)
    again = new.model.generative.sample_prior(jax.random.key(0), new.params)
    np.testing.assert_array_equal(z, again)
    split = {"split": "test", "num_samples": 2, "num_images": 10}
    assert measure.bound(jax.random.key(1), new, **split)["elbo"] < 0.0


@pytest.mark.slow
def test_the_bound_of_the_training_rows_does_not_fall(workdir):
    """N(0, I) is where a flow starts, so only noise may take anything away."""
    result = json.loads((workdir / "fitted_flow" / "fit_prior.json").read_text())
    for split in ("train", "valid", "test"):
        change = result["changes"][split]["elbo"]
        assert change["gain"] == pytest.approx(change["new"] - change["old"])
        assert change["gain"] > -4.0 * change["standard_error"]
        evidence = result["changes"][split]["log_p"]
        assert evidence["old"] > change["old"]
    curve = result["mean_log_prior"]
    assert len(curve) == 4
    assert curve[result["epoch"]] == max(curve) > curve[0]


@pytest.mark.slow
def test_the_fit_starts_at_the_mean_of_log_n_0_i(workdir):
    old = _load(workdir)
    result = json.loads((workdir / "fitted_flow" / "fit_prior.json").read_text())
    h = jax.vmap(old.model.recognition.encode, (None, 0))(
        old.params, old.data.prepared.value(jnp.asarray(old.data.prepared.valid))
    )
    mean, log_std = np.split(np.asarray(h), 2, axis=1)
    square = mean**2 + np.exp(2.0 * log_std)
    exact = -0.5 * (square + np.log(2.0 * np.pi)).sum(1).mean()
    assert result["mean_log_prior"][0] == pytest.approx(exact, abs=0.1)


@pytest.mark.slow
def test_both_priors_see_the_same_images_and_noise(workdir):
    old = _load(workdir)
    number = {"num_samples": 3, "importance_samples": 5, "num_images": 20}
    changes = fitted_prior.compared(jax.random.key(0), old, old, **number)
    assert set(changes) == {"train", "valid", "test"}
    for numbers in changes.values():
        for change in numbers.values():
            assert change.gain == change.standard_error == 0.0


@pytest.mark.slow
def test_a_workdir_that_holds_a_run_is_not_written_over(workdir):
    with pytest.raises(cli.UsageError, match=r"--out=.*fitted_flow holds a run"):
        fit_prior.main(fit_prior.Config(workdir=str(workdir), **SMALL))
    with pytest.raises(cli.UsageError, match=r"--out=.* holds a run"):
        fit_prior.main(fit_prior.Config(workdir=str(workdir), out=str(workdir)))


@pytest.mark.slow
def test_codes_get_an_autoregressive_prior_and_keep_their_codebooks(tmp_path):
    config = tiny(
        tmp_path / "run",
        num_epochs=5,
        posterior="vector_quantized",
        estimator="codebook_averages",
        num_latents=6,
        code_width=2,
        codebook_rows=4,
    )
    fit.to_end(config, lambda run: None)
    flags = fit_prior.Config(
        workdir=config.workdir, prior="autoregressive", prior_units=8, num_epochs=10
    )
    assert fit_prior.main(flags) == 0
    folder = pathlib.Path(config.workdir)
    old, new = _load(folder), _load(folder / "fitted_autoregressive")
    assert new.config.estimator == "codebook_averages"
    before, after = (vector_quantized.read(of.params) for of in (old, new))
    np.testing.assert_array_equal(before, after)
    path = folder / "fitted_autoregressive" / "fit_prior.json"
    result = json.loads(path.read_text())
    assert set(result["changes"]["train"]) == {"elbo"}  # all that a point mass says
    elbo = result["changes"]["train"]["elbo"]
    assert elbo["gain"] > 0.1
    curve = result["mean_log_prior"]
    np.testing.assert_allclose(curve[0], -3 * np.log(4.0), rtol=1e-5)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"algorithm": "vem"}, "--algorithm=vem: a prior is fitted to the codes"),
        ({"algorithm": "full_vb", "weight_decay": 1.0}, "--algorithm=full_vb"),
        ({"posterior": "bernoulli", "estimator": "vimco"}, "of its own: standard_n"),
        ({"ladder": ("3", "2"), "num_latents": 16}, "--ladder=3,2, whose top alone"),
    ],
)
def test_a_run_whose_prior_cannot_be_fitted_is_refused(changes, said):
    trained = untrained(protocol.load(TINY), **changes)
    with pytest.raises(ValueError, match=said):
        fitted_prior.check(trained, "flow")


def test_a_model_of_ones_own_is_refused():
    trained = untrained(protocol.load(TINY))
    config = dataclasses.replace(trained.config, model="mine:build")
    with pytest.raises(ValueError, match="--model=mine:build, whose prior"):
        fitted_prior.check(trained._replace(config=config), "flow")


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        ({"prior": "vamp"}, "--prior=vamp is unknown; known: flow, auto"),
        ({"prior": "normal_mixture", "prior_units": 3}, "--prior_units has no effect"),
        ({"num_components": 3}, "--num_components has no effect with --prior=flow"),
        ({"importance_samples": 501}, "--importance_samples above 500"),
    ],
)
def test_a_bad_flag_is_named(flags, said):
    with pytest.raises(ValueError, match=said):
        fit_prior.Config(**flags)


@pytest.mark.parametrize("prior", fitted_prior.FITTED)
@pytest.mark.parametrize("name", estimators.fitting(POSTERIORS["diag_normal"].traits))
def test_the_flags_of_any_run_have_room_for_another_prior(name, prior):
    """And those that were read by what has gone are at their defaults again."""
    changes = {}
    for flag in estimators.ESTIMATORS[name].flags.values():
        field = TINY.__dataclass_fields__[flag]
        others = {float: 0.6, int: 2, tuple: (0.4,)}
        choices = field.metadata["choices"]
        changes[flag] = choices[-1] if choices else others[type(field.default)]
    config = dataclasses.replace(TINY, estimator=name, **changes)
    config = dataclasses.replace(config, start_from="another")
    new = fitted_prior.new_config(config, "elsewhere", prior=prior)
    assert not new.start_from
    assert (new.prior, new.workdir) == (prior, "elsewhere")
    assert new.estimator == ("sgvb_a" if new.estimator != name else name)
    old = dataclasses.replace(TINY, prior="vamp", estimator="dreg", num_components=3)
    again = fitted_prior.new_config(old, "elsewhere", prior=prior)
    assert (again.estimator, again.num_components) == ("dreg", TINY.num_components)


def test_a_prior_that_the_latents_do_not_allow_is_refused():
    trained = untrained(protocol.load(TINY), num_latents=1)
    config = fitted_prior.new_config(trained.config, "elsewhere", prior="flow")
    once = {"learning_rate": 1e-3, "num_epochs": 1, "seed": 0}
    with pytest.raises(ValueError, match="--prior=flow couples latents"):
        fitted_prior.fit(trained, config, **once)
