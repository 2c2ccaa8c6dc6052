import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests import grids, laws
from vae_jax import codes, finite_scalar, likelihoods, networks, vae
from vae_jax.estimators import sgvb
from vae_jax.types import Network, log_joint, log_weight

LEVELS = grids.LEVELS
GRID = finite_scalar.grid(LEVELS)


def _model(prior, *, levels=LEVELS, x_shape=(6,)):
    decoder = networks.mlp(len(levels), (5,), x_shape[0])
    encoder = networks.mlp(x_shape[0], (5,), len(levels))
    observed, density = likelihoods.bernoulli(x_shape), finite_scalar.posterior(levels)
    return vae.model(
        vae.decoder_model(decoder, prior, observed), vae.encoder_model(encoder, density)
    )


def _made(levels=LEVELS, hidden=(7,)):
    return networks.made(len(levels), hidden, outputs_per_input=max(levels))


@pytest.mark.slow
def test_priors_sum_to_one_and_an_autoregressive_one_starts_uniform(x64):
    every = grids.values(grids.codes())
    uniform = codes.uniform_prior(GRID)
    network = networks.from_zero(_made())
    start = codes.autoregressive_prior(GRID, network)
    learned = codes.autoregressive_prior(GRID, _made())
    h, key = jnp.zeros(0), jax.random.key(1)
    for prior, is_uniform in ((uniform, True), (start, True), (learned, False)):
        params = prior.init(jax.random.clone(key))
        params = laws.jiggled(params) if prior is learned else params
        log_p = jax.vmap(lambda z, of=prior, p=params: of.log_prob(p, h, z))(every)
        np.testing.assert_allclose(jnp.exp(log_p).sum(), 1.0, rtol=1e-12)
        assert np.allclose(log_p, -np.log(120.0)) == is_uniform


@pytest.mark.slow
def test_draws_of_priors_are_as_frequent_as_their_densities_say(x64):
    every, h = grids.values(grids.codes()), jnp.zeros(0)
    for prior in (
        codes.uniform_prior(GRID),
        codes.autoregressive_prior(GRID, _made()),
    ):
        params = jax.tree.map(lambda leaf: 3.0 * leaf, prior.init(jax.random.key(3)))
        p = np.exp(jax.vmap(lambda z, of=prior, w=params: of.log_prob(w, h, z))(every))
        keys = jax.random.split(jax.random.key(4), 40_000)
        z = jax.vmap(lambda key, of=prior, w=params: of.sample(key, w, h))(keys)
        k = grids.symbols(z)
        which = np.ravel_multi_index(tuple(k.T), LEVELS)
        counts = np.bincount(which, minlength=len(p))
        chi_squared = ((counts - 40_000 * p) ** 2 / (40_000 * p)).sum()
        assert abs(chi_squared - 119.0) < 5.0 * np.sqrt(2.0 * 119.0)


@pytest.mark.slow
def test_the_bound_is_below_log_p_by_enumeration_and_at_it_where_one_code_explains_x(
    x64,
):
    """x is the code itself, bit by bit, said with ever more certainty."""
    levels, x_shape = (2, 2, 2), (3,)
    network = networks.made(3, (7,), outputs_per_input=2)
    prior = codes.autoregressive_prior(finite_scalar.grid(levels), network)
    signs = Network(lambda key: jnp.ones(()), lambda scale, z: scale * z)
    read = Network(lambda key: (), lambda params, x: 3.0 * (2.0 * x - 1.0))
    observed, q = likelihoods.bernoulli(x_shape), finite_scalar.posterior(levels)
    model = vae.model(
        vae.decoder_model(signs, prior, observed), vae.encoder_model(read, q)
    )
    params = model.init(jax.random.key(0))
    every = grids.values(grids.codes(levels), levels)
    x, key = jnp.array([1.0, 0.0, 1.0]), jax.random.key(1)
    gaps = []
    for scale in (1.0, 4.0, 40.0):
        theta = params.generative | {"decoder": jnp.array(scale)}
        at = params._replace(generative=theta)
        each = jax.vmap(lambda z, at=at: log_joint(model.generative, at, x, z))(every)
        h = model.recognition.encode(at, x)
        bound = log_weight(model.draw(jax.random.clone(key), at, x, h))
        elbo = sgvb.sgvb_a(model, num_samples=1)(jax.random.clone(key), at, x)
        np.testing.assert_allclose(elbo, bound, rtol=1e-12)
        gaps.append(jax.nn.logsumexp(each) - bound)
    assert gaps[0] > gaps[1] > gaps[2] > -1e-12
    np.testing.assert_allclose(gaps[2], 0.0, atol=1e-12)


@pytest.mark.slow
def test_the_prior_sends_no_gradient_to_the_encoder_and_the_decoder_does(x64):
    network = _made()
    prior = codes.autoregressive_prior(GRID, network)
    model, x = _model(prior), jnp.array([1.0, 0.0, 1.0, 1.0, 0.0, 0.0])
    params = laws.jiggled(model.init(jax.random.key(0)))

    def of_prior(params):
        h = model.recognition.encode(params, x)
        return model.draw(jax.random.key(1), params, x, h).log_prior

    slope = jax.grad(of_prior)(params)
    assert all((leaf == 0.0).all() for leaf in jax.tree.leaves(slope.recognition))
    of_network = jax.tree.leaves(slope.generative["prior"])
    assert any((leaf != 0.0).any() for leaf in of_network)
    elbo = sgvb.sgvb_a(model, num_samples=1)
    slope = jax.grad(lambda params: elbo(jax.random.key(1), params, x))(params)
    assert all((leaf != 0.0).any() for leaf in jax.tree.leaves(slope.recognition))


def test_perplexity_counts_the_symbols_in_use():
    k = np.array([[0, 0], [1, 0], [0, 0], [1, 0]])
    np.testing.assert_allclose(codes.perplexity(k), [2.0, 1.0])


def test_a_network_of_another_width_is_refused():
    network = networks.made(4, (3,), outputs_per_input=4)
    prior = codes.autoregressive_prior(GRID, network)
    with pytest.raises(ValueError, match=r"gives \[20\] numbers, got \(16,\)"):
        prior.log_prob(prior.init(jax.random.key(0)), jnp.zeros(0), jnp.zeros(4))
