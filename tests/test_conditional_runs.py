"""Models of x given its label, from --condition to what every command gives."""

import dataclasses
import json
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from experiments import evaluate, reconstruct, train
from experiments.choices import models
from experiments.choices.coders import NETWORKS
from experiments.choices.config import Config
from experiments.command import cli
from experiments.completion import command as completion
from experiments.generate import command as generate
from experiments.measures import pictures
from experiments.representation import command as representation
from experiments.runs import (
    contexts,
    fit,
    new_rows,
    protocol,
    rundir,
    runs,
    trained_runs,
)
from tests import laws
from tests.tiny import metrics, saved, saved_arrays, tiny
from vae_jax.data import sources
from vae_jax.estimators import importance
from vae_jax.training import checkpoints
from vae_jax.types import Params

pytestmark = pytest.mark.uses_optax
LABELS = {"condition": "labels", "binarization": "dynamic"}


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    """A run given labels, saved before its first step."""
    return saved(tiny(tmp_path_factory.mktemp("runs") / "run", **LABELS))


def loaded(workdir):
    return trained_runs.load(workdir, checkpoint="last")[0]


def of(workdir) -> dict[str, Any]:
    return {"workdir": str(workdir)}


def at_label(trained, label):
    """p(x, z | label)."""
    return trained.at_context(jnp.eye(10)[label]).generative


@pytest.mark.slow
def test_a_run_given_labels_resumes_bit_for_bit(tmp_path):
    whole, parts = (tiny(tmp_path / name, **LABELS) for name in ("whole", "parts"))
    for config in (whole, dataclasses.replace(parts, num_epochs=1), parts):
        assert train.main(config) == 0
    assert metrics(parts.workdir) == metrics(whole.workdir)
    arrays = zip(saved_arrays(parts), saved_arrays(whole), strict=True)
    for ours, theirs in arrays:
        np.testing.assert_array_equal(ours, theirs)
    assert (tmp_path / "whole" / "samples.png").is_file()


@pytest.mark.slow
def test_a_run_given_labels_is_evaluated_given_them(workdir, tmp_path):
    trained = loaded(workdir)
    quick: dict[str, Any] = {
        "eval_samples": 2,
        "importance_samples": 10,
        "num_images": 20,
    }
    config = evaluate.Config(workdir=str(workdir), **quick)
    result = evaluate.evaluate(config)
    assert "given labels" in evaluate.table(result)
    source = trained.data.source
    rows, labels = source.test / 16.0, source.labels["test"]
    for name, of_rows in (("same", labels), ("other", (labels + 1) % 10)):
        np.savez(tmp_path / f"{name}.npz", test=rows, test_labels=of_rows)
    same, other = (
        evaluate.evaluate(
            dataclasses.replace(config, input=str(tmp_path / f"{name}.npz"))
        )
        for name in ("same", "other")
    )
    for name in ("elbo", "log_p"):
        np.testing.assert_allclose(same[name], result[name], rtol=1e-6)
        assert abs(other[name] - result[name]) > 1e-3
    np.savez(tmp_path / "none.npz", test=rows)
    none = dataclasses.replace(config, input=str(tmp_path / "none.npz"))
    with pytest.raises(cli.UsageError, match="has no labels, and the run in"):
        evaluate.evaluate(none)
    with pytest.raises(cli.UsageError, match="--evidence=bdmc measures images that"):
        evaluate.evaluate(dataclasses.replace(config, evidence=("bdmc",)))


@pytest.mark.slow
def test_samples_of_a_label_are_the_row_of_it_among_all(workdir):
    trained, flags = loaded(workdir), of(workdir)
    assert generate.main(generate.Config(num=20, **flags)) == 0
    assert generate.main(generate.Config(num=2, label="3", **flags)) == 0
    whole = np.load(workdir / "samples_num_20.npz")
    alone = np.load(workdir / "samples_label_3_num_2.npz")
    assert whole["mean"].shape == (10, 2, 8, 8)
    for name in ("mean", "x"):
        np.testing.assert_allclose(whole[name][3], alone[name], rtol=1e-5)
    np.testing.assert_array_equal(whole["z"], alone["z"])
    assert np.ptp(whole["mean"], axis=0).max() > 1e-3
    mean = at_label(trained, 3).mean_observation(trained.params, whole["z"][0])
    np.testing.assert_allclose(whole["mean"][3, 0], mean, rtol=1e-5)
    with pytest.raises(cli.UsageError, match="--label=10 is none of 0, 1, 2,"):
        generate.main(generate.Config(label="10", **flags))
    with pytest.raises(cli.UsageError, match="--quality codes rows, each with a cont"):
        generate.main(generate.Config(label="1", quality=True, **flags))


@pytest.mark.slow
def test_reconstructions_and_completions_are_given_the_labels_of_their_rows(workdir):
    trained, flags = loaded(workdir), of(workdir)
    assert reconstruct.main(reconstruct.Config(num=3, **flags)) == 0
    arrays = np.load(workdir / "reconstructions_3_images.npz")
    places = np.arange(3) * 447 // 3
    labels = trained.data.source.labels["test"][places]
    assert arrays["x"].shape == (3, 8, 8)
    for z, mean, label in zip(arrays["z"], arrays["mean"], labels, strict=True):
        mean_observation = at_label(trained, label).mean_observation
        expected = mean_observation(trained.params, jnp.asarray(z))
        np.testing.assert_allclose(mean, expected, rtol=1e-5)
    config = completion.Config(
        methods=("pseudo_gibbs",),
        num_images=4,
        num_draws=2,
        num_warmup=1,
        num_burn_in=0,
        thin=1,
        importance_samples=4,
        proposal="encoder",
        **flags,
    )
    assert completion.main(config) == 0
    result = json.loads((workdir / "completion_left_4_images.json").read_text())
    assert result["share_hidden"] == 0.5
    arrays = np.load(workdir / "completion_left_4_images.npz")
    observed = ~arrays["hidden"]
    np.testing.assert_array_equal(
        arrays["pseudo_gibbs_mean"][observed], arrays["x"][observed]
    )
    with pytest.raises(cli.UsageError, match="which evaluate, reconstruct, completion"):
        representation.main(representation.Config(**flags))


@pytest.mark.slow
def test_a_label_of_no_weight_leaves_the_model_of_flags_as_it_was():
    config = Config(hidden=(5,), num_latents=3)
    plain, parts = (
        models.build(config, (4, 4)).model,
        models.build(config, (4, 4), context=("0", "1")),
    )
    params = laws.jiggled(jax.jit(plain.init)(jax.random.key(0)))

    def padded(narrow, wide):
        sizes = zip(narrow.shape, wide.shape, strict=True)
        return jnp.pad(narrow, [(0, more - size) for size, more in sizes])

    shapes = jax.eval_shape(parts.model.init, jax.random.key(0))
    wide = Params(*jax.tree.map(padded, params, shapes))
    x, c = jnp.arange(16.0).reshape(4, 4) % 2, jnp.array([1.0, -2.0])
    row = jnp.concatenate([x.ravel(), c])
    without, bound = (
        jax.jit(importance.iwae(model, num_samples=2)) for model in (plain, parts.model)
    )
    expected = without(jax.random.key(1), params, x)
    nats = bound(jax.random.key(1), wide, row)
    np.testing.assert_allclose(nats, expected, rtol=1e-6)
    of_label = laws.jiggled(wide)
    others = [
        bound(jax.random.key(1), of_label, row.at[16:].set(c)) for c in jnp.eye(2)
    ]
    assert others[0] != others[1]


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({"ladder": ("3", "2")}, "does not go with --ladder=3,2: take one layer"),
        ({"prior": "vamp"}, "does not go with --prior=vamp, which is made of codes"),
        ({"algorithm": "wake_sleep"}, "--algorithm=wake_sleep; what fits: aevb, rws"),
        ({"model": "a:b"}, "is of the flags' own models, not of --model"),
    ],
)
def test_what_does_not_read_a_label_is_refused(flags, message):
    with pytest.raises(ValueError, match=message):
        Config(condition="labels", **flags)


def test_labels_that_say_nothing_of_a_row_are_refused():
    digits = sources.load("digits")
    none = digits._replace(labels={"train": digits.labels["train"]})
    with pytest.raises(ValueError, match="the valid split of digits has no labels"):
        contexts.of_labels(none)
    for label, message in (
        (-1, "valid row 0 of digits has the label -1: give every row one from 0 on"),
        (11, "the valid split of digits has the label 11, which no training row has"),
        (10, r"has the label 10 = c10, which .*: of those are 0 = c0, 1 = c1, 2 = c2"),
    ):
        valid = np.array([label, *digits.labels["valid"][1:]])
        odd = digits._replace(labels=digits.labels | {"valid": valid})
        if label == 10:
            odd = odd._replace(classes=tuple(f"c{i}" for i in range(11)))
        with pytest.raises(ValueError, match=message):
            contexts.of_labels(odd)


def table_of(path):
    """A csv of 40 rows whose x says of what context it is: 2 where big, else 0."""
    generator = np.random.default_rng(0)
    size = generator.normal(size=40)
    kind = np.where(generator.random(40) < 0.5, "big", "small")
    x = size + 2.0 * (kind == "big")
    lines = [f"{a:.6f},{b},{c:.6f}" for a, b, c in zip(size, kind, x, strict=True)]
    path.write_text("\n".join(["size,kind,x", *lines]))
    return f"csv:{path}"


@pytest.mark.slow
def test_columns_of_a_table_are_a_context_that_stays_with_its_row(tmp_path):
    config = tiny(
        tmp_path / "run",
        dataset=table_of(tmp_path / "table.csv"),
        columns=("size:context", "kind:context"),
        condition="context",
        batch_size=8,
    )
    data = protocol.load(config)
    assert data.context == ("size", "kind=big", "kind=small")
    train = data.prepared.train[:, 1]
    np.testing.assert_allclose([train.mean(), train.std()], [0.0, 1.0], atol=1e-6)
    raw = data.source.contexts["train"][:, 0]
    for split in sources.SPLITS:
        x, size, big, small = getattr(data.prepared, split).T
        np.testing.assert_allclose(
            x, size * raw.std() + raw.mean() + 2.0 * big, atol=1e-5
        )
        np.testing.assert_array_equal(big + small, 1.0)
    fewer = protocol.load(dataclasses.replace(config, num_train=8))
    assert len(fewer.prepared.train) == 8
    folder = saved(config)
    assert generate.main(generate.Config(num=3, **of(folder))) == 0
    arrays = np.load(folder / "samples_num_3.npz")
    test = data.prepared.test
    np.testing.assert_array_equal(arrays["c"], test[np.arange(3) * 4 // 3, 1:])
    trained = loaded(folder)
    assert trained.at_context is not None
    model = trained.at_context(jnp.asarray(arrays["c"][0]))
    mean = model.generative.mean_observation(
        trained.params, jnp.asarray(arrays["z"][0])
    )
    np.testing.assert_allclose(arrays["mean"][0], mean, rtol=1e-5)
    header, *lines = (folder / "samples_num_3.csv").read_text().splitlines()
    assert header == "size,kind,x"
    stored = data.source.contexts["test"][np.arange(3) * 4 // 3]
    for line, (size, big, _), x in zip(lines, stored, arrays["x"], strict=True):
        cells = line.split(",")
        assert cells[1] == ("big" if big else "small")
        np.testing.assert_allclose(
            [float(cells[0]), float(cells[2])], [size, *x], rtol=1e-6
        )
    with pytest.raises(cli.UsageError, match="is not of x given labels: train it"):
        generate.main(generate.Config(label="1", **of(folder)))
    rows = tmp_path / "rows.npz"
    np.savez(rows, test=np.zeros((3, 1), np.float32))
    with pytest.raises(cli.UsageError, match="has no context, and the run in"):
        reconstruct.main(reconstruct.Config(input=str(rows), **of(folder)))
    more = tmp_path / "more.csv"
    more.write_text("x,kind,size\n2.5,small,-1\n")
    read = new_rows.read(str(more), trained.config, trained.data).rows
    expected = [[2.5, (-1.0 - raw.mean()) / raw.std(), 0.0, 1.0]]
    np.testing.assert_allclose(read, expected, rtol=1e-5)


@pytest.mark.slow
def test_contexts_of_an_npz_are_held_out_with_their_rows_and_are_part_of_the_data(
    tmp_path,
):
    path, generator = tmp_path / "own.npz", np.random.default_rng(0)
    x = generator.random((30, 4)).astype(np.float32)
    arrays: dict[str, Any] = {"train": x[:20], "test": x[20:]}
    arrays |= {"train_context": x[:20, :2]}
    config = tiny(
        tmp_path / "run",
        dataset=f"npz:{path}",
        likelihood="normal",
        condition="context",
        valid_size=5,
        batch_size=5,
    )
    np.savez(path, **arrays)
    with pytest.raises(ValueError, match="not every row of the test split of npz:"):
        protocol.load(config)
    np.savez(path, test_context=x[20:, :2], **arrays)
    data = protocol.load(config)
    for split in sources.SPLITS:
        rows = getattr(data.prepared, split)
        scaled = (rows[:, :2] - x[:15, :2].mean(0)) / x[:15, :2].std(0)
        np.testing.assert_allclose(rows[:, 4:], scaled, atol=1e-5)
    folder = saved(config)
    trained = trained_runs.load(folder, checkpoint="last")[0]
    more = tmp_path / "more.npz"
    np.savez(more, test=x[20:], test_context=x[20:, :2])
    read = new_rows.read(str(more), trained.config, trained.data).rows
    np.testing.assert_array_equal(read, trained.stored("test"))
    np.savez(more, test=x[20:])
    with pytest.raises(cli.UsageError, match=r"no context.*store it as test_context"):
        new_rows.read(str(more), trained.config, trained.data)
    np.savez(more, test=x[20:], test_context=x[20:, :1])
    with pytest.raises(cli.UsageError, match="1 entries a row, train_context 2"):
        new_rows.read(str(more), trained.config, trained.data)
    samples = pictures.samples_by_row(jax.random.key(0), trained, num=25)
    assert samples["x"].shape == (25, 4)
    np.testing.assert_array_equal(samples["c"][10:20], samples["c"][:10])
    np.savez(path, test_context=x[20:, 2:], **arrays)
    with pytest.raises(cli.UsageError, match="does not hold the data that the run in"):
        trained_runs.load(folder, checkpoint="last")
    arrays["test_context"], arrays["train_context"] = x[20:, :2], 0 * x[:20, :2]
    np.savez(path, **arrays)
    with pytest.raises(ValueError, match="0 is 0 in all training rows of npz:"):
        protocol.load(config)
    arrays["train_context"] = x[:20, 0]
    np.savez(path, **arrays)
    with pytest.raises(
        ValueError, match=r"train_context of .*: give finite numbers \["
    ):
        protocol.load(config)


def test_columns_of_context_without_a_condition_are_refused():
    with pytest.raises(ValueError, match="--columns=a:context is read by --condition"):
        Config(dataset="csv:a.csv", columns=("a:context",))


@pytest.mark.slow
def test_means_of_counts_are_multiples_of_a_size_factor(tmp_path):
    generator = np.random.default_rng(0)
    depth = np.exp(generator.normal(size=60))
    x = generator.poisson(depth[:, None] * [3.0, 20.0])
    rows = [f"{a:.6f},{b},{c}" for a, (b, c) in zip(depth, x, strict=True)]
    path = tmp_path / "counts.csv"
    path.write_text("\n".join(["depth,a,b", *rows]))
    config = tiny(
        tmp_path / "run",
        dataset=f"csv:{path}",
        columns=("depth:context", "a:poisson", "b:negative_binomial"),
        condition="context",
        size_factor="depth",
        batch_size=8,
    )
    run = fit.claim(config)
    log_depth = np.log(run.data.source.contexts["train"][:, 0])
    c = run.data.prepared.train[:, 2]
    np.testing.assert_allclose(c, log_depth - log_depth.mean(), atol=1e-5)
    assert "with the size factor depth" in protocol.opening(run.config, run.data)
    checkpoints.save(run.workdir / rundir.CHECKPOINTS, 0, runs.initial(run))
    trained = loaded(run.workdir)
    assert trained.at_context is not None
    # A decoder whose weights are zero gives each column's own law, times the size.
    params = jax.tree.map(jnp.zeros_like, trained.params)
    one, three = (
        trained.at_context(jnp.array([log_size])).generative
        for log_size in (0.0, np.log(3.0))
    )
    z = jnp.zeros(config.num_latents)
    means = run.data.prepared.train[:, :2].mean(axis=0)
    np.testing.assert_allclose(one.mean_observation(params, z), means, rtol=1e-5)
    np.testing.assert_allclose(three.mean_observation(params, z), 3 * means, rtol=1e-5)
    terms = three.log_likelihood_terms(params, jnp.array([4.0, 50.0]), z)
    expected = [
        stats.poisson.logpmf(4, 3 * means[0]),
        stats.nbinom.logpmf(50, 1, 1 / (1 + 3 * means[1])),
    ]
    np.testing.assert_allclose(terms, expected, rtol=1e-4)
    np.testing.assert_allclose(
        jnp.mean(
            jax.vmap(lambda key: three.sample_observation(key, params, z))(
                jax.random.split(jax.random.key(0), 4000)
            ),
            axis=0,
        ),
        3 * means,
        rtol=0.1,
    )


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({}, "--size_factor=depth is an entry of --condition=context"),
        (
            {"condition": "context", "likelihood": "bernoulli"},
            "multiplies means of counts, which --likelihood=bernoulli does not have",
        ),
    ],
)
def test_a_size_factor_of_nothing_counted_is_refused(flags, message):
    with pytest.raises(ValueError, match=message):
        Config(size_factor="depth", **flags)


def test_a_size_factor_is_a_positive_entry_of_the_context():
    digits = sources.load("digits")
    sizes = {s: np.ones((len(getattr(digits, s)), 1)) for s in sources.SPLITS}
    sizes["train"][0] = 2.0
    source = digits._replace(contexts=sizes, context_names=("depth",))
    assert contexts.of_numbers(source, size_factor="depth").names == ("depth",)
    with pytest.raises(ValueError, match="--size_factor=size is none of the contexts"):
        contexts.of_numbers(source, size_factor="size")
    sizes["test"][3] = 0.0
    with pytest.raises(ValueError, match="the test split of digits has a size of 0"):
        contexts.of_numbers(source, size_factor="depth")


@pytest.mark.slow
@pytest.mark.parametrize("network", NETWORKS)
def test_both_networks_of_every_kind_read_a_context(network):
    sized_by_width = "width" in NETWORKS[network].flags
    size: dict[str, Any] = {"width": 4} if sized_by_width else {"hidden": (5,)}
    config = Config(network=network, num_latents=3, **size)
    parts = models.build(config, (8, 8), context=("a", "b"))
    params = laws.jiggled(jax.jit(parts.model.init)(jax.random.key(0)))
    x, contexts = jnp.ones(64), jnp.eye(2)
    first, second = (
        parts.model.recognition.encode(params, jnp.concatenate([x, c]))
        for c in contexts
    )
    assert not np.allclose(first, second)
    assert parts.at_context is not None
    first, second = (
        parts.at_context(c).generative.mean_observation(params, jnp.zeros(3))
        for c in contexts
    )
    assert first.shape == (8, 8)
    assert not np.allclose(first, second)
