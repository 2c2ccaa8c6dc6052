"""Numerically safe primitives."""

import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jax.lax import stop_gradient
from jax.typing import ArrayLike, DTypeLike
from jaxtyping import Array, Float, UInt

from vae_jax.types import PRNGKey, PyTree, Scalar


def log_mean_exp(log_w: Float[Array, " K"]) -> Scalar:
    """log (1/K) sum_k exp(log_w_k), without overflow; minus infinity if all are."""
    return jax.nn.logsumexp(log_w) - jnp.log(jnp.asarray(log_w.shape[0], log_w.dtype))


def bits_per_dimension(
    nats: Float[Array, "*X"], *, num_entries: int, num_values: int = 1
) -> Float[Array, "*X"]:
    r"""Bits an entry of x has, from log p(x) in nats or a bound on it.

    $-\log_2 p(x) / D$ for D entries of discrete values. Of a density on
    $y = (k + u) / K$, u uniform in [0, 1), add $\log_2 K$: as
    $E_u \log p(y) \le \log \int p((k + u) / K) du = \log P(k) + D \log K$
    (Theis et al. 2016, arXiv:1511.01844), what it gives on average is at least the bits
    of k under the model's P(k).

    Args:
        nats: log p(x), or log p(y), of any shape.
        num_entries: D.
        num_values: K of a density; 1 where p is of discrete values.

    Raises:
        ValueError: if one of the numbers is not positive.
    """
    check_positive(num_entries=num_entries, num_values=num_values)
    return math.log2(num_values) - nats / (num_entries * math.log(2.0))


@jax.custom_jvp
def attach_gradient(
    value: Float[Array, "*X"], surrogate: Float[Array, "*X"]
) -> Float[Array, "*X"]:
    """Returns an array that reads as `value` and differentiates as `surrogate`.

    An estimator whose surrogate is not its bound ends here, so the number that is
    logged is the bound and never the surrogate: exactly, whatever the surrogate's size,
    and also where that is no number.
    """
    del surrogate
    return value


@attach_gradient.defjvp
def _attach_gradient_jvp(primals: tuple, tangents: tuple) -> tuple[Array, Array]:
    return attach_gradient(*primals), tangents[1]


@jax.custom_jvp
def scale_gradient(x: Float[Array, "*X"], factor: Scalar) -> Float[Array, "*X"]:
    """Reads as x; the gradient that flows back through it is multiplied by factor.

    The value is x itself, so a computation made of it and one made of x are the same
    to the compiler, which runs them once. No gradient reaches the factor.
    """
    del factor
    return x


@scale_gradient.defjvp
def _scale_gradient_jvp(primals: tuple, tangents: tuple) -> tuple[Array, Array]:
    (x, factor), (dx, _) = primals, tangents
    return scale_gradient(x, factor), stop_gradient(factor) * dx


def times_log(
    weight: Float[Array, "*X"] | float, log_p: Float[Array, "*X"]
) -> Float[Array, "*X"]:
    """weight * log_p with 0 * -inf = 0, the limit of p log p: what never is costs none.

    There the derivative in log_p is the weight's zero, and the one in the weight, which
    has no limit, is zero too.
    """
    nothing = jnp.isneginf(log_p) & (weight == 0.0)
    return weight * jnp.where(nothing, 0.0, log_p)


def weighed(
    weight: Float[Array, "*X"], value: Float[Array, "*X"]
) -> Float[Array, "*X"]:
    """weight * value, and 0 where the weight is, also of what is infinite or NaN there.

    For terms of an expectation: what has no probability adds nothing, and no gradient.
    """
    return weight * jnp.where(weight > 0.0, value, 0.0)


def pivot(log_w: Scalar) -> Scalar:
    """A log weight, as a constant that others are less by; 0 where it is infinite."""
    log_w = stop_gradient(log_w)
    return jnp.where(jnp.isfinite(log_w), log_w, jnp.zeros_like(log_w))


def bits(key: PRNGKey, logits: Float[Array, "*X"]) -> Float[Array, "*X"]:
    """Bernoulli draws, 0. or 1., 1 with probability sigmoid(logits).

    Not by JAX's usual 23 bits, which turn every smaller probability into 2^-23.
    """
    draws = jax.random.bernoulli(key, jax.nn.sigmoid(logits), mode="high")
    return draws.astype(logits.dtype)


def log_sum_exp_without_each(log_w: Float[Array, " K"]) -> Float[Array, " K"]:
    """Entry k is log sum_{j != k} exp(log_w_j), from K - 1 terms and no difference.

    Subtracting w_k from the whole sum would leave no digits where w_k dominates it.
    """
    others = ~jnp.eye(log_w.shape[0], dtype=bool)
    rows = jnp.broadcast_to(log_w, others.shape)
    return jax.nn.logsumexp(rows, axis=1, where=others)


def check_positive(**numbers: int) -> None:
    """Refuses counts below one, where a builder would else wait to trace.

    Raises:
        ValueError: if a number is below one.
    """
    for name, number in numbers.items():
        if number < 1:
            raise ValueError(f"{name} must be positive, got {number}")


def check_sizes(**shapes: tuple[int, ...]) -> None:
    """Refuses shapes with a size below one.

    Raises:
        ValueError: if there is such a shape.
    """
    for name, shape in shapes.items():
        if min(shape, default=1) < 1:
            raise ValueError(f"{name} must have positive sizes, got {shape}")


def check_not_negative(**numbers: float | Scalar) -> None:
    """Refuses negative numbers and NaN; a traced one passes.

    Raises:
        ValueError: if a number is negative.
    """
    for name, number in numbers.items():
        if isinstance(number, float | int) and not number >= 0.0:
            raise ValueError(f"{name} must not be negative, got {number}")


def check_at_least(least: int, /, *, why: str = "", **numbers: int) -> None:
    """Refuses counts below the least of which something is defined.

    Args:
        least: more than one, else `check_positive`.
        why: the end of the error.
        **numbers: counts, by the names that the error gives them.

    Raises:
        ValueError: if a number is below it.
    """
    for name, number in numbers.items():
        if number < least:
            raise ValueError(f"{name} must be {least} or more, got {number}{why}")


def check_in(interval: str, /, *, why: str = "", **numbers: ArrayLike) -> None:
    """Refuses numbers outside an interval, entries of arrays too, and NaN.

    A traced one, which has no value yet, passes.

    Args:
        interval: such as "[0, 1)", whose brackets hold the ends.
        why: the end of the error.
        **numbers: by the names that the error gives them.

    Raises:
        ValueError: if a number is outside.
    """
    low, high = map(float, interval[1:-1].split(","))
    is_above = np.greater_equal if interval[0] == "[" else np.greater
    is_below = np.less_equal if interval[-1] == "]" else np.less
    for name, number in numbers.items():
        if isinstance(number, Tracer):
            continue
        entries = np.asarray(number)
        inside = is_above(entries, low) & is_below(entries, high)
        if not np.all(inside):
            got = entries[~inside][0]
            raise ValueError(f"{name} must lie in {interval}, got {got}{why}")


def over_samples(
    key: PRNGKey, function: Callable[[PRNGKey], PyTree], *, num_samples: int
) -> PyTree:
    """Stacks function(key_k) over K keys split from `key`, on a new first axis.

    A single sample gets `key` itself and no batch axis inside: under the vmap over
    examples a second axis of length one costs the AEVB step a tenth of its time.

    Raises:
        ValueError: if num_samples is below one.
    """
    check_positive(num_samples=num_samples)
    if num_samples == 1:
        return jax.tree.map(lambda leaf: leaf[None], function(key))
    return jax.vmap(function)(jax.random.split(key, num_samples))


def over_rows(function: Callable[..., PyTree], *rows: PyTree) -> PyTree:
    """vmap(function)(*rows), without a batch axis inside where there is one row."""
    if jax.tree.leaves(rows)[0].shape[0] > 1:
        return jax.vmap(function)(*rows)
    only = jax.tree.map(lambda leaf: leaf[0], rows)
    return jax.tree.map(lambda leaf: leaf[None], function(*only))


def scan(
    step: Callable[[Any, Any], tuple[Any, Any]],
    start: PyTree,
    xs: PyTree,
    *,
    length: int | None = None,
    reverse: bool = False,
) -> tuple[Any, Any]:
    """`jax.lax.scan` from a start that may hold constants, inside `jax.shard_map` too.

    There a carry must begin as it goes on, varying over the devices or not, and an
    array of zeros that is written out does not vary.
    """

    def first(leaf: Array) -> Array:
        return leaf[0] if len(leaf) else jnp.zeros_like(leaf, shape=leaf.shape[1:])

    def once(carry: PyTree) -> PyTree:
        return step(carry, jax.tree.map(first, xs))[0]

    start = _as_carried(once, start)
    return jax.lax.scan(step, start, xs, length=length, reverse=reverse)


def while_loop(
    goes_on: Callable[[Any], Array], step: Callable[[Any], Any], start: PyTree
) -> Any:
    """`jax.lax.while_loop` from a start that may hold constants, as `scan` does."""
    return jax.lax.while_loop(goes_on, step, _as_carried(step, start))


def _as_carried(step: Callable[[PyTree], PyTree], start: PyTree) -> PyTree:
    """The start, varying over the devices in every leaf that steps make vary."""
    if not jax.sharding.get_abstract_mesh().manual_axes:
        return start

    def widened(leaf: Array, like: jax.ShapeDtypeStruct) -> Array:
        return vary_alike(jnp.asarray(leaf), jnp.zeros_like(like))[0]

    types = None
    while types != (types := [jax.typeof(leaf) for leaf in jax.tree.leaves(start)]):
        start = jax.tree.map(widened, start, jax.eval_shape(step, start))
    return start


def vary_alike(*arrays: Array) -> list[Array]:
    """Inside `jax.shard_map`, all vary over the devices over which any does.

    What JAX does for its own operations, and own primitives and carries have to ask
    for: the derivative of what all devices share is then summed over them.
    """
    if not jax.sharding.get_abstract_mesh().manual_axes:
        return list(arrays)
    axes = [jax.typeof(array).manual_axis_type.varying for array in arrays]
    every = frozenset.union(*axes)
    return [
        jax.lax.pcast(array, tuple(every - of), to="varying") if every - of else array
        for array, of in zip(arrays, axes, strict=True)
    ]


def unpack_tril(packed: Float[Array, " P"], size: int) -> Float[Array, "{size} {size}"]:
    """The lower triangular matrix whose rows, up to the diagonal, are packed in order.

    [a, b, c, d, e, f] is [[a, 0, 0], [b, c, 0], [d, e, f]].

    Raises:
        ValueError: if packed is not size (size + 1) / 2 entries.
    """
    if packed.shape != (size * (size + 1) // 2,):
        raise ValueError(
            f"packed must be [{size * (size + 1) // 2}] for size {size}, got "
            f"{packed.shape}"
        )
    return jnp.zeros((size, size), packed.dtype).at[jnp.tril_indices(size)].set(packed)


def log_of(name: str, value: float) -> float:
    """The logarithm of a number that is named in the error that refuses it.

    Raises:
        ValueError: if the value is not positive and finite.
    """
    numbers: dict[str, Any] = {name: value}
    check_in("(0, inf)", **numbers)
    return math.log(value)


def apart(key: PRNGKey) -> PRNGKey:
    """A key that no `split` of this one has, which may go on being split.

    `split(key, n)[i]` is `fold_in(key, i)`, and no n is as large as what this folds in.
    """
    return jax.random.fold_in(jax.random.clone(key), 2**31)


def unbiased(variance: Float[Array, "*X"], num_draws: int) -> Float[Array, "*X"]:
    """A variance over n draws about their mean, times n / (n - 1).

    It is infinite of one draw, which says nothing of its spread.
    """
    if num_draws == 1:
        return jnp.full_like(variance, jnp.inf)
    return variance * (num_draws / (num_draws - 1))


def gamma_ratio(
    num_halves: int,
) -> tuple[np.ndarray, np.ndarray, Callable[[Array], Array]]:
    r"""$\log\Gamma(a + n/2) - \log\Gamma(a) = \sum_i w_i\log(a + s_i) + r(a)$.

    A difference of two log-gammas loses its digits where a is large. Here a half step,
    if n is odd, is taken at $y = a + m$, with m at least ten, by the series of
    $\log\Gamma(y + 1/2) - \log\Gamma(y) - \frac12\log(y - 1/4)$, which is r: under
    2e-4, and right to 1e-12.

    Returns:
        The shifts s and the weights w, and r, zero for an even n.

    Raises:
        ValueError: if num_halves is below one.
    """
    check_positive(num_halves=num_halves)
    whole, is_odd = divmod(num_halves, 2)
    if not is_odd:
        return np.arange(whole, dtype=float), np.ones(whole), jnp.zeros_like
    up, down = np.arange(whole + 10.0), whole + np.arange(10.0) + 0.5
    shifts = np.concatenate([up, down, [whole + 9.75]])
    weights = np.concatenate([np.ones_like(up), -np.ones_like(down), [0.5]])

    def rest(a: Array) -> Array:
        u = (a + float(shifts[-1])) ** -2
        return u * (1 / 64 - u * (5 / 2048 - u * (61 / 49152 - u * 1385 / 1048576)))

    return shifts, weights, rest


def check_shapes(**arrays: Array) -> None:
    """Refuses named arrays of different shapes.

    Raises:
        ValueError: with the shape of each.
    """
    if len({array.shape for array in arrays.values()}) > 1:
        shapes = ", ".join(f"{name} {a.shape}" for name, a in arrays.items())
        raise ValueError(f"The arguments must have one shape, got {shapes}")


def check_binary_terms(*, num_bits: int, max_terms: int) -> None:
    """Refuses a sum over {0, 1}^D that is ill-posed or longer than the caller allows.

    Raises:
        ValueError: if num_bits is not in 1, ..., 31 or 2^num_bits exceeds max_terms.
    """
    if not 1 <= num_bits <= 31:
        raise ValueError(f"num_bits must be 1 to 31 to enumerate, got {num_bits}")
    if 2**num_bits > max_terms:
        raise ValueError(
            f"{num_bits} bits have 2**{num_bits} = {2**num_bits:,} vectors, each one "
            f"evaluation: more than max_terms={max_terms:,}. If that is affordable, "
            f"pass max_terms=2**{num_bits}"
        )


def binary_digits(
    row: UInt[Array, ""], *, num_bits: int, dtype: DTypeLike
) -> Float[Array, " D"]:
    """Row i of all 2^D binary vectors: the digits of i, the least significant first."""
    places = jnp.arange(num_bits, dtype=jnp.uint32)
    return ((row >> places) & jnp.uint32(1)).astype(dtype)


def binary_row(z: Float[Array, " D"]) -> UInt[Array, ""]:
    """The row that a vector of 0. and 1. is: the inverse of `binary_digits`."""
    places = jnp.arange(z.shape[0], dtype=jnp.uint32)
    return jnp.sum(z.astype(jnp.uint32) << places, dtype=jnp.uint32)


def sum_over_binary(
    term: Callable[[Float[Array, " D"]], PyTree],
    *,
    num_bits: int,
    chunk_size: int = 4096,
    max_terms: int = 2**24,
    dtype: DTypeLike | None = None,
) -> PyTree:
    r"""$\sum_{z\in\{0,1\}^D}$ term(z), of a floating-point scalar or a tree of arrays.

    Streamed in chunks that are recomputed for the gradient: forward and reverse mode
    hold the intermediates of one chunk and a counter for each, and time grows as 2^D.

    Chunks are summed pairwise and added with Kahan's compensation, so rounding does
    not grow with the number of chunks: it is some log2(chunk_size) units in the last
    place of $\sum_z|$term(z)$|$, 1e-6 relative in float32. The gradient's sum over
    chunks is a plain one: in float32 a few 1e-6 relative, at worst 6e-8 a chunk.

    Args:
        term: of one z [D], with entries 0. and 1.
        num_bits: D.
        chunk_size: at most this many terms at once; a power of two is taken.
        max_terms: the largest 2^D that is accepted.
        dtype: of z; the default float type where none is given.

    Raises:
        ValueError: if num_bits is not in 1, ..., 31, 2^num_bits exceeds max_terms, or
            chunk_size is below one.
    """
    check_binary_terms(num_bits=num_bits, max_terms=max_terms)
    chunk, starts = _chunks(num_bits, chunk_size, dtype)

    @functools.partial(jax.checkpoint, prevent_cse=False)  # a scan needs no barrier
    def chunk_sum(start: Array) -> PyTree:
        return jax.tree.map(_pairwise_sum, jax.vmap(term)(chunk(start)))

    def add(carry: tuple, start: Array) -> tuple[tuple, None]:
        total, lost = carry
        pairs = jax.tree.map(_compensated_add, total, lost, chunk_sum(start))
        return jax.tree.transpose(jax.tree.structure(total), None, pairs), None

    zeros = jax.tree.map(
        lambda leaf: jnp.zeros(leaf.shape, leaf.dtype),
        jax.eval_shape(chunk_sum, starts[0]),
    )
    return scan(add, (zeros, zeros), starts)[0][0]


def log_sum_exp_over_binary(
    log_term: Callable[[Float[Array, " D"]], Scalar],
    *,
    num_bits: int,
    chunk_size: int = 4096,
    max_terms: int = 2**24,
    dtype: DTypeLike | None = None,
) -> Scalar:
    r"""$\log\sum_{z\in\{0,1\}^D}\exp$ log_term(z) in nats, in one pass, no overflow.

    The sum is kept relative to the largest term so far, and otherwise streamed and
    rounded as in `sum_over_binary`; reverse mode holds two numbers more for each chunk.
    Minus infinity, with no gradient defined, where every log term is.

    Raises:
        ValueError: as `sum_over_binary`.
    """
    check_binary_terms(num_bits=num_bits, max_terms=max_terms)
    chunk, starts = _chunks(num_bits, chunk_size, dtype)

    @functools.partial(jax.checkpoint, prevent_cse=False)  # a scan needs no barrier
    def chunk_sum(start: Array, top: Scalar) -> tuple[Scalar, Scalar]:
        logs = jax.vmap(log_term)(chunk(start))
        top = jnp.maximum(top, stop_gradient(logs.max()))
        return top, _pairwise_sum(jnp.exp(logs - top))

    def add(carry: tuple, start: Array) -> tuple[tuple, None]:
        top, total, lost = carry
        new_top, terms = chunk_sum(start, top)
        shrink = jnp.exp(top - new_top)
        return (new_top, *_compensated_add(shrink * total, shrink * lost, terms)), None

    log_dtype = jax.eval_shape(lambda: jax.vmap(log_term)(chunk(starts[0]))).dtype
    zero = jnp.zeros((), log_dtype)
    # The least finite number and not minus infinity: inf - inf is no number.
    least = jnp.asarray(jnp.finfo(log_dtype).min, log_dtype)
    top, total, _ = scan(add, (least, zero, zero), starts)[0]
    return top + jnp.log(total)


def _chunks(
    num_bits: int, chunk_size: int, dtype: DTypeLike | None
) -> tuple[Callable[[Array], Array], Array]:
    """first row -> that chunk's z [C, D], and the first row of every chunk.

    Row i holds the binary digits of i. The chunk is the largest power of two that
    chunk_size allows, so that it divides 2^D and no row is counted twice.
    """
    check_positive(chunk_size=chunk_size)
    log_size = min(chunk_size.bit_length() - 1, num_bits)
    rows = jnp.arange(2**log_size, dtype=jnp.uint32)
    float_type = jnp.result_type(float) if dtype is None else dtype

    def chunk(start: Array) -> Array:
        return jax.vmap(
            lambda row: binary_digits(row, num_bits=num_bits, dtype=float_type)
        )(start + rows)

    starts = jnp.arange(2 ** (num_bits - log_size), dtype=jnp.uint32)
    return chunk, starts << jnp.uint32(log_size)


def _pairwise_sum(x: Float[Array, "N *X"]) -> Float[Array, "*X"]:
    """Sum over the first axis, a power of two long, as a balanced tree."""
    while x.shape[0] > 1:
        half = x.shape[0] // 2
        x = x[:half] + x[half:]
    return x[0]


def _compensated_add(total: Array, lost: Array, term: Array) -> tuple[Array, Array]:
    """total + term and its rounding error (Kahan); differentiates as a plain sum."""
    corrected = term - lost
    new = total + corrected
    error = stop_gradient((new - total) - corrected)
    return new, jnp.where(jnp.isfinite(new), error, 0.0)


@jax.custom_jvp
def softplus(x: Float[Array, "*X"]) -> Float[Array, "*X"]:
    """log(1 + exp(x)), finite with all its derivatives for any finite x.

    The derivative is given as the logistic function: differentiating the stable
    form max(x, 0) + log1p(exp(-|x|)) gives a second derivative of 0 at x = 0.
    """
    return jnp.maximum(x, 0.0) + jnp.log1p(jnp.exp(-jnp.abs(x)))


@softplus.defjvp
def _softplus_jvp(primals: tuple, tangents: tuple) -> tuple[Array, Array]:
    (x,), (dx,) = primals, tangents
    return softplus(x), jax.nn.sigmoid(x) * dx


def grid(num_dims: int, *, num_nodes: int, limit: float) -> tuple[np.ndarray, float]:
    """Nodes [num_nodes^D, D] evenly over [-limit, limit]^D, and log of their weight.

    Every node weighs the volume of a cell, the ends too: for an integrand that has died
    out there this is the trapezoid rule.

    Raises:
        ValueError: if num_dims is not 1 to 3, num_nodes is below two, or limit is not
            positive and finite.
    """
    if not 1 <= num_dims <= 3:
        raise ValueError(f"num_latents must be 1 to 3 for a grid, got {num_dims}")
    check_at_least(2, num_nodes=num_nodes)
    check_in("(0, inf)", limit=limit)
    axis, spacing = np.linspace(-limit, limit, num_nodes, retstep=True)
    axes = np.meshgrid(*[axis] * num_dims, indexing="ij")
    nodes = np.stack(axes, axis=-1).reshape(-1, num_dims)
    return nodes, num_dims * math.log(spacing)


def best_rotation(
    cost: Callable[[Float[Array, "R 2 2"]], Float[Array, " R"]],
) -> tuple[np.ndarray, float]:
    r"""The rotation or reflection of the plane of least cost, and its angle in degrees.

    $R = diag(1, f)\,R_a$, f = 1 or -1: of both f the angles a in steps of ten degrees,
    then those about the best in steps of one. A least cost in a valley narrower than
    ten degrees may be missed.

    Args:
        cost: of several matrices at once.

    Returns:
        R [2, 2], and a from 0 to 359, with a minus sign where R is a reflection.
    """

    def rotations(degrees: np.ndarray, flips: np.ndarray) -> np.ndarray:
        c, s = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
        rows = np.stack([c, -s], -1), np.stack([flips * s, flips * c], -1)
        return np.stack(rows, 1)

    def least(degrees: np.ndarray, flips: np.ndarray) -> tuple[float, float]:
        matrices = jnp.asarray(rotations(degrees, flips), jnp.result_type(float))
        i = int(np.argmin(np.asarray(cost(matrices))))
        return degrees[i], flips[i]

    coarse = np.arange(0.0, 360.0, 10.0)
    angle, flip = least(np.tile(coarse, 2), np.repeat([1.0, -1.0], len(coarse)))
    fine = angle + np.arange(-9.0, 10.0)
    angle, flip = least(fine, np.full(len(fine), flip))
    (rotation,) = rotations(np.array([angle]), np.array([flip]))
    return rotation, float(flip * (angle % 360.0))
