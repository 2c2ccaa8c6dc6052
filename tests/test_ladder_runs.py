"""Ladders from flags: what they build, what they refuse, and a run from end to end."""

from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments import evaluate, reconstruct, train
from experiments.choices import estimators, models
from experiments.choices.config import Config
from experiments.command import cli
from experiments.export import cards
from experiments.generate import command as generate
from experiments.measures import measure
from experiments.runs import fit, protocol, runs, trained_runs
from tests.tiny import metrics, saved_arrays, tiny
from vae_jax import (
    ladder,
    ladder_of_maps,
    layer_forms,
    likelihoods,
    networks,
    posteriors,
    priors,
)
from vae_jax.estimators import sgvb
from vae_jax.types import Batch, Params

TINY_LADDER = {"num_latents": 16, "ladder": ("3", "2")}
X = (8, 8)


def _program(model):
    """What a step differentiates, as a text."""
    objective = sgvb.sgvb_b(model, num_samples=1)
    key = jax.eval_shape(jax.random.key, 0)
    params, x = jax.eval_shape(model.init, key), jax.ShapeDtypeStruct(X, jnp.float32)
    return str(jax.make_jaxpr(objective)(key, params, x))


def _top(size):
    return {
        "posterior": posteriors.diag_normal(size),
        "prior": priors.standard_normal(size),
        "likelihood": likelihoods.bernoulli(X),
    }


def test_one_number_is_the_usual_model():
    plain, one = Config(num_latents=3), Config(ladder=("3",))
    assert one.settled == plain.settled
    texts = [_program(models.build(config, X).model) for config in (plain, one)]
    assert texts[0] == texts[1]


@pytest.mark.slow
def test_vectors_are_the_librarys_ladder():
    config = Config(
        ladder=("4", "3", "2"),
        hidden=(9, 7, 5),
        num_hidden=2,
        posterior_form="residual",
        activation="elu",
        init="normal_0.1",
        precision="bfloat16",
    )
    wanted = ladder.mlp(
        (4, 3, 2),
        X,
        hidden=((9, 9), (7, 7), (5, 5)),
        form=layer_forms.residual_normal(),
        activation=jax.nn.elu,
        initializer=networks.normal(std=0.1),
        product=networks.bfloat16_product,
        **_top(2),
    )
    model = models.build(config, X).model
    assert _program(model) == _program(wanted)
    assert model.lower == (4, 3)
    one = models.build(Config(ladder=("4", "3", "2"), hidden=(9,)), X).model
    each = models.build(Config(ladder=("4", "3", "2"), hidden=(9, 9, 9)), X).model
    assert _program(one) == _program(each)


def test_maps_are_the_librarys_ladder():
    config = Config(
        ladder=("8x8x1", "4x4x3", "2"),
        network="resnet",
        width=4,
        num_blocks=2,
        posterior_form="merged",
        activation="gelu",
        remat=True,
    )
    wanted = ladder_of_maps.images(
        ((8, 8, 1), (4, 4, 3)),
        X,
        width=4,
        num_blocks=2,
        form=layer_forms.merged_normal(),
        activation=jax.nn.gelu,
        remat=True,
        **_top(2),
    )
    model = models.build(config, X).model
    assert _program(model) == _program(wanted)
    assert model.lower == (64, 48)


@pytest.mark.parametrize(
    ("posterior_form", "residual"), [("plain", False), ("residual", True)]
)
def test_bits_are_a_sigmoid_belief_network_and_learn_a_baseline(
    posterior_form, residual
):
    config = Config(
        ladder=("3", "2"),
        posterior="bernoulli",
        estimator="nvil",
        posterior_form=posterior_form,
        hidden=(5,),
    )
    wanted = ladder.mlp(
        (3, 2),
        X,
        hidden=((5,), (5,)),
        form=layer_forms.bernoulli(residual=residual),
        posterior=posteriors.bernoulli(2),
        prior=priors.bernoulli(2),
        likelihood=likelihoods.bernoulli(X),
    )
    model = models.build(config, X).model
    key, x = jax.eval_shape(jax.random.key, 0), jax.ShapeDtypeStruct(X, jnp.float32)
    assert "baseline" in jax.eval_shape(model.init, key).recognition

    def draw(model):
        params = jax.eval_shape(wanted.init, key)
        h = jax.eval_shape(model.recognition.encode, params, x)
        return str(jax.make_jaxpr(model.draw)(key, params, x, h))

    assert draw(model) == draw(wanted)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"ladder": ("4", "x")}, r"--ladder=4,x is no ladder: give the sizes"),
        ({"ladder": ("4", "0")}, r"--ladder=4,0 is no ladder"),
        ({"ladder": ("4x4", "2")}, r"--ladder=4x4,2 is no ladder"),
        ({"ladder": ("4", "4x4x1")}, r"--ladder=4,4x4x1 is no ladder"),
        ({"ladder": ("4x4x1",)}, r"--ladder=4x4x1 is no ladder"),
        ({"ladder": ("4x4x1", "3", "2")}, r"--ladder=4x4x1,3,2 is no ladder"),
        ({"num_latents": 3, "ladder": ("3",)}, "--num_latents=3 has no effect with"),
        ({"posterior_form": "merged"}, "--posterior_form is read by --ladder of two"),
        ({"ladder": ("3",), "num_hidden": 2}, "--num_hidden is read by --ladder of"),
        (
            {"ladder": ("3", "2"), "network": "conv"},
            "--network=conv does not go with --ladder=3,2: vectors have --network=mlp",
        ),
        (
            {"ladder": ("4x4x1", "2")},
            "--network=mlp does not go with --ladder=4x4x1,2: maps have "
            "--network=conv or resnet",
        ),
        (
            {"ladder": ("4x4x1", "2"), "network": "conv", "num_hidden": 2},
            "--num_hidden has no effect with --ladder=4x4x1,2: maps have --num_blocks",
        ),
        ({"ladder": ("3", "2"), "hidden": (4, 4, 4)}, "--hidden=4,4,4 must be one"),
        ({"ladder": ("3", "2"), "kl_balancing": True}, "and --kl_warmup above 0"),
        ({"kl_warmup": 3, "kl_balancing": True}, "--ladder of two layers or more"),
        (
            {"kl_balancing": True, "kl_warmup": 3, "estimator": "sgvb_a"},
            "--kl_balancing has no effect with --estimator=sgvb_a",
        ),
        ({"ladder": ("3", "2"), "encoder_hidden": (4,)}, "--encoder_hidden has no eff"),
        ({"ladder": ("3", "2"), "posterior_std": 0.1}, "--posterior_std has no effect"),
        (
            {"ladder": ("3", "2"), "algorithm": "mcem"},
            "--ladder=3,2 needs the encoder that --algorithm=mcem does not have",
        ),
        (
            {"ladder": ("3", "2"), "prior": "vamp", "estimator": "iwae"},
            "--prior=vamp is made of codes of x, which the top of --ladder=3,2",
        ),
        (
            {
                "ladder": ("3", "2"),
                "posterior": "bernoulli",
                "estimator": "vimco",
                "posterior_form": "merged",
            },
            "--posterior_form=merged is of real latents",
        ),
        (
            {"ladder": ("3", "2"), "posterior": "bernoulli"},
            "--estimator=sgvb_b does not fit --posterior=bernoulli --ladder=3,2; what "
            "fits: score_function, .*nvil",
        ),
        (
            {"ladder": ("3", "2"), "estimator": "disarm"},
            "--estimator=disarm does not fit --posterior=diag_normal",
        ),
        (
            {"ladder": ("3", "2"), "posterior": "bernoulli", "estimator": "disarm"},
            "--estimator=disarm does not fit --posterior=bernoulli --ladder=3,2",
        ),
    ],
)
def test_what_is_no_ladder_is_refused_in_a_line_that_names_the_flag(changes, said):
    with pytest.raises(ValueError, match=said):
        Config(**changes)


def test_maps_that_do_not_follow_from_x_are_refused_by_their_flag(tmp_path):
    config = tiny(
        tmp_path / "run", num_latents=16, ladder=("3x3x1", "2"), network="conv"
    )
    with pytest.raises(cli.UsageError, match=r"--ladder=3x3x1,2: maps of \(3, 3\)"):
        runs.build(config)


def test_the_flag_that_ladders_replace_is_refused_where_it_was_used():
    assert cli.parse(Config, ["train", "--top_latents=0"]) == Config()
    with pytest.raises(cli.UsageError, match=r"--top_latents=3 is gone: .*--ladder="):
        cli.parse(Config, ["train", "--top_latents=3"])
    with pytest.raises(cli.UsageError, match="--top_latent is no flag"):
        cli.parse(Config, ["train", "--top_latent=3"])


@pytest.mark.slow
@pytest.mark.parametrize(
    ("flags", "planes"),
    [
        ({"ladder": ("3", "2"), "hidden": (4,)}, 1),
        ({"ladder": ("8x8x1", "2"), "network": "conv", "width": 2}, 1),
        (
            {
                "ladder": ("2x2x1", "2"),
                "network": "resnet",
                "width": 2,
                "likelihood": "normal_per_pixel_std",
            },
            2,
        ),
    ],
    ids=["vectors", "maps of x's resolution", "two halvings, two planes"],
)
def test_a_decoder_starts_at_the_mean_of_the_data(flags, planes):
    config = Config(init_bias="data", binarization="none", **flags)
    model = models.build(config, X).model
    mean = np.full(X, 0.2)

    @jax.jit
    def means(key):
        params = model.init(key)
        other = models.started(config, params, X, mean)
        z = model.generative.sample_prior(jax.random.clone(key), params)
        return [model.generative.mean_observation(of, z) for of in (params, other)]

    plain, shifted = means(jax.random.key(0))
    wanted = mean
    if planes == 1:
        plain, shifted, wanted = map(jax.scipy.special.logit, (plain, shifted, mean))
    np.testing.assert_allclose(shifted - plain, wanted, rtol=1e-4, atol=1e-5)


def assert_units(row, *, prefix, prior):
    """Of two layers in all; a flow's latents have no KL of their own."""
    name = f"{prefix}active_units"
    units = {n.removeprefix(name): x for n, x in row.items() if n.startswith(name)}
    if prior == "flow":
        assert units.keys() == {"_z1"}
    else:
        assert units[""] == units["_z1"] + units["_z2"]
        assert 0.0 <= units["_z2"] <= 2.0


@pytest.mark.parametrize(
    "changes",
    [
        {"average_decay": 0.9, "missing": "nan", "missing_rate": 0.1},
        {
            "ladder": ("4x4x1", "2"),
            "network": "resnet",
            "width": 2,
            "prior": "flow",
            "prior_layers": 2,
            "prior_units": 4,
        },
        {"posterior": "bernoulli", "estimator": "vimco", "num_samples": 2},
        {"num_seeds": 2, "estimator": "gdreg", "num_samples": 2},
    ],
    ids=["vectors, averaged, holes", "maps below a flow", "bits", "two seeds"],
)
@pytest.mark.slow
def test_a_ladder_trains_resumes_and_is_measured_as_any_model(tmp_path, changes):
    changes = TINY_LADDER | changes
    whole = tiny(tmp_path / "whole", **changes)
    train.main(whole)
    for num_epochs in (1, 2):
        parts = tiny(tmp_path / "parts", num_epochs=num_epochs, **changes)
        train.main(parts)
    assert all(map(np.array_equal, *map(saved_arrays, (whole, parts))))
    rows = metrics(whole.workdir)
    assert rows == metrics(parts.workdir)
    for split in ("", "valid_"):
        for row in rows:
            of_layers = row[f"{split}kl_z1"] + row[f"{split}kl_z2"]
            np.testing.assert_allclose(of_layers, row[f"{split}kl"], rtol=1e-5)
    for row in rows:
        assert_units(row, prefix="valid_", prior=whole.prior)
    member: dict[str, Any] = {"member": 0} if whole.num_seeds > 1 else {}
    which = evaluate.Config(
        workdir=whole.workdir,
        num_images=20,
        eval_samples=10,
        importance_samples=20,
        **member,
    )
    result = evaluate.evaluate(which)
    assert result["elbo"] < result["log_p"] + 1.0
    np.testing.assert_allclose(result["kl_z1"] + result["kl_z2"], result["kl"])
    assert_units(result, prefix="", prior=whole.prior)
    made = generate.Config(workdir=whole.workdir, num=4, **member)
    assert generate.main(made) == 0
    pictures = reconstruct.Config(workdir=whole.workdir, num=4, **member)
    assert reconstruct.main(pictures) == 0


def test_a_card_of_a_run_without_a_second_layer_is_read(tmp_path):
    flags = {"top_latents": 0, "num_latents": 3}
    assert cards._config("model", flags) == Config(num_latents=3)
    with pytest.raises(ValueError, match="model: --top_latents=2 is gone"):
        cards._config("model", flags | {"top_latents": 2})


def test_layers_that_die_are_named_once_after_the_warm_up(tmp_path, capsys):
    config = tiny(tmp_path / "run", kl_warmup=2, eval_every=2, **TINY_LADDER)
    run = fit.claim(config)
    per_epoch = run.steps_per_epoch
    capsys.readouterr()

    def said(note, epoch, **nats):
        note({"step": epoch * per_epoch, "epoch": float(epoch), **nats})
        return capsys.readouterr().out

    with fit._diary(run, step=0, total=per_epoch, started=0.0) as note:
        assert not said(note, 2, kl=1.0, kl_z1=1.0, kl_z2=0.0)  # it warms up
        assert not said(note, 3, kl=1.0, kl_z1=1.0, kl_z2=0.0)  # no validation
        assert said(note, 4, kl=1.0, kl_z1=1.0, kl_z2=0.002).startswith(
            "warning: dead layers at epoch 4: z2, KL 0.0020 nats per row; --kl_warm"
        )
        assert not said(note, 6, kl=1.0, kl_z1=1.0, kl_z2=0.003)
        # Where there is a validation split it is what counts.
        both = {"valid_kl": 1.0, "valid_kl_z1": 0.001, "valid_kl_z2": 0.0}
        assert "z1, z2, KL 0.0010, 0.0000 " in said(note, 8, kl_z1=1.0, **both)
        # Of two runs one is enough.
        assert "layers at epoch 10: z1, KL 0.0050 nats" in said(
            note,
            10,
            each_kl=[1.0, 1.0],
            each_kl_z1=[0.005, 1.0],
            each_kl_z2=[1.0, 1.0],
        )
        alive = {"kl": 1.0, "kl_z1": 0.01, "kl_z2": 0.5}
        assert said(note, 12, **alive) == "no dead layer any more at epoch 12\n"


@pytest.mark.slow
def test_units_of_a_layer_are_active_by_their_kl():
    """Those of z1 whose q is moved are; of z2, whose q is the prior, none."""
    digits = protocol.load(Config())
    config = Config(ladder=("3", "2"), hidden=(4,), posterior_form="residual")
    model = models.build(config, X).model

    def params(key):
        theta, phi = jax.tree.map(jnp.zeros_like, model.init(key))
        moved = jnp.array([1.0, 0.0, 0.05, 0.0, 0.0, 0.0])  # KL 0.5, 0 and 0.00125
        phi["layer_1"]["posterior"]["output"]["bias"] = moved
        return Params(theta, phi)

    trained = trained_runs.Trained(
        config, digits, model, jax.jit(params)(jax.random.key(0)), 1
    )
    latents = measure.latents(trained, split="test", num_images=7)
    per_latent = [0.5, 0.0, 0.00125, 0.0, 0.0]
    np.testing.assert_allclose(latents.pop("kl_per_latent"), per_latent, rtol=1e-5)
    assert latents == {
        "active_units": 1.0,
        "active_units_z1": 1.0,
        "active_units_z2": 0.0,
    }
    terms = measure.bound(
        jax.random.key(0), trained, split="test", num_samples=2, num_images=7
    )
    np.testing.assert_allclose(terms["kl_z1"], 0.5 + 0.00125, rtol=1e-5)
    assert terms["kl_z2"] == 0.0


@pytest.mark.slow
@pytest.mark.uses_optax  # as the steps of any run
def test_layers_are_balanced_as_long_as_the_kl_warms_up():
    config = Config(ladder=("3", "2"), hidden=(4,), kl_warmup=2, kl_balancing=True)
    model = models.build(config, X).model
    batch = Batch(jnp.ones((1, *X)), jnp.zeros(1, int), jnp.ones(1))
    objective = estimators.objective(config, model, num_data=1, warmup_steps=2)
    each = [
        sgvb.sgvb_b(model, num_samples=1, beta=beta, balance=balance)
        for beta, balance in ((0.5, 1.0), (1.0, 0.0))
    ]

    @jax.jit
    def slopes(key):
        params = model.init(key)
        memory = objective.init(params)

        def of_batch(params, memory):
            nats, memory, _ = objective.value(
                jax.random.clone(key), params, memory, batch
            )
            return nats.sum(), memory

        got = []
        for _ in each:
            grads, memory = jax.grad(of_batch, has_aux=True)(params, memory)
            got.append(grads)
        one = jax.random.split(jax.random.clone(key), 1)[0]
        return got, [
            jax.grad(f, 1)(jax.random.clone(one), params, batch.x[0]) for f in each
        ]

    got, wanted = slopes(jax.random.key(0))
    chex.assert_trees_all_close(got, wanted, rtol=1e-4, atol=1e-6)
