"""Few labels: what is drawn, what is trained, what is more."""

import dataclasses
import json
import shutil
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.command import cli
from experiments.semi_supervised import command, labels, spaces
from experiments.semi_supervised.config import digest
from tests.tiny import saved, tiny
from vae_jax import likelihoods
from vae_jax.data import batches


def _config(path, **flags):
    return command.Config(workdir=str(path), **flags)


@pytest.mark.slow
@pytest.mark.uses_optax
def test_every_method_is_judged_on_the_same_draws_of_the_labels(tmp_path, capsys):
    config = _config(
        tmp_path,
        num_labels=40,
        num_draws=2,
        num_latents=5,
        hidden=(30,),
        num_epochs=40,
        alpha=3.0,
        classifier="conv",
        width=8,
        schedule="cosine",
    )
    assert command.main(config) == 0
    said = capsys.readouterr().out
    assert said.endswith("semi_supervised.json, .txt, .png\n")
    result = json.loads((tmp_path / "semi_supervised.json").read_text())
    assert len(result["errors"]) == 6
    for each in map(np.array, result["errors"].values()):
        assert each.shape == (2,)
        assert ((each > 0.0) & (each < 0.8)).all()  # chance is 0.9
        assert f"{100.0 * each.mean():.2f}" in said
    assert (tmp_path / "semi_supervised.png").stat().st_size > 0
    places = sorted((tmp_path / "draws").glob("*/M1+M2/1"))
    shutil.rmtree(places[0])
    stamp = (places[0].parent / "0").stat().st_mtime_ns
    assert command.main(config) == 0
    again = json.loads((tmp_path / "semi_supervised.json").read_text())
    assert again == result
    assert (places[0].parent / "0").stat().st_mtime_ns == stamp
    loaded = dataclasses.replace(
        config,
        workdir=str(tmp_path / "loaded"),
        m1=str(tmp_path / "m1"),
        methods=("M1+M2",),
        classifier="mlp",
        width=16,
    )
    assert command.main(loaded) == 0
    other = json.loads((tmp_path / "loaded" / "semi_supervised.json").read_text())
    assert other["errors"] == {k: v for k, v in result["errors"].items() if k != "M2"}


def test_labels_are_as_many_of_each_class_and_others_at_each_seed():
    classes = np.repeat(np.arange(3), (5, 9, 7))
    rows = labels.labeled_rows(classes, 12, seed=0)
    assert len(set(rows)) == 12
    np.testing.assert_array_equal(np.bincount(classes[rows]), 4)
    again = labels.labeled_rows(classes, 12, seed=0)
    np.testing.assert_array_equal(rows, again)
    assert set(rows) != set(labels.labeled_rows(classes, 12, seed=1))
    some = np.where(np.arange(21) % 2 == 0, classes, -1)
    assert (some[labels.labeled_rows(some, 6, seed=0)] >= 0).all()
    assert len(labels.labeled_rows(some, 0, seed=0)) == 11
    for number in (10, 18):
        with pytest.raises(cli.UsageError, match=f"--num_labels={number} must be a"):
            labels.labeled_rows(classes, number, seed=0)


def test_an_epoch_has_every_row_without_a_label_once_and_labeled_ones_at_each_step():
    config = command.Config(batch_size=4, labels_per_step=2)
    classes = np.arange(11) % 3
    of_draw = labels.labels_of(config, classes, np.array([2, 4, 6]))
    np.testing.assert_array_equal(of_draw.seen[[2, 4, 6]], classes[[2, 4, 6]])
    order = of_draw.order(np.random.default_rng(0))
    assert order.shape == (2, 6)
    assert of_draw.weight * 2 * 2 == 3.0
    plain, labeled = np.split(order, [4], axis=1)
    assert set(plain.ravel()) == set(range(11)) - {2, 4, 6}
    assert all(len(set(step)) == 2 and set(step) <= {2, 4, 6} for step in labeled)


def test_what_other_labels_trained_is_not_read_again():
    flags, few = command.Config(num_labels=0), np.array([0, 1, -1])
    first = digest(flags, few, 7)
    more = dataclasses.replace(flags, num_draws=3, workdir="elsewhere")
    assert digest(more, few, 7) == first
    for labels_now, step in ((np.array([0, 1, 1]), 7), (few, 8)):
        assert digest(flags, labels_now, step) != first


def test_a_data_set_without_labels_is_refused(tmp_path):
    np.savez(tmp_path / "own.npz", train=np.zeros((40, 4), np.uint8))
    config = _config(tmp_path / "run", dataset=f"npz:{tmp_path / 'own.npz'}")
    with pytest.raises(cli.UsageError, match="has no labels in its train split"):
        command.main(config)
    labels: dict[str, Any] = {"train_labels": np.arange(40) % 2}
    np.savez(tmp_path / "own.npz", train=np.zeros((40, 4), np.uint8), **labels)
    with pytest.raises(cli.UsageError, match="has no labels in its test split"):
        command.main(dataclasses.replace(config, workdir=str(tmp_path / "b")))


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({"classifier": "conv", "methods": ("M1+M2",)}, "M1\\+M2's q.* is of codes"),
        ({"width": 4}, "--width=4 means nothing with --classifier=mlp"),
    ],
)
def test_a_classifier_that_nothing_has_is_refused(flags, message):
    with pytest.raises(ValueError, match=message):
        command.Config(**flags)


@pytest.mark.slow
def test_convolutions_classify_images_and_refuse_rows(tmp_path):
    config = _config(tmp_path, classifier="conv", width=2, num_latents=3, hidden=(5,))
    images = spaces.Space(*_of_ones(8, 8), likelihoods.bernoulli((8, 8)))
    nets = spaces.nets(config, images, 10, classifier="conv")
    params = nets.at(jnp.zeros(10)).init(jax.random.key(0))
    weights = params.recognition["classifier"]
    assert weights["down_0"]["kernel"].shape[-1] == 2
    assert nets.classifier.apply(weights, images.test[0]).shape == (10,)
    rows = spaces.Space(*_of_ones(12), likelihoods.bernoulli((12,)))
    with pytest.raises(cli.UsageError, match="image"):
        spaces.nets(config, rows, 10, classifier="conv")


def _of_ones(*shape):
    return jnp.ones((4, *shape)), jnp.ones((2, *shape)), batches.take()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({"missing": "nan"}, "M2 is of rows without holes"),
        ({"condition": "labels"}, "--condition=labels, and M1 is given no label"),
        (
            {"posterior": "iaf", "estimator": "sgvb_a"},
            "does not know its mean and standard deviation",
        ),
    ],
)
def test_what_is_no_m1_is_refused(tmp_path, flags, message):
    m1 = saved(tiny(tmp_path / "m1", binarization="dynamic", **flags))
    with pytest.raises(cli.UsageError, match=message):
        command.main(_config(tmp_path / "run", m1=str(m1)))


def test_tables_are_refused(tmp_path):
    config = _config(tmp_path / "run", dataset="csv:own.csv")
    with pytest.raises(cli.UsageError, match=r"csv:own\.csv is a table, and M2 is of"):
        command.main(config)


@pytest.mark.slow
@pytest.mark.uses_optax
def test_own_rows_may_have_few_labels_of_any_numbers(tmp_path, capsys):
    """Two kinds of rows, labeled 3 and 7, of which four labels are there."""
    kind = np.arange(120) % 2
    bits = np.random.default_rng(0).random((120, 12)) < 0.1
    x = (bits ^ (kind[:, None] == np.arange(12) // 6)).astype(np.uint8)
    every = np.where(kind == 1, 7, 3)
    few = np.where(np.arange(100) < 4, every[:100], -1)
    arrays: dict[str, Any] = {"train": x[:100], "train_labels": few, "test": x[100:]}
    path = tmp_path / "own.npz"
    np.savez(path, test_labels=every[100:], **arrays)
    config = _config(
        tmp_path / "run",
        dataset=f"npz:{path}",
        num_labels=0,
        num_latents=2,
        hidden=(10,),
        num_epochs=30,
        batch_size=10,
    )
    assert command.main(config) == 0
    result = json.loads((tmp_path / "run" / "semi_supervised.json").read_text())
    assert [len(each) for each in result["errors"].values()] == [1] * 6
    assert result["errors"]["M2"][0] < 0.2
    more: dict[str, Any] = arrays | {"train_labels": every[:100]}
    np.savez(path, test_labels=every[100:], **more)
    other = dataclasses.replace(config, workdir=str(tmp_path / "all"))
    with pytest.raises(cli.UsageError, match="every training row has its label"):
        command.main(other)
    np.savez(path, test_labels=every[100:] + 1, **arrays)
    other = dataclasses.replace(config, workdir=str(tmp_path / "other"))
    with pytest.raises(cli.UsageError, match="every test row of one of them"):
        command.main(other)
