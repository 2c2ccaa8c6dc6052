r"""Invertible maps z = f(y; context) with tractable Jacobians: normalizing flows.

If y has the density q0 then z has log q(z) = log q0(f^{-1}(z)) - log|det dz/dy|
(Rezende & Mohamed 2015, arXiv:1505.05770, equation 5). `posteriors.flow` makes a
density of a base density and a flow. Everything is of one example; `vmap` for more.

What a flow learns is either read from the context, which an encoder computes for each
example, or its own parameters, or both. Scales come as logarithms bounded by a tanh:
see `affine_coupling`.
"""

from collections.abc import Callable
from typing import NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
from jax.lax import stop_gradient
from jaxtyping import Array, Float

from vae_jax import numerics
from vae_jax.types import Network, PRNGKey, PyTree, Scalar

Map: TypeAlias = Callable[
    [PyTree, Float[Array, " C"], Float[Array, " D"]],
    tuple[Float[Array, " D"], Scalar],
]
NEWTON_STEPS = 24  # converged for w . u in [-1e6, 1e6] (tests/test_flows.py)


class Flow(NamedTuple):
    """An invertible map z = f(y) of D latents, given a context.

    Both directions return the same log_det: log|det dz/dy| of the forward map, in
    nats, at the pair (y, z).

    Attributes:
        width: length of the context; 0 if it reads none.
        init: the flow's own parameters.
        forward: params, context, y -> z, log_det.
        inverse: params, context, z -> y, log_det of the forward map.
    """

    width: int
    init: Callable[[PRNGKey], PyTree]
    forward: Map
    inverse: Map


def planar(num_latents: int) -> Flow:
    r"""z = y + u_hat tanh(w . y + b), with context [u, w, b] of length 2 D + 1.

    Rezende & Mohamed 2015 (arXiv:1505.05770) equations 10 to 12: one hidden unit, with
    $\det dz/dy = 1 + w\cdot\hat u\,(1 - \tanh^2(w\cdot y + b))$. As in their Appendix
    A.1 the component of u along w is changed to $w\cdot\hat u = m(w\cdot u) > -1$,
    which makes the map invertible and reaches every planar map that is.

    Their m(x) = -1 + log(1 + exp(x)) has m(0) = -0.31, so that u_hat grows as 1/|w|
    where w vanishes. Here m(x) is x, or x / (1 - x) where x is negative: u_hat is u
    where u needs no change and tends to u as w tends to zero.

    The inverse solves one scalar equation to rounding, and differentiates to third
    order. Like any subtraction it loses digits where |u_hat| is large beside y; and
    where the slope is small, which is never below 1 / (1 - w . u).

    Raises:
        ValueError: if num_latents is below one.
    """
    _check_num_latents(num_latents)

    def read(context: Array) -> tuple[Array, Array, Array, Array]:
        u, w, b = jnp.split(context, [num_latents, 2 * num_latents])
        squared = jnp.sum(w * w)
        # Below this the change of u, of order |w| |u|^2, is less than rounding.
        vanishes = squared < float(jnp.finfo(w.dtype).tiny) ** 0.5
        direction = jnp.where(
            vanishes, 0.0, w / jnp.sqrt(jnp.where(vanishes, 1.0, squared))
        )
        x = jnp.sum(w * u)
        below = 1.0 - jnp.minimum(x, 0.0)
        # (m(x) - x) w / |w|^2, with x^2 divided by |w|^2 before either underflows.
        against = jnp.minimum(jnp.sum(direction * u), 0.0)
        u_hat = u + against**2 / below * w
        gain = 1.0 / below + jnp.maximum(x, 0.0)  # 1 + m(x), without cancellation
        return u_hat, w, b[0], gain

    def forward(params: PyTree, context: Array, y: Array) -> tuple[Array, Scalar]:
        del params
        u_hat, w, b, gain = read(context)
        v = jnp.sum(w * y) + b
        return y + u_hat * jnp.tanh(v), jnp.log(_slope(v, gain))

    def inverse(params: PyTree, context: Array, z: Array) -> tuple[Array, Scalar]:
        del params
        u_hat, w, b, gain = read(context)
        v = _planar_root(jnp.sum(w * z) + b, gain)
        return z - u_hat * jnp.tanh(v), jnp.log(_slope(v, gain))

    return _checked(
        num_latents, Flow(2 * num_latents + 1, lambda key: (), forward, inverse)
    )


def affine_coupling(
    network: Network,
    num_latents: int,
    *,
    context_width: int = 0,
    flip: bool = False,
    max_log_scale: float = 2.0,
) -> Flow:
    """One part of y passes; the rest becomes exp(log_scale) y + shift.

    Dinh et al. 2017 (arXiv:1605.08803) section 3.2. The first D // 2 entries pass, or
    the last D // 2 with `flip`; shift and log_scale are functions of them and of the
    context. Alternate `flip`: what passes is not changed.

    The log scale is max_log_scale * tanh(raw / max_log_scale). A network that reads
    the data extrapolates on test data, where an unbounded exp(raw) is a huge or a
    vanishing density: a public reproduction has test ELBOs of -1.6e6 from it.

    Args:
        network: from [passed, context], D // 2 + context_width entries, to
            [shift, raw], 2 (D - D // 2) entries. For D = 1 it reads only the context.
        num_latents: D, odd or even.
        context_width: entries of the context.
        flip: whether the last entries pass instead of the first.
        max_log_scale: bound on the logarithm of each scale.

    Raises:
        ValueError: if num_latents is below one, context_width negative or
            max_log_scale not positive; when applied, if the network's output has
            another size.
    """
    _check_sizes(num_latents, context_width, max_log_scale)
    num_passed = num_latents // 2
    num_changed = num_latents - num_passed

    def split(y: Array) -> tuple[Array, Array]:
        if flip:
            changed, passed = jnp.split(y, [num_changed])
        else:
            passed, changed = jnp.split(y, [num_passed])
        return passed, changed

    def join(passed: Array, changed: Array) -> Array:
        return jnp.concatenate([changed, passed] if flip else [passed, changed])

    def read(params: PyTree, context: Array, passed: Array) -> tuple[Array, Array]:
        out = network.apply(params, jnp.concatenate([passed, context]))
        return _shift_and_log_scale(out, num_changed, max_log_scale)

    def forward(params: PyTree, context: Array, y: Array) -> tuple[Array, Scalar]:
        passed, changed = split(y)
        shift, log_scale = read(params, context, passed)
        return join(passed, jnp.exp(log_scale) * changed + shift), log_scale.sum()

    def inverse(params: PyTree, context: Array, z: Array) -> tuple[Array, Scalar]:
        passed, changed = split(z)
        shift, log_scale = read(params, context, passed)
        return join(passed, (changed - shift) * jnp.exp(-log_scale)), log_scale.sum()

    return _checked(num_latents, Flow(context_width, network.init, forward, inverse))


def inverse_autoregressive(
    network: Network,
    num_latents: int,
    *,
    context_width: int = 0,
    max_log_scale: float = 2.0,
) -> Flow:
    """z_d = exp(s_d) y_d + m_d, with m_d and s_d functions of y_{<d} and the context.

    Kingma et al. 2016 (arXiv:1606.04934) section 3. Forward is one pass of the network
    and inverse D passes in sequence: sampling is cheap, and the log_prob of a given z
    costs D passes. s is bounded as in `affine_coupling`, whatever the data.

    Args:
        network: a `networks.made(num_latents, ..., num_context=context_width)`, from
            [y, context] to [m, raw]. Nothing checks that it is autoregressive, and
            neither log_det nor inverse is right if it is not.
        num_latents: D.
        context_width: entries of the context.
        max_log_scale: bound on the logarithm of each scale.

    Raises:
        ValueError: if num_latents is below one, context_width negative or
            max_log_scale not positive; when applied, if the network's output has
            another size.
    """
    _check_sizes(num_latents, context_width, max_log_scale)

    def read(params: PyTree, context: Array, y: Array) -> tuple[Array, Array]:
        out = network.apply(params, jnp.concatenate([y, context]))
        return _shift_and_log_scale(out, num_latents, max_log_scale)

    def forward(params: PyTree, context: Array, y: Array) -> tuple[Array, Scalar]:
        shift, log_scale = read(params, context, y)
        return jnp.exp(log_scale) * y + shift, log_scale.sum()

    def inverse(params: PyTree, context: Array, z: Array) -> tuple[Array, Scalar]:
        def solve_next(y: Array, d: Array) -> tuple[Array, Scalar]:
            # The entries of y from d on are zero still; m_d and s_d do not read them.
            shift, log_scale = read(params, context, y)
            y_d = (z[d] - shift[d]) * jnp.exp(-log_scale[d])
            return y.at[d].set(y_d), log_scale[d]

        start = jnp.zeros_like(z)
        y, log_scale = numerics.scan(solve_next, start, jnp.arange(num_latents))
        return y, log_scale.sum()

    return _checked(num_latents, Flow(context_width, network.init, forward, inverse))


def reverse(num_latents: int) -> Flow:
    """z_d = y_{D+1-d}, for the flows beside it to change in the other order.

    Raises:
        ValueError: if num_latents is below one.
    """
    _check_num_latents(num_latents)

    def flip(params: PyTree, context: Array, y: Array) -> tuple[Array, Scalar]:
        del params, context
        return y[::-1], jnp.zeros((), y.dtype)

    return _checked(num_latents, Flow(0, lambda key: (), flip, flip))


def inverted(flow: Flow) -> Flow:
    """The flow the other way: what was costly is cheap, and what was cheap costly.

    As the map from noise to latents of a prior, an inverse autoregressive flow inverted
    is a masked autoregressive flow (Papamakarios et al. 2017, arXiv:1705.07057): its
    density is one pass, and a sample D passes in sequence.
    """

    def forward(params: PyTree, context: Array, y: Array) -> tuple[Array, Scalar]:
        z, log_det = flow.inverse(params, context, y)
        return z, -log_det

    def inverse(params: PyTree, context: Array, z: Array) -> tuple[Array, Scalar]:
        y, log_det = flow.forward(params, context, z)
        return y, -log_det

    return flow._replace(forward=forward, inverse=inverse)


def chain(*flows: Flow) -> Flow:
    """The flows one after another, the first applied first; the identity if none.

    The context is the flows' contexts in that order, the parameters a tuple.

    Raises:
        ValueError: when applied, if the context has another length than that of all.
    """
    width = sum(flow.width for flow in flows)

    def parts(params: PyTree, context: Array) -> list[tuple[Flow, PyTree, Array]]:
        _check_shape("context", context, width)
        pieces, start = [], 0
        for flow, flow_params in zip(flows, params, strict=True):
            pieces.append((flow, flow_params, context[start : start + flow.width]))
            start += flow.width
        return pieces

    def init(key: PRNGKey) -> PyTree:
        keys = jax.random.split(key, len(flows))
        return tuple(flow.init(key) for flow, key in zip(flows, keys, strict=True))

    def forward(params: PyTree, context: Array, y: Array) -> tuple[Array, Scalar]:
        total = jnp.zeros((), y.dtype)
        for flow, flow_params, read in parts(params, context):
            y, log_det = flow.forward(flow_params, read, y)
            total += log_det
        return y, total

    def inverse(params: PyTree, context: Array, z: Array) -> tuple[Array, Scalar]:
        total = jnp.zeros((), z.dtype)
        for flow, flow_params, read in reversed(parts(params, context)):
            z, log_det = flow.inverse(flow_params, read, z)
            total += log_det
        return z, total

    return Flow(width, init, forward, inverse)


def _slope(v: Scalar, gain: Scalar) -> Scalar:
    """1 + m (1 - tanh(v)^2) at gain = 1 + m > 0, as a sum of positive terms."""
    less = 4.0 * jax.nn.sigmoid(2.0 * v) * jax.nn.sigmoid(-2.0 * v)  # 1 - tanh^2
    return jnp.tanh(v) ** 2 + gain * less


def _planar_root(target: Scalar, gain: Scalar) -> Scalar:
    """The root v of v + m tanh(v) = target at gain = 1 + m > 0.

    The left side is odd, increasing, and for positive v concave where m > 0 and convex
    where m < 0. So Newton's steps for |target| need no safeguard: from a bound below
    the root where m > 0, or above it where m < 0, they approach it from that side.
    """

    def newton(v: Scalar, target: Scalar, gain: Scalar) -> Scalar:
        excess = v + (gain - 1.0) * jnp.tanh(v) - target
        return v - excess / _slope(v, gain)

    size, fixed = stop_gradient(jnp.abs(target)), stop_gradient(gain)
    bounds = size - (fixed - 1.0), size / fixed  # as tanh(v) <= 1 and tanh(v) <= v
    start = jnp.where(fixed > 1.0, jnp.maximum(*bounds), jnp.minimum(*bounds))
    root = jax.lax.fori_loop(
        0, NEWTON_STEPS, lambda _, v: newton(v, size, fixed), start
    )
    root = jnp.sign(stop_gradient(target)) * root
    # Each differentiable step from the root doubles the order of what is right: the
    # first step gives the first derivative, the second step the next two.
    return newton(newton(root, target, gain), target, gain)


def _shift_and_log_scale(
    out: Array, size: int, max_log_scale: float
) -> tuple[Array, Array]:
    if out.shape != (2 * size,):
        raise ValueError(f"network must return [{2 * size}], got {out.shape}")
    shift, raw = jnp.split(out, 2)
    return shift, max_log_scale * jnp.tanh(raw / max_log_scale)


def _checked(num_latents: int, flow: Flow) -> Flow:
    """The flow, refusing other shapes: a longer context would be read in part."""

    def check(function: Map, name: str) -> Map:
        def checked(
            params: PyTree, context: Array, event: Array
        ) -> tuple[Array, Scalar]:
            _check_shape("context", context, flow.width)
            _check_shape(name, event, num_latents)
            return function(params, context, event)

        return checked

    forward, inverse = check(flow.forward, "y"), check(flow.inverse, "z")
    return flow._replace(forward=forward, inverse=inverse)


def _check_shape(name: str, array: Array, size: int) -> None:
    if array.shape != (size,):
        raise ValueError(f"{name} must be [{size}], got {array.shape}")


def _check_num_latents(num_latents: int) -> None:
    numerics.check_positive(num_latents=num_latents)


def _check_sizes(num_latents: int, context_width: int, max_log_scale: float) -> None:
    _check_num_latents(num_latents)
    numerics.check_not_negative(context_width=context_width)
    numerics.check_in("(0, inf)", max_log_scale=max_log_scale)
