"""A model of every builder of one and of its halves: a row each."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from tests import ladders, problems
from vae_jax import (
    conditional,
    divergences,
    exemplars,
    factors,
    flows,
    ladder,
    ladder_of_maps,
    layer_forms,
    likelihoods,
    networks,
    posteriors,
    power_spherical,
    priors,
    types,
    vae,
)
from vae_jax.estimators import enumerated, relax, uha
from vae_jax.evaluation import laplace
from vae_jax.factors import Factor
from vae_jax.inference import full_vb, mcem, variational_em
from vae_jax.latent_models import gmm, ppca, sigmoid_belief
from vae_jax.types import Family, Generative, Model, Recognition

NAN = float("nan")
IMAGE = [[1.0, 0.0, 1.0], [0.0, 1.0, 1.0]]
HOLES = [[1.0, NAN, 1.0], [NAN, NAN, 0.0]]
BITS = [1.0, 0.0, 1.0, 1.0, 0.0]
PAIR = [0.4, -1.0]
START = networks.normal(std=0.6)


class Row(NamedTuple):
    """A model, the builders that it shows, and the groups of its KL."""

    name: str
    builders: set[Callable]
    make: Callable[[], Model]
    x: list
    groups: int | None = None  # None where the KL has no closed form
    layers: int = 1  # groups of a KL that depends on the draw


def _decoder(prior, likelihood=None):
    num_latents = int(np.prod(prior.shape))
    return vae.decoder_model(
        networks.linear(num_latents, 6, initializer=START),
        prior,
        likelihood or likelihoods.bernoulli((2, 3)),
    )


def _pair(posterior, prior):
    """An affine decoder and an affine encoder of images of six entries."""
    encoder = networks.linear(6, posterior.width, initializer=START)
    return vae.model(_decoder(prior), vae.encoder_model(encoder, posterior))


def _with(recognition: Callable[[Generative], Recognition]):
    """A linear-Gaussian model of one latent with another q."""
    generative = problems.linear_gaussian().generative
    return vae.model(generative, recognition(generative))


def _learned_normal(num_latents):
    """A prior that a test makes for itself, of a family with closed forms."""
    density = posteriors.diag_normal(num_latents)
    return types.conditional(
        Family("diag_normal", lambda params, h: tuple(jnp.split(params, 2))),
        (num_latents,),
        width=0,
        init=lambda key: jnp.zeros(2 * num_latents),
        sample=lambda key, params, h: density.sample(key, (), params),
        log_prob=lambda params, h, z: density.log_prob((), params, z),
    )


def own_kl():
    """Two groups of latents, by a KL that is handed in."""
    base = _pair(posteriors.diag_normal(3), priors.standard_normal(3))
    alone = base.recognition._replace(family=Family("own"))

    def kl(params, h):
        mean, log_std = jnp.split(h, 2)
        one = divergences.diag_normal_to_standard_normal
        return jnp.stack([one(mean[:1], log_std[:1]), one(mean[1:], log_std[1:])])

    return vae.model(base.generative, alone, kl=kl)


def _two_layers():
    layout, start = factors.layout({"z1": 2, "z2": 1}), networks.normal(std=0.1)
    up, down = (
        networks.mlp(*sizes, initializer=start)
        for sizes in ((2, (3,), 2), (1, (3,), 4))
    )
    q = [
        Factor("z1", posteriors.diag_normal(2)),
        Factor("z2", posteriors.diag_normal(1), parent="z1", network=up),
    ]
    p = [
        Factor("z2", priors.standard_normal(1)),
        Factor("z1", posteriors.diag_normal(2), parent="z2", network=down),
    ]
    return _pair(factors.joint(layout, q), factors.joint(layout, p))


def _flow():
    net = networks.made(2, (4,), initializer=START)
    layer = flows.inverse_autoregressive(net, 2)
    return _pair(
        posteriors.flow(posteriors.diag_normal(2), layer), priors.standard_normal(2)
    )


def _vamp():
    encoder = networks.linear(6, 4, initializer=START)
    posterior = posteriors.diag_normal(2)
    generative = vae.with_vamp_prior(
        _decoder(priors.standard_normal(2)),
        encoder,
        posterior,
        num_components=3,
        x_shape=(2, 3),
    )
    return vae.model(generative, vae.encoder_model(encoder, posterior))


def _exemplars():
    images = jnp.asarray(np.random.default_rng(0).uniform(size=(3, 2, 3)))
    return exemplars.with_exemplar_prior(_normal_pair(), images, jnp.arange(3))


def _masked():
    return vae.masked(vae.with_reading(_normal_pair(), jnp.tanh), fill=0.5)


def _with_baseline():
    bits = _pair(posteriors.bernoulli(3), priors.bernoulli(3))
    with_control = relax.with_control(bits, networks.linear(9, 1), temperature=0.5)
    with_path = uha.with_path(with_control, num_temperatures=2)
    return vae.with_baseline(with_path, networks.linear(6, 1))


def _belief(sizes):
    return vae.model(
        sigmoid_belief.generative(sizes, (5,), initializer=START),
        sigmoid_belief.recognition(sizes, (5,), initializer=START),
    )


def _enumerated():
    generative = problems.binary_model(num_latents=3).generative
    return vae.model(generative, enumerated.posterior(generative, num_latents=3))


def _normal_pair():
    return _pair(posteriors.diag_normal(2), priors.standard_normal(2))


def _with_context():
    at = conditional.model(
        networks.linear(8, 4, initializer=START),
        networks.linear(4, 6, initializer=START),
        posterior=posteriors.diag_normal(2),
        prior=priors.standard_normal(2),
        likelihood=likelihoods.bernoulli((2, 3)),
    )
    return conditional.of_rows(at, (2, 3), num_context=2)


ROWS = [
    Row("normals", {vae.model, vae.decoder_model}, _normal_pair, IMAGE, 2),
    Row(
        "full and standard normal",
        {vae.encoder_model, vae.recognition},
        lambda: _pair(posteriors.full_normal(2), priors.standard_normal(2)),
        IMAGE,
        1,
    ),
    Row(
        "normal and a learned normal",
        set(),
        lambda: _pair(posteriors.diag_normal(2), _learned_normal(2)),
        IMAGE,
        2,
    ),
    Row(
        "sphere",
        set(),
        lambda: _pair(power_spherical.posterior(3), power_spherical.uniform_prior(3)),
        IMAGE,
        1,
    ),
    Row(
        "rows with a context",
        {conditional.of_rows},
        _with_context,
        [*IMAGE[0], *IMAGE[1], 1.0, -0.5],
        2,
    ),
    Row("KL of one's own", set(), own_kl, IMAGE, 2),
    Row(
        "mixture prior",
        set(),
        lambda: _pair(posteriors.diag_normal(2), priors.normal_mixture(2, 3)),
        IMAGE,
    ),
    Row("flow", set(), _flow, IMAGE),
    Row("two layers", set(), _two_layers, IMAGE),
    Row(
        "bits",
        {vae.with_baseline, vae.with_parameters, relax.with_control, uha.with_path},
        _with_baseline,
        IMAGE,
        3,
    ),
    Row(
        "choices",
        set(),
        lambda: _pair(posteriors.categorical(2, 3), priors.categorical(2, 3)),
        IMAGE,
        2,
    ),
    Row("masked", {vae.masked, vae.with_reading}, _masked, HOLES, 2),
    Row(
        "masked, KL by samples",
        set(),
        lambda: vae.masked(_two_layers()),
        HOLES,
    ),
    Row(
        "at the mean of theta",
        {full_vb.at_mean},
        lambda: full_vb.at_mean(_normal_pair()),
        IMAGE,
        2,
    ),
    Row(
        "at the mean of a learned prior",
        set(),
        lambda: full_vb.at_mean(_pair(posteriors.bernoulli(3), priors.bernoulli(3))),
        IMAGE,
        3,
    ),
    Row("vamp", {vae.with_prior, vae.with_vamp_prior}, _vamp, IMAGE),
    Row("exemplars", set(), lambda: _exemplars().model, IMAGE),
    Row(
        "other exemplars",
        set(),
        lambda: _exemplars().without(jnp.asarray(1)),
        IMAGE,
    ),
    Row(
        "fixed exemplars",
        {exemplars.with_fixed_exemplars},
        lambda: exemplars.with_fixed_exemplars(_normal_pair(), num_exemplars=3),
        IMAGE,
    ),
    Row(
        "mixture of normals",
        {gmm.generative, gmm.recognition},
        lambda: vae.model(gmm.generative(3, 2), gmm.recognition(3)),
        [2.6, 0.4],  # between the three
    ),
    Row(
        "pPCA",
        {ppca.generative, ppca.recognition},
        lambda: vae.model(ppca.generative(2, (2,)), ppca.recognition(2)),
        PAIR,
        1,
    ),
    Row(
        "belief network",
        {sigmoid_belief.generative, sigmoid_belief.recognition},
        lambda: _belief((3, 2)),
        BITS,
    ),
    Row("belief network of one layer", set(), lambda: _belief((3,)), BITS, 3),
    Row(
        "ladder",
        {ladder.mlp},
        lambda: ladders.normals(layer_forms.merged_normal()),
        IMAGE,
        layers=3,
    ),
    Row(
        "ladder, its holes left out",
        {ladder.model, ladder.generative, ladder.recognition},
        lambda: vae.masked(ladders.normals(layer_forms.residual_normal())),
        HOLES,
        layers=3,
    ),
    Row(
        "ladder of maps",
        {ladder_of_maps.images},
        ladders.maps,
        IMAGE,
        layers=2,
    ),
    Row("ladder of bits", set(), ladders.bits, BITS, layers=3),
    Row("enumerated posterior", {enumerated.posterior}, _enumerated, BITS),
    Row(
        "Laplace",
        {laplace.posterior},
        lambda: _with(lambda g: laplace.posterior(g, num_latents=1, num_steps=3)),
        PAIR,
        1,
    ),
    Row(
        "normal fitted to chains",
        {mcem.fitted_normal},
        lambda: _with(
            lambda g: mcem.fitted_normal(
                jax.random.key(4),
                g,
                num_latents=1,
                num_samples=8,
                num_warmup=2,
                num_leapfrog=2,
                num_starts=4,
            )
        ),
        PAIR,
        1,
    ),
    Row(
        "searched q",
        {variational_em.optimized, variational_em.free},
        lambda: _with(
            lambda g: variational_em.optimized(
                jax.random.key(4), g, posteriors.diag_normal(1), num_steps=3
            )
        ),
        PAIR,
        1,
    ),
]
SLOW = {  # kin of a row that stays, or of a file of its own that says what it draws
    "ladder of maps",
    "ladder of bits",
    "KL of one's own",
    "sphere",
    "masked, KL by samples",
    "at the mean of a learned prior",
    "belief network of one layer",
    "Laplace",
    "normal fitted to chains",
    "enumerated posterior",
    "ladder, its holes left out",
    "normal and a learned normal",
    "mixture prior",
    "choices",
    "vamp",
    "at the mean of theta",
    "searched q",
}
