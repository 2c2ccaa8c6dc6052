r"""Several named factors as one density: z is their concatenation, in a fixed order.

A density over z = [z_1, z_2, ...] is written as a Bayesian network of `Conditional`s:
`product` for independent parts, `chain` for one part given another. What they return
is a `Conditional` again, so they nest, serve as posteriors and as priors, and are
sampled with a gradient where their factors are. The two-layer model of Burda et al.
2016 (arXiv:1509.00519), section 5, is

    z1, z2 = Factor("z1", 100, diag_normal(100)), Factor("z2", 50, diag_normal(50))
    posterior = chain(z1, mlp(100, (100, 100), 100), z2)            # q(z1|x) q(z2|z1)
    top = Factor("z2", 50, standard_normal(50))
    prior = chain(top, mlp(50, (100, 100), 200), z1, first_is_last=True)
    decoder = reading("z1", mlp(100, (200, 200), 784), (z1, z2))    # p(x|z1)

with z = [z1, z2] for all three. A conditional density does not know how long its event
is, so every factor states it.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from vae_jax.types import Conditional, Network, PRNGKey, PyTree, Scalar


class Factor(NamedTuple):
    """One named part of z and its density, of a vector of `size` entries."""

    name: str
    size: int
    density: Conditional


def product(factors: Sequence[Factor]) -> Conditional:
    """Independent parts given h: log p(z | h) is the sum of the factors' own.

    h is the concatenation of what the factors are conditioned on, in their order, and
    so is z. Parameters are a dictionary by the factors' names.

    Raises:
        ValueError: for no factor, two of one name, or a size below one; when called, if
            h or z is not as long as all factors together.
    """
    split_z = split(factors)
    widths = [factor.density.width for factor in factors]

    def split_h(h: Array) -> list[Array]:
        _check_length("h", h, sum(widths))
        return jnp.split(h, np.cumsum(widths)[:-1])

    def init(key: PRNGKey) -> PyTree:
        keys = jax.random.split(key, len(factors))
        pairs = zip(factors, keys, strict=True)
        return {factor.name: factor.density.init(key) for factor, key in pairs}

    def sample(key: PRNGKey, params: PyTree, h: Float[Array, " H"]) -> Array:
        keys, hs = jax.random.split(key, len(factors)), split_h(h)
        parts = [
            factor.density.sample(key, params[factor.name], h)
            for factor, key, h in zip(factors, keys, hs, strict=True)
        ]
        return jnp.concatenate(parts)

    def log_prob(params: PyTree, h: Float[Array, " H"], z: Array) -> Scalar:
        parts, nats = split_z(z), []
        for factor, h_part in zip(factors, split_h(h), strict=True):
            own = params[factor.name]
            nats.append(factor.density.log_prob(own, h_part, parts[factor.name]))
        return jnp.stack(nats).sum()

    return Conditional(sum(widths), init, sample, log_prob)


def chain(
    first: Factor, network: Network, second: Factor, *, first_is_last: bool = False
) -> Conditional:
    """p(first | h) p(second | network(first)), one part given another.

    z = [first, second], or [second, first] with `first_is_last`: a posterior goes up
    from the part next to x and the prior down to it, and both need one order. Any part
    may be a chain or a product itself; three layers z = [z1, z2, z3] are

        chain(z1, up1, Factor("above", n2 + n3, chain(z2, up2, z3)))
        chain(Factor("above", n2 + n3, chain(z3, down2, z2, first_is_last=True)),
              reading("z2", down1, (z2, z3)), z1, first_is_last=True)

    Parameters are a dictionary: the factors' own by their names, and the network's as
    `SECOND_given_FIRST`.

    Args:
        first: given h; its width is that of the whole.
        network: the first part to the h of the second.
        second: given the first part.
        first_is_last: whether the first part is at the end of z.

    Raises:
        ValueError: for two factors of one name or a size below one; when called, if z
            is not as long as both, or the network's output not as the second's width.
    """
    split_z = split((second, first) if first_is_last else (first, second))
    link = f"{second.name}_given_{first.name}"

    def condition(params: PyTree, part: Array) -> Array:
        h = network.apply(params[link], part)
        _check_length(f"the network's output, {link},", h, second.density.width)
        return h

    def init(key: PRNGKey) -> PyTree:
        key_first, key_network, key_second = jax.random.split(key, 3)
        return {
            first.name: first.density.init(key_first),
            link: network.init(key_network),
            second.name: second.density.init(key_second),
        }

    def sample(key: PRNGKey, params: PyTree, h: Float[Array, " H"]) -> Array:
        key_first, key_second = jax.random.split(key)
        start = first.density.sample(key_first, params[first.name], h)
        given = condition(params, start)
        end = second.density.sample(key_second, params[second.name], given)
        return jnp.concatenate([end, start] if first_is_last else [start, end])

    def log_prob(params: PyTree, h: Float[Array, " H"], z: Array) -> Scalar:
        parts = split_z(z)
        start, end = parts[first.name], parts[second.name]
        given = condition(params, start)
        log_p = first.density.log_prob(params[first.name], h, start)
        return log_p + second.density.log_prob(params[second.name], given, end)

    return Conditional(first.density.width, init, sample, log_prob)


def reading(name: str, network: Network, factors: Sequence[Factor]) -> Network:
    """A network that is given all of z and reads the factor of that name alone.

    Raises:
        ValueError: if no factor has the name, and as `split`.
    """
    split_z = split(factors)
    known = [factor.name for factor in factors]
    if name not in known:
        raise ValueError(f"no factor is named {name!r}; there are {', '.join(known)}.")
    return network._replace(
        apply=lambda params, z: network.apply(params, split_z(z)[name])
    )


def split(factors: Sequence[Factor]) -> Callable[[Array], dict[str, Array]]:
    """z -> its parts by name, for z the concatenation of the factors in their order.

    Raises:
        ValueError: for no factor, two of one name, or a size below one; when called, if
            z is not as long as all factors together.
    """
    names = [factor.name for factor in factors]
    sizes = [factor.size for factor in factors]
    if len(set(names)) != len(names) or not names:
        raise ValueError(f"factors must be named apart, at least one, got {names}.")
    if min(sizes) < 1:
        raise ValueError(f"factors must have positive sizes, got {sizes}.")
    ends = np.cumsum(sizes)[:-1]

    def parts(z: Array) -> dict[str, Array]:
        _check_length("z", z, sum(sizes))
        return dict(zip(names, jnp.split(z, ends), strict=True))

    return parts


def _check_length(name: str, value: Array, length: int) -> None:
    if value.shape != (length,):
        raise ValueError(f"{name} must be [{length}], got {value.shape}.")
