r"""The aggregate posterior q(z) of a set of rows: how much z tells of which row it is.

For rows $x_1, \dots, x_N$ and $q(z) = \frac1N\sum_n q(z|x_n)$, the mean KL of the ELBO
is a sum of two divergences (Hoffman & Johnson 2016, ELBO surgery: yet another way to
carve up the variational evidence lower bound):

$$\frac1N\sum_n KL(q(z|x_n)\,||\,p(z)) = I_q(n; z) + KL(q(z)\,||\,p(z)),$$

the first the mutual information of z and the row's index n, the second what keeps draws
of the prior apart from the codes of data. Where q is a normal of independent latents
and the prior factorizes, the second is the total correlation of the latents and the sum
of the KL of each from its prior (Chen et al. 2018, arXiv:1802.04942). Everything here
is about those N rows.
"""

import math
from collections.abc import Callable
from typing import NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from vae_jax import compilation, numerics
from vae_jax.estimators import aggregate_density
from vae_jax.types import Model, Params, PRNGKey, Scalar

FACTORIZED_PRIORS = ("standard_normal", "diag_normal")


class Surgery(NamedTuple):
    """Terms in nats of every row and sample; their means are the divergences.

    Attributes:
        mutual_information: log q(z | x_n) - log q(z).
        marginal_kl: log q(z) - log p(z).
        total_correlation: log q(z) - sum_d log q(z_d), the part of the marginal KL that
            is no KL of one latent; None unless q is `diag_normal` and the prior
            `standard_normal` or `diag_normal`.
    """

    mutual_information: Float[Array, "N S"]
    marginal_kl: Float[Array, "N S"]
    total_correlation: Float[Array, "N S"] | None = None


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
    by sample. The latents' own mixtures, for the total correlation, are evaluated at
    the same z.

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
    of_q = recognition.family.parameters
    is_split = (
        recognition.family.name == "diag_normal"
        and of_q is not None
        and generative.prior_family.name in FACTORIZED_PRIORS
    )

    def run(key: PRNGKey, params: Params, data: Float[Array, "N *X"]) -> Surgery:
        num_rows = data.shape[0]

        def encode(raw: Array) -> Array:
            return recognition.encode(params, value(raw))

        def terms(row: tuple[Array, Array]) -> Surgery:
            n, h = row

            def of_sample(key: PRNGKey) -> Surgery:
                z = recognition.sample(key, params, h)
                log_q, total_correlation = recognition.log_prob(params, h, z), None
                if is_split:
                    assert of_q is not None
                    mean, log_std = jax.vmap(of_q, in_axes=(None, 0))(params, hs)
                    log_n = jnp.full_like(mean, -math.log(num_rows), shape=num_rows)
                    log_mixture, separate = aggregate_density.log_density(
                        z, mean, log_std, log_n
                    )
                    total_correlation = log_mixture - separate.sum()
                else:
                    each = jax.vmap(recognition.log_prob, in_axes=(None, 0, None))
                    log_mixture = numerics.log_mean_exp(each(params, hs, z))
                return Surgery(
                    log_q - log_mixture,
                    log_mixture - generative.log_prior(params, z),
                    total_correlation,
                )

            key_row = jax.random.fold_in(key, n)
            return numerics.over_samples(key_row, of_sample, num_samples=num_samples)

        hs = jax.lax.map(encode, data, batch_size=batch_size)
        rows = jnp.arange(num_rows), hs
        return jax.lax.map(terms, rows, batch_size=batch_size)

    return compilation.program(run)


def parts(terms: Surgery) -> dict[str, float]:
    """The mean KL over rows and its parts, nats, with standard errors over z.

    On the host, by name: mutual_information, marginal_kl and mean_kl, their sum; where
    it is known total_correlation and dimension_wise_kl, whose sum is marginal_kl; and
    each again with _error behind it, of one mean: all are of the same draws.

    Raises:
        ValueError: for fewer than two samples of each row.
    """
    each = {
        "mutual_information": terms.mutual_information,
        "marginal_kl": terms.marginal_kl,
        "mean_kl": terms.mutual_information + terms.marginal_kl,
    }
    if terms.total_correlation is not None:
        each["total_correlation"] = terms.total_correlation
        each["dimension_wise_kl"] = terms.marginal_kl - terms.total_correlation
    means = {name: float(values.mean()) for name, values in each.items()}
    errors = {f"{n}_error": float(sampling_error(v)) for n, v in each.items()}
    return means | errors


def sampling_error(terms: Float[Array, "N S"]) -> Scalar:
    """Standard error of the mean of the terms over z, for these N rows.

    Rows are strata: the spread of the samples of each row counts, that between rows
    does not.

    Raises:
        ValueError: for fewer than two samples of each row.
    """
    num_rows, num_samples = terms.shape
    numerics.check_at_least(2, num_samples=num_samples)
    variance = terms.var(axis=1, ddof=1).sum() / num_samples
    return jnp.sqrt(variance) / num_rows
