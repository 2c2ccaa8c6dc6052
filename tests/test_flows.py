import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vae_jax import flows, networks

SIZE, CONTEXT = 3, 2
START = networks.normal(std=0.6)


def _coupling(num_latents=SIZE, *, flip=False, **options):
    num_inputs = num_latents // 2 + CONTEXT
    num_outputs = 2 * (num_latents - num_latents // 2)
    network = networks.mlp(num_inputs, (4,), num_outputs, initializer=START)
    return flows.affine_coupling(
        network, num_latents, context_width=CONTEXT, flip=flip, **options
    )


def _autoregressive(num_latents=SIZE, **options):
    network = networks.made(num_latents, (6,), num_context=CONTEXT, initializer=START)
    return flows.inverse_autoregressive(
        network, num_latents, context_width=CONTEXT, **options
    )


def _everything(num_latents=SIZE):
    return flows.chain(
        flows.planar(num_latents),
        _autoregressive(num_latents),
        flows.reverse(num_latents),
        _coupling(num_latents),
        _coupling(num_latents, flip=True),
    )


FLOWS = {
    "planar": flows.planar(SIZE),
    "coupling": _coupling(),
    "flipped coupling": _coupling(flip=True),
    "autoregressive": _autoregressive(),
    "reverse": flows.reverse(SIZE),
    "inverted": flows.inverted(_everything()),
    "everything": _everything(),
    "one latent": flows.chain(flows.planar(1), _coupling(1), _autoregressive(1)),
}
LINEAR = networks.linear(2, 3)  # of the wrong output size for any flow
DIMENSION = dict.fromkeys(FLOWS, SIZE) | {"one latent": 1}
ALL = pytest.mark.parametrize("name", FLOWS)


def _inputs(name, num=5):
    """Parameters, contexts and points; the planar w . u is on both sides of -1."""
    flow, key = FLOWS[name], jax.random.key(3)
    key_init, key_context, key_y = jax.random.split(key, 3)
    contexts = 1.5 * jax.random.normal(key_context, (num, flow.width))
    y = jax.random.normal(key_y, (num, DIMENSION[name]))
    return jax.jit(flow.init)(key_init), contexts, y


@functools.cache  # the tests below share what is compiled and computed
def _both_ways(name):
    """What a flow does in float64, and the Jacobian of it by forward mode."""
    flow, (params, contexts, y) = FLOWS[name], _inputs(name)

    def one(context, y):
        z, log_det = flow.forward(params, context, y)
        jacobian = jax.jacfwd(lambda y: flow.forward(params, context, y)[0])(y)
        back, log_det_back = flow.inverse(params, context, z)
        other, _ = flow.inverse(params, context, y)  # of any point
        return {
            "z": z,
            "log_det": log_det,
            "jacobian": jacobian,
            "back": back,
            "log_det_back": log_det_back,
            "forth": flow.forward(params, context, other)[0],
        }

    got = jax.jit(jax.vmap(one))(contexts, y)
    return {key: np.asarray(value) for key, value in got.items()} | {"y": np.asarray(y)}


# Oracle


@ALL
@pytest.mark.slow
def test_log_det_is_that_of_the_jacobian(x64, name):
    got = _both_ways(name)
    expected = np.linalg.slogdet(got["jacobian"])[1]
    np.testing.assert_allclose(got["log_det"], expected, rtol=1e-9, atol=1e-12)


@pytest.mark.slow
@ALL
def test_the_inverse_returns_the_log_det_of_the_forward_map(x64, name):
    got = _both_ways(name)
    log_det, log_det_back = got["log_det"], got["log_det_back"]
    np.testing.assert_allclose(log_det_back, log_det, rtol=1e-9, atol=1e-12)


@pytest.mark.slow
@pytest.mark.parametrize(
    "name",
    [  # "inverted" holds all that "everything" does
        pytest.param(name, marks=[pytest.mark.slow] if name == "everything" else [])
        for name in FLOWS
    ],
)
def test_forward_and_inverse_undo_each_other_in_either_order(x64, name):
    got = _both_ways(name)
    np.testing.assert_allclose(got["back"], got["y"], rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(got["forth"], got["y"], rtol=1e-9, atol=1e-12)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["planar", "autoregressive", "one latent"])
def test_a_flow_changes_every_latent(x64, name):
    got = _both_ways(name)
    assert (np.abs(got["z"] - got["y"]) > 1e-6).all()


def test_planar_is_the_sum_in_the_paper_where_u_needs_no_change(x64):
    u, w, b = np.array([0.5, -1.0, 0.2]), np.array([0.7, -0.3, 0.4]), 0.6
    y = np.array([1.0, 0.3, -2.0])
    context = jnp.asarray(np.concatenate([u, w, [b]]))
    z, log_det = FLOWS["planar"].forward((), context, jnp.asarray(y))
    activation = np.tanh(w @ y + b)
    np.testing.assert_allclose(z, y + u * activation, rtol=1e-12)
    expected = np.log(1.0 + w @ u * (1.0 - activation**2))
    np.testing.assert_allclose(log_det, expected, rtol=1e-12)


def test_planar_changes_u_along_w_alone_and_keeps_the_map_increasing(x64):
    u, w = np.array([-2.0, 1.0, 0.5]), np.array([1.5, -1.0, 0.8])
    context = jnp.asarray(np.concatenate([u, w, [0.0]]))
    assert w @ u < -1.0
    far = 1e3 * w  # tanh is one
    got = np.asarray(FLOWS["planar"].forward((), context, jnp.asarray(far))[0]) - far
    np.testing.assert_allclose(w @ got, w @ u / (1.0 - w @ u), rtol=1e-9)
    np.testing.assert_allclose(np.cross(got - u, w), np.zeros(3), atol=1e-9)


def test_a_layer_scales_and_shifts_by_what_its_network_says_of_what_it_reads(x64):
    """[shift, raw] of [y, context], by a network that is a matrix."""
    network, kernel = networks.linear(3, 4), np.arange(12.0).reshape(3, 4) / 10.0
    params = {"output": {"kernel": jnp.asarray(kernel), "bias": jnp.zeros(4)}}
    y, context = np.array([0.5, -2.0, 1.0]), np.array([0.3, 0.7])

    def changed(y, out, bound):
        shift, raw = np.split(np.asarray(out), 2)
        log_scale = bound * np.tanh(raw / bound)
        return np.exp(log_scale) * y + shift, log_scale.sum()

    coupling = flows.affine_coupling(network, 3, context_width=2, max_log_scale=0.5)
    z, log_det = coupling.forward(params, jnp.asarray(context), jnp.asarray(y))
    expected, total = changed(y[1:], [y[0], *context] @ kernel, 0.5)
    np.testing.assert_allclose(z, [y[0], *expected], rtol=1e-12)
    np.testing.assert_allclose(log_det, total, rtol=1e-12)
    # Nothing checks that a network is autoregressive.
    layer = flows.inverse_autoregressive(network, 2, context_width=1, max_log_scale=3.0)
    z, log_det = layer.forward(params, jnp.asarray(context[:1]), jnp.asarray(y[:2]))
    expected, total = changed(y[:2], [*y[:2], context[0]] @ kernel, 3.0)
    np.testing.assert_allclose(z, expected, rtol=1e-12)
    np.testing.assert_allclose(log_det, total, rtol=1e-12)


@pytest.mark.slow
def test_coupling_passes_the_half_that_its_name_says(x64):
    y = _both_ways("coupling")["y"]
    z, flipped = _both_ways("coupling")["z"], _both_ways("flipped coupling")["z"]
    np.testing.assert_array_equal(z[:, :1], y[:, :1])
    np.testing.assert_array_equal(flipped[:, 2:], y[:, 2:])
    assert (z[:, 1:] != y[:, 1:]).all()
    assert (flipped[:, :2] != y[:, :2]).all()


def test_autoregressive_has_a_lower_triangular_jacobian_that_is_full(x64):
    jacobian = _both_ways("autoregressive")["jacobian"]
    assert (np.triu(jacobian, 1) == 0.0).all()
    assert (np.abs(jacobian[:, *np.tril_indices(SIZE)]) > 1e-9).all()


def test_reverse_is_the_reversed_order_at_no_cost(x64):
    got = _both_ways("reverse")
    np.testing.assert_array_equal(got["z"], got["y"][:, ::-1])
    np.testing.assert_array_equal(got["log_det"], np.zeros(len(got["y"])))


@pytest.mark.slow
def test_chain_applies_the_first_flow_first_to_the_first_of_the_context(x64):
    first, second = FLOWS["planar"], FLOWS["autoregressive"]
    both = flows.chain(first, second)
    params = jax.jit(both.init)(jax.random.key(0))
    context = jax.random.normal(jax.random.key(1), (both.width,))
    y = jax.random.normal(jax.random.key(2), (SIZE,))
    assert both.width == first.width + second.width
    contexts = jnp.split(context, [first.width])
    middle, log_det_first = jax.jit(first.forward)(params[0], contexts[0], y)
    z, log_det_second = jax.jit(second.forward)(params[1], contexts[1], middle)
    got = jax.jit(both.forward)(params, context, y)
    np.testing.assert_allclose(got[0], z, rtol=1e-12)
    np.testing.assert_allclose(got[1], log_det_first + log_det_second, rtol=1e-12)


def test_a_chain_of_no_flow_is_the_identity():
    nothing, y = flows.chain(), jnp.array([0.3, -1.0])
    for function in (nothing.forward, nothing.inverse):
        z, log_det = function(nothing.init(jax.random.key(0)), jnp.zeros(0), y)
        np.testing.assert_array_equal(z, y)
        assert log_det == 0.0


# Gradient


@pytest.mark.slow
def test_two_derivatives_of_the_planar_inverse_undo_those_of_the_map(x64):
    flow, (_, contexts, y) = FLOWS["planar"], _inputs("planar", num=2)

    def there_and_back(both):  # y, whatever the context
        context, y = jnp.split(both, [flow.width])
        return flow.inverse((), context, flow.forward((), context, y)[0])[0]

    first = jax.jacrev(there_and_back)
    derivatives = jax.jit(lambda both: (first(both), jax.jacfwd(first)(both)))
    for both in jnp.concatenate([contexts, y], axis=1):
        once, twice = derivatives(both)
        np.testing.assert_allclose(once, np.eye(SIZE, both.size, flow.width), atol=1e-9)
        np.testing.assert_allclose(twice, np.zeros(twice.shape), atol=1e-9)


@pytest.mark.slow
def test_planar_tends_to_its_value_at_w_zero_with_finite_gradients():
    flow = FLOWS["planar"]
    u, b = jnp.array([-2.0, 1.0, 0.5]), jnp.array([0.4])
    y, direction = jnp.array([1.0, 0.3, -2.0]), jnp.array([1.0, -2.0, 0.3])

    @jax.jit
    @functools.partial(jax.vmap, in_axes=(0, None))
    def values_and_slopes(w, y):
        def both(w, y):
            context = jnp.concatenate([u, w, b])
            return flow.forward((), context, y), flow.inverse((), context, y)

        return both(w, y), jax.jacrev(both, (0, 1))(w, y)

    sizes = jnp.array([0.0, 1e-44, 1e-38, 1e-25, 1e-19, 3e-10, 1e-9, 1e-8])
    values, slopes = values_and_slopes(jnp.outer(sizes, direction), y)
    for leaf in jax.tree.leaves(slopes):
        assert (np.abs(leaf) < 20.0).all()
    (z, log_det), (back, log_det_back) = values
    change = np.asarray(u * jnp.tanh(b))
    np.testing.assert_allclose(z, np.tile(y + change, (8, 1)), rtol=1e-6)
    np.testing.assert_allclose(back, np.tile(y - change, (8, 1)), rtol=1e-6)
    np.testing.assert_allclose(log_det, np.zeros(8), atol=1e-6)
    np.testing.assert_allclose(log_det_back, np.zeros(8), atol=1e-6)


# Transformation


@pytest.mark.slow
def test_jit_and_vmap_agree_with_an_eager_loop():
    flow, (params, contexts, z) = FLOWS["autoregressive"], _inputs("autoregressive", 2)
    inverse = functools.partial(flow.inverse, params)
    y, log_det = jax.jit(jax.vmap(inverse))(contexts, z)
    for i in range(2):
        expected = inverse(contexts[i], z[i])
        np.testing.assert_allclose(y[i], expected[0], rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(log_det[i], expected[1], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.float64])
@ALL
@pytest.mark.slow
def test_dtype_follows_the_inputs(x64, name, dtype):
    flow, arguments = (
        FLOWS[name],
        jax.tree.map(lambda a: a.astype(dtype), _inputs(name)),
    )
    params, contexts, y = arguments
    for function in (flow.forward, flow.inverse):
        got = jax.eval_shape(function, params, contexts[0], y[0])
        assert [leaf.dtype for leaf in got] == [dtype, dtype]
        assert [leaf.shape for leaf in got] == [y[0].shape, ()]


# Edge


@pytest.mark.slow
def test_a_round_trip_in_float32_keeps_five_digits():
    flow, (params, contexts, y) = FLOWS["everything"], _inputs("everything", num=200)
    contexts = 0.5 * contexts

    @jax.jit
    @jax.vmap
    def there_and_back(context, y):
        z, log_det = flow.forward(params, context, y)
        return *flow.inverse(params, context, z), log_det

    back, log_det_back, log_det = there_and_back(contexts, y)
    np.testing.assert_allclose(back, y, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(log_det_back, log_det, rtol=1e-4, atol=1e-4)


@pytest.mark.slow
def test_scales_stay_bounded_far_from_the_data():
    max_log_scale = 0.5
    options = {"context_width": CONTEXT, "max_log_scale": max_log_scale}
    wide = networks.normal(std=1.0)
    made = networks.made(SIZE, (), num_context=CONTEXT, initializer=wide)
    mlp = networks.linear(1 + CONTEXT, 4, initializer=wide)
    for flow in (
        flows.inverse_autoregressive(made, SIZE, **options),
        flows.affine_coupling(mlp, SIZE, **options),
    ):
        params = flow.init(jax.random.key(0))
        far = 1e3 * jax.random.normal(jax.random.key(1), (20, CONTEXT + SIZE))
        contexts, y = jnp.split(far, [CONTEXT], axis=1)
        for function in (flow.forward, flow.inverse):
            mapped = jax.jit(jax.vmap(function, in_axes=(None, 0, 0)))
            moved, log_det = mapped(params, contexts, y)
            assert np.isfinite(moved).all()
            assert np.abs(log_det).max() <= SIZE * max_log_scale * (1.0 + 1e-6)
            assert np.abs(log_det).max() > max_log_scale  # the bound is reached


def test_the_planar_equation_is_solved_to_rounding_from_one_end_to_the_other(x64):
    # D = 1, w = 1, b = 0: z = v + m tanh(v), of slope 1 + m / cosh(v)^2.
    flow = flows.planar(1)
    u = np.concatenate([-np.logspace(-6, 6, 25), [0.0], np.logspace(-6, 6, 25)])
    m = np.where(u < 0.0, u / (1.0 + np.abs(u)), u)[:, None]
    targets = np.concatenate([[0.0], np.logspace(-12, 12, 49), 1.001 * np.abs(u)])
    targets = np.concatenate([targets, -targets])[None]

    @jax.jit
    @functools.partial(jax.vmap, in_axes=(0, None))
    @functools.partial(jax.vmap, in_axes=(None, 0))
    def log_det(u, z):
        context = jnp.stack([u, jnp.ones_like(u), jnp.zeros_like(u)])
        return flow.inverse((), context, z[None])[1]

    low, high = targets - np.abs(m), targets + np.abs(m)
    v = targets
    for _ in range(100):  # bisection
        v = 0.5 * (low + high)
        less = v + m * np.tanh(v) < targets
        low, high = np.where(less, v, low), np.where(less, high, v)
    with np.errstate(over="ignore"):
        slope = np.tanh(v) ** 2 + (1.0 + m) / np.cosh(v) ** 2
    got = log_det(jnp.asarray(u), jnp.asarray(targets[0]))
    np.testing.assert_allclose(got, np.log(slope), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: flows.planar(0), "num_latents must be positive, got 0"),
        (lambda: flows.reverse(-1), "num_latents must be positive, got -1"),
        (lambda: flows.affine_coupling(LINEAR, 0), "num_latents .* got 0"),
        (lambda: flows.affine_coupling(LINEAR, 2, context_width=-1), "width .* got -1"),
        (lambda: _coupling(max_log_scale=0.0), "max_log_scale .* got 0.0"),
        (lambda: _coupling(max_log_scale=np.inf), "max_log_scale .* got inf"),
        (lambda: flows.inverse_autoregressive(LINEAR, 0), "num_latents .* got 0"),
        (
            lambda: flows.inverse_autoregressive(LINEAR, 2, context_width=-1),
            "context_width .* got -1",
        ),
        (lambda: _autoregressive(max_log_scale=-2.0), "max_log_scale .* got -2.0"),
    ],
)
def test_bad_arguments_are_refused(build, message):
    with pytest.raises(ValueError, match=message):
        build()


@pytest.mark.parametrize("build", [flows.affine_coupling, flows.inverse_autoregressive])
def test_a_network_of_another_output_size_is_refused(build):
    flow = build(LINEAR, 2, context_width=1 if build is flows.affine_coupling else 0)
    params = flow.init(jax.random.key(0))
    with pytest.raises(ValueError, match=r"network must return .* got \(3,\)"):
        flow.forward(params, jnp.zeros(flow.width), jnp.zeros(2))


@pytest.mark.parametrize("name", ["planar", "autoregressive", "reverse", "everything"])
@pytest.mark.slow
def test_a_context_or_an_event_of_another_length_is_refused(name):
    flow, (params, contexts, y) = FLOWS[name], _inputs(name)
    for function, event in ((flow.forward, "y"), (flow.inverse, "z")):
        with pytest.raises(ValueError, match=rf"context must be \[{flow.width}\], got"):
            function(params, jnp.zeros(flow.width + 1), y[0])
        with pytest.raises(ValueError, match=rf"{event} must be \[3\], got \(4,\)"):
            function(params, contexts[0], jnp.zeros(4))
