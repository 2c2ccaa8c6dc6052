"""The importance-weighted bound of partial observations: training on data with holes.

Called MIWAE by its authors, as is the bound of `multiply_weighted`, which is another.
"""

from vae_jax import vae
from vae_jax.estimators import importance
from vae_jax.types import ExampleObjective, Model


def importance_bound(
    model: Model,
    *,
    num_samples: int,
    fill: float = 0.0,
) -> ExampleObjective:
    r"""(key, params, x) -> the K-sample bound on log p(x_obs), NaN marking the holes.

    Mattei & Frellsen 2019 (arXiv:1812.02633) equation 4: $\log\frac1K\sum_k
    p(x_{obs}|z_k)\,p(z_k) / q(z_k|x_{obs})$, where q sees `fill` in the holes
    (`vae.masked`). Value: one draw of it, in expectation below log p(x_obs). Gradient:
    that of `importance.iwae`, unbiased for the bound's, theta and phi alike. For x
    without holes it is `importance.iwae`, and where nothing is observed the bound of
    log 1 = 0, which teaches q the prior.

    The entries are assumed to be missing at random: what is missing may depend on what
    is observed and not on what is hidden. Else the bound is of another quantity than
    the data's likelihood.

    Args:
        model: of complete x.
        num_samples: K.
        fill: what the encoder sees in the holes, in the units of x.

    Raises:
        ValueError: if num_samples is below one or fill is not finite.
    """
    return importance.iwae(vae.masked(model, fill=fill), num_samples=num_samples)
