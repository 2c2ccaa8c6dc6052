import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests import testing
from vae_jax.evaluation import annealing


@pytest.mark.parametrize("schedule", [annealing.linear, annealing.sigmoid])
@pytest.mark.parametrize("num_temperatures", [1, 2, 7, 1000])
def test_temperatures_rise_from_zero_to_one_and_are_symmetric(
    schedule, num_temperatures
):
    betas = schedule(num_temperatures)
    assert betas.shape == (num_temperatures + 1,)
    assert betas[0] == 0.0
    assert betas[-1] == 1.0
    assert (np.diff(betas) > 0.0).all()
    np.testing.assert_allclose(betas + betas[::-1], 1.0, atol=1e-12)


def test_the_sigmoid_schedule_is_the_logistic_function_rescaled():
    t = np.arange(11) / 10.0
    s = 1.0 / (1.0 + np.exp(-3.0 * (2.0 * t - 1.0)))
    expected = (s - s[0]) / (s[-1] - s[0])
    np.testing.assert_allclose(
        annealing.sigmoid(10, sharpness=3.0), expected, atol=1e-12
    )


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kernel", "draw", "log_density"),
    [
        (
            annealing.hmc_kernel(num_leapfrog=3),
            lambda key: 0.5 * jax.random.normal(key, (2,)),
            lambda z: -2.0 * jnp.sum(z**2),
        ),
        (
            annealing.gibbs_kernel(num_updates=3),
            lambda key: jax.random.bernoulli(
                key, jax.nn.sigmoid(jnp.array([0.8, -0.5]))
            ).astype("float32"),
            lambda z: jnp.sum(z * jnp.array([0.8, -0.5])),
        ),
    ],
)
def test_a_kernel_leaves_its_density_as_it_is(kernel, draw, log_density):
    def one(key):
        key_z, key_move = jax.random.split(key)
        return kernel(key_move, log_density, draw(key_z), jnp.asarray(0.6))[0]

    z = jax.jit(jax.vmap(one))(jax.random.split(jax.random.key(0), 20_000))
    exact = jax.vmap(draw)(jax.random.split(jax.random.key(1), 200_000))
    testing.assert_mean_equals(z, exact.mean(0))
    testing.assert_mean_equals(z**2, (exact**2).mean(0))


@pytest.mark.slow
def test_many_gibbs_updates_reach_correlated_bits_from_anywhere():
    coupling = jnp.array([[0.0, 1.5], [1.5, 0.0]])

    def log_density(z):
        return z @ coupling @ z - 1.2 * z.sum()

    rows = jnp.array([[0.0, 0.0], [0.0, 1.0], [1.0, 0.0], [1.0, 1.0]])
    chance = jax.nn.softmax(jax.vmap(log_density)(rows))
    kernel = annealing.gibbs_kernel(num_updates=40)
    keys = jax.random.split(jax.random.key(0), 20_000)
    move = jax.vmap(lambda key: kernel(key, log_density, rows[0], jnp.asarray(0.1))[0])
    z = jax.jit(move)(keys)
    results = (z[:, None] == rows[None]).all(-1).astype("float32")
    testing.assert_mean_equals(results, chance)


def _normal_path(std):
    return annealing.Path(
        lambda key: jax.random.normal(key, (3,)),
        lambda z: -0.5 * jnp.sum(z**2),
        lambda z: -0.5 * jnp.sum(z**2) * (1.0 / std**2 - 1.0),
    )


@pytest.mark.slow
def test_the_pilot_finds_smaller_steps_where_the_density_is_narrower():
    std = 0.05
    chains = annealing.chains(
        temperatures=annealing.linear(50), num_chains=16, num_pilot=150
    )
    sizes = jax.jit(lambda key: chains.step_sizes(key, _normal_path(std)))(
        jax.random.key(0)
    )
    assert sizes.shape == (51,)
    # Widths are 1 at the base and 0.05 at the end; the pilot runs behind a little.
    assert 8.0 < sizes[0] / sizes[-1] < 30.0


@pytest.mark.parametrize("num_pilot", [3, 9, 30])
def test_a_temperature_has_the_step_size_of_the_last_visit_at_or_below_it(num_pilot):
    """All moves are refused from beta = 1/2 on: there the size falls, not before."""
    path = annealing.Path(
        lambda key: jnp.zeros(1),
        lambda z: jnp.zeros(()),
        lambda z: jnp.ones(()),  # so that the log density is beta
    )

    def kernel(key, log_density, z, step_size):
        return z, jnp.where(log_density(z) >= 0.5, 0.0, 0.7)

    chains = annealing.chains(
        temperatures=annealing.linear(8),
        num_chains=2,
        kernel=kernel,
        num_pilot=num_pilot,
        initial_step_size=0.3,
        target_acceptance=0.7,
    )
    sizes = chains.step_sizes(jax.random.key(0), path)
    np.testing.assert_allclose(sizes[:4], 0.3, rtol=1e-5)
    assert (np.asarray(sizes[4:]) < 0.29).all()
    assert sizes[8] < sizes[4]


def test_chains_at_the_base_move_where_the_likelihood_is_zero():
    path = annealing.Path(
        lambda key: jax.random.normal(key, (1,)),
        lambda z: -0.5 * (z**2).sum(),
        lambda z: jnp.where(z[0] > 1.0, 0.0, -jnp.inf),
    )
    chains = annealing.chains(
        temperatures=annealing.linear(3), num_chains=64, num_pilot=100
    )
    sizes = jax.jit(lambda key: chains.step_sizes(key, path))(jax.random.key(0))
    assert sizes[0] > 0.5  # at the base, a standard normal


def test_without_a_pilot_every_temperature_keeps_the_step_size_given():
    chains = annealing.chains(
        temperatures=annealing.linear(4),
        num_chains=2,
        num_pilot=0,
        initial_step_size=0.3,
    )
    sizes = chains.step_sizes(jax.random.key(0), _normal_path(0.5))
    np.testing.assert_allclose(sizes, 0.3, rtol=1e-6)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"num_chains": 0}, "num_chains"),
        ({"num_pilot": -1}, "num_pilot"),
        ({"target_acceptance": 1.0}, "target_acceptance"),
        ({"initial_step_size": 0.0}, "initial_step_size"),
        ({"temperatures": np.array([0.0, 0.5])}, "temperatures"),
        ({"temperatures": np.array([0.1, 1.0])}, "temperatures"),
        ({"temperatures": np.array([0.0, 0.5, 0.5, 1.0])}, "temperatures"),
        ({"temperatures": np.array([0.0])}, "temperatures"),
        ({"temperatures": np.array([0.0, np.nan, 1.0])}, "temperatures"),
    ],
)
def test_settings_that_cannot_anneal_are_refused(settings, message):
    good = {"temperatures": annealing.linear(2), "num_chains": 1}
    with pytest.raises(ValueError, match=message):
        annealing.chains(**{**good, **settings})


@pytest.mark.parametrize(
    "call",
    [
        lambda: annealing.linear(0),
        lambda: annealing.sigmoid(0),
        lambda: annealing.sigmoid(3, sharpness=0.0),
        lambda: annealing.hmc_kernel(num_leapfrog=0),
        lambda: annealing.hmc_kernel(jitter=1.0),
        lambda: annealing.gibbs_kernel(num_updates=0),
    ],
)
def test_numbers_out_of_range_are_refused(call):
    with pytest.raises(ValueError, match="must"):
        call()
