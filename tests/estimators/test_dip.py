import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests import problems
from vae_jax.estimators import batch_penalty, dip
from vae_jax.types import Batch

XS = np.random.default_rng(0).normal(size=(7, 2)) @ np.array([[1.0, 0.4], [0.0, 2.0]])


@pytest.mark.slow
@pytest.mark.parametrize("of_samples", [False, True])
def test_the_penalty_of_a_linear_encoder_is_that_of_its_matrix(x64, of_samples):
    """C = V Cov(x) V^T, with the mean of the variances for II; a row counts twice."""
    problem = problems.linear_gaussian(num_latents=2)
    objective = dip.dip(
        problem.model,
        num_samples=1,
        num_data=50,
        off_diagonal=3.0,
        diagonal=0.5,
        of_samples=of_samples,
    )
    weight = np.array([2.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0])

    def exact(params):
        layer = params.recognition["encoder"]["output"]
        h = jnp.asarray(XS) @ layer["kernel"] + layer["bias"][None]
        v = layer["kernel"][:, :2]
        c = v.T @ np.cov(XS.T, fweights=weight.astype(int), ddof=0) @ v
        if of_samples:
            c += jnp.diag(weight @ jnp.exp(2.0 * h[:, 2:]) / 8.0)
        on = (c[0, 0] - 1.0) ** 2 + (c[1, 1] - 1.0) ** 2
        return 6.0 * c[0, 1] ** 2 + 0.5 * on

    def climbed(objective, params):
        batch = Batch(jnp.asarray(XS), jnp.arange(7), jnp.asarray(weight))
        nats, *_ = objective.value(jax.random.key(0), params, (), batch)
        return batch.weight @ nats / 8.0

    plain = batch_penalty.penalized(
        problem.model,
        num_samples=1,
        num_data=50,
        penalty=lambda *_: (jnp.zeros(()), (), {}),
    )
    slope = jax.jit(jax.grad(lambda p: climbed(plain, p) - climbed(objective, p)))
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-8, atol=1e-9),
        slope(problem.params),
        jax.jit(jax.grad(exact))(problem.params),
    )


@pytest.mark.parametrize("name", ["off_diagonal", "diagonal"])
def test_a_negative_weight_is_refused(name):
    model = problems.linear_gaussian(num_latents=2).model
    weights = {"off_diagonal": 1.0, "diagonal": 1.0, name: -1.0}
    with pytest.raises(ValueError, match=f"{name} must not be negative, got -1"):
        dip.dip(model, num_samples=1, num_data=4, of_samples=True, **weights)
