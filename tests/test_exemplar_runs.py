"""Runs of --prior=exemplar: trained, resumed, loaded, carried elsewhere."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments import evaluate
from experiments.choices.config import Config
from experiments.command import cli
from experiments.export import cards
from experiments.measures import validation
from experiments.runs import fit, rundir, runs, trained_runs
from tests.tiny import metrics, saved_arrays, tiny
from vae_jax import artifacts
from vae_jax.estimators import sgvb
from vae_jax.types import Batch

pytestmark = pytest.mark.uses_optax
FLAGS = {"prior": "exemplar", "num_exemplars": 20, "estimator": "sgvb_a"}


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run of two epochs, with its last state."""
    config = tiny(tmp_path_factory.mktemp("runs") / "exemplar", **FLAGS)
    return fit.to_end(config, validation.build)


@pytest.mark.slow
def test_a_step_leaves_each_rows_own_exemplar_out(run, x64):
    """The bound and the KL that it reports, of a batch of half exemplars, by hand."""
    made, saved = run
    exemplars = made.parts.of_exemplars
    assert exemplars is not None
    rows = runs._exemplars(made.config, made.data)
    index = jnp.concatenate([rows.index[:3], jnp.array([0, 1, 2])])
    assert not np.isin(index[3:], rows.index).any()
    x = made.data.prepared.value(jnp.asarray(made.data.prepared.train)[index])
    np.testing.assert_array_equal(x[:3], rows.x[:3])
    state, key = saved.run.inner, jax.random.key(7)
    _, info = made.algorithm.step(key, state, Batch(x, index, jnp.ones(6)))
    keys = jax.random.split(jax.random.clone(key), 6)

    def terms(model):
        of_model = sgvb.elbo_terms(model, num_samples=1)
        return lambda i: of_model(jax.random.clone(keys)[i], state.params, x[i])

    others = [terms(exemplars.without(index[i]))(i) for i in range(6)]
    every = [terms(made.model)(i) for i in range(6)]
    kl = np.array([one.kl for one in others])
    bound = np.array([one.reconstruction for one in others]) - kl
    np.testing.assert_allclose(info.bound, bound.mean(), rtol=1e-5)
    np.testing.assert_allclose(info.monitored["kl"], kl.mean(), rtol=1e-5)
    difference = kl - np.array([one.kl for one in every])
    assert (np.abs(difference[:3]) > 1e-4).all()
    np.testing.assert_allclose(difference[3:], 0.0, atol=1e-5)


@pytest.mark.slow
def test_exemplars_are_drawn_by_the_data_seed_alone(run, tmp_path):
    first = runs._exemplars(run[0].config, run[0].data)
    assert len(np.unique(first.index)) == 20
    for changes in ({"seed": 5}, {"data_seed": 1}):
        other = runs.build(tiny(tmp_path, **FLAGS, **changes))
        index = runs._exemplars(other.config, other.data).index
        assert np.array_equal(index, first.index) == ("seed" in changes)


@pytest.mark.slow
def test_a_trained_model_needs_its_exemplars_no_more(run, tmp_path):
    made, saved = run
    (trained,) = trained_runs.load(made.workdir, checkpoint="last")
    assert trained.params.generative["prior"]["mean"].shape == (20, 2)
    z = jnp.array([0.3, -0.7])
    log_prior = made.model.generative.log_prior(saved.parameters, z)
    got = trained.model.generative.log_prior(trained.params, z)
    np.testing.assert_allclose(got, log_prior, rtol=1e-5)
    path = tmp_path / "model.safetensors"
    artifacts.save_model(path, trained.params, cards.of_trained(trained))
    model, params = cards.load_model(path)
    np.testing.assert_array_equal(model.generative.log_prior(params, z), got)


@pytest.mark.slow
def test_runs_of_exemplars_resume_bit_for_bit_and_are_evaluated(tmp_path):
    whole, parts = (
        tiny(tmp_path / name, num_seeds=2, kl_warmup=2, **FLAGS) for name in "ab"
    )
    fit.to_end(whole, validation.build)
    fit.to_end(
        tiny(tmp_path / "b", num_seeds=2, kl_warmup=2, **FLAGS | {"num_epochs": 1}),
        validation.build,
    )
    fit.to_end(parts, validation.build)
    for a, b in zip(saved_arrays(whole), saved_arrays(parts), strict=True):
        np.testing.assert_array_equal(a, b)
    assert metrics(whole.workdir) == metrics(parts.workdir)
    result = evaluate.evaluate(
        evaluate.Config(workdir=whole.workdir, eval_samples=2, importance_samples=10)
    )
    assert [run["log_p"] > run["elbo"] - 1.0 for run in result["runs"]] == [True, True]


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"num_exemplars": 1}, "--num_exemplars must be 2 or more"),
        ({"posterior": "iaf"}, "--prior=exemplar .*iaf .*what fits: diag_normal, full"),
        ({"algorithm": "vem", "estimator": "sgvb_b"}, "made of the encoder"),
        ({"algorithm": "full_vb", "weight_decay": 1.0}, "--algorithm=full_vb does not"),
        ({"stream_steps": 3}, "--prior=exemplar does not go with --stream_steps"),
        ({"estimator": "sgvb_b"}, "sgvb_b needs the closed-form KL"),
        (
            {"prior": "standard_normal"},
            "--num_exemplars has no effect with --prior=stand",
        ),
    ],
)
def test_flags_that_do_not_go_with_exemplars_are_refused(changes, said):
    with pytest.raises(ValueError, match=said):
        Config(**FLAGS | changes)


def test_more_exemplars_than_rows_are_one_line(tmp_path):
    with pytest.raises(
        cli.UsageError, match=r"--num_exemplars=1001 is more than .*1000"
    ):
        runs.build(tiny(tmp_path, **FLAGS | {"num_exemplars": 1001}))
    assert not (tmp_path / rundir.FLAGS).exists()


@pytest.mark.slow
def test_missing_entries_of_an_exemplar_are_filled_as_of_any_row(tmp_path):
    flags = FLAGS | {"missing": "nan", "missing_rate": 0.3}
    made = runs.build(tiny(tmp_path, **flags))
    params = made.model.init(jax.random.key(0))
    assert np.isnan(runs._exemplars(made.config, made.data).x).any()
    assert np.isfinite(made.model.generative.log_prior(params, jnp.zeros(2)))
