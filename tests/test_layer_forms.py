import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from tests import ladders, testing
from vae_jax import layer_forms, posteriors, priors

EVERY_NORMAL = pytest.mark.parametrize(
    "make", ladders.NORMAL.values(), ids=[*ladders.NORMAL]
)
FORMS = [
    *(make() for make in ladders.NORMAL.values()),
    layer_forms.bernoulli(),
    layer_forms.bernoulli(residual=True),
]
A = np.array([[0.3, -0.2, 0.4, 0.9], [1.0, 0.1, -0.5, 0.2]])  # of maps [2, 2 C]
B = np.array([[-0.6, 0.5, 0.1, -0.7], [0.2, 0.8, 0.3, -1.1]])


@pytest.mark.slow
@pytest.mark.parametrize("form", FORMS, ids=lambda form: form.family)
@pytest.mark.parametrize("axes", [1, 2], ids=["vector", "maps"])
def test_the_closed_kl_is_the_mean_log_ratio_of_draws_of_q(x64, form, axes):
    a, b = jnp.asarray(A), jnp.asarray(B)
    a, b = (a, b) if axes == 2 else (a[0], b[0])
    p, q = form.prior(a), form.posterior(a, b)

    def log_ratio(key):
        z = form.sample(key, q)
        assert z.shape == (*a.shape[:-1], 4 // form.prior_width)
        return form.log_prob(q, z) - form.log_prob(p, z)

    ratios = jax.vmap(log_ratio)(jax.random.split(jax.random.key(0), 20_000))
    testing.assert_mean_equals(ratios, form.kl(a, b))
    assert float(form.kl(a, b)) > 0.1


@EVERY_NORMAL
def test_a_normal_has_scipys_density(x64, make):
    form, z = make(max_log_std=2.0), np.array([0.4, -0.9])
    mean, log_std = A[0, :2], 2.0 * np.tanh(A[0, 2:] / 2.0)
    got = form.log_prob(form.prior(jnp.asarray(A[0])), jnp.asarray(z))
    expected = stats.norm.logpdf(z, mean, np.exp(log_std)).sum()
    np.testing.assert_allclose(got, expected, rtol=1e-12)


@pytest.mark.slow
@EVERY_NORMAL
def test_no_output_of_a_network_takes_a_scale_or_the_kl_beyond_the_bounds(make):
    form, far = make(max_log_std=3.0), jnp.array([0.0, 1e6, -1e6, 0.0])
    for free_a in (-1e30, 0.0, 1e30):
        for free_b in (-1e30, 0.0, 1e30):
            a, b = far.at[2:].set(free_a), far[::-1].at[2:].set(free_b)

            def total(a, b, form=form):
                q = form.posterior(a, b)
                z = form.sample(jax.random.key(0), q)
                return form.kl(a, b) + form.log_prob(form.prior(a), z)

            grads = jax.grad(total, (0, 1))(a, b)
            assert all(np.isfinite(grad).all() for grad in grads)
            log_stds = jnp.stack([form.prior(a)[1], form.posterior(a, b)[1]])
            assert float(jnp.abs(log_stds).max()) <= 6.0
    assert float(jnp.abs(form.prior(a)[1]).max()) <= 3.0


@pytest.mark.slow
def test_the_residual_form_is_the_prior_bit_for_bit_where_its_network_gives_zero():
    for form in (FORMS[1], FORMS[4]):
        a, key = jnp.asarray(A, jnp.float32), jax.random.key(3)
        nothing = jnp.zeros_like(a)
        assert float(form.kl(a, nothing)) == 0.0
        of_q = form.sample(jax.random.clone(key), form.posterior(a, nothing))
        np.testing.assert_array_equal(of_q, form.sample(key, form.prior(a)))
        steps = jax.grad(form.kl, (0, 1))(a, nothing)
        assert all(not np.asarray(step).any() for step in steps)


def test_the_residual_form_moves_by_units_of_z_and_not_of_the_priors_scale(x64):
    mean, log_std = FORMS[1].prior(jnp.asarray(A[0]))
    moved, scaled = FORMS[1].posterior(jnp.asarray(A[0]), jnp.asarray(B[0]))
    np.testing.assert_allclose(moved - mean, B[0, :2], rtol=1e-12)
    factor = 5.0 * np.tanh(B[0, 2:] / 5.0)
    np.testing.assert_allclose(scaled - log_std, factor, rtol=1e-12)


def test_the_merged_form_is_the_product_of_two_normals(x64):
    form = FORMS[2]
    mean_p, log_std_p = form.prior(jnp.asarray(A[0]))
    mean, log_std = form.prior(jnp.asarray(B[0]))  # read alike
    precision_p, precision = np.exp(-2.0 * log_std_p), np.exp(-2.0 * log_std)
    merged, scale = form.posterior(jnp.asarray(A[0]), jnp.asarray(B[0]))
    total = precision_p + precision
    expected = (mean_p * precision_p + mean * precision) / total
    np.testing.assert_allclose(merged, expected, rtol=1e-12)
    np.testing.assert_allclose(jnp.exp(-2.0 * scale), total, rtol=1e-12)


@EVERY_NORMAL
@pytest.mark.parametrize("number", [0.0, -1.0, float("inf"), float("nan")])
def test_a_bound_that_is_none_is_refused(make, number):
    with pytest.raises(ValueError, match=f"max_log_std .* got {number}"):
        make(max_log_std=number)


@pytest.mark.slow
@pytest.mark.parametrize(
    "sample",
    [
        lambda key, h: layer_forms.bernoulli().sample(key, (h,)),
        lambda key, h: posteriors.bernoulli(h.size).sample(key, (), h),
        lambda key, h: priors.bernoulli(h.size).sample(key, {"logits": h}, h[:0]),
    ],
    ids=["layer", "posterior", "prior"],
)
def test_bits_of_a_probability_below_23_bits_are_as_rare_as_it_says(sample):
    # By 23 bits it would be 2^-23, and four ones be expected, for all of log q = -25.
    draw = jax.jit(lambda key: sample(key, jnp.full(1 << 22, -25.0)).sum())
    assert sum(float(draw(k)) for k in jax.random.split(jax.random.key(0), 8)) == 0.0
