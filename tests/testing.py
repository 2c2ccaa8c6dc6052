"""Assertions shared by the tests."""

import functools

import jax
import jax.numpy as jnp
import numpy as np


def assert_mean_equals(samples, expected, *, max_z=5.0):
    """Fails if the mean of [N, ...] samples is more than max_z standard errors off.

    At max_z=5 a correct estimator fails about once in 1.7 million comparisons, and
    the seed is fixed, so a failure is a bug and never a flake.
    """
    z = largest_z(samples, expected)
    assert z < max_z, f"mean off by {z:.1f} standard errors"


def largest_z(samples, expected):
    """The largest distance of a mean from what is expected, in standard errors."""
    largest = 0.0
    leaves = jax.tree.leaves(samples), jax.tree.leaves(expected)
    for sample, exact in zip(*leaves, strict=True):
        if not sample.size:
            continue
        got, want = np.asarray(sample, np.float64), np.asarray(exact, np.float64)
        error = got.std(0, ddof=1) / np.sqrt(got.shape[0])
        z = np.abs(got.mean(0) - want) / np.maximum(error, 1e-12 + 1e-9 * np.abs(want))
        largest = np.maximum(largest, z.max())  # keeps a NaN, and NaN fails every test
    return largest


def expected_log_mean_exp(log_w, probabilities, *, num_samples, num_nodes=4000):
    """E[log (1/K) sum_k w_k] of K independent draws from a table of weights, exactly.

    log s = integral of (exp(-t) - exp(-t s)) / t over t > 0, and E[exp(-t s)] is the
    Kth power of one draw's: two sums whatever K is, and both differentiate. For a
    continuous draw the table is a quadrature. In double precision.
    """
    shift = jax.lax.stop_gradient(log_w.max())
    u, step = np.linspace(-45.0, 75.0, num_nodes, retstep=True)
    laplace = jnp.exp(-jnp.exp(u[:, None] + (log_w - shift)[None])) @ probabilities
    integral = step * jnp.sum(jnp.exp(-jnp.exp(u)) - laplace**num_samples)
    return integral - jnp.log(1.0 * num_samples) + shift


def draws(objective, params, x, *, num_draws=20_000, seed=1):
    """Values [N] and gradients in params [N, ...] of an objective of one example."""
    keys = jax.random.split(jax.random.key(seed), num_draws)
    sampled = jax.vmap(jax.value_and_grad(objective, argnums=1), (0, None, None))
    return jax.jit(sampled)(keys, params, x)


def assert_unbiased(objective, params, x, bound, *, bound_of_phi=None):
    """Fails if a value or gradient is not within five standard errors of the exact one.

    bound(params, x) is the value's expectation and its gradient theta's; phi's too,
    unless bound_of_phi is given. Returns the draws, for more questions.
    """
    values, grads = draws(objective, params, x)
    exact, exact_grads = _value_and_grad(bound)(params, x)
    assert_mean_equals(values, exact)
    assert_mean_equals(grads.generative, exact_grads.generative)
    if bound_of_phi is not None:
        exact_grads = _value_and_grad(bound_of_phi)(params, x)[1]
    assert_mean_equals(grads.recognition, exact_grads.recognition)
    return values, grads


@functools.cache  # what many estimators are held against is compiled once
def _value_and_grad(bound):
    return jax.jit(jax.value_and_grad(bound))


def assert_same_compiled_and_batched(objective, params, xs):
    """jit agrees with eager and vmap with a loop, in value and gradient."""
    single = jax.value_and_grad(objective, argnums=1)
    keys = jax.random.split(jax.random.key(0), xs.shape[0])
    batched = jax.jit(jax.vmap(single, in_axes=(0, None, 0)))
    got = batched(jax.random.clone(keys), params, xs)
    eager = objective(jax.random.clone(keys)[0], params, xs[0])
    np.testing.assert_allclose(got[0][0], eager, rtol=1e-5, atol=1e-6)
    compiled = jax.jit(single)
    for i in range(xs.shape[0]):
        jax.tree.map(
            lambda a, b, i=i: np.testing.assert_allclose(a[i], b, rtol=1e-4, atol=1e-5),
            got,
            compiled(keys[i], params, xs[i]),
        )


def affine(seed, num_inputs, num_outputs, *, scale=0.6):
    """Parameters of `networks.linear` in the default float type."""
    rng, dtype = np.random.default_rng(seed), jnp.result_type(float)
    kernel = scale * rng.normal(size=(num_inputs, num_outputs))
    bias = scale * rng.normal(size=num_outputs)
    layer = {"kernel": jnp.asarray(kernel, dtype), "bias": jnp.asarray(bias, dtype)}
    return {"output": layer}


def affine_mean(seed, num_inputs, size):
    """As `affine`, to [mean, log std] of which the log std is constant."""
    layer = affine(seed, num_inputs, 2 * size)["output"]
    return {"output": layer | {"kernel": layer["kernel"].at[:, size:].set(0.0)}}


def shapes_of_products(jaxpr):
    """The shape of every matrix product in a program."""
    for equation in jaxpr.eqns:
        if equation.primitive.name == "dot_general":
            yield equation.outvars[0].aval.shape
        for inner in jax.tree.leaves(
            list(equation.params.values()), is_leaf=lambda leaf: hasattr(leaf, "eqns")
        ):
            if hasattr(inner, "eqns") or hasattr(inner, "jaxpr"):
                yield from shapes_of_products(getattr(inner, "jaxpr", inner))
