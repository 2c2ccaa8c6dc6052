r"""The aggregate posterior q(z) of a set of rows: how much z tells of which row it is.

For rows $x_1, \dots, x_N$ and $q(z) = \frac1N\sum_n q(z|x_n)$, the mean KL of the ELBO
is a sum of two divergences (Hoffman & Johnson 2016, ELBO surgery: yet another way to
carve up the variational evidence lower bound):

$$\frac1N\sum_n KL(q(z|x_n)\,||\,p(z)) = I_q(n; z) + KL(q(z)\,||\,p(z)),$$

the first the mutual information of z and the row's index n, the second what keeps draws
of the prior apart from the codes of data. Everything here is about those N rows.
"""

from collections.abc import Callable
from typing import NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from vae_jax import numerics
from vae_jax.types import Model, Params, PRNGKey, Scalar


class Surgery(NamedTuple):
    """Terms in nats of every row and sample; their means are the two divergences.

    Attributes:
        mutual_information: log q(z | x_n) - log q(z).
        marginal_kl: log q(z) - log p(z).
    """

    mutual_information: Float[Array, "N S"]
    marginal_kl: Float[Array, "N S"]


Evaluate: TypeAlias = Callable[[PRNGKey, Params, Float[Array, "N *X"]], Surgery]
"""(key, params, rows) -> the terms of each row."""


def elbo_surgery(
    model: Model,
    *,
    num_samples: int,
    batch_size: int,
    value: Callable[[Array], Array] = lambda x: x,
) -> Evaluate:
    r"""Compiles (key, params, data [N, *X]) -> the terms of I_q(n; z) and KL(q || p).

    z is drawn num_samples times from each q(z | x_n), and the mixture of all N rows is
    evaluated at it, x_n's own component among them: N^2 num_samples densities of q, of
    which batch_size num_samples N are held at a time. The terms are unbiased for the
    two divergences of these N rows; they add up to log q(z | x_n) - log p(z), sample
    by sample.

    I_q(n; z) never exceeds log N, and comes close to it wherever the rows' posteriors
    hardly overlap: it then says no more than that. With fresh rows in mind, its mean
    over data sets of N rows is a lower bound on I(x; z), which rises with N (Poole et
    al. 2019, arXiv:1905.06922, section 2.4), and KL(q(z) || p(z)) is above its limit by
    as much.

    Args:
        model: p(z) and q(z | x); its likelihood is not used.
        num_samples: S, draws of z for each row.
        batch_size: rows whose samples are weighed side by side.
        value: turns one raw row into x, where the data are kept as integers.

    Raises:
        ValueError: if num_samples or batch_size is below one.
    """
    numerics.check_positive(num_samples=num_samples, batch_size=batch_size)
    generative, recognition = model.generative, model.recognition

    def run(key: PRNGKey, params: Params, data: Float[Array, "N *X"]) -> Surgery:
        num_rows = data.shape[0]

        def encode(raw: Array) -> Array:
            return recognition.encode(params, value(raw))

        def terms(row: tuple[Array, Array]) -> Surgery:
            n, h = row

            def of_sample(key: PRNGKey) -> Surgery:
                z = recognition.sample(key, params, h)
                each = jax.vmap(recognition.log_prob, in_axes=(None, 0, None))
                log_mixture = numerics.log_mean_exp(each(params, hs, z))
                log_q = recognition.log_prob(params, h, z)
                return Surgery(
                    log_q - log_mixture, log_mixture - generative.log_prior(params, z)
                )

            key_row = jax.random.fold_in(key, n)
            return numerics.over_samples(key_row, of_sample, num_samples=num_samples)

        hs = jax.lax.map(encode, data, batch_size=batch_size)
        rows = jnp.arange(num_rows), hs
        return jax.lax.map(terms, rows, batch_size=batch_size)

    return jax.jit(run)


class Parts(NamedTuple):
    """The mean KL over rows in its two parts, nats, with standard errors over z.

    Attributes:
        mutual_information: I(n; z).
        marginal_kl: KL(q(z) || p(z)).
        mean_kl: their sum.
        mutual_information_error: of I(n; z).
        marginal_kl_error: of KL(q(z) || p(z)).
        mean_kl_error: of the sum, whose parts have the same draws.
    """

    mutual_information: float
    marginal_kl: float
    mean_kl: float
    mutual_information_error: float
    marginal_kl_error: float
    mean_kl_error: float


def parts(terms: Surgery) -> Parts:
    """Means and errors of the terms of all rows, on the host.

    Raises:
        ValueError: for fewer than two samples of each row.
    """
    mean_kl = terms.mutual_information + terms.marginal_kl
    each = (terms.mutual_information, terms.marginal_kl, mean_kl)
    return Parts(
        *(float(values.mean()) for values in each),
        *(float(sampling_error(values)) for values in each),
    )


def sampling_error(terms: Float[Array, "N S"]) -> Scalar:
    """Standard error of the mean of the terms over z, for these N rows.

    Rows are strata: the spread of the samples of each row counts, that between rows
    does not.

    Raises:
        ValueError: for fewer than two samples of each row.
    """
    num_rows, num_samples = terms.shape
    if num_samples < 2:
        raise ValueError(f"num_samples must be at least two, got {num_samples}")
    variance = terms.var(axis=1, ddof=1).sum() / num_samples
    return jnp.sqrt(variance) / num_rows
