"""Importance-weighted bounds of one example, and estimators of their gradients.

Every objective here returns one draw of its bound, in nats, from K samples of q. The
gradient for theta is the ordinary one in all of them. They differ in the gradient for
phi: the ordinary one moves z and the density of q; the path gradients of
`stick_the_landing` and `dreg` leave out the score of q.
"""

from collections.abc import Callable

import jax
from jax.lax import stop_gradient
from jaxtyping import Array

from vae_jax import bounds, numerics
from vae_jax.types import (
    ExampleObjective,
    Model,
    Params,
    PRNGKey,
    PyTree,
    Scalar,
    log_joint,
    log_weight,
)

Bound = Callable[[Array], Scalar]  # log w [K] -> nats


def log_weights(
    model: Model,
    *,
    num_samples: int,
    with_score: bool = True,
) -> Callable[[PRNGKey, Params, Array, Array], Array]:
    """(key, params, x, h) -> log w [K] in nats, for z_k drawn from q(z | h).

    log w_k = log p(x, z_k) - log q(z_k | h). h is an argument so that a caller encodes
    once for many chunks of samples, or gives a q of its own.

    Args:
        model: the joint p(x, z) and q.
        num_samples: K.
        with_score: whether the gradient holds the score of q; without it the density of
            q is held fixed and the gradient for phi flows through z alone.

    Raises:
        ValueError: if num_samples is below one.
    """
    numerics.check_positive(num_samples=num_samples)

    def draw(key: PRNGKey, params: Params, x: Array, h: PyTree) -> Array:
        def one(key: PRNGKey) -> Scalar:
            sample = model.draw(key, params, x, h)
            if not with_score:
                log_q = model.recognition.log_prob(
                    *stop_gradient((params, h)), sample.z
                )
                sample = sample._replace(log_posterior=log_q)
            return log_weight(sample)

        return numerics.over_samples(key, one, num_samples=num_samples)

    return draw


def log_densities(
    model: Model, *, num_samples: int, theta_moves_q: bool = True
) -> Callable[[PRNGKey, Params, Array], tuple[Array, Array]]:
    """(key, params, x) -> log p(x, z_k) [K] and log q(z_k | x) [K], z_k held fixed.

    No gradient flows through z, so q need not be reparameterized.

    Args:
        model: the joint p(x, z) and q.
        num_samples: K.
        theta_moves_q: whether log q has a gradient in theta where q reads it, as on a
            ladder; else in phi alone.

    Raises:
        ValueError: if num_samples is below one.
    """
    numerics.check_positive(num_samples=num_samples)

    recognition = model.recognition

    def draw(key: PRNGKey, params: Params, x: Array) -> tuple[Array, Array]:
        h = recognition.encode(params, x)

        def one(key: PRNGKey) -> tuple[Array, Array]:
            # A fused draw's log q would carry the gradient through z.
            z = stop_gradient(recognition.sample(key, params, h))
            log_p = log_joint(model.generative, params, x, z)
            of_q = params if theta_moves_q else with_theta_fixed(params)
            return log_p, recognition.log_prob(of_q, h, z)

        return numerics.over_samples(key, one, num_samples=num_samples)

    return draw


def with_theta_fixed(params: Params) -> Params:
    """The parameters, with a gradient in phi alone."""
    return params._replace(generative=stop_gradient(params.generative))


def of_bound(
    model: Model,
    bound: Bound,
    *,
    num_samples: int,
    with_score: bool = True,
) -> ExampleObjective:
    """Any bound of K log weights with its reparameterized gradient.

    Value: one draw of `bound`. Gradient: unbiased for that of its mean, for theta and,
    with the score, for phi; q must be reparameterized.

    Raises:
        ValueError: if num_samples is below one.
    """
    draw = log_weights(model, num_samples=num_samples, with_score=with_score)

    def objective(key: PRNGKey, params: Params, x: Array) -> Scalar:
        return bound(draw(key, params, x, model.recognition.encode(params, x)))

    return objective


def iwae(model: Model, *, num_samples: int) -> ExampleObjective:
    """The K-sample bound and its ordinary reparameterized gradient.

    Burda et al. 2016 (arXiv:1509.00519), equations 8 and 13. Value: one draw of L_K,
    unbiased for the bound and, in expectation, below log p(x). Gradient: unbiased for
    that of L_K, theta and phi alike. With num_samples=1 it is SGVB estimator A.

    Raises:
        ValueError: if num_samples is below one.

    Examples:
        >>> from vae_jax import likelihoods, networks, posteriors, priors, vae
        >>> p = vae.decoder_model(
        ...     networks.linear(2, 3),
        ...     priors.standard_normal(2),
        ...     likelihoods.normal((3,), std=0.5),
        ... )
        >>> q = vae.encoder_model(networks.linear(3, 4), posteriors.diag_normal(2))
        >>> model = vae.model(p, q)
        >>> params = model.init(jax.random.key(0))
        >>> x = jax.numpy.ones(3)
        >>> bounds_of_x = {
        ...     k: jax.vmap(iwae(model, num_samples=k), in_axes=(0, None, None))(
        ...         jax.random.split(jax.random.key(1), 1000), params, x
        ...     ).mean()
        ...     for k in (1, 50)
        ... }
        >>> bool(bounds_of_x[1] < bounds_of_x[50])
        True
    """
    return of_bound(model, bounds.iwae, num_samples=num_samples)


def stick_the_landing(model: Model, *, num_samples: int) -> ExampleObjective:
    """The K-sample bound with the path gradient for phi: no noise where q is exact.

    Roeder et al. 2017 (arXiv:1703.09194). Value: one draw of L_K. Gradient: unbiased
    for theta, where q does not read it. For phi unbiased at K = 1 alone, where the
    score it leaves out has mean zero; for K > 1 the weighted score has not, and the
    gradient is biased for that of L_K (Tucker et al. 2018): use `dreg` there. Where
    q(z | x) = p(z | x) it is zero for phi, sample by sample.

    Where q reads theta, as a ladder's does, the score left out is that of q's joint
    density in phi and in theta, and theta's gradient too is unbiased at K = 1 alone.

    Raises:
        ValueError: if num_samples is below one.
    """
    return of_bound(
        model,
        bounds.iwae,
        num_samples=num_samples,
        with_score=False,
    )


def dreg(model: Model, *, num_samples: int) -> ExampleObjective:
    r"""The K-sample bound with the doubly reparameterized gradient for phi.

    Tucker et al. 2018 (arXiv:1810.04152): with $\tilde w = $ softmax(log w),
    $\nabla_\phi L_K = E[\sum_k \tilde w_k^2\, \partial_z \log w_k\, \nabla_\phi z_k]$,
    q's own density held fixed; for theta the ordinary $\sum_k\tilde w_k\nabla_\theta
    \log p(x, z_k)$. Value: one draw of L_K. Gradient: unbiased for that of L_K, theta
    and phi alike. Often, not always, less noisy in phi than `iwae`; zero for phi where
    q is the posterior. At K = 1 it is `stick_the_landing`.

    Where q reads theta, as a ladder's does, q's joint density is held fixed in both and
    every path through z has the weight squared, theta's too: so both stay unbiased.

    Raises:
        ValueError: if num_samples is below one.
    """
    numerics.check_positive(num_samples=num_samples)
    recognition = model.recognition

    def objective(key: PRNGKey, params: Params, x: Array) -> Scalar:
        h = recognition.encode(params, x)
        fixed_params, fixed_h = stop_gradient((params, h))

        def of_z(z: Array) -> Scalar:
            log_q = recognition.log_prob(fixed_params, fixed_h, z)
            return log_joint(model.generative, params, x, z) - log_q

        def draw(key: PRNGKey) -> Array:
            return recognition.sample(key, params, h)

        z = numerics.over_samples(key, draw, num_samples=num_samples)
        log_w = stop_gradient(numerics.over_rows(of_z, z))
        weights = jax.nn.softmax(log_w)
        # theta sees w~, and what flows on through z is multiplied by w~ once more.
        path = numerics.over_rows(
            lambda z, w: of_z(numerics.scale_gradient(z, w)), z, weights
        )
        return numerics.attach_gradient(bounds.iwae(log_w), weights @ path)

    return objective


def ciwae(
    model: Model,
    *,
    num_samples: int,
    beta: float | Scalar,
) -> ExampleObjective:
    """beta ELBO + (1 - beta) IWAE, with its ordinary gradient.

    Rainforth et al. 2018 (arXiv:1802.04537). Value: one draw of that combination, a
    bound between the two. Gradient: unbiased for it, theta and phi alike; the ELBO's
    share keeps the signal for phi that IWAE's loses as K grows.

    Raises:
        ValueError: if num_samples is below one or beta is a number outside [0, 1].
    """
    numerics.check_in("[0, 1]", beta=beta)
    return of_bound(
        model,
        lambda log_w: bounds.ciwae(log_w, beta=beta),
        num_samples=num_samples,
    )


def renyi(
    model: Model,
    *,
    num_samples: int,
    alpha: float,
) -> ExampleObjective:
    """The K-sample variational Renyi bound, with its ordinary gradient.

    Li & Turner 2016 (arXiv:1602.02311). Value: one draw of `bounds.renyi`, which says
    when it bounds log p(x); alpha = 1 is the ELBO, 0 IWAE, -inf VR-max. Gradient:
    unbiased for the mean of that K-sample value, theta and phi alike, and biased for
    the bound of infinite K.

    Raises:
        ValueError: if num_samples is below one or alpha is NaN or plus infinity.
    """
    bounds.check_alpha(alpha)
    return of_bound(
        model,
        lambda log_w: bounds.renyi(log_w, alpha=alpha),
        num_samples=num_samples,
    )


def jackknife(
    model: Model,
    *,
    num_samples: int,
    order: int,
) -> ExampleObjective:
    """The jackknife-corrected K-sample bound, with its ordinary gradient.

    Nowozin 2018 (ICLR). Value: one draw of `bounds.jackknife`, closer to log p(x) than
    L_K and no lower bound. Gradient: unbiased for that of its mean, theta and phi
    alike.

    Raises:
        ValueError: if num_samples is not above order, or order is not 0, 1 or 2.
    """
    bounds.check_order(order, num_samples)
    return of_bound(
        model,
        lambda log_w: bounds.jackknife(log_w, order=order),
        num_samples=num_samples,
    )
