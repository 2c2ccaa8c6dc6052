import itertools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads

from tests import problems, testing
from vae_jax import networks, vae
from vae_jax.estimators import enumerated
from vae_jax.latent_models import sigmoid_belief
from vae_jax.types import Params, log_joint

X = np.array([1.0, 0.0, 1.0, 1.0, 0.0])
KEY = jax.random.key(0)


def _elbo(problem, **keywords):
    """params, x -> nats: without the key that is not used."""
    objective = enumerated.elbo(problem.model, num_latents=4, **keywords)
    return lambda params, x: objective(KEY, params, x)


def _log_evidence(problem, **keywords):
    return enumerated.log_evidence(problem.generative, num_latents=4, **keywords)


def _assert_trees_close(got, expected, **tolerance):
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, **tolerance), got, expected
    )


# Oracle


@pytest.mark.slow
@pytest.mark.parametrize("chunk_size", [5, 4096])
def test_elbo_and_log_p_are_those_of_brute_force_with_their_gradients(x64, chunk_size):
    problem = problems.binary_model()
    for build, exact in ((_elbo, problem.elbo), (_log_evidence, problem.log_p)):
        function = build(problem, chunk_size=chunk_size)
        got, expected = (
            jax.jit(jax.value_and_grad(f))(problem.params, jnp.asarray(X))
            for f in (function, exact)
        )
        _assert_trees_close(got, expected, rtol=1e-9, atol=1e-12)
        _, q, p = problem.table(problem.params, jnp.asarray(X))
        assert float(q.min()) > 0.0
        assert float(p.min()) > 0.0


@pytest.mark.slow
def test_the_gap_between_them_is_the_divergence_from_the_posterior(x64):
    problem, x = problems.binary_model(seed=3), jnp.asarray(X)
    _, q, p = (np.asarray(a) for a in problem.table(problem.params, x))
    divergence = np.sum(q * np.log(q * p.sum() / p))
    gap = jax.jit(
        lambda params: _log_evidence(problem)(params, x) - _elbo(problem)(params, x)
    )(problem.params)
    np.testing.assert_allclose(gap, divergence, rtol=1e-9)
    assert divergence > 1e-3


@pytest.mark.slow
def test_a_layered_posterior_is_summed_over_all_its_layers(x64):
    sizes, x = (2, 1, 1), jnp.asarray(X)
    generative = sigmoid_belief.generative(sizes, (5,))
    recognition = sigmoid_belief.recognition(sizes, (5,))
    params = Params(generative.init(jax.random.key(1)), recognition.init(KEY))
    h = recognition.encode(params, x)

    @jax.jit
    def logs(z):
        log_q = recognition.log_prob(params, h, z)
        return log_q, log_joint(generative, params, x, z)

    elbo, p_x = 0.0, 0.0
    for row in itertools.product((0.0, 1.0), repeat=4):
        log_q, log_p = (float(a) for a in logs(jnp.array(row)))
        elbo += np.exp(log_q) * (log_p - log_q)
        p_x += np.exp(log_p)
    objective = enumerated.elbo(vae.model(generative, recognition), num_latents=4)
    np.testing.assert_allclose(jax.jit(objective)(KEY, params, x), elbo, rtol=1e-9)
    log_p = enumerated.log_evidence(generative, num_latents=4)
    np.testing.assert_allclose(jax.jit(log_p)(params, x), np.log(p_x), rtol=1e-9)


def _layered(sizes):
    """A belief network of five pixels with weights of order one."""
    generative = sigmoid_belief.generative(
        sizes, (5,), initializer=networks.normal(std=1.0)
    )
    return generative, Params(jax.jit(generative.init)(jax.random.key(1)), ())


@pytest.mark.parametrize(("sizes", "chunk_size"), [((4,), 3), ((2, 1, 1), 4096)])
@pytest.mark.slow
def test_the_posterior_is_bayes_rule_and_closes_the_gap(x64, sizes, chunk_size):
    (generative, params), x = _layered(sizes), jnp.asarray(X)
    recognition = enumerated.posterior(generative, num_latents=4, chunk_size=chunk_size)
    assert recognition.init(KEY) == ()
    zs = jnp.asarray(problems.binary_rows(4))

    def log_p(params):
        return enumerated.log_evidence(generative, num_latents=4)(params, x)

    def elbo(params):
        model = vae.model(generative, recognition)
        return enumerated.elbo(model, num_latents=4)(KEY, params, x)

    @jax.jit
    def compute(params):
        h = recognition.encode(params, x)
        log_q = jax.vmap(recognition.log_prob, (None, None, 0))(params, h, zs)
        joint = jax.vmap(lambda z: log_joint(generative, params, x, z))(zs)
        both = [jax.value_and_grad(f)(params) for f in (log_p, elbo)]
        return h, log_q, joint, both

    h, log_q, joint, ((exact, slope), (bound, slope_of_bound)) = compute(params)
    weights = np.exp(np.asarray(joint))
    assert h.shape == (16,)
    np.testing.assert_allclose(np.exp(log_q), weights / weights.sum(), rtol=1e-9)
    np.testing.assert_allclose(np.exp(h).sum(), 1.0, rtol=1e-9)
    np.testing.assert_allclose(bound, exact, rtol=1e-9)
    _assert_trees_close(slope_of_bound, slope, rtol=1e-9, atol=1e-12)


@pytest.mark.slow
def test_the_posterior_samples_by_its_probabilities_in_the_dtype_of_x():
    (generative, params), x = _layered((2, 2)), jnp.asarray(X, jnp.float32)
    recognition = enumerated.posterior(generative, num_latents=4)
    keys = jax.random.split(jax.random.key(1), 20_000)

    @jax.jit
    def draw(keys):
        h = recognition.encode(params, x)
        sample = jax.vmap(recognition.sample, (0, None, None))
        return jnp.exp(h), sample(keys, params, h)

    chances, z = draw(keys)
    assert chances.dtype == z.dtype == jnp.float32
    assert set(np.unique(z)) == {0.0, 1.0}
    row = np.asarray(z) @ 2 ** np.arange(4)
    testing.assert_mean_equals(row[:, None] == np.arange(16), chances)


# Gradient


@pytest.mark.slow
@pytest.mark.parametrize("build", [_elbo, _log_evidence])
def test_gradients_agree_with_finite_differences(x64, build):
    problem = problems.binary_model()
    function = jax.jit(lambda params: build(problem)(params, jnp.asarray(X)))
    check_grads(function, (problem.params,), order=1, modes=("rev",))


@pytest.mark.slow
def test_log_evidence_has_no_gradient_in_phi():
    problem = problems.binary_model()
    slope = jax.jit(jax.grad(_log_evidence(problem)))(problem.params, jnp.asarray(X))
    assert not any(np.any(leaf) for leaf in jax.tree.leaves(slope.recognition))


# Transformation


@pytest.mark.slow
def test_jit_and_vmap_agree_with_a_loop():
    problem, params = problems.binary_model(), problems.binary_model().params
    xs = jax.random.bernoulli(jax.random.key(1), 0.5, (3, 5)).astype(float)
    for function in (_elbo(problem), _log_evidence(problem)):
        got = jax.jit(jax.vmap(function, in_axes=(None, 0)))(params, xs)
        assert got.dtype == jnp.float32
        np.testing.assert_allclose(got[0], function(params, xs[0]), rtol=1e-5)
        single = jax.jit(function)
        loop = [single(params, x) for x in xs]
        np.testing.assert_allclose(got, loop, rtol=1e-5)


# Edge


@pytest.mark.slow
@pytest.mark.parametrize("logit", [-200.0, 200.0])
def test_certain_bits_leave_value_and_gradient_finite(logit):
    problem, x = problems.binary_model(), jnp.asarray(X)

    def shifted(params, h):
        recognition = problem.recognition._replace(encode=lambda params, x: h)
        model = problem._replace(recognition=recognition).model
        return enumerated.elbo(model, num_latents=4)(KEY, params, x)

    h = logit * jnp.array([1.0, 1.0, -1.0, 1.0])
    value, slopes = jax.jit(jax.value_and_grad(shifted, (0, 1)))(problem.params, h)
    z = (h > 0.0).astype(float)
    expected = log_joint(problem.generative, problem.params, x, z)
    np.testing.assert_allclose(value, expected, rtol=1e-5)
    chex.assert_tree_all_finite(slopes)
    np.testing.assert_array_equal(slopes[1], np.zeros(4))  # a saturated sigmoid

    theta = problem.params.generative | {"prior": {"logits": h}}
    certain = problem.params._replace(generative=theta)
    value, slope = jax.jit(jax.value_and_grad(_log_evidence(problem)))(certain, x)
    nats = problem.generative.log_likelihood_terms(problem.params, x, z).sum()
    np.testing.assert_allclose(value, nats, rtol=1e-5)
    chex.assert_tree_all_finite(slope)


@pytest.mark.slow
def test_latents_that_q_rules_out_contribute_nothing(x64):
    problem, x = problems.binary_model(), jnp.asarray(X)

    def truncated(params, h, z):
        log_q = problem.recognition.log_prob(params, h, z)
        return jnp.where(z[0] > 0.0, log_q, -jnp.inf)

    recognition = problem.recognition._replace(log_prob=truncated)
    model = problem._replace(recognition=recognition).model
    objective = enumerated.elbo(model, num_latents=4)
    z, q, p = problem.table(problem.params, x)
    terms = np.where(z[:, 0] > 0.0, q * jnp.log(p / q), 0.0)
    value, slope = jax.jit(jax.value_and_grad(objective, 1))(KEY, problem.params, x)
    np.testing.assert_allclose(value, terms.sum(), rtol=1e-9)
    chex.assert_tree_all_finite(slope)


def test_too_many_latents_are_refused_with_the_cost_and_what_to_use_instead():
    problem = problems.binary_model()
    names = "leave_one_out, vimco, disarm.*gumbel_softmax"
    with pytest.raises(ValueError, match=rf"33,554,432.*max_terms=2\*\*25.*{names}"):
        enumerated.elbo(problem.model, num_latents=25)
    with pytest.raises(ValueError, match=r"33,554,432.*iwae"):
        enumerated.log_evidence(problem.generative, num_latents=25)
    with pytest.raises(ValueError, match="more than max_terms=8"):
        enumerated.elbo(problem.model, num_latents=4, max_terms=8)
    with pytest.raises(ValueError, match=r"131,072.*max_terms=2\*\*17.*vimco"):
        enumerated.posterior(problem.generative, num_latents=17)
    enumerated.posterior(problem.generative, num_latents=16)
    enumerated.posterior(problem.generative, num_latents=17, max_terms=2**17)
    enumerated.elbo(problem.model, num_latents=24)
    enumerated.elbo(problem.model, num_latents=25, max_terms=2**25)


@pytest.mark.parametrize("num_latents", [0, -1, 32])
def test_sizes_that_cannot_be_counted_are_refused(num_latents):
    problem = problems.binary_model()
    with pytest.raises(ValueError, match=f"num_latents={num_latents}.*1 to 31"):
        enumerated.elbo(problem.model, num_latents=num_latents, max_terms=2**40)
    for build in (enumerated.log_evidence, enumerated.posterior):
        with pytest.raises(ValueError, match=f"num_latents={num_latents}.*1 to 31"):
            build(problem.generative, num_latents=num_latents, max_terms=2**40)


def test_a_chunk_of_no_rows_is_refused():
    problem = problems.binary_model()
    with pytest.raises(ValueError, match="chunk_size must be positive, got 0"):
        enumerated.posterior(problem.generative, num_latents=4, chunk_size=0)
