r"""Full variational Bayes: a variational posterior over theta as well as over z.

AEVB (arXiv:1312.6114) appendix F. q(theta) is a normal with diagonal covariance, and
params.generative holds its `mean` and `log_std`, each a tree like theta.
"""

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array

from vae_jax import divergences, numerics, reparameterize
from vae_jax.types import (
    Batch,
    Generative,
    Hierarchy,
    Model,
    Objective,
    Params,
    PRNGKey,
    PyTree,
    Recognition,
    Scalar,
)


def full_vb(
    objective: Objective, *, num_data: int, prior_std: float = 1.0
) -> Objective:
    r"""One example's share of a bound on log p(data), theta integrated out.

    $E_{q(\theta)}[L(\theta, \phi; x)] - KL(q(\theta) || p(\theta)) / N$ with p(theta) =
    N(0, prior_std^2 I): equation 24 of AEVB's appendix F divided by N, its last terms
    in closed form. Its sum over the N examples is a lower bound on log p(data). Each
    step draws one theta = mean + std * eps for the whole batch, so that decoding stays
    one matrix product; value and gradient are unbiased where the objective's are. It
    logs the whole of KL(q(theta) || p(theta)) as `kl_theta`.

    Args:
        objective: a bound L on log p(x) given theta, for plain parameters; its memory
            is kept. None of theta may be a function of it (`Objective.project`), as the
            data would not say how wide q is there.
        num_data: N.
        prior_std: of every entry of theta.

    Returns:
        An objective of parameters that hold q(theta), as those of `at_mean` do.

    Raises:
        ValueError: if num_data is below one, prior_std is not positive or the objective
            has a `project`.
    """
    numerics.check_positive(num_data=num_data)
    numerics.check_in("(0, inf)", prior_std=prior_std)
    if objective.project is not Objective._field_defaults["project"]:
        raise ValueError(
            "q(theta) is of parameters that are climbed, but the objective makes some "
            "of its memory (Objective.project)"
        )

    def init(params: Params) -> PyTree:
        return objective.init(at_mean_of(params))

    def value(
        key: PRNGKey, params: Params, memory: PyTree, batch: Batch
    ) -> tuple[Array, PyTree, dict[str, Scalar]]:
        key_theta, key_step = jax.random.split(key)
        theta = sample(key_theta, params.generative)
        at_theta = Params(theta, params.recognition)
        nats, memory, logged = objective.value(key_step, at_theta, memory, batch)
        kl = kl_to_prior(params.generative, prior_std=prior_std)
        return nats - kl / num_data, memory, {**logged, "kl_theta": kl}

    return Objective(init, value)


def at_mean(model: Model, *, initial_std: float = 0.01) -> Model:
    """The model whose theta is the mean of q(theta), which params.generative holds.

    For evaluators, which then measure one model and not the average over q(theta).
    `init` starts q(theta) at the model's own initial values and initial_std.

    Raises:
        ValueError: if initial_std is not positive and finite.
    """
    numerics.check_in("(0, inf)", initial_std=initial_std)
    generative, recognition, draw, kl, hierarchy = model

    def init(key: PRNGKey) -> PyTree:
        mean = generative.init(key)
        log_std = jax.tree.map(lambda m: jnp.full_like(m, math.log(initial_std)), mean)
        return {"mean": mean, "log_std": log_std}

    def params_second(function: Callable) -> Callable:
        return lambda key, params, *rest: function(key, at_mean_of(params), *rest)

    def params_first(function: Callable) -> Callable:
        return lambda params, *rest: function(at_mean_of(params), *rest)

    transport, symbols = generative.transport, generative.symbols
    return Model(
        Generative(
            init=init,
            sample_prior=params_second(generative.sample_prior),
            log_prior=params_first(generative.log_prior),
            log_likelihood_terms=params_first(generative.log_likelihood_terms),
            sample_observation=params_second(generative.sample_observation),
            mean_observation=params_first(generative.mean_observation),
            prior_family=generative.prior_family.lifted(params_first),
            quantity=generative.quantity,
            transport=transport and transport.lifted(params_first),
            symbols=symbols and symbols.lifted(params_first),
        ),
        Recognition(
            recognition.init,
            params_first(recognition.encode),
            params_second(recognition.sample),
            params_first(recognition.log_prob),
            params_second(recognition.sample_and_log_prob),
            recognition.moments and params_first(recognition.moments),
            recognition.family.lifted(params_first),
        ),
        params_second(draw),
        kl and params_first(kl),
        hierarchy
        and Hierarchy(
            hierarchy.shapes,
            params_first(hierarchy.groups),
            params_second(hierarchy.mix),
            params_second(hierarchy.redraw),
            hierarchy.means and params_first(hierarchy.means),
            at_mean(hierarchy.top),
            params_first(hierarchy.densities),
        ),
    )


def at_mean_of(params: Params) -> Params:
    """Plain parameters: theta at the mean of q(theta)."""
    return Params(params.generative["mean"], params.recognition)


def sample(key: PRNGKey, q: PyTree) -> PyTree:
    """One theta from q(theta), reparameterized."""
    means, structure = jax.tree.flatten(q["mean"])
    keys = jax.random.split(key, len(means))
    samples = [
        reparameterize.location_scale(*row)
        for row in zip(keys, means, jax.tree.leaves(q["log_std"]), strict=True)
    ]
    return jax.tree.unflatten(structure, samples)


def kl_to_prior(q: PyTree, *, prior_std: float = 1.0) -> Scalar:
    """KL(q(theta) || N(0, prior_std^2 I)) in nats, in closed form."""
    log_std = math.log(prior_std)

    def of_leaf(mean: jax.Array, log: jax.Array) -> Scalar:
        return divergences.diag_normal_to_standard_normal(
            mean.ravel() / prior_std, log.ravel() - log_std
        )

    leaves = jax.tree.leaves(jax.tree.map(of_leaf, q["mean"], q["log_std"]))
    return sum(leaves, start=jnp.zeros(()))
