import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.test_util import check_grads
from scipy import integrate, special, stats

from vae_jax import divergences

NORMAL_PAIR = tuple(
    np.array(row)
    for row in ([0.3, -1.2, 2.0], [-0.5, 0.7, 0.1], [0.1, 0.4, -0.6], [0.2, -0.3, 0.5])
)  # mean_q, log_std_q, mean_p, log_std_p
LOGITS_PAIR = (
    np.array([[0.3, -1.2, 0.7, 2.0], [-0.4, 0.1, 3.0, -2.5]]),
    np.array([[-0.8, 0.4, 0.6, 0.1], [1.5, -0.2, -1.0, 0.3]]),
)
NORMAL = [
    (divergences.diag_normal_to_standard_normal, NORMAL_PAIR[:2]),
    (divergences.diag_normal_to_diag_normal, NORMAL_PAIR),
    (divergences.diag_normal_cross_entropy, NORMAL_PAIR),
]
DISCRETE = [
    (divergences.bernoulli_to_bernoulli, tuple(a[0] for a in LOGITS_PAIR)),
    (divergences.categorical_to_categorical, LOGITS_PAIR),
]
PAIRS = NORMAL + DISCRETE
ALL = [*PAIRS, (divergences.diag_normal_entropy, NORMAL_PAIR[1:2])]
BERNOULLI, CATEGORICAL = (
    jax.jit(jax.value_and_grad(function, (0, 1))) for function, _ in DISCRETE
)
BOUNDED = settings(max_examples=50, deadline=None, derandomize=True)


def _arrays(arguments, dtype=None):
    return tuple(jnp.asarray(a, dtype or jnp.result_type(float)) for a in arguments)


def _expectation(mean, std, f):
    """E[f(z)] under SciPy's N(mean, std^2) by adaptive quadrature."""
    low, high = mean - 12 * std, mean + 12 * std

    def weighted(z):
        return stats.norm.pdf(z, loc=mean, scale=std) * f(z)

    return integrate.quad(weighted, low, high, epsabs=0, epsrel=1e-12, limit=200)[0]


def _log_density(z, mean, std):
    return stats.norm.logpdf(z, loc=mean, scale=std)


def _expected_log_ratio(mean_q, log_std_q, mean_p, log_std_p):
    """E_q[log q - log p] for each latent, by quadrature over SciPy's densities."""
    std_q, std_p = np.exp(log_std_q), np.exp(log_std_p)

    def log_ratio(z):
        return _log_density(z, mean_q, std_q) - _log_density(z, mean_p, std_p)

    return _expectation(mean_q, std_q, log_ratio)


# Oracle


@pytest.mark.slow
def test_kl_to_the_standard_normal_matches_quadrature_over_scipy_densities(x64):
    pairs = zip(*NORMAL_PAIR[:2], strict=True)
    expected = sum(_expected_log_ratio(m, s, 0.0, 0.0) for m, s in pairs)
    got = divergences.diag_normal_to_standard_normal(*_arrays(NORMAL_PAIR[:2]))
    np.testing.assert_allclose(got, expected, rtol=1e-9)


def test_kl_between_diagonal_normals_matches_quadrature_over_scipy_densities(x64):
    pairs = zip(*NORMAL_PAIR, strict=True)
    expected = sum(_expected_log_ratio(*pair) for pair in pairs)
    got = divergences.diag_normal_to_diag_normal(*_arrays(NORMAL_PAIR))
    np.testing.assert_allclose(got, expected, rtol=1e-9)


def test_cross_entropy_has_the_logarithm_on_its_second_argument(x64):
    expected = sum(
        _expectation(m, np.exp(s), lambda z, p=p: -_log_density(z, *p))
        for m, s, *p in zip(*NORMAL_PAIR[:3], np.exp(NORMAL_PAIR[3]), strict=True)
    )
    got = divergences.diag_normal_cross_entropy(*_arrays(NORMAL_PAIR))
    np.testing.assert_allclose(got, expected, rtol=1e-9)


def test_the_quadrature_oracle_has_converged():
    np.testing.assert_allclose(_expectation(0.3, 0.6, lambda z: 1.0), 1.0, rtol=1e-11)
    np.testing.assert_allclose(_expectation(0.3, 0.6, np.square), 0.45, rtol=1e-11)
    got = _expectation(0.3, 0.6, lambda z: -_log_density(z, -1.0, 2.0))
    exact = 0.5 * (np.log(2 * np.pi) + np.log(4.0) + (1.3**2 + 0.36) / 4.0)
    np.testing.assert_allclose(got, exact, rtol=1e-11)


def test_entropy_matches_scipy(x64):
    expected = stats.norm.entropy(scale=np.exp(NORMAL_PAIR[1])).sum()
    got = divergences.diag_normal_entropy(*_arrays(NORMAL_PAIR[1:2]))
    np.testing.assert_allclose(got, expected, rtol=1e-9)


def test_bernoulli_kl_matches_scipy(x64):
    q, p = (special.expit(a[0]) for a in LOGITS_PAIR)
    expected = sum(
        stats.entropy([a, 1 - a], [b, 1 - b]) for a, b in zip(q, p, strict=True)
    )
    got = divergences.bernoulli_to_bernoulli(*_arrays(a[0] for a in LOGITS_PAIR))
    np.testing.assert_allclose(got, expected, rtol=1e-9)


def test_categorical_kl_matches_scipy_and_sums_over_leading_axes(x64):
    q, p = (special.softmax(a, axis=-1) for a in LOGITS_PAIR)
    got = divergences.categorical_to_categorical(*_arrays(LOGITS_PAIR))
    np.testing.assert_allclose(got, stats.entropy(q, p, axis=-1).sum(), rtol=1e-9)


def test_two_classes_are_a_bernoulli(x64):
    q, p = (jnp.asarray(a[0]) for a in LOGITS_PAIR)
    got = divergences.categorical_to_categorical(
        jnp.stack([q, jnp.zeros_like(q)], -1), jnp.stack([jnp.zeros_like(p), -p], -1)
    )
    expected = divergences.bernoulli_to_bernoulli(q, p)
    np.testing.assert_allclose(got, expected, rtol=1e-12)


# Gradient


@pytest.mark.slow
def test_gradients_agree_with_finite_differences_to_second_order(x64):
    @jax.jit  # one program for all, as compilation is the cost of this test
    def everything(arguments):
        return [case[0](*row) for case, row in zip(ALL, arguments, strict=True)]

    arguments = [list(case[1]) for case in ALL]
    check_grads(everything, (arguments,), order=2, modes=("rev",))


@pytest.mark.slow
@pytest.mark.parametrize(("function", "arguments"), DISCRETE)
def test_second_derivatives_at_zero_logits_are_the_fisher_information(
    x64, function, arguments
):
    zeros = jnp.zeros_like(arguments[0]).ravel()
    shape = arguments[0].shape
    hessian = jax.hessian(lambda a: function(a.reshape(shape), jnp.zeros(shape)))
    got = jax.jit(hessian)(zeros)  # forward over reverse
    if function is divergences.bernoulli_to_bernoulli:
        expected = np.eye(zeros.size) / 4
    else:
        num_classes = shape[-1]
        one = np.eye(num_classes) / num_classes - 1 / num_classes**2
        expected = np.kron(np.eye(zeros.size // num_classes), one)
    np.testing.assert_allclose(got, expected, rtol=1e-12, atol=1e-15)


# Transformation and dtype


@pytest.mark.slow
@pytest.mark.parametrize(("function", "arguments"), ALL)
def test_jit_equals_eager_and_vmap_equals_a_loop(function, arguments):
    batch = tuple(
        jnp.stack([a, 0.5 * a, -a]) for a in _arrays(arguments, dtype=jnp.float32)
    )
    expected = [function(*row) for row in zip(*batch, strict=True)]
    np.testing.assert_allclose(jax.jit(jax.vmap(function))(*batch), expected, rtol=1e-6)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.float64])
@pytest.mark.parametrize(("function", "arguments"), ALL)
def test_dtype_follows_the_inputs(x64, function, arguments, dtype):
    assert jax.eval_shape(function, *_arrays(arguments, dtype)).dtype == dtype


# Edge


@BOUNDED
@given(st.lists(st.floats(-5, 5, width=32), min_size=4, max_size=4))
def test_normal_kl_is_negative_nowhere_and_zero_only_at_the_prior(numbers):
    to_standard, to_other, to_itself = _normal_kls(*np.float32(numbers).reshape(2, 2))
    size = max(map(abs, numbers))
    if size == 0.0:
        assert to_standard == 0.0
    else:
        assert to_standard > 0.0 or size < 1e-19  # x**2 underflows
    assert to_other > 0.0
    assert to_itself == 0.0


@jax.jit
def _normal_kls(mean, log_std):
    between = divergences.diag_normal_to_diag_normal
    p = jnp.array([0.7, -0.2]), jnp.array([-1.1, 0.4])
    return (
        divergences.diag_normal_to_standard_normal(mean, log_std),
        between(mean, log_std, *p),
        between(mean, log_std, mean, log_std),
    )


@BOUNDED
@given(
    st.lists(st.floats(-500, 500, width=32), min_size=3, max_size=3),
    st.lists(st.floats(-500, 500, width=32), min_size=3, max_size=3),
    st.sampled_from([0.0, 1e-6, 1e-3, 1.0]),
)
def test_discrete_kl_is_never_negative_and_finite_with_its_gradient(a, b, closeness):
    q = jnp.array(a)
    p = jnp.array(b) if closeness == 1.0 else q * (1.0 + closeness)
    for kl in (BERNOULLI, CATEGORICAL):
        value, slopes = kl(q, p)
        assert np.isfinite(value)
        assert np.isfinite(slopes).all()
        assert value == 0.0 if (q == p).all() else value >= 0.0


@BOUNDED
@given(st.lists(st.floats(-3, 3), min_size=8, max_size=8))
def test_cross_entropy_less_entropy_is_the_kl(numbers):
    with jax.enable_x64(True):
        cross, entropy, kl = _of_normals(np.array(numbers).reshape(4, 2))
    np.testing.assert_allclose(cross - entropy, kl, rtol=1e-9, atol=1e-12)


@jax.jit
def _of_normals(pair):
    return (
        divergences.diag_normal_cross_entropy(*pair),
        divergences.diag_normal_entropy(pair[1]),
        divergences.diag_normal_to_diag_normal(*pair),
    )


def test_the_standard_normal_is_one_of_the_diagonal_normals(x64):
    mean, log_std = _arrays(NORMAL_PAIR[:2])
    zeros = jnp.zeros_like(mean)
    got = divergences.diag_normal_to_standard_normal(mean, log_std)
    expected = divergences.diag_normal_to_diag_normal(mean, log_std, zeros, zeros)
    np.testing.assert_allclose(got, expected, rtol=1e-13)


@pytest.mark.parametrize("log_std", [1e-4, -1e-4, 1e-8, 1e-12])
def test_normal_kl_keeps_its_digits_near_the_prior(log_std):
    s = jnp.array([log_std], jnp.float32)
    exact = float(s[0]) ** 2 * (1.0 + 2.0 * float(s[0]) / 3.0)  # to leading orders
    got = divergences.diag_normal_to_standard_normal(jnp.zeros(1), s)
    np.testing.assert_allclose(got, exact, rtol=1e-6)
    got = divergences.diag_normal_to_diag_normal(
        jnp.ones(1), s + 0.0, jnp.ones(1), jnp.zeros(1)
    )
    np.testing.assert_allclose(got, exact, rtol=1e-6)


def test_the_series_and_the_direct_form_meet_where_they_are_exchanged(x64):
    log_std = jnp.linspace(-0.3, 0.3, 2001)  # exchanged at twice log_std = 1/2
    kl = jax.jit(jax.vmap(divergences.diag_normal_to_standard_normal))
    got = kl(jnp.zeros((2001, 1)), log_std[:, None])
    exponent = np.asarray(2.0 * log_std, np.longdouble)
    expected = 0.5 * (np.expm1(exponent) - exponent)
    away = np.abs(np.asarray(log_std)) > 0.05
    np.testing.assert_allclose(got[away], expected[away].astype(float), rtol=1e-14)


def test_discrete_kl_keeps_its_digits_near_equality():
    q = np.array([0.3, -1.2, 0.7], np.float32)
    p = q + np.array([1e-3, -2e-3, 1e-3], np.float32)
    q64, p64 = q.astype(np.float64), p.astype(np.float64)
    exact = stats.entropy(special.softmax(q64), special.softmax(p64))
    np.testing.assert_allclose(CATEGORICAL(q, p)[0], exact, rtol=2e-3)
    bits_q = [special.expit(q64), special.expit(-q64)]
    bits_p = [special.expit(p64), special.expit(-p64)]
    exact = stats.entropy(bits_q, bits_p).sum()
    np.testing.assert_allclose(BERNOULLI(q, p)[0], exact, rtol=2e-3)


def test_bernoulli_kl_at_logits_of_500():
    q, p = jnp.array([500.0, -500.0]), jnp.array([-500.0, 500.0])
    value, slopes = BERNOULLI(q, p)
    assert value == 1000.0  # each bit costs -log sigmoid(-500) = 500 nats
    np.testing.assert_array_equal(slopes, [[0.0, 0.0], [-1.0, 1.0]])
    value, slopes = BERNOULLI(q, q)
    assert value == 0.0
    np.testing.assert_array_equal(slopes, np.zeros((2, 2)))


def test_categorical_kl_at_logits_of_500():
    q, p = jnp.array([500.0, -500.0, 0.0]), jnp.array([-500.0, 500.0, 0.0])
    value, slopes = CATEGORICAL(q, p)
    assert value == 1000.0
    np.testing.assert_array_equal(slopes, [[0.0, 0.0, 0.0], [-1.0, 1.0, 0.0]])
    assert CATEGORICAL(q, q)[0] == 0.0


def test_zero_probabilities_cost_nothing_where_q_has_them_and_all_where_p_does():
    q = np.array([0.0, -np.inf, -np.inf, 1.0], np.float32)
    p = np.array([1.0, 0.0, -np.inf, 0.0], np.float32)
    value, slopes = CATEGORICAL(q, p)
    saved = stats.entropy(special.softmax(q), special.softmax(p))
    np.testing.assert_allclose(value, saved, rtol=1e-6)
    assert np.isfinite(slopes).all()
    assert CATEGORICAL(p, q)[0] == jnp.inf
    certain, even = jnp.array([jnp.inf, -jnp.inf]), jnp.zeros(2)
    got, _ = BERNOULLI(certain, even)
    np.testing.assert_allclose(got, 2 * np.log(2), rtol=1e-6)


@pytest.mark.parametrize(("function", "arguments"), PAIRS)
def test_arguments_of_different_shapes_raise(function, arguments):
    shorter = jnp.asarray(arguments[-1][..., :-1])
    for i in range(len(arguments)):
        changed = [jnp.asarray(a) for a in arguments]
        changed[i] = shorter
        with pytest.raises(ValueError, match="one shape, got"):
            function(*changed)


def test_categorical_logits_need_a_class_axis():
    for shape in [(), (0,), (3, 0)]:
        with pytest.raises(ValueError, match="axis of classes"):
            divergences.categorical_to_categorical(jnp.zeros(shape), jnp.zeros(shape))


# Full covariance


def _triangle(num_latents):
    """A mean and a Cholesky factor, in NumPy."""
    numbers = np.random.default_rng(0).normal(size=(num_latents, num_latents + 1))
    lower = np.tril(numbers[:, 1:], -1)
    return numbers[:, 0], lower + np.diag(np.exp(0.5 * np.diag(numbers[:, 1:])))


def test_full_normal_kl_is_the_formula_of_its_covariance(x64):
    mean, lower = _triangle(4)
    covariance = lower @ lower.T
    log_det = np.linalg.slogdet(covariance)[1]
    expected = 0.5 * (mean @ mean + np.trace(covariance) - 4 - log_det)
    above = np.triu(np.full((4, 4), 7.0), 1)  # is not read
    for triangle in (lower, lower + above):
        arguments = _arrays((mean, triangle))
        got = divergences.full_normal_to_standard_normal(*arguments)
        np.testing.assert_allclose(got, expected, rtol=1e-9)


def test_full_normal_kl_with_a_diagonal_factor_is_that_of_the_diagonal_normal(x64):
    mean, log_std = _arrays(NORMAL_PAIR[:2])
    got = divergences.full_normal_to_standard_normal(mean, jnp.diag(jnp.exp(log_std)))
    expected = divergences.diag_normal_to_standard_normal(mean, log_std)
    np.testing.assert_allclose(got, expected, rtol=1e-12)


def test_full_normal_kl_gradients_agree_with_finite_differences(x64):
    kl = jax.jit(divergences.full_normal_to_standard_normal)
    check_grads(kl, _arrays(_triangle(2)), order=2, modes=("rev",))


@pytest.mark.slow
def test_full_normal_kl_is_zero_at_the_prior_and_keeps_its_digits_near_it():
    kl = divergences.full_normal_to_standard_normal
    assert kl(jnp.zeros(3), jnp.eye(3)) == 0.0
    off = jnp.eye(2).at[1, 0].set(1e-6)
    np.testing.assert_allclose(kl(jnp.zeros(2), off), 0.5e-12, rtol=1e-6)
    mean, lower = _arrays(_triangle(2), jnp.float32)
    got = jax.jit(jax.vmap(kl))(mean[None], lower[None])
    np.testing.assert_allclose(got[0], kl(mean, lower), rtol=1e-6)


@pytest.mark.parametrize("shape", [(3, 2), (2,), (3, 3, 3)])
def test_full_normal_kl_refuses_a_factor_of_another_size(shape):
    with pytest.raises(ValueError, match=r"scale_tril must be \[D, D\] .* got \("):
        divergences.full_normal_to_standard_normal(jnp.zeros(3), jnp.ones(shape))


@pytest.mark.parametrize("logit", [-1.0, -50.0, -200.0])
def test_what_p_removes_and_q_keeps_is_infinite_however_little_it_is(logit):
    values, slopes = _of_a_removed_class(jnp.array([0.0, logit]))
    np.testing.assert_array_equal(values, jnp.inf)
    assert not np.isnan(slopes).any()


@jax.jit
def _of_a_removed_class(q):
    p = jnp.array([0.0, -jnp.inf])
    choice = divergences.categorical_to_categorical
    bits = divergences.bernoulli_to_bernoulli
    values = jnp.stack([choice(q, p), bits(q[1:], p[1:])])
    return values, jnp.stack([jax.grad(kl)(q, p) for kl in (choice, bits)])
