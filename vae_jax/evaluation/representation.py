"""What the latents carry: codes of any q, and how many of them vary."""

from collections.abc import Callable

from jaxtyping import Array, Float, Int

from vae_jax import numerics
from vae_jax.types import Params, PRNGKey, Recognition


def active_units(
    means: Float[Array, "N D"], *, threshold: float = 0.01
) -> Int[Array, ""]:
    """Number of latents whose posterior mean varies over the data by more than that.

    A_u = Var_x(E_q[u | x]) > 0.01, Burda et al. 2016 (arXiv:1509.00519) section 5.1.

    Raises:
        ValueError: if there are fewer than two rows to take a variance of.
    """
    numerics.check_at_least(2, num_rows=means.shape[0], why=": a variance is of two")
    return (means.var(axis=0) > threshold).sum()


def sampled_mean(
    recognition: Recognition, *, num_samples: int
) -> Callable[[PRNGKey, Params, Array], Float[Array, " D"]]:
    """(key, params, x) -> the mean of num_samples draws of q(z | x), for any q.

    The code of an x is E_q[z | x], a function of x. Where the family gives it in closed
    form (the mean of a normal, the probabilities of bits), take that; this one's error
    is the posterior's standard deviation over sqrt(num_samples). With num_samples=1 it
    is a draw of the posterior, whose noise is the model's own and no feature of x.

    Raises:
        ValueError: if num_samples is below one.
    """
    numerics.check_positive(num_samples=num_samples)

    def code(key: PRNGKey, params: Params, x: Array) -> Float[Array, " D"]:
        h = recognition.encode(params, x)
        draws = numerics.over_samples(
            key,
            lambda key: recognition.sample(key, params, h),
            num_samples=num_samples,
        )
        return draws.mean(axis=0)

    return code
