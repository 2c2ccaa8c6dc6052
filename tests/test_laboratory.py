"""The scripts that compare estimators, and the estimators of `train`."""

import json
from typing import Any

import jax
import numpy as np
import pytest

from experiments import compare_priors, discrete, gradient_snr, tighter_bounds
from experiments.choices import algorithms, models, rows
from experiments.choices.config import Config
from experiments.choices.densities import POSTERIORS
from experiments.choices.estimators import ESTIMATORS
from experiments.command import cli
from experiments.estimator_variance import command as estimator_variance
from experiments.measures import validation
from experiments.runs import fit, runs
from tests.tiny import tiny
from vae_jax.data import batches
from vae_jax.training import journal, loop

pytestmark = pytest.mark.uses_optax


def _first_and_last(names):
    return dict.fromkeys((names[0], names[-1]))


FITTING = [
    (estimator, posterior)
    for estimator in ESTIMATORS
    for posterior in _first_and_last(
        [q for q, row in POSTERIORS.items() if ESTIMATORS[estimator].fits(row.traits)]
    )
]


def read(path):
    return json.loads(path.read_text())


# train --estimator and --posterior


@pytest.mark.parametrize(("estimator", "posterior"), FITTING)
@pytest.mark.slow
def test_every_estimator_traces_with_the_posteriors_it_fits(
    tmp_path, estimator, posterior
):
    changes: dict[str, Any] = {"beta": 0.5} if estimator == "ciwae" else {}
    if posterior == "vector_quantized":
        changes["code_width"] = 1
    config = tiny(
        tmp_path, estimator=estimator, posterior=posterior, num_samples=4, **changes
    )
    parts = models.build(config, (2, 3))
    fit = algorithms.build(config, parts, algorithms.Steps(20, 2))
    scan = loop.scan(fit, batches.take(divisor=255.0))
    state = jax.eval_shape(
        lambda key: loop.start(key, fit, parts.model.init(jax.random.clone(key))),
        jax.random.key(0),
    )
    data = jax.ShapeDtypeStruct((20, 2, 3), np.uint8)
    order = jax.ShapeDtypeStruct((3, 5), np.int32)
    after, info = jax.eval_shape(scan, state, data, order)
    assert jax.tree.map(lambda a: a.shape, after) == jax.tree.map(
        lambda a: a.shape, state
    )
    assert info.bound.shape == (3,)
    assert "kl" in info.monitored


@pytest.mark.parametrize("posterior", ["planar", "coupling", "iaf"])
def test_every_flow_traces(tmp_path, posterior):
    config = tiny(tmp_path, estimator="dreg", posterior=posterior, num_latents=3)
    model = models.build(config, (2, 3)).model
    params = jax.eval_shape(model.init, jax.random.key(0))
    x = jax.ShapeDtypeStruct((2, 3), np.float32)
    h = jax.eval_shape(model.recognition.encode, params, x)
    key = jax.random.key(0)
    z = jax.eval_shape(model.recognition.sample, key, params, h)
    assert z.shape == (3,)


@pytest.mark.parametrize(
    ("changes", "size"),
    [
        ({"prior": "normal_mixture", "num_components": 4, "estimator": "sgvb_a"}, 2),
        ({"prior": "vamp", "num_components": 4, "estimator": "dreg"}, 2),
        ({"prior": "normal_mixture", "algorithm": "mcem", "num_components": 4}, 2),
    ],
    ids=["mixture", "vamp", "mcem"],
)
@pytest.mark.slow
def test_a_learned_prior_trains(tmp_path, changes, size):
    config = tiny(tmp_path / "run", **changes)
    run = fit.claim(config)
    saved = fit.fit(
        run, fit.restore(run), [], started=0.0, validate=validation.build(run)
    )
    z = run.model.generative.sample_prior(jax.random.key(0), saved.run.inner.params)
    assert z.shape == (size,)
    rows = journal.read(run.workdir)
    fitted = "log_joint" if "algorithm" in changes else "valid_bound"
    assert np.isfinite([row[fitted] for row in rows]).all()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"posterior": "bernoulli", "estimator": "dreg"}, r"what fits: .*vimco"),
        ({"posterior": "iaf", "estimator": "sgvb_b"}, r"what fits: sgvb_a, iwae"),
        ({"estimator": "disarm"}, r"does not fit --posterior=diag_normal"),
        ({"temperature": 0.0}, r"--temperature must be positive"),
        ({"ovis_gamma": 1.5}, r"--ovis_gamma must be at most 1, got 1\.5"),
        ({"sleep_share": 1.1}, r"--sleep_share must be at most 1, got 1\.1"),
        ({"estimator": "ciwae"}, r"--beta below 1"),
        ({"estimator": "iwea"}, r"iwea is unknown; known: sgvb_a"),
        ({"flow_layers": 2}, r"--flow_layers has no effect with --posterior=diag"),
        ({"std": 0.5}, r"--std has no effect with --likelihood=bernoulli"),
        ({"estimator": "iwae", "num_outer": 2}, r"read by miwae, piwae"),
        ({"estimator": "iwae", "kl_warmup": 2}, r"--kl_warmup has no effect"),
        ({"sleep_share": 0.5}, r"--sleep_share has no effect with --estimator=sgvb_b"),
        ({"algorithm": "em"}, r"--algorithm=em is unknown; known: aevb"),
        ({"algorithm": "mcem", "estimator": "iwae"}, r"--estimator has no effect"),
        ({"algorithm": "mcem", "posterior": "iaf"}, r"--posterior has no effect"),
        ({"algorithm": "vem", "posterior": "iaf"}, r"fits: diag_normal, full_normal"),
        (
            {"algorithm": "vem", "beta": 2.0},
            r"--beta has no effect with --algorithm=vem",
        ),
        ({"algorithm": "full_vb"}, r"needs a --weight_decay above 0"),
        ({"estimator": "mmd", "batch_size": 1}, r"--batch_size of 2 or more, got 1"),
        (
            {"algorithm": "full_vb", "weight_decay": 1.0, "posterior": "bernoulli"},
            r"what fits: .*iaf",
        ),
        ({"algorithm": "mcem", "early_stopping": 3}, r"needs a validation bound"),
        ({"algorithm": "mcem", "target_acceptance": 1.0}, r"between 0 and 1"),
        ({"num_leapfrog": 3}, r"read by mcem"),
        (
            {"prior": "vamp"},
            r"sgvb_b needs the closed-form KL.*what fits: sgvb_a, iwae",
        ),
        ({"num_components": 3}, r"--num_components has no effect"),
        ({"prior": "vamp", "algorithm": "vem"}, r"made of the encoder"),
        (
            {"prior": "vamp", "posterior": "bernoulli", "estimator": "vimco"},
            r"of any real vector",
        ),
        ({"estimator": "renyi", "alpha": float("nan")}, "--alpha must be below inf"),
        ({"estimator": "sumo", "prior": "vamp"}, "log p.* --prior=vamp is made of"),
    ],
)
def test_what_does_not_fit_is_named_with_what_does(changes, message):
    with pytest.raises(ValueError, match=message):
        Config(**changes)


def test_of_flags_that_nothing_reads_the_same_one_is_named_by_every_process():
    table = {
        "first": rows.Choice(dict, {"x": "zeta", "y": "alpha"}, reads=("mu",)),
        "second": rows.Choice(dict, {"x": "alpha"}),
    }
    names = {"alpha": ["first", "second"], "mu": ["first"], "zeta": ["first"]}
    assert [*rows.readers(table).items()] == [*names.items()]


@pytest.mark.parametrize(
    "changes",
    [
        {"estimator": "leave_one_out", "num_samples": 1},
        {"estimator": "jackknife", "num_samples": 1},
    ],
)
def test_numbers_that_an_estimator_refuses_are_one_line_errors(tmp_path, changes):
    with pytest.raises(cli.UsageError):
        runs.build(tiny(tmp_path / "run", **changes))


# Scripts


@pytest.mark.slow
def test_gradient_snr_fits_slopes_and_writes_them(tmp_path, capsys):
    config = gradient_snr.Config(
        workdir=str(tmp_path),
        estimators=("iwae", "gdreg", "ovis_monte_carlo"),
        num_samples=(2, 16),
        num_draws=400,
        num_latents=3,
    )
    assert gradient_snr.main(config) == 0
    assert "iwae, encoder" in capsys.readouterr().out
    slopes = read(tmp_path / "snr.json")["slopes"]
    assert list(slopes) == list(config.estimators)
    assert slopes["iwae"]["decoder"]["slope"] > 0.2  # theory: 0.5
    assert (tmp_path / "snr.png").stat().st_size > 0


@pytest.mark.slow
def test_estimator_variance_compares_and_writes(tmp_path, capsys):
    config = estimator_variance.Config(
        workdir=str(tmp_path),
        epochs=(1,),
        hidden=(8,),
        num_latents=2,
        batch_size=20,
        num_samples=4,
        num_draws=30,
        reference_draws=60,
        estimators="score_function|sgvb_a",
        budget=1,
        seconds=0.1,
    )
    assert estimator_variance.main(config) == 0
    said = capsys.readouterr().out
    assert said.index("sgvb_b") < said.index("score_function") < said.index("sgvb_a")
    assert "theta variance" in said
    result = read(tmp_path / "variance.json")
    rows = result["points"]["1"]["estimators"]
    assert set(rows) == {"score_function", "sgvb_b", "sgvb_a"}
    assert rows["score_function"]["phi"]["relative_variance"] > 10.0
    (row,) = result["against_batch"]
    assert (row["num_samples"], row["batch_size"]) == (1, 1)
    assert np.isfinite([row["phi_variance"], row["test_elbo"]]).all()
    for name in ("variance.png", "bounds.png"):
        assert (tmp_path / name).stat().st_size > 0


@pytest.mark.parametrize(
    ("changes", "names"),
    [
        ({"posterior": "bernoulli"}, "relax|rebar|ovis"),
        ({"prior": "flow"}, "gdreg|uha|sumo"),
    ],
)
@pytest.mark.slow
def test_estimator_variance_knows_bits_and_learned_priors(tmp_path, changes, names):
    config = estimator_variance.Config(
        workdir=str(tmp_path),
        epochs=(1,),
        batch_size=10,
        num_samples=4,
        num_draws=10,
        reference_draws=10,
        estimators=names,
        **changes,
    )
    assert estimator_variance.main(config) == 0
    result = read(tmp_path / "variance.json")
    rows = result["points"]["1"]["estimators"]
    assert set(rows) == {config.table.unit, *names.split("|")}
    assert all(0.0 < row["phi"]["variance"] < np.inf for row in rows.values())
    assert rows[config.table.unit]["phi"]["relative_variance"] == 1.0
    assert not result["against_batch"]


@pytest.mark.slow
def test_discrete_trains_each_estimator_and_writes(tmp_path, capsys):
    config = discrete.Config(
        workdir=str(tmp_path),
        layers=(4,),
        estimators=("vimco", "nvil"),
        num_samples=2,
        num_epochs=2,
        eval_every=1,
        importance_samples=10,
    )
    assert discrete.main(config) == 0
    assert "vimco" in capsys.readouterr().out
    result = read(tmp_path / "discrete.json")["estimators"]
    assert set(result) == {"vimco", "nvil"}
    assert result["vimco"]["epoch"] == [1, 2]
    assert np.isfinite(result["nvil"]["log_p"])
    assert (tmp_path / "discrete.png").stat().st_size > 0


def test_discrete_leaves_out_what_needs_one_layer():
    assert "disarm" in discrete.Config(layers=(3,)).names
    names = discrete.Config(layers=(3, 2)).names
    assert "disarm" not in names
    assert "vimco" in names
    with pytest.raises(ValueError, match=r"disarm.* not for 2 layers"):
        discrete.Config(layers=(3, 2), estimators=("disarm",))


@pytest.mark.slow
def test_tighter_bounds_chooses_on_validation_and_writes(tmp_path, capsys):
    config = tighter_bounds.Config(
        workdir=str(tmp_path),
        estimators=("dreg",),
        learning_rates=("1e-3", "3e-3"),
        num_seeds=1,
        num_samples=2,
        num_latents=2,
        hidden=(8,),
        num_epochs=10,
        early_stopping=5,
        valid_samples=2,
        importance_samples=10,
    )
    assert tighter_bounds.main(config) == 0
    assert "dreg" in capsys.readouterr().out
    (row,) = read(tmp_path / "tighter_bounds.json")["estimators"]["dreg"]
    rows = {
        rate: [
            row
            for row in journal.read(tmp_path / f"dreg_{rate}_0")
            if "valid_importance_bound" in row
        ]
        for rate in ("1e-3", "3e-3")
    }
    best_of = {
        rate: max(rows[rate], key=lambda row: row["valid_importance_bound"])
        for rate in rows
    }
    best = max(best_of, key=lambda rate: best_of[rate]["valid_importance_bound"])
    assert row["learning_rate"] == float(best)
    # The run keeps it in single precision.
    assert row["valid_bound"] == np.float32(best_of[best]["valid_importance_bound"])
    assert row["step"] == best_of[best]["step"]
    assert best_of[best]["valid_importance_bound"] > best_of[best]["valid_bound"]
    assert (tmp_path / "tighter_bounds.png").stat().st_size > 0


@pytest.mark.slow
def test_priors_are_compared_on_the_same_nets_and_once(tmp_path, capsys):
    config = compare_priors.Config(
        workdir=str(tmp_path),
        priors=("standard_normal", "exemplar", "fitted"),
        num_components=3,
        num_exemplars=20,
        prior_layers=2,
        prior_units=8,
        num_seeds=2,
        num_latents=2,
        hidden=(8,),
        kl_warmup=1,
        num_epochs=3,
        fit_epochs=2,
        valid_samples=1,
        eval_samples=2,
        importance_samples=10,
    )
    assert compare_priors.main(config) == 0
    results = read(tmp_path / "compare_priors.json")["priors"]
    assert list(results) == list(config.priors)
    for row in results.values():
        assert row["images_per_second"] > 0.0
        for name in ("log_p", "elbo", "kl", "reconstruction"):
            assert len(row[name]) == 2
            assert np.isfinite(row[name]).all()
        np.testing.assert_allclose(
            np.subtract(row["reconstruction"], row["kl"]), row["elbo"], rtol=1e-6
        )
    normal, fitted = results["standard_normal"], results["fitted"]
    np.testing.assert_allclose(  # of the same draws of q
        fitted["reconstruction"], normal["reconstruction"], rtol=1e-5
    )
    assert fitted["kl"] != normal["kl"]
    table = capsys.readouterr().out
    assert compare_priors.main(config) == 0  # all of it is there already
    again = capsys.readouterr().out
    assert "step" not in again
    assert table.endswith(again)


@pytest.mark.parametrize(
    "script",
    [gradient_snr, estimator_variance, discrete, tighter_bounds, compare_priors],
)
def test_a_workdir_that_is_a_file_is_refused_before_the_work(tmp_path, script):
    (tmp_path / "file").write_text("")
    with pytest.raises(cli.UsageError, match="file"):
        script.main(script.Config(workdir=str(tmp_path / "file")))


@pytest.mark.parametrize(
    ("script", "changes", "message"),
    [
        (gradient_snr, {"num_samples": (4,)}, "--num_samples"),
        (gradient_snr, {"num_draws": 3}, "--num_draws"),
        (gradient_snr, {"std": 0.0}, "--std"),
        (estimator_variance, {"num_samples": 5}, "--num_samples"),
        (estimator_variance, {"epochs": (5, 1)}, "--epochs"),
        (estimator_variance, {"budget": 0}, "--budget"),
        (
            estimator_variance,
            {"estimators": "dreg|dregs"},
            "unknown dregs; known: score_function",
        ),
        (tighter_bounds, {"estimators": ("iwea",)}, "iwea is unknown"),
        (tighter_bounds, {"importance_samples": 0}, "--importance_samples"),
        (tighter_bounds, {"early_stopping": 0}, "--early_stopping"),
        (discrete, {"num_epochs": 30}, "no multiple of --eval_every"),
        (compare_priors, {"num_seeds": 1}, "--num_seeds must be 2 or more"),
        (compare_priors, {"priors": ("vapm",)}, "--priors=vapm is unknown"),
        (compare_priors, {"num_latents": 0}, "--num_latents must be positive"),
        (compare_priors, {"importance_samples": 501}, "--importance_samples above"),
        (tighter_bounds, {"num_seeds": 0}, "--num_seeds"),
        (tighter_bounds, {"learning_rates": ("fast",)}, "fast"),
        (discrete, {"num_samples": 3}, "--num_samples"),
        (discrete, {"layers": ()}, "--layers"),
        (discrete, {"importance_samples": 700}, "--importance_samples"),
    ],
)
def test_numbers_that_make_no_experiment_are_refused(script, changes, message):
    with pytest.raises(ValueError, match=message):
        script.Config(**changes)
