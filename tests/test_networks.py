import math

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads

from vae_jax import conditional, networks


def _moment_error(weights, std):
    """Standard errors between the mean square of normal weights and std^2."""
    mean_square = float((np.asarray(weights, np.float64) ** 2).mean())
    return abs(mean_square / std**2 - 1.0) / np.sqrt(2.0 / weights.size)


# Oracle


def test_mlp_matches_its_matrices(x64):
    network = networks.mlp(3, (4, 5), 2, initializer=networks.normal(std=0.5))
    params = network.init(jax.random.key(0))
    x = np.array([0.3, -1.0, 2.0])
    h = x
    for name in ("hidden_0", "hidden_1"):
        layer = jax.tree.map(np.asarray, params[name])
        h = np.tanh(h @ layer["kernel"] + layer["bias"])
    expected = h @ params["output"]["kernel"] + params["output"]["bias"]
    got = network.apply(params, jnp.asarray(x))
    np.testing.assert_allclose(got, expected, rtol=1e-9)


def test_mlp_uses_the_activation_given_on_hidden_layers_only(x64):
    network = networks.mlp(2, (3,), 2, activation=jax.nn.relu)
    params = network.init(jax.random.key(0))
    x = np.array([0.3, -1.0])
    hidden = np.maximum(x @ np.asarray(params["hidden_0"]["kernel"]), 0.0)
    expected = hidden @ np.asarray(params["output"]["kernel"])
    got = network.apply(params, jnp.asarray(x))
    np.testing.assert_allclose(got, expected, rtol=1e-9)


def test_linear_is_an_affine_map(x64):
    network = networks.linear(2, 3, initializer=networks.normal(std=1.0))
    params = network.init(jax.random.key(0))
    kernel, bias = params["output"]["kernel"], params["output"]["bias"]
    x = jnp.array([0.3, -1.0])
    got = network.apply(params, x)
    np.testing.assert_allclose(got, np.asarray(x) @ kernel + bias, rtol=1e-9)
    np.testing.assert_allclose(jax.jacobian(network.apply, 1)(params, x), kernel.T)


def test_an_image_is_flattened_row_by_row():
    network = networks.mlp(6, (4,), 2)
    params, image = network.init(jax.random.key(0)), jnp.arange(6.0).reshape(2, 3)
    got = network.apply(params, image)
    assert got.shape == (2,)
    np.testing.assert_array_equal(got, network.apply(params, image.reshape(6)))


# Initial values


@pytest.mark.parametrize(
    "network",
    [
        networks.mlp(7, (5,), 3),
        networks.linear(7, 3),
        networks.gated_mlp(7, (5,), 3),
        networks.residual_mlp(7, 5, 3, num_blocks=1),
    ],
    ids=["mlp", "linear", "gated", "residual"],
)
def test_arrays_of_a_tuple_lie_one_behind_the_other(network, x64):
    params = network.init(jax.random.key(0))
    x, c = jax.random.normal(jax.random.key(1), (2, 2)), jnp.array([3.0, -1.0, 2.0])
    expected = network.apply(params, jnp.concatenate([x.ravel(), c]))
    np.testing.assert_allclose(network.apply(params, (x, c)), expected, rtol=1e-12)
    adapted = conditional.as_entries(network).apply(params, (x.ravel(), c))
    np.testing.assert_array_equal(adapted, expected)


def test_what_no_vmap_is_over_is_multiplied_once():
    network = networks.mlp(40, (5,), 3)
    params = network.init(jax.random.key(0))
    each = jax.vmap(lambda x, c: network.apply(params, (x, c)), (None, 0))
    sizes = [
        math.prod(eqn.outvars[0].aval.shape)
        for eqn in jax.make_jaxpr(each)(jnp.ones(30), jnp.ones((8, 10))).jaxpr.eqns
        if eqn.primitive.name == "dot_general"
    ]
    assert sorted(sizes) == [5, 8 * 3, 8 * 5]


def test_layers_are_named_by_position():
    network = networks.mlp(3, (4, 5), 2)
    shapes = jax.tree.map(jnp.shape, network.init(jax.random.key(0)))
    assert shapes == {
        "hidden_0": {"kernel": (3, 4), "bias": (4,)},
        "hidden_1": {"kernel": (4, 5), "bias": (5,)},
        "output": {"kernel": (5, 2), "bias": (2,)},
    }
    assert set(networks.linear(3, 2).init(jax.random.key(0))) == {"output"}


@pytest.mark.slow
@pytest.mark.parametrize("std", [0.1, 0.01])
def test_normal_draws_weights_and_biases_with_its_std(std):
    network = networks.mlp(200, (5_000,), 3, initializer=networks.normal(std=std))
    layer = network.init(jax.random.key(0))["hidden_0"]
    assert _moment_error(layer["kernel"], std) < 5.0
    assert _moment_error(layer["bias"], std) < 5.0


def test_glorot_draws_weights_to_its_bound_and_starts_biases_at_zero():
    layer = networks.mlp(300, (200,), 3).init(jax.random.key(0))["hidden_0"]
    bound = np.sqrt(6.0 / (300 + 200))
    assert 0.999 * bound < np.abs(layer["kernel"]).max() <= bound
    variance = np.asarray(layer["kernel"]).var()
    np.testing.assert_allclose(variance, bound**2 / 3.0, rtol=0.02)
    np.testing.assert_array_equal(layer["bias"], np.zeros(200))


def test_initial_values_depend_on_the_key_and_differ_between_layers():
    network = networks.mlp(4, (4, 4), 4)
    first = network.init(jax.random.key(0))
    kernels = [first[name]["kernel"] for name in ("hidden_0", "hidden_1", "output")]
    kernels.append(network.init(jax.random.key(1))["output"]["kernel"])
    for i, a in enumerate(kernels):
        for b in kernels[:i]:
            assert not np.any(np.asarray(a) == np.asarray(b))
    again = network.init(jax.random.key(0))
    chex.assert_trees_all_equal(first, again)


def test_weights_are_float32_by_default():
    params = networks.mlp(3, (4,), 2).init(jax.random.key(0))
    assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {np.dtype("float32")}


def test_weights_are_float64_under_x64(x64):
    network = networks.mlp(3, (4,), 2)
    params = network.init(jax.random.key(0))
    assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {np.dtype("float64")}
    assert network.apply(params, jnp.ones(3)).dtype == jnp.float64


# Gradient, transformation, edge


def test_gradients_agree_with_finite_differences(x64):
    network = networks.mlp(2, (3,), 2)
    arguments = network.init(jax.random.key(0)), jnp.array([0.3, -1.0])
    check_grads(jax.jit(network.apply), arguments, order=2, modes=("rev",))


def test_jit_and_vmap_agree_with_a_loop():
    network = networks.mlp(3, (4,), 2)
    params, xs = (
        network.init(jax.random.key(0)),
        jax.random.normal(jax.random.key(1), (5, 3)),
    )
    got = jax.jit(jax.vmap(network.apply, in_axes=(None, 0)))(params, xs)
    expected = jnp.stack([network.apply(params, x) for x in xs])
    np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("sizes", [(0, (3,), 2), (3, (0,), 2), (3, (4, -1), 2)])
def test_a_layer_without_units_is_refused(sizes):
    with pytest.raises(ValueError, match=r"sizes .*(0|-1)"):
        networks.mlp(*sizes)


def test_an_affine_map_to_nothing_is_refused():
    with pytest.raises(ValueError, match=r"sizes .*0"):
        networks.linear(3, 0)


@pytest.mark.parametrize("std", [0.0, -0.1, np.nan, np.inf])
def test_an_initial_std_that_is_not_positive_is_refused(std):
    with pytest.raises(ValueError, match=f"std .*{std}"):
        networks.normal(std=std)


# MADE


MADES = [  # num_inputs, hidden, outputs_per_input, num_context
    (4, (7, 6), 2, 3),
    (3, (5,), 3, 0),
    (3, (), 2, 2),
    (3, (), 1, 0),
    (4, (2,), 2, 1),
    (1, (3,), 2, 2),
    (1, (), 2, 0),
    (1, (3,), 1, 0),
]


def _made(num_inputs, hidden, outputs, num_context):
    return networks.made(
        num_inputs,
        hidden,
        outputs_per_input=outputs,
        num_context=num_context,
        initializer=networks.normal(std=1.0),
    )


@pytest.mark.parametrize("sizes", MADES)
@pytest.mark.slow
def test_made_reads_earlier_inputs_alone_in_every_block_and_all_the_context(sizes):
    num_inputs, hidden, outputs, num_context = sizes
    network = _made(*sizes)
    x = jax.random.normal(jax.random.key(1), (num_inputs + num_context,))
    params = jax.jit(network.init)(jax.random.key(0))
    jacobian = np.asarray(jax.jit(jax.jacrev(network.apply, 1))(params, x))
    assert jacobian.shape == (outputs * num_inputs, num_inputs + num_context)
    inputs, context = np.split(jacobian, [num_inputs], axis=1)
    assert (context != 0.0).all()
    earlier = np.tril(np.ones((num_inputs, num_inputs), bool), -1)
    if hidden == (2,):  # of degrees 0 and 2, too few to read all that may be read
        earlier[1], earlier[:, 2:] = False, False
    for block in np.split(inputs, outputs):
        np.testing.assert_array_equal(block != 0.0, earlier)


def test_made_matches_its_masked_matrices(x64):
    network = _made(3, (4,), 2, 1)
    params = network.init(jax.random.key(0))
    assert jax.tree.map(jnp.shape, params) == {
        "hidden_0": {"kernel": (4, 4), "bias": (4,)},
        "output": {"kernel": (4, 6), "bias": (6,)},
    }
    assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {np.dtype("float64")}
    into = [1, 2, 3, 0], [0, 0, 1, 2]  # degrees of [y, context] and of the units
    first = np.less_equal.outer(*into) * np.asarray(params["hidden_0"]["kernel"])
    out = [1, 2, 3, 1, 2, 3]
    second = np.less.outer(into[1], out) * np.asarray(params["output"]["kernel"])
    x = np.array([0.3, -1.0, 2.0, 0.7])
    hidden = np.tanh(x @ first + params["hidden_0"]["bias"])
    expected = hidden @ second + params["output"]["bias"]
    got = network.apply(params, jnp.asarray(x))
    np.testing.assert_allclose(got, expected, rtol=1e-9)


def test_made_starts_as_its_initializer_says_and_applies_its_activation():
    network = networks.made(30, (400,), num_context=5, activation=lambda x: 0.0 * x)
    params = network.init(jax.random.key(0))
    bound = np.sqrt(6.0 / (35 + 400))
    assert 0.99 * bound < np.abs(params["hidden_0"]["kernel"]).max() <= bound
    assert not np.any(params["hidden_0"]["bias"])
    other = network.init(jax.random.key(1))
    assert not np.any(params["output"]["kernel"] == other["output"]["kernel"])
    np.testing.assert_array_equal(network.apply(params, jnp.ones(35)), np.zeros(60))


@pytest.mark.parametrize(
    ("arguments", "options", "message"),
    [
        ((0, (3,)), {}, r"sizes .*\(0, 3, 2\)"),
        ((2, (3, 0)), {}, r"sizes .*\(2, 3, 0, 2\)"),
        ((2, ()), {"outputs_per_input": 0}, r"sizes .*\(2, 0\)"),
        ((2, ()), {"num_context": -1}, "num_context .*got -1"),
    ],
)
def test_made_refuses_bad_sizes(arguments, options, message):
    with pytest.raises(ValueError, match=message):
        networks.made(*arguments, **options)


# Gates, residual blocks, and a start at zero


def test_a_gated_network_matches_its_matrices(x64):
    network = networks.gated_mlp(3, (4,), 2, initializer=networks.normal(std=0.5))
    params = network.init(jax.random.key(0))
    x = np.array([0.3, -1.0, 2.0])
    hidden, output = (
        jax.tree.map(np.asarray, params[name]["output"])
        for name in ("hidden_0", "output")
    )
    pre = x @ hidden["kernel"] + hidden["bias"]
    h = pre[:4] / (1.0 + np.exp(-pre[4:]))
    expected = h @ output["kernel"] + output["bias"]
    got = network.apply(params, jnp.asarray(x))
    np.testing.assert_allclose(got, expected, rtol=1e-9)


def test_a_residual_network_matches_its_matrices(x64):
    network = networks.residual_mlp(
        3, 4, 2, num_blocks=2, initializer=networks.normal(std=0.5)
    )
    params = network.init(jax.random.key(0))

    def layer(name, x):
        of = jax.tree.map(np.asarray, params[name]["output"])
        return x @ of["kernel"] + of["bias"]

    x = np.array([[0.3, -1.0, 2.0]])
    h = layer("input", x.reshape(-1))
    for i in range(2):
        h = h + layer(f"second_{i}", np.tanh(layer(f"first_{i}", np.tanh(h))))
    got = network.apply(params, jnp.asarray(x))
    np.testing.assert_allclose(got, layer("output", np.tanh(h)), rtol=1e-9)


@pytest.mark.slow
def test_residual_blocks_start_smaller_the_more_there_are():
    start = networks.normal(std=0.5)
    for num_blocks in (1, 9):
        network = networks.residual_mlp(
            2, 200, 2, num_blocks=num_blocks, initializer=start
        )
        params = network.init(jax.random.key(0))
        last = params["second_0"]["output"]["kernel"]
        assert _moment_error(last, 0.5 / np.sqrt(num_blocks)) < 5.0
        assert _moment_error(params["first_0"]["output"]["kernel"], 0.5) < 5.0


@pytest.mark.parametrize(
    "network",
    [networks.mlp(3, (4,), 2), networks.made(3, (4,)), networks.gated_mlp(3, (4,), 2)],
    ids=["mlp", "made", "gated"],
)
def test_a_network_from_zero_gives_zero_and_learns(network):
    start = networks.from_zero(network)
    params, x = start.init(jax.random.key(0)), jnp.array([0.3, -1.0, 2.0])
    np.testing.assert_array_equal(start.apply(params, x), 0.0)
    slope = jax.grad(lambda p: (start.apply(p, x) - 1.0).sum())(params)
    assert all(np.any(leaf != 0.0) for leaf in jax.tree.leaves(slope["output"]))


def test_a_start_at_zero_needs_an_output_layer():
    network = networks.mlp(3, (4,), 2)
    other = network._replace(init=lambda key: {"first": jnp.zeros(2)})
    with pytest.raises(ValueError, match="no output layer among first"):
        networks.from_zero(other).init(jax.random.key(0))


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: networks.gated_mlp(3, (0,), 2), "layer sizes must be positive"),
        (lambda: networks.residual_mlp(3, 4, 2, num_blocks=0), "num_blocks must be"),
        (lambda: networks.residual_mlp(3, 0, 2, num_blocks=1), "layer sizes must be"),
    ],
)
def test_sizes_of_no_network_are_refused(build, message):
    with pytest.raises(ValueError, match=message):
        build()
