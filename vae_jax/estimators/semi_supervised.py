r"""M2 of Kingma et al. 2014: labels where there are any, summed over where not.

The class y is a second latent of p(x, z, y) = p(y) p(z) p(x | z, y), seen in some rows
(arXiv:1406.5298, section 3.1). With L(x, y) a lower bound on log p(x, y), such as the
ELBO given y with log p(y) added, and a classifier q(y | x),

$$U(x) = \sum_y q(y|x)\,(L(x, y) - \log q(y|x)) \le \log\sum_y e^{L(x, y)} \le
\log p(x),$$

the first with equality at q(y | x) = softmax(L(x, .)).
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from vae_jax import conditional, numerics, vae
from vae_jax.types import (
    ExampleObjective,
    Model,
    Network,
    Params,
    PRNGKey,
    Scalar,
)

NO_LABEL = -1


def with_classifier(
    at: conditional.ConditionalModel, network: Network
) -> conditional.ConditionalModel:
    """The models whose q also keeps the parameters of q(y | x), as `classifier`."""
    return lambda c: vae.with_parameters(at(c), "classifier", network.init)


def m2(
    at: conditional.ConditionalModel,
    network: Network,
    *,
    num_classes: int,
    bound: Callable[[Model], ExampleObjective],
    alpha: float | Scalar,
) -> Callable[[PRNGKey, Params, tuple[Array, Int[Array, ""]]], Scalar]:
    r"""(key, params, (x, y)) -> L(x, y), or U(x) where y is `NO_LABEL`.

    Value: a lower bound on log p(x, y) = log p(x | y) - log C of a row with a label, on
    log p(x) of one without. Gradient: of a labeled row that of $L + \alpha\log q(y|x)$
    (equation 9), without which labels would not reach the classifier. All classes
    meet the same noise; with a label the others are computed too and left out.

    Args:
        at: one-hot y [C] -> the model given it (`with_classifier`).
        network: x -> the C logits of q(y | x).
        num_classes: C, of equal prior probability.
        bound: model -> a lower bound on log p(x), such as
            `partial(sgvb.sgvb_b, num_samples=1)`.
        alpha: weight of the classifier's log-likelihood; Kingma et al. take 0.1 N / N_l
            for N_l labels among N rows. It may be traced.

    Raises:
        ValueError: if num_classes is below two or alpha is negative.
    """
    numerics.check_at_least(2, num_classes=num_classes)
    numerics.check_not_negative(alpha=alpha)
    of_pair = conditional.of_pairs(bound, at)

    def objective(
        key: PRNGKey, params: Params, pair: tuple[Array, Int[Array, ""]]
    ) -> Scalar:
        x, y = pair
        classes = jnp.eye(num_classes, dtype=x.dtype)
        nats = jax.vmap(lambda c: of_pair(key, params, (x, c)))(classes)
        nats -= jnp.log(jnp.asarray(num_classes, nats.dtype))
        log_q = log_classes(network, params, x)
        has_label = y != NO_LABEL
        chosen = jnp.where(has_label, y, 0)
        labeled = nats[chosen]
        value = jnp.where(has_label, labeled, marginal(nats, log_q))
        climbed = jnp.where(has_label, alpha * log_q[chosen], 0.0)
        return numerics.attach_gradient(value, value + climbed)

    return objective


def marginal(nats: Float[Array, " C"], log_q: Float[Array, " C"]) -> Scalar:
    """U = sum_y q(y) (L(y) - log q(y)): at most logsumexp(L), at q = softmax(L)."""
    return numerics.weighed(jnp.exp(log_q), nats - log_q).sum()


def log_classes(network: Network, params: Params, x: Array) -> Float[Array, " C"]:
    """log q(y | x) of every class, in nats."""
    logits = network.apply(params.recognition["classifier"], x)
    return jax.nn.log_softmax(logits)
