"""The code of a model is minus log2 of p(x, z) / q(z | x) at the z that it takes."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from tests import ladders, laws, problems
from tests.stacks import compressed, pushed_at_once, start
from vae_jax import (
    codes,
    counts,
    discretized,
    finite_scalar,
    flows,
    layer_forms,
    likelihoods,
    networks,
    posteriors,
    priors,
    vae,
    vector_quantized,
)
from vae_jax.coding import bits_back, models, rans, tables
from vae_jax.types import log_joint

SLOW = pytest.mark.slow


def _build(model, params, x_shape, num_values=2, *, counts=False):
    return functools.partial(
        models.coder,
        model,
        params,
        x_shape=x_shape,
        values=np.linspace(0.0, num_values - 1.0 if counts else 1.0, num_values),
        has_more_values=counts,
    )


def _vae(likelihood, x_shape, prior=None, posterior=None):
    prior = prior or priors.standard_normal(3)
    posterior = posterior or posteriors.diag_normal(3)
    observed = likelihood(x_shape)
    decoder = networks.mlp(3, (6,), observed.width)
    encoder = networks.mlp(int(np.prod(x_shape)), (6,), posterior.width)
    return vae.model(
        vae.decoder_model(decoder, prior, observed),
        vae.encoder_model(encoder, posterior),
    )


def _flow():
    layers = [
        flows.affine_coupling(networks.mlp(size, (4,), 6 - 2 * size), 3, flip=flip)
        for size, flip in ((1, False), (1, True))
    ]
    return posteriors.flow(priors.standard_normal(3), flows.chain(*layers))


def _logistics(x_shape):
    return discretized.logistic_mixture(x_shape, num_values=4, num_components=2)


def _one(likelihood=likelihoods.bernoulli, x_shape=(2, 3), **densities):
    return _vae(likelihood, x_shape, **densities), x_shape, (3,)


def _ladder(form):
    return ladders.normals(form), (2, 3), (3, 2, 1)


MODELS = {  # and the shape of x, the sizes of its layers from x upward
    "one layer": _one,
    "full covariance": lambda: _one(posterior=posteriors.full_normal(3)),
    "flow prior": lambda: _one(prior=_flow()),
    "shades": lambda: _one(_logistics),
    "counts": lambda: _one(counts.poisson),
    "colors": lambda: _one(_logistics, (2, 2, 3)),
    "residual layers": lambda: _ladder(layer_forms.residual_normal()),
    "plain layers": lambda: _ladder(layer_forms.plain_normal()),
    "layers of maps": lambda: (ladders.maps(), (2, 3), (12, 2)),
}


@pytest.mark.slow
@pytest.mark.parametrize(
    "name",
    [
        name if name == "residual layers" else pytest.param(name, marks=SLOW)
        for name in MODELS
    ],
)
def test_rows_of_real_latents_cost_minus_their_bound_at_the_z_they_take(name):
    model, x_shape, sizes = MODELS[name]()
    start_at = laws.jiggled(jax.jit(model.init)(jax.random.key(0)))
    params = jax.tree.map(lambda leaf: 0.4 * leaf, start_at)  # q is not far from p
    num_values = 4 if name in ("shades", "colors", "counts") else 2
    lanes, of_counts = 50, name == "counts"
    build = _build(model, params, x_shape, num_values, counts=of_counts)
    codec = build(num_lanes=lanes)
    rows = np.random.default_rng(0).integers(0, num_values, (lanes, np.prod(x_shape)))
    paid, bits = pushed_at_once(codec, rows)
    assert abs(paid - bits.sum()) < 64

    stack, _ = codec.push(start(lanes=lanes), rows)  # z lies on the top
    ends = np.cumsum(sizes)
    groups = [slice(e - n, e) for e, n in zip(ends, sizes, strict=True)][::-1]
    noise = tables.in_turn(
        lanes,
        groups,
        lambda i, _: tables.uniform(lanes, sizes[::-1][i], num_bits=12),
    ).pop(stack)[1]
    eps = jnp.asarray(tables.centers(2**12)[noise], jnp.float32)
    unit = 1 if of_counts else num_values - 1
    x = jnp.asarray(rows / unit, jnp.float32).reshape(-1, *x_shape)
    transport = model.generative.transport

    @jax.jit
    @functools.partial(jax.vmap, in_axes=(0, 0))
    def log_weights(eps, x):
        z, h = transport.forward(params, eps), model.recognition.encode(params, x)
        log_p = log_joint(model.generative, params, x, z)
        return log_p - model.recognition.log_prob(params, h, z)

    exact = -np.asarray(log_weights(eps, x)) / np.log(2.0)
    if name == "flow prior":
        exact = _of_linear_q(model, params, eps, x)
    narrow = (np.abs(eps) < 3.0).all(axis=1)  # the last bins have no width
    assert narrow.mean() > 0.3
    np.testing.assert_allclose(bits[narrow], exact[narrow], atol=0.02)


def _of_linear_q(model, params, eps, x):
    """With q of the noise the normal of the inverse that is linear around q's mean."""
    inverse = functools.partial(model.generative.transport.inverse, params)

    @jax.jit
    @jax.vmap
    def parts(eps, x):
        h = model.recognition.encode(params, x)
        mean, std = model.recognition.moments(params, h)
        z = model.generative.transport.forward(params, eps)
        terms = model.generative.log_likelihood_terms(params, x, z).sum()
        return terms, inverse(mean), jax.jacrev(inverse)(mean) * std[None]

    bits = []
    for e, terms, mean, factor in zip(
        np.asarray(eps), *map(np.asarray, parts(eps, x)), strict=True
    ):
        factor = factor.astype(float)
        log_q = stats.multivariate_normal(mean, factor @ factor.T).logpdf(e)
        bits.append(log_q - stats.norm.logpdf(e).sum() - terms)
    return np.array(bits) / np.log(2.0)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["a layer", pytest.param("a ladder", marks=SLOW)])
def test_rows_of_bits_cost_minus_their_bound_at_a_z_of_the_table(name):
    problem = problems.binary_model() if name == "a layer" else ladders.bits_problem()
    x = np.random.default_rng(0).integers(0, 2, (100, 5))
    model = problem.model if name == "a layer" else ladders.bits()
    paid, bits = pushed_at_once(_build(model, problem.params, (5,))(num_lanes=100), x)
    assert abs(paid - bits.sum()) < 64
    of_rows = jax.jit(jax.vmap(problem.table, in_axes=(None, 0)))
    _, q, joint = of_rows(problem.params, jnp.asarray(x, jnp.float32))
    of_each = np.log2(np.asarray(q, float) / np.asarray(joint, float))
    assert np.abs(of_each - bits[:, None]).min(axis=1).max() < 1e-4
    error = (bits - (q * of_each).sum(axis=1)).std() / 10.0
    assert abs((bits - (q * of_each).sum(axis=1)).mean()) < 5.0 * error


@pytest.mark.slow
@pytest.mark.parametrize("name", ["mixture", "vamp", "ladder"])
def test_below_a_mixture_rows_cost_minus_the_bound(name):
    model, x_shape = _vae(likelihoods.bernoulli, (2, 3)), (2, 3)
    mixture = priors.normal_mixture(3, num_components=3)
    if name == "mixture":
        model = _vae(likelihoods.bernoulli, x_shape, prior=mixture)
    elif name == "vamp":
        encoder, density = networks.mlp(6, (6,), 6), posteriors.diag_normal(3)
        decoder = networks.mlp(3, (6,), 6)
        observed = likelihoods.bernoulli(x_shape)
        joint = vae.with_vamp_prior(
            vae.decoder_model(decoder, priors.standard_normal(3), observed),
            encoder,
            density,
            num_components=4,
            x_shape=x_shape,
        )
        model = vae.model(joint, vae.encoder_model(encoder, density))
    else:
        form = layer_forms.merged_normal()
        model = ladders.normals(
            form, sizes=(2, 3), posterior=posteriors.diag_normal(3), prior=mixture
        )
    params = laws.jiggled(jax.jit(model.init)(jax.random.key(0)))
    rows = np.random.default_rng(0).integers(0, 2, (300, 6))
    paid, bits = pushed_at_once(_build(model, params, x_shape)(num_lanes=300), rows)
    assert abs(paid - bits.sum()) < 64

    def weight(key, row):
        h = model.recognition.encode(params, row)
        draw = model.draw(key, params, row, h)
        log_p = draw.log_prior + draw.log_likelihood.sum()
        return (draw.log_posterior - log_p) / jnp.log(2.0)

    x = jnp.asarray(rows, jnp.float32).reshape(-1, *x_shape)
    keys = jax.random.split(jax.random.key(1), (100, len(x)))
    sampled = np.asarray(jax.jit(jax.vmap(jax.vmap(weight), (0, None)))(keys, x))
    excess = bits - sampled.mean(axis=0)
    assert abs(excess.mean()) < 5.0 * excess.std() / np.sqrt(len(x))


def _rows_of_codebooks():
    """Two levels at two places."""
    values = vector_quantized.rows(2, num_rows=5, width=2, num_levels=2)
    q = vector_quantized.posterior(2, num_rows=5, width=2, num_levels=2)
    net = networks.made(4, (7,), outputs_per_input=5, width=2)
    return codes.autoregressive_prior(values, net), q


def _grid():
    net = networks.made(3, (7,), outputs_per_input=5)
    prior = codes.autoregressive_prior(finite_scalar.grid(LEVELS), net)
    return prior, finite_scalar.posterior(LEVELS)


LEVELS = (2, 3, 5)
POINT_MASSES = {
    "rows of codebooks": _rows_of_codebooks,
    "grid": _grid,
    "uniform grid": lambda: (
        codes.uniform_prior(finite_scalar.grid(LEVELS)),
        finite_scalar.posterior(LEVELS),
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize(
    "name",
    [n if n == "grid" else pytest.param(n, marks=SLOW) for n in POINT_MASSES],
)
def test_rows_of_codes_cost_minus_their_bound_and_come_back(name):
    prior, q = POINT_MASSES[name]()
    read = vector_quantized.read if name == "rows of codebooks" else None
    decoder = networks.mlp(prior.shape[0], (6,), 6)
    encoder, observed = networks.mlp(6, (6,), q.width), likelihoods.bernoulli((2, 3))
    model = vae.model(
        vae.decoder_model(decoder, prior, observed),
        vae.encoder_model(encoder, q, read=read),
    )
    params = laws.jiggled(jax.jit(model.init)(jax.random.key(0)))
    codec = _build(model, params, (2, 3))(num_lanes=40)
    rows = np.random.default_rng(0).integers(0, 2, (300, 6))
    paid, bits = compressed(codec, rows)

    @jax.jit
    @jax.vmap
    def bound(x):
        h = model.recognition.encode(params, x)
        z = model.recognition.sample(jax.random.key(1), params, h)
        return log_joint(model.generative, params, x, z)

    x = jnp.asarray(rows, jnp.float32).reshape(-1, 2, 3)
    exact = -np.asarray(bound(x)) / np.log(2.0)
    np.testing.assert_allclose(bits, exact, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(paid, exact.sum(), rtol=0.005)


@pytest.mark.slow
def test_a_latent_that_the_prior_has_no_place_for_comes_back():
    model = _vae(likelihoods.bernoulli, (4,))
    params = model.init(jax.random.key(0))
    encoder = jax.tree.map(lambda leaf: 200.0 * leaf, params.recognition)
    params = params._replace(recognition=encoder)  # means far beyond the last bin
    rows = np.random.default_rng(0).integers(0, 2, (45, 4))
    _, bits = compressed(_build(model, params, (4,))(num_lanes=40), rows)
    assert np.isfinite(bits).all()


@pytest.mark.slow
def test_a_stack_without_bits_to_take_z_from_is_an_error():
    model = _vae(likelihoods.bernoulli, (4,))
    params = model.init(jax.random.key(0))
    words = np.random.default_rng(0).integers(0, 2**32, 2, dtype=np.uint32)
    with pytest.raises(rans.Exhausted):
        bits_back.encode(
            _build(model, params, (4,))(num_lanes=1),
            rans.start(words, num_lanes=1),
            np.ones((9, 4), int),
        )


def _summed(axis):
    """Terms of a pixel's channels, or of all entries, in one."""

    def build(x_shape):
        bits = likelihoods.bernoulli(x_shape)
        return likelihoods.likelihood(
            x_shape,
            width=bits.width,
            sample=bits.sample,
            mean=bits.mean,
            log_prob_terms=lambda *at: bits.log_prob_terms(*at).sum(axis=axis),
            quantity=bits.quantity,
        )

    return build


X_SHAPE = (4, 3)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("build", "said"),
    [
        (lambda: _vae(likelihoods.normal_learned_std, X_SHAPE), "density on real x"),
        (lambda: _vae(counts.poisson, X_SHAPE), "gives an entry's values a mass"),
        (lambda: _vae(_summed(-1), X_SHAPE), "mass of nan, not 1"),
        (lambda: _vae(_summed(None), X_SHAPE), "depend on each other given z"),
        (
            lambda: _vae(
                likelihoods.bernoulli,
                X_SHAPE,
                posterior=posteriors.flow(posteriors.diag_normal(3), flows.planar(3)),
            ),
            "q of family flow with a prior of family standard_normal has no code",
        ),
        (
            lambda: _vae(
                likelihoods.bernoulli,
                X_SHAPE,
                prior=priors.normal_mixture(3, num_components=2),
                posterior=posteriors.full_normal(3),
            ),
            "normal_mixture has no code",
        ),
        (
            lambda: _vae(
                likelihoods.bernoulli,
                X_SHAPE,
                posterior=finite_scalar.posterior(LEVELS),
            ),
            "finite_scalar or vector_quantized with a prior of codes",
        ),
    ],
    ids=[
        "density",
        "counts without the rest",
        "pixels",
        "rows",
        "flow",
        "mixture",
        "codes",
    ],
)
def test_a_model_without_a_code_is_refused_when_it_is_built(build, said):
    model = build()
    params = model.init(jax.random.key(0))
    with pytest.raises(ValueError, match=said):
        _build(model, params, X_SHAPE)(num_lanes=2)
