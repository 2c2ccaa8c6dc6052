"""What objectives of a batch's codes have in common, a row each."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from tests import problems
from vae_jax import networks, posteriors, vae
from vae_jax.estimators import dip, factor, mmd, sgvb, total_correlation
from vae_jax.types import Batch, per_example

pytestmark = pytest.mark.uses_optax
XS = np.array([[0.4, -1.0], [-0.7, 0.2], [1.1, 0.3], [0.5, 0.9], [-0.2, -0.1]])
NETWORK = networks.mlp(2, (4,), 1)
KERNEL = mmd.imq(scales=(1.0,))


def _factor(model, *, gamma, **numbers):
    start = NETWORK.init(jax.random.key(3))
    adam = optax.adam(1e-3)
    return factor.factor(model, NETWORK, adam, start=start, gamma=gamma, **numbers)


def _dip(model, *, weight, **numbers):
    both = {"off_diagonal": weight, "diagonal": weight}
    return dip.dip(model, of_samples=True, **both, **numbers)


def _mmd(model, *, strength, **numbers):
    return mmd.mmd(model, alpha=0.0, strength=strength, kernel=KERNEL, **numbers)


ROWS = {  # builder, neutral setting, another
    "beta_tc": (total_correlation.beta_tc, {"beta": 1.0}, {"beta": 3.0}),
    "factor": (_factor, {"gamma": 0.0}, {"gamma": 2.0}),
    "dip": (_dip, {"weight": 0.0}, {"weight": 2.0}),
    "mmd": (_mmd, {"strength": 1.0}, {"strength": 5.0}),
}
PARTS = ("mutual_information", "total_correlation", "dimension_wise_kl")
EVERY_ROW = pytest.mark.parametrize("name", ROWS)


def values_and_gradient(objective, params, weight, xs=XS):
    memory = objective.init(params)
    batch = Batch(jnp.asarray(xs), jnp.arange(len(xs)), jnp.asarray(weight))

    def mean(params):
        nats, after, logged = objective.value(jax.random.key(8), params, memory, batch)
        seen = jnp.where(batch.weight > 0.0, nats, 0.0)
        return batch.weight @ seen / batch.weight.sum(), (nats, after, logged)

    (_, seen), slopes = jax.jit(jax.value_and_grad(mean, has_aux=True))(params)
    return seen, slopes


@pytest.mark.slow
@EVERY_ROW
def test_at_neutral_weights_it_is_the_elbo_and_else_its_value_alone(x64, name):
    problem = problems.linear_gaussian(num_latents=2)
    build, neutral, other = ROWS[name]
    numbers = {"num_samples": 2, "num_data": 40}
    elbo = per_example(sgvb.sgvb_b(problem.model, num_samples=2))
    (nats, *_), exact = values_and_gradient(elbo, problem.params, np.ones(5))
    objective = build(problem.model, **neutral, **numbers)
    (got, _, logged), slopes = values_and_gradient(
        objective, problem.params, np.ones(5)
    )
    np.testing.assert_allclose(got, nats, rtol=1e-12)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-9), slopes, exact
    )
    sampled = per_example(sgvb.sgvb_a(problem.model, num_samples=2))
    (others, *_), _ = values_and_gradient(sampled, problem.params, np.ones(5))
    parts = [logged[f"{part}_stratified"] for part in PARTS]
    closed = jax.vmap(problem.kl, (None, 0))(problem.params, jnp.asarray(XS))
    np.testing.assert_allclose(sum(parts), (nats + closed - others).mean(), rtol=1e-9)

    objective = build(problem.model, **other, **numbers)
    (got, *_), slopes = values_and_gradient(objective, problem.params, np.ones(5))
    np.testing.assert_allclose(got, nats, rtol=1e-12)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-9),
        slopes.generative,
        exact.generative,
    )
    change = jax.tree.map(lambda a, b: jnp.abs(a - b).max(), slopes, exact)
    assert max(jax.tree.leaves(change.recognition)) > 1e-3


@pytest.mark.slow
@pytest.mark.parametrize("name", ["beta_tc", "factor", "dip"])
def test_a_row_of_no_weight_is_not_there(x64, name):
    """Of MMD, whose draws of the prior are as many as rows, `unbiased` is tested."""
    problem = problems.linear_gaussian(num_latents=2)
    build, _, setting = ROWS[name]
    objective = build(problem.model, num_samples=2, num_data=40, **setting)
    (four, *_), slopes = values_and_gradient(
        objective, problem.params, np.ones(4), xs=XS[:4]
    )
    weight = np.array([1.0, 1.0, 1.0, 1.0, 0.0])
    (five, *_), others = values_and_gradient(objective, problem.params, weight)
    np.testing.assert_allclose(five[:4], four, rtol=1e-12)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-9), others, slopes
    )
    (_, memory, _), _ = values_and_gradient(objective, problem.params, 0 * weight)
    jax.tree.map(np.testing.assert_array_equal, memory, objective.init(problem.params))


@EVERY_ROW
def test_a_q_of_dependent_latents_is_refused(name):
    problem = problems.linear_gaussian(num_latents=2)
    full = vae.encoder_model(networks.linear(2, 5), posteriors.full_normal(2))
    model = vae.model(problem.generative, full)
    build, _, setting = ROWS[name]
    with pytest.raises(ValueError, match=r"need a diag_normal q .* got full_normal to"):
        build(model, num_samples=1, num_data=40, **setting)


@pytest.mark.parametrize("bad", [{"num_samples": 0}, {"num_data": 0}])
def test_numbers_below_one_are_refused(bad):
    model = problems.linear_gaussian(num_latents=2).model
    numbers = {"num_samples": 1, "num_data": 40, **bad}
    with pytest.raises(ValueError, match=f"{next(iter(bad))} must be positive, got 0"):
        total_correlation.beta_tc(model, beta=2.0, **numbers)
