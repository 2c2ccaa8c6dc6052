import itertools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads
from scipy import special

from vae_jax import numerics

LOG_W = np.array([-3.0, 0.5, 2.0, -40.0, 1.9])
POINTS = np.array([-30.0, -2.0, -1e-3, 0.0, 1e-3, 2.0, 30.0])


# bits_per_dimension


def test_bits_of_what_is_uniform_are_those_of_its_values(x64):
    for num_entries in (1, 7, 784, 3072):
        fair = jnp.full(num_entries, jnp.log(0.5)).sum()
        bits = numerics.bits_per_dimension(fair, num_entries=num_entries)
        np.testing.assert_allclose(bits, 1.0, rtol=1e-12)
        byte = jnp.full(num_entries, -jnp.log(256.0)).sum()
        bits = numerics.bits_per_dimension(byte, num_entries=num_entries)
        np.testing.assert_allclose(bits, 8.0, rtol=1e-12)
        assert (
            numerics.bits_per_dimension(
                jnp.zeros(()), num_entries=num_entries, num_values=256
            )
            == 8.0
        )


def test_a_density_with_noise_bounds_the_bits_of_its_bins(x64):
    u = (np.arange(4000) + 0.5) / 4000
    for k, mean, std in ((3, 0.2, 0.1), (5, 0.37, 0.02), (0, -0.1, 0.05)):
        log_p = jax.scipy.stats.norm.logpdf(jnp.asarray((k + u) / 16), mean, std)
        ends = special.ndtr((np.array([k, k + 1]) / 16 - mean) / std)
        exact = -np.log2(ends[1] - ends[0])
        bits = numerics.bits_per_dimension(log_p, num_entries=1, num_values=16)
        # By quadrature of exp(log p) the bits are exact, and the mean lies above.
        mass = float(jnp.mean(2.0**-bits))
        np.testing.assert_allclose(-np.log2(mass), exact, rtol=1e-6)
        assert bits.mean() > exact


@pytest.mark.parametrize("numbers", [(0, 1), (3, 0)])
def test_bits_of_no_entries_or_no_values_are_refused(numbers):
    num_entries, num_values = numbers
    with pytest.raises(ValueError, match="must be positive"):
        numerics.bits_per_dimension(
            jnp.zeros(()), num_entries=num_entries, num_values=num_values
        )


# Checks of numbers


@pytest.mark.parametrize(
    ("interval", "inside", "outside"),
    [
        ("[0, 1)", (0, 0.5, -0.0), (1, 1.0, -1e-9, np.inf)),
        ("(0.5, 1]", (0.6, 1), (0.5, 0, 2)),
        ("(0, inf)", (1e-300, np.float32(3.0), jnp.ones(())), (0, -1, np.inf)),
        ("(0, inf]", (np.inf, np.array([1.0, np.inf])), (np.array([1.0, 0.0]),)),
    ],
)
def test_an_interval_holds_the_ends_of_square_brackets(interval, inside, outside):
    for number in inside:
        numerics.check_in(interval, share=number)
    for number in (*outside, np.nan, jnp.asarray(jnp.nan)):
        said = f"share must lie in {interval}, got {np.ravel(number)[-1]}: why"
        with pytest.raises(ValueError, match=f"^{re.escape(said)}$"):
            numerics.check_in(interval, rate=inside[0], share=number, why=": why")


def test_a_traced_number_passes_and_a_constant_beside_it_does_not():
    def checked(traced, constant):
        numerics.check_in("[0, 1]", traced=traced, constant=constant)
        return traced

    assert jax.jit(lambda x: checked(x, jnp.ones(())))(2.0) == 2.0
    constant = jnp.asarray(3.0)
    with pytest.raises(ValueError, match=r"constant must lie in \[0, 1\], got 3"):
        jax.jit(lambda x: checked(x, constant))(2.0)


def test_too_few_of_something_are_refused():
    numerics.check_at_least(2, num_rows=2, num_samples=3)
    with pytest.raises(ValueError, match=r"^num_rows must be 2 or more, got 1: why$"):
        numerics.check_at_least(2, num_samples=2, num_rows=1, why=": why")


# log_mean_exp


def test_log_mean_exp_matches_scipy(x64):
    expected = special.logsumexp(LOG_W) - np.log(LOG_W.size)
    np.testing.assert_allclose(
        numerics.log_mean_exp(jnp.asarray(LOG_W)), expected, rtol=1e-9
    )


@pytest.mark.parametrize("offset", [-2e4, 2e4])
def test_log_mean_exp_of_equal_weights_far_from_zero_is_that_weight(offset):
    got = numerics.log_mean_exp(jnp.full((7,), offset))
    np.testing.assert_allclose(got, offset, rtol=1e-6)


def test_log_mean_exp_of_all_minus_infinity_is_minus_infinity():
    assert numerics.log_mean_exp(jnp.full((3,), -jnp.inf)) == -jnp.inf


def test_log_mean_exp_counts_weights_of_zero(x64):
    got = numerics.log_mean_exp(jnp.array([0.0, -jnp.inf, -jnp.inf, -jnp.inf]))
    np.testing.assert_allclose(got, -np.log(4.0), rtol=1e-9)


def test_log_mean_exp_has_the_normalized_weights_as_its_gradient(x64):
    got = jax.grad(numerics.log_mean_exp)(jnp.asarray(LOG_W))
    np.testing.assert_allclose(got, special.softmax(LOG_W), rtol=1e-9)
    check_grads(numerics.log_mean_exp, (jnp.asarray(LOG_W),), order=2, modes=("rev",))


def test_log_mean_exp_is_the_same_under_jit_and_vmap():
    rows = jax.random.normal(jax.random.key(0), (4, 5))
    got = jax.jit(jax.vmap(numerics.log_mean_exp))(rows)
    expected = jnp.stack([numerics.log_mean_exp(row) for row in rows])
    np.testing.assert_allclose(got, expected, rtol=1e-6, atol=1e-6)


# attach_gradient


@pytest.mark.parametrize("size", [1.0, 1e5, 1e20, np.inf, -np.inf, np.nan])
def test_attach_gradient_keeps_every_digit_of_the_value(size):
    value = jnp.float32(-100.123)
    assert numerics.attach_gradient(value, jnp.float32(size)) == value


def test_attach_gradient_differentiates_as_the_surrogate(x64):
    def function(x):
        return numerics.attach_gradient(jnp.sin(x), x**3)

    value, slope = jax.value_and_grad(function)(jnp.asarray(1.7))
    np.testing.assert_allclose(value, np.sin(1.7), rtol=1e-9)
    np.testing.assert_allclose(slope, 3.0 * 1.7**2, rtol=1e-9)
    second = jax.grad(jax.grad(function))(jnp.asarray(1.7))
    np.testing.assert_allclose(second, 6.0 * 1.7, rtol=1e-9)
    _, forward = jax.jvp(function, (jnp.asarray(1.7),), (jnp.asarray(2.0),))
    np.testing.assert_allclose(forward, 6.0 * 1.7**2, rtol=1e-9)


# softplus


def test_softplus_matches_numpy(x64):
    got = numerics.softplus(jnp.asarray(POINTS))
    np.testing.assert_allclose(got, np.logaddexp(POINTS, 0.0), rtol=1e-9)


def test_softplus_has_the_logistic_function_and_its_slope_as_derivatives(x64):
    first = jax.vmap(jax.grad(numerics.softplus))(jnp.asarray(POINTS))
    second = jax.vmap(jax.grad(jax.grad(numerics.softplus)))(jnp.asarray(POINTS))
    p = special.expit(POINTS)
    np.testing.assert_allclose(first, p, rtol=1e-9)
    slope = p * special.expit(-POINTS)
    np.testing.assert_allclose(second, slope, rtol=1e-9, atol=1e-15)


@pytest.mark.parametrize("x", [-2.0, 0.0, 0.3])
def test_softplus_gradients_agree_with_finite_differences(x64, x):
    check_grads(numerics.softplus, (jnp.asarray(x),), order=2, modes=("rev",))


@pytest.mark.parametrize("x", [-3e38, -500.0, 500.0, 3e38])
def test_softplus_and_two_derivatives_are_finite_at_any_finite_number(x):
    function = numerics.softplus
    for _ in range(3):
        assert jnp.isfinite(function(jnp.float32(x)))
        function = jax.grad(function)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [jnp.float16, jnp.float32, jnp.float64])
def test_results_have_the_dtype_of_the_arguments(x64, dtype):
    row = jnp.ones((3,), dtype)
    assert numerics.softplus(row).dtype == dtype
    assert numerics.log_mean_exp(row).dtype == dtype
    assert numerics.attach_gradient(row[0], row[1]).dtype == dtype


# times_log


def test_what_never_is_costs_nothing():
    weight, log_p = jnp.array([0.0, 0.5, 1.0, 0.0]), jnp.array([-np.inf, -2.0, 0.0, 3])
    got = numerics.times_log(weight, log_p)
    np.testing.assert_array_equal(got, [0.0, -1.0, 0.0, 0.0])
    assert numerics.times_log(0.5, jnp.asarray(-jnp.inf)) == -jnp.inf
    assert jnp.isnan(numerics.times_log(0.0, jnp.asarray(jnp.nan)))


@pytest.mark.slow
def test_the_gradient_of_a_choice_passes_by_a_removed_class(x64):
    def log_prob(logits, z):
        return numerics.times_log(z, jax.nn.log_softmax(logits)).sum()

    logits, z = jnp.array([0.3, -jnp.inf, 1.0]), jnp.array([0.0, 0.0, 1.0])
    slope, of_z = jax.grad(log_prob, (0, 1))(logits, z)
    p = np.exp([0.3, -np.inf, 1.0]) / np.exp([0.3, -np.inf, 1.0]).sum()
    np.testing.assert_allclose(slope, z - p, rtol=1e-9)
    np.testing.assert_allclose(of_z, [np.log(p[0]), 0.0, np.log(p[2])], rtol=1e-9)
    curvature = jax.hessian(log_prob)(logits, z)
    np.testing.assert_allclose(curvature, np.outer(p, p) - np.diag(p), atol=1e-12)
    check_grads(log_prob, (jnp.array([0.3, -0.4, 1.0]), z), order=2, modes=("rev",))


# over_samples


def test_over_samples_draws_once_for_each_key_split_from_the_one_given():
    key = jax.random.key(0)
    got = numerics.over_samples(jax.random.clone(key), jax.random.normal, num_samples=4)
    expected = jax.vmap(jax.random.normal)(jax.random.split(key, 4))
    np.testing.assert_array_equal(got, expected)
    assert np.unique(got).size == 4


def test_over_samples_hands_a_single_sample_the_key_itself():
    key = jax.random.key(0)
    got = numerics.over_samples(jax.random.clone(key), jax.random.normal, num_samples=1)
    np.testing.assert_array_equal(got, jax.random.normal(key)[None])


def test_over_samples_needs_a_sample():
    with pytest.raises(ValueError, match="num_samples must be positive, got 0"):
        numerics.over_samples(jax.random.key(0), jax.random.normal, num_samples=0)


# unpack_tril


@pytest.mark.slow
def test_unpack_tril_fills_the_lower_triangle_row_by_row():
    got = numerics.unpack_tril(jnp.arange(1.0, 7.0), 3)
    np.testing.assert_array_equal(got, [[1, 0, 0], [2, 3, 0], [4, 5, 6]])
    np.testing.assert_array_equal(numerics.unpack_tril(jnp.ones(1), 1), [[1.0]])


def test_unpack_tril_is_the_same_under_jit_and_vmap_and_hands_back_its_cotangent():
    rows = jax.random.normal(jax.random.key(0), (2, 3))
    unpack = jax.jit(jax.vmap(lambda packed: numerics.unpack_tril(packed, 2)))
    got, vjp = jax.vjp(unpack, rows)
    for i in range(2):
        np.testing.assert_array_equal(got[i], numerics.unpack_tril(rows[i], 2))
    np.testing.assert_array_equal(vjp(got)[0], rows)


@pytest.mark.parametrize("shape", [(5,), (7,), (3, 2), ()])
def test_unpack_tril_needs_the_entries_of_a_triangle(shape):
    with pytest.raises(ValueError, match=r"packed must be \[6\] for size 3, got \("):
        numerics.unpack_tril(jnp.zeros(shape), 3)


# scale_gradient


def test_scale_gradient_reads_as_its_argument_and_scales_what_flows_back(x64):
    def f(x, factor):
        return jnp.sum(numerics.scale_gradient(x, factor) ** 2)

    x = jnp.array([1.5, -2.0])
    value, grads = jax.value_and_grad(f, argnums=(0, 1))(x, jnp.asarray(0.3))
    np.testing.assert_allclose(value, 6.25)
    np.testing.assert_allclose(grads[0], 0.3 * 2.0 * x, rtol=1e-12)
    np.testing.assert_array_equal(grads[1], 0.0)


# log_sum_exp_without_each


def test_log_sum_exp_without_each_leaves_its_own_weight_out(x64):
    log_w = np.array([0.3, -2.0, 5.0])
    expected = [np.log(np.exp(np.delete(log_w, k)).sum()) for k in range(3)]
    got = numerics.log_sum_exp_without_each(jnp.asarray(log_w))
    np.testing.assert_allclose(got, expected, rtol=1e-12)


def test_log_sum_exp_without_each_keeps_its_digits_beside_a_dominant_weight():
    # exp(100) + exp(0) - exp(100) is 0 in any precision; the sum without it is 1 + 1.
    got = numerics.log_sum_exp_without_each(jnp.array([100.0, 0.0, 0.0]))
    np.testing.assert_allclose(got[0], np.log(2.0), rtol=1e-6)


# over_rows


@pytest.mark.parametrize("num_rows", [1, 3])
def test_over_rows_stacks_what_a_loop_returns(num_rows):
    a, b = jnp.arange(2.0 * num_rows).reshape(num_rows, 2), jnp.arange(1.0 * num_rows)
    sums, twice = numerics.over_rows(lambda a, b: (a.sum() + b, 2.0 * a), a, b)
    np.testing.assert_allclose(sums, a.sum(1) + b)
    np.testing.assert_allclose(twice, 2.0 * a)


# sums over binary vectors


def _weigh(params):
    """z -> a smooth function of z and the parameters, of order one."""
    return lambda z: jnp.sin(params @ z + 0.3) + z[0] * params[1] ** 2


@pytest.mark.parametrize("chunk_size", [1, 3, 8, 100])
@pytest.mark.parametrize("num_bits", [1, 4])
def test_sum_over_binary_visits_every_vector_once(num_bits, chunk_size):
    places = 2 ** jnp.arange(num_bits)

    def visit(z):
        assert z.shape == (num_bits,)
        row = (z.astype(int) * places).sum()
        return {"one": jax.nn.one_hot(row, 2**num_bits), "z": z}

    got = numerics.sum_over_binary(visit, num_bits=num_bits, chunk_size=chunk_size)
    np.testing.assert_array_equal(got["one"], np.ones(2**num_bits))
    np.testing.assert_array_equal(got["z"], np.full(num_bits, 2 ** (num_bits - 1)))


@pytest.mark.parametrize("chunk_size", [1, 6, 4096])
@pytest.mark.slow
def test_sums_over_binary_are_those_of_a_loop_with_their_gradients(x64, chunk_size):
    params = jnp.array([0.3, -1.0, 0.8, 2.0, -0.1])
    table = np.array(list(itertools.product((0.0, 1.0), repeat=5)))

    def streamed(params, reduce):
        return reduce(_weigh(params), num_bits=5, chunk_size=chunk_size)

    def looped(params, log):
        terms = jax.vmap(_weigh(params))(jnp.asarray(table))
        return jnp.log(jnp.exp(terms).sum()) if log else terms.sum()

    for log, reduce in enumerate(
        (numerics.sum_over_binary, numerics.log_sum_exp_over_binary)
    ):
        got = jax.jit(jax.value_and_grad(streamed), static_argnums=1)(params, reduce)
        expected = jax.jit(jax.value_and_grad(looped), static_argnums=1)(params, log)
        np.testing.assert_allclose(got[0], expected[0], rtol=1e-9)
        np.testing.assert_allclose(got[1], expected[1], rtol=1e-9)


@pytest.mark.parametrize(
    "reduce", [numerics.sum_over_binary, numerics.log_sum_exp_over_binary]
)
def test_sums_over_binary_have_the_slopes_of_finite_differences(x64, reduce):
    @jax.jit
    def streamed(params):
        return reduce(_weigh(params), num_bits=2, chunk_size=2)

    check_grads(streamed, (jnp.array([0.3, -1.0]),), order=1, modes=("fwd", "rev"))


@pytest.mark.slow
def test_two_to_the_24_probabilities_sum_to_one_in_float32():
    logits = jnp.linspace(-1.5, 2.5, 24)
    log_p = jax.nn.log_sigmoid(logits), jax.nn.log_sigmoid(-logits)

    def log_prob(z):
        return z @ log_p[0] + (1.0 - z) @ log_p[1]

    total = jax.jit(
        lambda: numerics.sum_over_binary(lambda z: jnp.exp(log_prob(z)), num_bits=24)
    )()
    assert total.dtype == jnp.float32
    assert abs(float(total) - 1.0) < 1e-5
    log_total = jax.jit(
        lambda: numerics.log_sum_exp_over_binary(
            lambda z: log_prob(jnp.concatenate([z, jnp.ones(4)])), num_bits=20
        )
    )()
    np.testing.assert_allclose(log_total, log_p[0][20:].sum(), atol=1e-5)


@pytest.mark.parametrize("num_bits", [1, 3, 31])
def test_a_binary_row_is_the_number_that_its_digits_write(num_bits):
    last = 2**num_bits - 1
    for row in (0, 1, 5 % (last + 1), last):
        written = f"{row:0{num_bits}b}"[::-1]  # the least significant digit first
        z = numerics.binary_digits(
            jnp.uint32(row), num_bits=num_bits, dtype=jnp.float32
        )
        np.testing.assert_array_equal(z, [float(digit) for digit in written])
        assert z.dtype == jnp.float32
        assert int(numerics.binary_row(z)) == row


def test_rounding_does_not_grow_with_the_number_of_chunks():
    # One by one, a plain float32 sum stops growing in digits: off by 1e-4 here.
    got = jax.jit(
        lambda: numerics.sum_over_binary(
            lambda z: 0.1 + 0.0 * z[0], num_bits=17, chunk_size=1
        )
    )()
    np.testing.assert_allclose(got, 2**17 * np.float64(np.float32(0.1)), rtol=1e-7)


@pytest.mark.slow
def test_memory_of_the_gradient_does_not_grow_with_the_number_of_terms():
    def peak(num_bits, reduce):
        def total(params):
            wide = lambda z: jnp.tanh(params * z.sum()).mean()  # noqa: E731
            return reduce(wide, num_bits=num_bits, chunk_size=64)

        program = jax.jit(jax.grad(total)).lower(jnp.ones(50)).compile()
        analysis = program.memory_analysis()
        assert analysis is not None
        return analysis.temp_size_in_bytes

    for reduce in (numerics.sum_over_binary, numerics.log_sum_exp_over_binary):
        chunks = 2 ** (14 - 6)
        growth = peak(14, reduce) - peak(8, reduce)
        assert growth < 40 * chunks  # counters; 64 * 50 * 4 with each chunk's z kept


@pytest.mark.parametrize("offset", [-2e4, 2e4])
def test_log_sum_exp_over_binary_far_from_zero_is_that_of_its_terms(offset):
    def spread(z):
        return offset + 50.0 * z.sum()

    got = jax.jit(
        lambda: numerics.log_sum_exp_over_binary(spread, num_bits=4, chunk_size=2)
    )()
    np.testing.assert_allclose(got, offset + 200.0, rtol=1e-6)


def test_log_sum_exp_over_binary_skips_terms_of_minus_infinity(x64):
    def only(z):
        return jnp.where(z[3] * z[1] > 0.0, 0.7 * z[0], -jnp.inf)

    def total(log_term):
        return numerics.log_sum_exp_over_binary(log_term, num_bits=4, chunk_size=2)

    expected = np.log(2.0 * (1.0 + np.exp(0.7)))
    np.testing.assert_allclose(total(only), expected, rtol=1e-9)
    assert total(lambda z: z[0] - jnp.inf) == -jnp.inf


@pytest.mark.parametrize(
    "reduce", [numerics.sum_over_binary, numerics.log_sum_exp_over_binary]
)
def test_sums_over_binary_refuse_what_is_too_long_or_cannot_be_counted(reduce):
    with pytest.raises(ValueError, match=r"2\*\*25 = 33,554,432 .*max_terms=2\*\*25"):
        reduce(jnp.sum, num_bits=25)
    with pytest.raises(ValueError, match="more than max_terms=8"):
        reduce(jnp.sum, num_bits=4, max_terms=8)
    for num_bits in (0, 32):
        with pytest.raises(ValueError, match=f"1 to 31 to enumerate, got {num_bits}"):
            reduce(jnp.sum, num_bits=num_bits, max_terms=2**40)
    with pytest.raises(ValueError, match="chunk_size must be positive, got 0"):
        reduce(jnp.sum, num_bits=4, chunk_size=0)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.float64])
def test_sums_over_binary_give_z_the_dtype_asked_for(x64, dtype):
    for reduce in (numerics.sum_over_binary, numerics.log_sum_exp_over_binary):
        assert reduce(jnp.sum, num_bits=2, dtype=dtype).dtype == dtype


@pytest.mark.parametrize(("degrees", "flip"), [(33, 1.0), (33, -1.0), (355, 1.0)])
def test_the_best_rotation_is_found_to_a_degree(x64, degrees, flip):
    c, s = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
    wanted = np.diag([1.0, flip]) @ np.array([[c, -s], [s, c]])

    def cost(rotations):
        return jnp.abs(rotations - wanted[None]).sum((1, 2))

    rotation, got = numerics.best_rotation(cost)
    np.testing.assert_allclose(rotation, wanted, atol=1e-12)
    assert got == flip * degrees


def test_what_has_no_weight_adds_nothing_whatever_its_value_is():
    weight = jnp.array([0.0, 0.0, 0.0, 0.5])
    value = jnp.array([jnp.nan, jnp.inf, -jnp.inf, 3.0])
    both = jax.value_and_grad(lambda v: numerics.weighed(weight, v).sum())
    total, slope = both(value)
    assert total == 1.5
    np.testing.assert_array_equal(slope, weight)
