"""RELAX: REBAR beside a control variate that is learned while the model is."""

import jax
import jax.numpy as jnp
from jax.lax import stop_gradient
from jaxtyping import Array

from vae_jax import numerics, vae
from vae_jax.estimators import rebar, relaxed
from vae_jax.types import (
    ExampleObjective,
    Model,
    Network,
    Params,
    PRNGKey,
    PyTree,
    Scalar,
    log_joint,
)

CONTROL = "control"  # where phi holds what the control variate learns


def relax(model: Model, *, network: Network, num_samples: int) -> ExampleObjective:
    r"""The ELBO with the score-function gradient and a learned control variate.

    Grathwohl et al. 2018 (arXiv:1711.00123) equation 8, for bits: the estimator g of
    `rebar.rebar` with

    $c(z) = \eta f(\sigma(z / T)) + r(x, z)$,

    f at relaxed bits and a network r beside it. g has the ELBO's gradient as its mean
    whatever c is, so the gradient of its variance is that of $E|g|^2$: eta, T and r
    descend half of $|g|^2$ of one sample, summed over the logits of q and averaged over
    the samples. They are `params.recognition["control"]` (`with_control` puts them
    there), which phi's other parameters see no gradient of.

    Value: the mean of f at bits, unbiased for the ELBO. Gradient: unbiased for the
    ELBO's, theta and phi alike, and for minus half of $E|g|^2$ in the control variate.

    Args:
        model: as of `rebar.rebar`, with a control variate.
        network: x, raveled, and then z -> [1]; it sees zeros in the place of NaN.
        num_samples: of z, each decoded three times.

    Raises:
        ValueError: if num_samples is below one or q is not Bernoulli.
    """
    numerics.check_positive(num_samples=num_samples)
    generative, recognition = model.generative, model.recognition
    logits_of = relaxed.logits(recognition, "bernoulli")

    def objective(key: PRNGKey, params: Params, x: Array) -> Scalar:
        h = recognition.encode(params, x)
        logits = logits_of(params, h)
        fixed, fixed_h, at = stop_gradient((params, h, logits))
        learned = params.recognition[CONTROL]
        seen = jnp.where(jnp.isnan(x), 0.0, x).ravel()

        def control(z: Array) -> Scalar:
            bits = jax.nn.sigmoid(z / jnp.exp(learned["log_temperature"]))
            log_q = recognition.log_prob(fixed, fixed_h, bits)
            f = log_joint(generative, fixed, x, bits) - log_q
            beside = network.apply(learned["network"], jnp.concatenate([seen, z]))
            return learned["strength"] * f + beside[0]

        def one(key: PRNGKey) -> Scalar:
            def difference(logits: Array) -> tuple[Scalar, tuple[Array, Scalar]]:
                bits, z, again = rebar.relaxed_pair(key, logits)
                at_again = control(again)
                return control(z) - at_again, (bits, at_again)

            slope, (bits, at_again) = jax.grad(difference, has_aux=True)(at)
            log_p = log_joint(generative, params, x, bits)
            f = log_p - recognition.log_prob(fixed, fixed_h, bits)
            g = (stop_gradient(f) - at_again) * (bits - jax.nn.sigmoid(at)) + slope
            surrogate = log_p + stop_gradient(g) @ logits - 0.5 * (g**2).sum()
            return numerics.attach_gradient(f, surrogate)

        return numerics.over_samples(key, one, num_samples=num_samples).mean()

    return objective


def with_control(model: Model, network: Network, *, temperature: float) -> Model:
    """The model whose q also keeps a control variate, which starts around REBAR's.

    At strength 1 and that temperature, with the network as it starts.

    Raises:
        ValueError: if temperature is not positive and finite.
    """
    relaxed.check_temperature(temperature)

    def init(key: PRNGKey) -> PyTree:
        one = jnp.ones(())
        return {
            "network": network.init(key),
            "log_temperature": jnp.log(temperature * one),
            "strength": one,
        }

    return vae.with_parameters(model, CONTROL, init)
