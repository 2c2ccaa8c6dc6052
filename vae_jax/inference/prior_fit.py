"""A prior fitted after training, to the codes of an encoder that is held fixed."""

from jax.lax import stop_gradient
from jaxtyping import Array

from vae_jax.types import ExampleObjective, Model, Params, PRNGKey, PyTree, Scalar


def log_prior_of_code(model: Model, params: Params) -> ExampleObjective:
    r"""log p(z) at a draw z ~ q(z | x), as a function of the prior alone.

    $\mathrm{ELBO} = E_q[\log p(x|z) - \log q(z|x)] + E_q[\log p(z)]$, and only the last
    term knows the prior: averaged over the data it is largest where p(z) is the
    aggregate posterior (Hoffman & Johnson 2016, ELBO surgery). So an ascent of it, with
    theta's other parts and phi as they are, is one of the bound. Value: one draw of log
    p(z), nats. Gradient: unbiased for that of its mean, and none for theta or phi.

    It is a function of `Params(prior, ())`, from `params.generative["prior"]` on;
    `with_prior` puts what was found back.

    Args:
        model: whose prior is fitted, and no function of the encoder.
        params: theta and phi, which are held fixed but for the prior.
    """
    recognition, generative = model.recognition, model.generative

    def log_prior(key: PRNGKey, prior: Params, x: Array) -> Scalar:
        z = recognition.sample(key, params, recognition.encode(params, x))
        whole = with_prior(params, prior.generative)
        return generative.log_prior(whole, stop_gradient(z))

    return log_prior


def with_prior(params: Params, prior: PyTree) -> Params:
    """Theta and phi with other parameters of the prior."""
    return params._replace(generative=params.generative | {"prior": prior})
