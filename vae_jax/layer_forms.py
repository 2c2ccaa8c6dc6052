"""How the prior and the posterior of a layer of a ladder are read from its networks.

The layer's top-down network gives a for p(z_l | z_{>l}), and its posterior's network,
which has seen that and features of x, gives b for q(z_l | z_{>l}, x). z_l is a vector,
or maps with channels last; a and b have more channels.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array

from vae_jax import divergences, likelihoods, numerics, posteriors, reparameterize
from vae_jax.types import PRNGKey, Scalar, Transport


class Form(NamedTuple):
    """How the densities of a layer are read from what its networks give, a and b.

    Attributes:
        family: of a model of such layers, by name.
        prior_width: numbers of a for each entry of z_l.
        posterior_width: numbers of b for each entry of z_l.
        prior: a -> the parameters of p(z_l | z_{>l}).
        posterior: a, b -> the parameters of q(z_l | z_{>l}, x).
        sample: key, parameters -> z_l, whose entries are independent.
        log_prob: parameters, z_l -> nats.
        mean: parameters -> E[z_l].
        kl: a, b -> KL(q || p) in nats of the layer, given those above, a sum over its
            entries.
        transport: (parameters, eps) -> z_l and back; None where it is no such map.
    """

    family: str
    prior_width: int
    posterior_width: int
    prior: Callable[[Array], tuple[Array, ...]]
    posterior: Callable[[Array, Array], tuple[Array, ...]]
    sample: Callable[[PRNGKey, tuple[Array, ...]], Array]
    log_prob: Callable[[tuple[Array, ...], Array], Scalar]
    mean: Callable[[tuple[Array, ...]], Array]
    kl: Callable[[Array, Array], Scalar]
    transport: Transport | None = None


def plain_normal(*, max_log_std: float = 5.0) -> Form:
    """Normals that each read mean and scale from a network of their own.

    Bounded as `posteriors.diag_normal` has it, p and q: every standard deviation lies
    between exp(-m) and exp(m), and is 1 where the network gives 0.

    Args:
        max_log_std: m.

    Raises:
        ValueError: if max_log_std is not positive and finite.
    """
    read = _bounded(max_log_std)
    return _of_normals(read, lambda a, b: read(b))


def residual_normal(*, max_log_std: float = 5.0) -> Form:
    r"""q is the prior with its mean moved and its scale multiplied.

    $q = N(\mu_p + \Delta\mu, (\sigma_p\,\Delta\sigma)^2)$, both deltas from the
    network, log of Delta sigma bounded. In its closed form KL(q || p) is
    $\frac12\sum(\Delta\mu^2/\sigma_p^2 + \Delta\sigma^2 - \log\Delta\sigma^2 - 1)$:
    Vahdat & Kautz 2020 (arXiv:2007.03898) equation 2. At b = 0 q is the prior, and its
    draw the prior's own of that key.

    Args:
        max_log_std: bound of both log std of p and log of Delta sigma, as in
            `plain_normal`.

    Raises:
        ValueError: if max_log_std is not positive and finite.
    """
    read = _bounded(max_log_std)

    def posterior(a: Array, b: Array) -> tuple[Array, Array]:
        (mean, log_std), (shift, log_factor) = read(a), read(b)
        return mean + shift, log_std + log_factor

    def kl(a: Array, b: Array) -> Scalar:
        (_, log_std), (shift, log_factor) = read(a), read(b)
        scaled = shift * jnp.exp(-log_std)
        return divergences.diag_normal_to_standard_normal(scaled, log_factor)

    return _of_normals(read, posterior)._replace(kl=kl)


def merged_normal(*, max_log_std: float = 5.0) -> Form:
    r"""q is the product of the prior and of what x says of z_l, weighted by precision.

    $\sigma_q^{-2} = \hat\sigma^{-2} + \sigma_p^{-2}$ and $\mu_q = \sigma_q^2
    (\hat\mu\hat\sigma^{-2} + \mu_p\sigma_p^{-2})$: Sonderby et al. 2016
    (arXiv:1602.02282) section 2.2, mu-hat and sigma-hat from the network.

    Args:
        max_log_std: bound of log std of p and of sigma-hat, as in `plain_normal`.

    Raises:
        ValueError: if max_log_std is not positive and finite.
    """
    read = _bounded(max_log_std)

    def posterior(a: Array, b: Array) -> tuple[Array, Array]:
        (mean, log_std), (seen, log_std_seen) = read(a), read(b)
        gap = 2.0 * (log_std - log_std_seen)  # the precision of seen over the prior's
        merged = mean + jax.nn.sigmoid(gap) * (seen - mean)
        return merged, log_std + 0.5 * jax.nn.log_sigmoid(-gap)

    return _of_normals(read, posterior)


def bernoulli(*, residual: bool = False) -> Form:
    """Independent bits: a layer of a sigmoid belief network, z_l of 0. and 1.

    Saul et al. 1996; Mnih & Gregor 2014 (arXiv:1402.0030). Samples carry no gradient.

    Args:
        residual: whether the logits of q are a + b and not b.
    """

    def logits_of_q(a: Array, b: Array) -> Array:
        return a + b if residual else b

    def sample(key: PRNGKey, parameters: tuple[Array, ...]) -> Array:
        (logits,) = parameters
        return numerics.bits(key, logits)

    def log_prob(parameters: tuple[Array, ...], z: Array) -> Scalar:
        (logits,) = parameters
        return likelihoods.bernoulli_terms(logits, z).sum()

    return Form(
        "layers of bits",
        1,
        1,
        prior=lambda a: (a,),
        posterior=lambda a, b: (logits_of_q(a, b),),
        sample=sample,
        log_prob=log_prob,
        mean=lambda parameters: jax.nn.sigmoid(parameters[0]),
        kl=lambda a, b: divergences.bernoulli_to_bernoulli(logits_of_q(a, b), a),
    )


def _bounded(max_log_std: float) -> Callable[[Array], tuple[Array, Array]]:
    numerics.check_in("(0, inf)", max_log_std=max_log_std)
    return lambda h: posteriors.mean_and_log_std(h, max_log_std=max_log_std)


def _of_normals(
    prior: Callable[[Array], tuple[Array, Array]],
    posterior: Callable[[Array, Array], tuple[Array, Array]],
) -> Form:
    def kl(a: Array, b: Array) -> Scalar:
        return divergences.diag_normal_to_diag_normal(*posterior(a, b), *prior(a))

    def sample(key: PRNGKey, parameters: tuple[Array, ...]) -> Array:
        mean, log_std = parameters
        return reparameterize.location_scale(key, mean, log_std)

    def log_prob(parameters: tuple[Array, ...], z: Array) -> Scalar:
        mean, log_std = parameters
        return likelihoods.normal_terms(mean, log_std, z).sum()

    def from_noise(parameters: tuple[Array, ...], eps: Array) -> Array:
        mean, log_std = parameters
        return reparameterize.location_scale_from_noise(eps, mean, log_std)

    def to_noise(parameters: tuple[Array, ...], z: Array) -> Array:
        mean, log_std = parameters
        return (z - mean) * jnp.exp(-log_std)

    return Form(
        "layers of normals",
        2,
        2,
        prior=prior,
        posterior=posterior,
        sample=sample,
        log_prob=log_prob,
        mean=lambda parameters: parameters[0],
        kl=kl,
        transport=Transport(from_noise, to_noise),
    )
