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
    Generative,
    Objective,
    Params,
    PRNGKey,
    Recognition,
    Scalar,
    log_joint,
)

Bound = Callable[[Array], Scalar]  # log w [K] -> nats


def log_weights(
    generative: Generative,
    recognition: Recognition,
    *,
    num_samples: int,
    with_score: bool = True,
) -> Callable[[PRNGKey, Params, Array, Array], Array]:
    """(key, params, x, h) -> log w [K] in nats, for z_k drawn from q(z | h).

    log w_k = log p(x, z_k) - log q(z_k | h). h is an argument so that a caller encodes
    once for many chunks of samples, or gives a q of its own.

    Args:
        generative: the joint p(x, z).
        recognition: q.
        num_samples: K.
        with_score: whether the gradient holds the score of q; without it the density of
            q is held fixed and the gradient for phi flows through z alone.

    Raises:
        ValueError: if num_samples is below one.
    """
    numerics.check_positive(num_samples=num_samples)

    def draw(key: PRNGKey, params: Params, x: Array, h: Array) -> Array:
        density = (params, h) if with_score else stop_gradient((params, h))

        def log_weight(key: PRNGKey) -> Scalar:
            z = recognition.sample(key, params, h)
            log_q = recognition.log_prob(*density, z)
            return log_joint(generative, params, x, z) - log_q

        return numerics.over_samples(key, log_weight, num_samples=num_samples)

    return draw


def log_densities(
    generative: Generative, recognition: Recognition, *, num_samples: int
) -> Callable[[PRNGKey, Params, Array], tuple[Array, Array]]:
    """(key, params, x) -> log p(x, z_k) [K] and log q(z_k | x) [K], z_k held fixed.

    No gradient flows through z, so q need not be reparameterized.

    Raises:
        ValueError: if num_samples is below one.
    """
    numerics.check_positive(num_samples=num_samples)

    def draw(key: PRNGKey, params: Params, x: Array) -> tuple[Array, Array]:
        h = recognition.encode(params, x)

        def one(key: PRNGKey) -> tuple[Array, Array]:
            z = stop_gradient(recognition.sample(key, params, h))
            log_p = log_joint(generative, params, x, z)
            return log_p, recognition.log_prob(params, h, z)

        return numerics.over_samples(key, one, num_samples=num_samples)

    return draw


def of_bound(
    generative: Generative,
    recognition: Recognition,
    bound: Bound,
    *,
    num_samples: int,
    with_score: bool = True,
) -> Objective:
    """Any bound of K log weights with its reparameterized gradient.

    Value: one draw of `bound`. Gradient: unbiased for that of its mean, for theta and,
    with the score, for phi; q must be reparameterized.

    Raises:
        ValueError: if num_samples is below one.
    """
    draw = log_weights(
        generative, recognition, num_samples=num_samples, with_score=with_score
    )

    def objective(key: PRNGKey, params: Params, x: Array) -> Scalar:
        return bound(draw(key, params, x, recognition.encode(params, x)))

    return objective


def iwae(
    generative: Generative, recognition: Recognition, *, num_samples: int
) -> Objective:
    """The K-sample bound and its ordinary reparameterized gradient.

    Burda et al. 2016 (arXiv:1509.00519), equations 8 and 13. Value: one draw of L_K,
    unbiased for the bound and, in expectation, below log p(x). Gradient: unbiased for
    that of L_K, theta and phi alike. With num_samples=1 it is SGVB estimator A.

    Raises:
        ValueError: if num_samples is below one.
    """
    return of_bound(generative, recognition, bounds.iwae, num_samples=num_samples)


def stick_the_landing(
    generative: Generative, recognition: Recognition, *, num_samples: int
) -> Objective:
    """The K-sample bound with the path gradient for phi: no noise where q is exact.

    Roeder et al. 2017 (arXiv:1703.09194). Value: one draw of L_K. Gradient: unbiased
    for theta, where q does not read it. For phi unbiased at K = 1 alone, where the
    score it leaves out has mean zero; for K > 1 the weighted score has not, and the
    gradient is biased for that of L_K (Tucker et al. 2018): use `dreg` there. Where
    q(z | x) = p(z | x) it is zero for phi, sample by sample.

    Raises:
        ValueError: if num_samples is below one.
    """
    return of_bound(
        generative,
        recognition,
        bounds.iwae,
        num_samples=num_samples,
        with_score=False,
    )


def dreg(
    generative: Generative, recognition: Recognition, *, num_samples: int
) -> Objective:
    r"""The K-sample bound with the doubly reparameterized gradient for phi.

    Tucker et al. 2018 (arXiv:1810.04152): with $\tilde w = $ softmax(log w),
    $\nabla_\phi L_K = E[\sum_k \tilde w_k^2\, \partial_z \log w_k\, \nabla_\phi z_k]$,
    q's own density held fixed; for theta the ordinary $\sum_k\tilde w_k\nabla_\theta
    \log p(x, z_k)$. Value: one draw of L_K. Gradient: unbiased for that of L_K, theta
    and phi alike. Often, not always, less noisy in phi than `iwae`; zero for phi where
    q is the posterior. At K = 1 it is `stick_the_landing`.

    Raises:
        ValueError: if num_samples is below one.
    """
    numerics.check_positive(num_samples=num_samples)

    def objective(key: PRNGKey, params: Params, x: Array) -> Scalar:
        h = recognition.encode(params, x)
        fixed_params, fixed_h = stop_gradient((params, h))

        def log_weight(z: Array) -> Scalar:
            log_q = recognition.log_prob(fixed_params, fixed_h, z)
            return log_joint(generative, params, x, z) - log_q

        def draw(key: PRNGKey) -> Array:
            return recognition.sample(key, params, h)

        z = numerics.over_samples(key, draw, num_samples=num_samples)
        log_w = stop_gradient(numerics.over_rows(log_weight, z))
        weights = jax.nn.softmax(log_w)
        # theta sees w~, and what flows on through z is multiplied by w~ once more.
        path = numerics.over_rows(
            lambda z, w: log_weight(numerics.scale_gradient(z, w)), z, weights
        )
        return numerics.attach_gradient(bounds.iwae(log_w), weights @ path)

    return objective


def ciwae(
    generative: Generative,
    recognition: Recognition,
    *,
    num_samples: int,
    beta: float | Scalar,
) -> Objective:
    """beta ELBO + (1 - beta) IWAE, with its ordinary gradient.

    Rainforth et al. 2018 (arXiv:1802.04537). Value: one draw of that combination, a
    bound between the two. Gradient: unbiased for it, theta and phi alike; the ELBO's
    share keeps the signal for phi that IWAE's loses as K grows.

    Raises:
        ValueError: if num_samples is below one or beta is a number outside [0, 1].
    """
    if isinstance(beta, float | int) and not 0.0 <= beta <= 1.0:
        raise ValueError(f"beta must lie in [0, 1], got {beta}.")
    return of_bound(
        generative,
        recognition,
        lambda log_w: bounds.ciwae(log_w, beta=beta),
        num_samples=num_samples,
    )


def renyi(
    generative: Generative,
    recognition: Recognition,
    *,
    num_samples: int,
    alpha: float,
) -> Objective:
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
        generative,
        recognition,
        lambda log_w: bounds.renyi(log_w, alpha=alpha),
        num_samples=num_samples,
    )


def jackknife(
    generative: Generative,
    recognition: Recognition,
    *,
    num_samples: int,
    order: int,
) -> Objective:
    """The jackknife-corrected K-sample bound, with its ordinary gradient.

    Nowozin 2018 (ICLR). Value: one draw of `bounds.jackknife`, closer to log p(x) than
    L_K and no lower bound. Gradient: unbiased for that of its mean, theta and phi
    alike.

    Raises:
        ValueError: if num_samples is not above order, or order is not 0, 1 or 2.
    """
    if order not in (0, 1, 2):
        raise ValueError(f"order must be 0, 1 or 2, got {order}.")
    if num_samples <= order:
        raise ValueError(f"num_samples must be above order {order}, got {num_samples}.")
    return of_bound(
        generative,
        recognition,
        lambda log_w: bounds.jackknife(log_w, order=order),
        num_samples=num_samples,
    )
