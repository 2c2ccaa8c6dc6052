r"""Several named factors as one density: z is one vector with a named layout.

A density over z = [z_1, z_2, ...] is a Bayesian network of `Conditional`s, written from
its roots down. What `joint` returns is a `Conditional` again, so it serves as posterior
and as prior, and is sampled with a gradient where its factors are. A posterior goes up
from the part next to x and a prior down to it; `layout` is the order in z that both
share. The two-layer model of Burda et al. 2016 (arXiv:1509.00519), section 5, is

    z = layout({"z1": 100, "z2": 50})
    posterior = joint(z, [Factor("z1", diag_normal(100)),         # q(z1|x) q(z2|z1)
                          Factor("z2", diag_normal(50), parent="z1", network=up)])
    prior = joint(z, [Factor("z2", standard_normal(50)),          # p(z2) p(z1|z2)
                      Factor("z1", diag_normal(100), parent="z2", network=down)])

and a decoder that reads z1 alone applies its network to `z.split(latents)["z1"]`.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from vae_jax.types import (
    Conditional,
    Family,
    Network,
    PRNGKey,
    PyTree,
    Scalar,
    conditional,
)


class Layout(NamedTuple):
    """Where each named part lies in one flat vector.

    Attributes:
        sizes: entries of every part, in the order of the vector.
        split: vector -> its parts by name.
        join: parts by name -> vector.
    """

    sizes: dict[str, int]
    split: Callable[[Array], dict[str, Array]]
    join: Callable[[Mapping[str, Array]], Array]


class Factor(NamedTuple):
    """The density of one named part, of a vector of its size.

    Attributes:
        name: of the part.
        density: of the part, given what `network` makes of its parent.
        parent: the parent's name; a root has none, and reads its own share of h.
        network: the parent's value to the h of `density`.
    """

    name: str
    density: Conditional
    parent: str | None = None
    network: Network | None = None

    @property
    def link(self) -> str:
        """What the network's parameters are called."""
        return f"{self.name}_given_{self.parent}"


def layout(sizes: Mapping[str, int]) -> Layout:
    """The layout of parts of these sizes, in their order.

    Raises:
        ValueError: for no part or a size below one; from `split`, if the vector is not
            as long as all parts together.
    """
    if not sizes or min(sizes.values()) < 1:
        raise ValueError(f"sizes must be positive, at least one, got {dict(sizes)}")
    names, ends = list(sizes), np.cumsum(list(sizes.values()))

    def split(z: Float[Array, " D"]) -> dict[str, Array]:
        if z.shape != (ends[-1],):
            raise ValueError(f"z must be [{ends[-1]}] for {names}, got {z.shape}")
        return dict(zip(names, jnp.split(z, ends[:-1]), strict=True))

    def join(parts: Mapping[str, Array]) -> Float[Array, " D"]:
        return jnp.concatenate([parts[name] for name in names])

    return Layout(dict(sizes), split, join)


def joint(layout: Layout, factors: Sequence[Factor]) -> Conditional:
    """The product of the factors, each given its parent: a density of the whole vector.

    log p(z | h) is the sum of the factors' own. h is the concatenation of what the
    roots are conditioned on, in their order. Parameters are a dictionary: those of the
    densities by their names, of the networks as `NAME_given_PARENT`.

    Args:
        layout: the order of the parts in z.
        factors: one for each part, a parent before its children.

    Raises:
        ValueError: unless each part has one factor of its size, whose parent stands
            before it and has a network; when traced, if a network's output is not as
            wide as its density reads.
    """
    _check(layout, factors)
    roots = [factor for factor in factors if factor.parent is None]
    width = sum(factor.density.width for factor in roots)
    ends = np.cumsum([factor.density.width for factor in roots])[:-1]

    def context(
        params: PyTree, factor: Factor, h_of: dict[str, Array], parts: dict[str, Array]
    ) -> Array:
        if factor.network is None or factor.parent is None:
            return h_of[factor.name]
        h = factor.network.apply(params[factor.link], parts[factor.parent])
        if h.shape != (factor.density.width,):
            raise ValueError(
                f"the network {factor.link} gives {h.shape}, but the density of "
                f"{factor.name} reads [{factor.density.width}]"
            )
        return h

    def split_h(h: Array) -> dict[str, Array]:
        names = [factor.name for factor in roots]
        return dict(zip(names, jnp.split(h, ends), strict=True))

    def init(key: PRNGKey) -> PyTree:
        inits: dict[str, Callable[[PRNGKey], PyTree]] = {}
        for factor in factors:
            if factor.network is not None:
                inits[factor.link] = factor.network.init
            inits[factor.name] = factor.density.init
        keys = jax.random.split(key, len(inits))
        pairs = zip(inits.items(), keys, strict=True)
        return {name: start(key) for (name, start), key in pairs}

    def sample(key: PRNGKey, params: PyTree, h: Float[Array, " H"]) -> Array:
        keys, h_of = jax.random.split(key, len(factors)), split_h(h)
        parts: dict[str, Array] = {}
        for factor, key_part in zip(factors, keys, strict=True):
            h_part = context(params, factor, h_of, parts)
            parts[factor.name] = factor.density.sample(
                key_part, params[factor.name], h_part
            )
        return layout.join(parts)

    def log_prob(params: PyTree, h: Float[Array, " H"], z: Array) -> Scalar:
        h_of, parts = split_h(h), layout.split(z)
        nats = [
            factor.density.log_prob(
                params[factor.name],
                context(params, factor, h_of, parts),
                parts[factor.name],
            )
            for factor in factors
        ]
        return jnp.stack(nats).sum()

    def sample_and_log_prob(
        key: PRNGKey, params: PyTree, h: Float[Array, " H"]
    ) -> tuple[Array, Scalar]:
        keys, h_of = jax.random.split(key, len(factors)), split_h(h)
        parts: dict[str, Array] = {}
        nats = []
        for factor, key_part in zip(factors, keys, strict=True):
            h_part = context(params, factor, h_of, parts)
            part, log_p = factor.density.sample_and_log_prob(
                key_part, params[factor.name], h_part
            )
            parts[factor.name] = part
            nats.append(log_p)
        return layout.join(parts), jnp.stack(nats).sum()

    return conditional(
        Family("joint"),
        (sum(layout.sizes.values()),),
        width=width,
        init=init,
        sample=sample,
        log_prob=log_prob,
        sample_and_log_prob=sample_and_log_prob,
    )


def _check(layout: Layout, factors: Sequence[Factor]) -> None:
    names = [factor.name for factor in factors]
    if sorted(names) != sorted(layout.sizes):
        raise ValueError(
            f"factors must be one for each of {list(layout.sizes)}, got {names}"
        )
    for i, factor in enumerate(factors):
        size = layout.sizes[factor.name]
        if factor.density.shape != (size,):
            raise ValueError(
                f"the density of {factor.name} is of shape {factor.density.shape}, but "
                f"the layout has [{size}]"
            )
        if (factor.parent is None) != (factor.network is None):
            raise ValueError(
                f"{factor.name} needs parent and network, or neither, got "
                f"parent={factor.parent!r}"
            )
        if factor.parent is not None and factor.parent not in names[:i]:
            raise ValueError(
                f"{factor.name} is given {factor.parent!r}, which must stand before it"
            )
