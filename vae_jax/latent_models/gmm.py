r"""Gaussian mixtures as records: a discrete latent whose posterior is exact.

$z \sim Categorical(\pi)$, $x | z \sim N(\mu_z, \Sigma_z)$, mean and covariance read
from tables at z. z is one-hot, [1, K], as `priors.categorical` has it. The posterior is
a softmax of K log-densities, so that the bound at it is log p(x) with no gap: the model
in which EM is exact (Dempster, Laird & Rubin 1977; Bishop 2006, section 9.2).

`params.generative` is the dictionary that `gmm_scales` describes; its entries say which
type of covariance it is, and `params.recognition` is empty. `em` fits it, from `start`;
`fit` does so from several starts.
"""

import math

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from vae_jax import likelihoods, numerics, posteriors, reparameterize, vae
from vae_jax.latent_models import gmm_em, gmm_missing, gmm_scales, gmm_start
from vae_jax.types import (
    Conditional,
    Family,
    Generative,
    Params,
    PRNGKey,
    PyTree,
    Recognition,
    Scalar,
    conditional,
)

em, start, fit = gmm_em.em, gmm_start.start, gmm_start.fit


def generative(
    num_components: int,
    num_features: int,
    *,
    covariance: str = "full",
    missing: bool = False,
) -> Generative:
    r"""p(z) p(x | z) for x [D] and one-hot z [1, K].

    `log_likelihood_terms` are the terms of the chain rule, $\log p(x_d | x_{<d}, z) =
    -(\epsilon_d^2 / 2 + \log L_{dd} + \log(2\pi) / 2)$ with $\epsilon = L^{-1}(x -
    \mu)$: they sum to the log-density, and where the covariance is not diagonal one of
    them alone is no function of its entry of x.

    Args:
        num_components: K.
        num_features: D.
        covariance: "full", "diag", "tied" or "spherical", for `init`, which gives
            equal shares, standard normal means and unit covariances. The other
            functions read the type from the parameters.
        missing: whether NaN in x marks an entry that is integrated out. The terms are
            then those of the observed entries, and zero at the others.

    Raises:
        ValueError: for a count below one or an unknown covariance.
    """
    numerics.check_positive(num_components=num_components, num_features=num_features)
    gmm_scales.check(covariance)
    choice = _one_of(num_components)

    def init(key: PRNGKey) -> PyTree:
        mean = jax.random.normal(key, (num_components, num_features))
        scale = gmm_scales.unit(mean, covariance=covariance)
        logits = jnp.zeros((num_components,), mean.dtype)
        mixture = gmm_scales.Tables(logits, mean, scale)
        return gmm_scales.parameters(mixture, covariance=covariance)

    def sample_prior(key: PRNGKey, params: Params) -> Float[Array, "1 K"]:
        return choice.sample(key, (), params.generative["logits"])

    def log_prior(params: Params, z: Float[Array, "1 K"]) -> Scalar:
        return choice.log_prob((), params.generative["logits"], z)

    def log_likelihood_terms(params: Params, x: Array, z: Array) -> Float[Array, " D"]:
        return _terms(*_look_up(params, z), x, missing=missing)

    def sample_observation(key: PRNGKey, params: Params, z: Array) -> Array:
        mean, scale = _look_up(params, z)
        if scale.ndim == 2:
            return reparameterize.location_cholesky(key, mean, scale)
        return reparameterize.location_scale(key, mean, scale)

    return Generative(
        init,
        sample_prior,
        log_prior,
        log_likelihood_terms,
        sample_observation,
        lambda params, z: _look_up(params, z)[0],
    )


def recognition(num_components: int, *, missing: bool = False) -> Recognition:
    """The exact posterior p(z | x); h holds the log responsibilities [K].

    It has no parameters of its own: `encode` reads those of the generative model, by
    Bayes' rule. Its gradient in theta is the posterior's.

    Raises:
        ValueError: if num_components is below one.
    """
    numerics.check_positive(num_components=num_components)
    choice = _one_of(num_components)

    def encode(params: Params, x: Float[Array, " D"]) -> Float[Array, " K"]:
        return jax.nn.log_softmax(log_joints(params, x, missing=missing))

    return vae.recognition(encode, choice)


def log_joints(
    params: Params, x: Float[Array, " D"], *, missing: bool = False
) -> Float[Array, " K"]:
    """log p(x, z) of every component, in nats."""
    mixture = gmm_scales.tables(params.generative)
    num_components, num_features = mixture.mean.shape
    event = (num_features,) * (mixture.scale.ndim - 1)
    scales = jnp.broadcast_to(mixture.scale, (num_components, *event))

    def density(mean: Array, scale: Array) -> Scalar:
        return _terms(mean, scale, x, missing=missing).sum()

    log_shares = jax.nn.log_softmax(mixture.logits)
    return log_shares + jax.vmap(density)(mixture.mean, scales)


def log_evidence(
    params: Params, x: Float[Array, " D"], *, missing: bool = False
) -> Scalar:
    """Exact log p(x) in nats, log sum_z p(x, z); of the observed entries if missing."""
    return jax.nn.logsumexp(log_joints(params, x, missing=missing))


def cluster(
    params: Params, x: Float[Array, " D"], *, missing: bool = False
) -> Int[Array, ""]:
    """The component of the greatest posterior probability."""
    return jnp.argmax(log_joints(params, x, missing=missing))


def maximum_likelihood(
    x: Float[Array, "N D"],
    z: Float[Array, "N 1 K"],
    *,
    covariance: str = "full",
    min_variance: float = 1e-6,
    weight: Float[Array, " N"] | None = None,
) -> Params:
    """The parameters of greatest sum of log p(x, z) where z is observed, closed form.

    Shares, means and covariances of the rows of each component; the covariance's
    eigenvalues are at least min_variance, with the floors of `em`. A component without
    rows has the mean and covariance of all of them, and a share of the least positive
    number. z may hold probabilities: then this is the M-step of EM.

    Raises:
        ValueError: for an unknown covariance or a min_variance that is not positive.
    """
    gmm_scales.check(covariance)
    gmm_em.check_variances(min_variance=min_variance, added_variance=0.0)
    shares = z[:, 0, :].T if weight is None else weight[None] * z[:, 0, :].T
    n = shares.sum(1)
    # Where a component has no rows, every row counts.
    filled = jnp.where((n == 0.0)[:, None], shares.sum(0)[None], shares)
    rows = filled.sum(1)
    unit = gmm_scales.magnitude(x)  # the squares of x / unit do not overflow
    x = x / unit
    mean = jnp.matmul(filled, x, precision="highest") / rows[:, None]
    share = n / n.sum()
    center = jnp.matmul(share, mean, precision="highest")
    scale = gmm_scales.unit(mean, covariance=covariance)
    kind = gmm_scales.kind(scale)
    least_std = gmm_scales.least_std(
        scale,
        share,
        jnp.abs(mean - center[None]),
        min_std=math.sqrt(min_variance) / unit,
    )
    if covariance == "tied":
        filled, rows = shares, n.sum()[None]
    # Twice more in the coordinates of what comes out: moments there keep the digits of
    # a direction that is thin beside the others.
    for _ in range(3):
        second = kind.second_moments(scale, filled, kind.whiten(scale, mean, x.T))
        variance = second / gmm_scales.expand(scale, rows)
        scale, _ = kind.rescale(
            scale, variance, variance, least_std=least_std, added_variance=0.0
        )
    logits = jnp.log(jnp.maximum(share, jnp.finfo(x.dtype).tiny))
    mixture = gmm_scales.Tables(logits, unit * mean, kind.enlarge(scale, unit))
    return Params(gmm_scales.parameters(mixture, covariance=covariance), ())


def _terms(
    mean: Float[Array, " D"], scale: Array, x: Float[Array, " D"], *, missing: bool
) -> Float[Array, " D"]:
    """log p(x_d | x_{<d}) under one component's factor or logarithms."""
    if x.shape != mean.shape:
        raise ValueError(f"the mixture is of x of {mean.shape}, got {x.shape}")
    if scale.ndim == 2:
        if missing:
            return gmm_missing.observed_terms(scale, mean, x)
        return gmm_missing.density_terms(scale, x - mean)
    log_std = jnp.broadcast_to(scale, mean.shape)
    if not missing:
        return likelihoods.normal_terms(mean, log_std, x)
    observed = ~jnp.isnan(x)
    terms = likelihoods.normal_terms(mean, log_std, jnp.where(observed, x, mean))
    return jnp.where(observed, terms, 0.0)


def _look_up(params: Params, z: Float[Array, "1 K"]) -> tuple[Array, Array]:
    """Mean [D] and factor [D, D] or logarithms [D] of the component that z names."""
    mixture = gmm_scales.tables(params.generative)

    def pick(table: Array) -> Array:
        return jnp.tensordot(z[0], table, 1, precision="highest")

    mean, shared = pick(mixture.mean), mixture.scale.shape[0] == 1
    scale = mixture.scale[0] if shared else pick(mixture.scale)
    if scale.ndim == 1:
        scale = jnp.broadcast_to(scale, mean.shape)
    return mean, scale


def _one_of(num_components: int) -> Conditional:
    """The one-hot choice z [1, K] given logits [K]; certain where K is one."""
    if num_components > 1:
        return posteriors.categorical(1, num_components)
    return conditional(
        Family("certain"),
        (1, 1),
        width=1,
        sample=lambda key, params, h: jnp.ones((1, 1), h.dtype),
        log_prob=lambda params, h, z: jnp.zeros((), h.dtype),
    )
