"""What M2 is a model of, rows or the codes of an M1, and its networks."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array

from experiments.command import cli
from experiments.measures import measure
from experiments.runs import trained_runs
from experiments.runs.trained_runs import Trained
from experiments.semi_supervised.config import Config
from vae_jax import (
    conditional,
    convolutional,
    likelihoods,
    networks,
    posteriors,
    priors,
)
from vae_jax.data import batches
from vae_jax.estimators import semi_supervised
from vae_jax.types import Batch, Likelihood, Network, PRNGKey


class Space(NamedTuple):
    """What M2 is a model of.

    Attributes:
        train: the training rows, as stored.
        test: the test rows, as a classifier sees them.
        take: key, stored rows, index -> a batch of x.
        likelihood: of x.
    """

    train: Array
    test: Array
    take: batches.Take
    likelihood: Likelihood


class Nets(NamedTuple):
    """M2 of rows of one shape.

    Attributes:
        at: one-hot class -> the model given it.
        classifier: x -> logits of the classes.
        num_classes: of the data.
    """

    at: conditional.ConditionalModel
    classifier: Network
    num_classes: int


def of_pixels(m1: Trained) -> Space:
    """The rows themselves, of bits."""
    prepared = m1.data.prepared
    return Space(
        jnp.asarray(prepared.train),
        prepared.value(trained_runs.spread_rows(m1, split="test")),
        prepared.take,
        likelihoods.bernoulli(m1.data.x_shape),
    )


def of_codes(m1: Trained) -> Space:
    """Codes of M1, drawn anew whenever a row is taken; a classifier sees their means.

    Stored are mean and standard deviation of each row's q, one behind the other.
    """
    (train, std), (test, _) = (
        measure.of_rows(
            jax.random.key(0),
            m1,
            measure.moments(m1.model),
            trained_runs.spread_rows(m1, split=split),
            num_decoded=1,
        )
        for split in ("train", "test")
    )

    def take(key: PRNGKey, rows: Array, index: Array) -> Batch:
        mean, std = jnp.split(rows[index], 2, axis=1)
        x = mean + std * jax.random.normal(key, mean.shape)
        return Batch(x, index, jnp.ones(index.shape))

    stored = jnp.concatenate([jnp.asarray(train), jnp.asarray(std)], axis=1)
    observed = likelihoods.normal_per_pixel_std(test.shape[1:])
    return Space(stored, jnp.asarray(test), take, observed)


SPACES = {"M2": of_pixels, "M1+M2": of_codes}


def nets(config: Config, space: Space, num_classes: int, *, classifier: str) -> Nets:
    """The networks of the flags, between a space and normal latents.

    Raises:
        UsageError: for convolutions of rows that are no images.
    """
    size, units, observed = space.test[0].size, config.hidden, space.likelihood
    q = posteriors.diag_normal(config.num_latents)
    at = conditional.model(
        networks.mlp(size + num_classes, units, q.width),
        networks.mlp(config.num_latents + num_classes, units[::-1], observed.width),
        posterior=q,
        prior=priors.standard_normal(config.num_latents),
        likelihood=observed,
    )
    of_class = networks.mlp(size, units, num_classes)
    if classifier == "conv":
        with cli.user_errors():
            of_class = convolutional.encoder(
                space.test.shape[1:],
                num_classes,
                width=config.width,
                num_blocks=1,
                residual=False,
            )
    return Nets(semi_supervised.with_classifier(at, of_class), of_class, num_classes)
