import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests import problems, testing
from vae_jax import divergences
from vae_jax.estimators import regularized

X = np.array([0.4, -1.0])
kl = divergences.diag_normal_to_standard_normal


def _build(name, problem, **settings):
    builder = getattr(regularized, name)
    settings = {"num_samples": 1, "kl": kl} | settings
    return builder(problem.generative, problem.recognition, **settings)


def _kl_per_latent(problem, params, x):
    mean, log_std = jnp.split(problem.recognition.encode(params, x), 2)
    return 0.5 * (mean**2 + jnp.exp(2 * log_std) - 1 - 2 * log_std)


def _check(objective, problem, surrogate):
    """The value is the ELBO's, the gradient that of the surrogate."""
    x = jnp.asarray(X)
    values, grads = testing.draws(objective, problem.params, x)
    testing.assert_mean_equals(values, problem.elbo(problem.params, x))
    testing.assert_mean_equals(grads, jax.jit(jax.grad(surrogate))(problem.params, x))


def test_free_bits_leave_out_the_latents_below_the_minimum(x64):
    problem, x = problems.linear_gaussian(num_latents=2), jnp.asarray(X)
    each = _kl_per_latent(problem, problem.params, x)
    minimum = float(each.mean())  # one latent above, one below
    assert each.min() < minimum < each.max()
    objective = _build("free_bits", problem, min_nats=minimum)

    def surrogate(params, x):
        kept = _kl_per_latent(problem, params, x)[jnp.argmax(each)]
        return problem.reconstruction(params, x) - kept

    _check(objective, problem, surrogate)


def test_no_free_bits_are_the_elbo(x64):
    problem = problems.linear_gaussian(num_latents=2)
    _check(_build("free_bits", problem, min_nats=0.0), problem, problem.elbo)


@pytest.mark.parametrize("offset", [-0.5, 0.5])
def test_capacity_pulls_the_kl_to_its_target_from_both_sides(x64, offset):
    problem, x = problems.linear_gaussian(num_latents=2), jnp.asarray(X)
    nats = float(problem.kl(problem.params, x)) + offset
    objective = _build("capacity", problem, nats=nats, strength=3.0)
    sign = -np.sign(offset)  # above its target the KL is pushed down

    def surrogate(params, x):
        return problem.reconstruction(params, x) - 3.0 * sign * problem.kl(params, x)

    _check(objective, problem, surrogate)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "settings"),
    [("free_bits", {"min_nats": 0.5}), ("capacity", {"nats": 1.0, "strength": 2.0})],
)
def test_jit_and_vmap_agree_with_a_loop(name, settings):
    problem = problems.linear_gaussian(num_latents=2)
    xs = jax.random.normal(jax.random.key(1), (3, 2))
    objective = _build(name, problem, **settings)
    testing.assert_same_compiled_and_batched(objective, problem.params, xs)


@pytest.mark.parametrize(
    ("name", "settings", "message"),
    [
        ("free_bits", {"min_nats": -1.0}, "min_nats .*-1"),
        ("free_bits", {"min_nats": 1.0, "num_samples": 0}, "num_samples .*0"),
        ("capacity", {"nats": -1.0, "strength": 1.0}, "nats .*-1"),
        ("capacity", {"nats": 1.0, "strength": -2.0}, "strength .*-2"),
    ],
)
def test_bad_settings_are_refused_when_built(name, settings, message):
    with pytest.raises(ValueError, match=message):
        _build(name, problems.linear_gaussian(), **settings)
