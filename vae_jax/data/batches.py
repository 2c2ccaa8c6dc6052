"""Batches gathered on the device, and the ways to read or binarize stored entries.

The data set stays on the device as it is stored, mostly a byte an entry; an epoch is
an array of rows, and each batch becomes float32 inside the compiled step. Bytes have no
NaN: a split with missing entries is stored as float32, NaN where they are.
"""

from collections.abc import Callable, Mapping
from typing import NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from vae_jax.data import sources
from vae_jax.types import Batch, PRNGKey

BINARIZATIONS = ("none", "grid", "dequantized", "threshold", "static", "dynamic")
REDRAWN = ("dequantized", "dynamic")
"""Of these, training rows stay as stored: they are drawn each time they are taken."""

Take: TypeAlias = Callable[[PRNGKey, Array, Array], Batch]
"""(key, data [N, *X], index [B]) -> Batch"""

Value: TypeAlias = Callable[[Array], Array]
"""raw [...] -> float32 [...]"""

_FULL = 1 << 16  # 16 bits are drawn an entry
_MOST_VALUES = 256  # that float32 tells apart with 16 bits of noise each
_MOST_BELOW_ONE = 1.0 - 2.0**-24
_ROWS = 1000  # rows that are drawn at once on the host
_OF_HOLES, _OF_NOISE = 1, 3  # keep their streams apart from those of binarization


class Prepared(NamedTuple):
    """Splits [N, *X] ready for the device, and the functions that read them.

    The training split may be on another scale than the other two (raw where they are
    zeros and ones, or noisy: `REDRAWN`), so each has its own reader.

    Attributes:
        train: rows to fit, as `take` reads them.
        valid: rows to choose by.
        test: rows to report on.
        labels: of a split's rows.
        take: key, rows of train, index -> a batch.
        value: entries of valid and test as the model sees them.
    """

    train: np.ndarray
    valid: np.ndarray
    test: np.ndarray
    labels: dict[str, np.ndarray]
    take: Take
    value: Value


def at_equal_distances(num_rows: int, number: int) -> Int[np.ndarray, " M"]:
    """So many places among the rows, in order, at equal distances but for rounding."""
    return np.arange(number) * num_rows // number


def order(key: PRNGKey, num_rows: int, *, batch_size: int) -> Int[Array, "S B"]:
    """A fresh order of the rows in S = num_rows // batch_size batches, drawn on device.

    Every row appears at most once; the remainder, other rows in each order, is
    dropped.

    Raises:
        ValueError: a batch_size that is not positive or exceeds num_rows.
    """
    if batch_size <= 0:
        raise ValueError(f"batch_size={batch_size} is not positive")
    if batch_size > num_rows:
        raise ValueError(
            f"batch_size={batch_size} is larger than the data set's {num_rows} rows"
        )
    num_steps = num_rows // batch_size
    rows = jax.random.permutation(key, num_rows)[: num_steps * batch_size]
    return rows.reshape(num_steps, batch_size)


def epochs(
    key: PRNGKey, num_rows: int, *, batch_size: int, num_epochs: int
) -> Int[Array, "S B"]:
    """The batches of several epochs, one behind the other, each in its own `order`.

    Raises:
        ValueError: as `order`.
    """
    keys = jax.random.split(key, num_epochs)
    return jnp.concatenate([order(k, num_rows, batch_size=batch_size) for k in keys])


def prepare(
    source: sources.Source,
    *,
    binarization: str,
    data_seed: int = 0,
    missing_rate: float = 0.0,
) -> Prepared:
    """Binarizes a source on the host and says how to read the result.

    `none` leaves it; `threshold` is on where the value is at least 1/2; `static` draws
    every entry once, on with probability its value; `dynamic` draws the training
    entries afresh each time they are taken, and valid and test exactly as static does.
    Of K stored values k (`num_stored_values`), `grid` makes k / (K - 1), and
    `dequantized` (k + u) / K with u uniform in [0, 1) (Theis et al. 2016,
    arXiv:1511.01844), drawn when `dynamic` draws. Draws depend on `data_seed`, the
    split and the row, so that test is drawn the same whatever `valid_size` is.

    Entries that are NaN stay NaN under any binarization. With a `missing_rate` each
    entry of train and valid is made NaN with that probability, whatever its value
    (missing completely at random), once, by `data_seed`; test stays as it is.

    Raises:
        ValueError: an unknown binarization, a negative seed, a missing_rate outside [0,
            1), values outside [0, 1] where they are probabilities, or entries that
            are no whole numbers where they are counted.
    """
    if binarization not in BINARIZATIONS:
        raise ValueError(
            f"binarization={binarization!r}: choose one of {', '.join(BINARIZATIONS)}"
        )
    if data_seed < 0:
        raise ValueError(f"data_seed={data_seed} is negative")
    if not 0.0 <= missing_rate < 1.0:
        raise ValueError(f"missing_rate={missing_rate} does not lie in [0, 1)")
    offset, divisor = source.offset, source.divisor
    raw = {split: getattr(source, split) for split in sources.SPLITS}
    if binarization == "none":
        made, taker = raw, take(offset=offset, divisor=divisor)
        reader = values(offset=offset, divisor=divisor)
    elif binarization == "threshold":
        made, taker, reader = _thresholded(raw, offset, divisor), take(), values()
    elif binarization == "grid":
        step = float(num_stored_values(source) - 1)
        made, taker, reader = raw, take(divisor=step), values(divisor=step)
    elif binarization == "dequantized":
        number = num_stored_values(source)
        made, taker = _dequantized(raw, number, data_seed), dequantize(number)
        reader = values()
    else:
        for split, array in raw.items():
            _check_probabilities(f"{source.name}: {split}", array, offset, divisor)
        made, taker, reader = (
            _sampled(raw, offset, divisor, data_seed),
            take(),
            values(),
        )
        if binarization == "dynamic":
            made["train"] = raw["train"]
            taker = take(offset=offset, divisor=divisor, dynamic=True)
    holes = _holes(raw, missing_rate, data_seed)
    made = {split: _punched(array, holes[split]) for split, array in made.items()}
    return Prepared(**made, labels=source.labels, take=taker, value=reader)


def with_context(prepared: Prepared, contexts: Mapping[str, np.ndarray]) -> Prepared:
    """Rows [N, D + C] of x, flattened, with a context behind it that nothing changes.

    Their x is what it is without, bit for bit, whatever is drawn with it.

    Args:
        prepared: of x, D entries.
        contexts: [N, C] by the name of each split.

    Raises:
        ValueError: as `packed`.
    """
    x_shape = prepared.train.shape[1:]
    size = int(np.prod(x_shape))
    splits = {s: packed(getattr(prepared, s), contexts[s]) for s in sources.SPLITS}
    # Bytes are compared as integers, and beside contexts they are stored as float32.
    dtype = jax.dtypes.canonicalize_dtype(prepared.train.dtype)

    def beside(x: Array, raw: Array) -> Array:
        context = raw[..., size:].astype(x.dtype)
        return jnp.concatenate([x.reshape(*raw.shape[:-1], size), context], axis=-1)

    def take_rows(key: PRNGKey, data: Array, index: Int[Array, " B"]) -> Batch:
        raw = data[index]
        x = raw[:, :size].reshape(-1, *x_shape).astype(dtype)
        batch = prepared.take(key, x, jnp.arange(len(index)))
        return batch._replace(x=beside(batch.x, raw), index=index)

    def value(raw: Array) -> Array:
        return beside(prepared.value(raw[..., :size]), raw)

    return prepared._replace(**splits, take=take_rows, value=value)


def packed(rows: np.ndarray, contexts: np.ndarray) -> np.ndarray:
    """[N, *X] and [N, C] as [N, D + C].

    Raises:
        ValueError: if there is not one context for every row.
    """
    num_rows, size = len(rows), int(np.prod(rows.shape[1:]))
    if num_rows != len(contexts):
        raise ValueError(f"{len(contexts)} contexts are not those of {num_rows} rows")
    return np.concatenate([rows.reshape(num_rows, size), contexts], axis=1)


def most_stored(source: sources.Source) -> float:
    """K - 1 of a source that stores whole numbers k = 0..K-1, by its scale alone.

    The scale puts least and greatest value at equal distances from 0 and 1, so that
    K - 1 = divisor - 2 offset.
    """
    return source.divisor - 2.0 * source.offset


def num_stored_values(source: sources.Source) -> int:
    """K of a source, by `most_stored`, once all of its entries are seen to be such k.

    Raises:
        ValueError: entries that are others, or a K that is not in 2..256.
    """
    most = most_stored(source)
    is_scale = most.is_integer() and 1 <= most < _MOST_VALUES
    for split in sources.SPLITS:
        array = getattr(source, split)
        for start in range(0, len(array), _ROWS):
            chunk = array[start : start + _ROWS]
            if chunk.dtype.kind == "f":
                chunk = chunk[~np.isnan(chunk)]
            whole = chunk.dtype.kind != "f" or np.all(chunk == np.floor(chunk))
            inside = not chunk.size or 0 <= chunk.min() <= chunk.max() <= most
            if not (is_scale and whole and inside):
                raise ValueError(
                    f"{source.name}: {split} does not hold whole numbers from 0 to "
                    f"{_MOST_VALUES - 1} at most, such as bytes: store them as integers"
                )
    return int(most) + 1


def values(*, offset: float = 0.0, divisor: float = 1.0) -> Value:
    """The map of stored entries to float32 values, (raw + offset) / divisor.

    Raises:
        ValueError: a divisor that is not positive.
    """
    if not divisor > 0:
        raise ValueError(f"divisor={divisor} is not positive")

    def value(raw: Array) -> Float[Array, "..."]:
        shifted = raw.astype(jnp.float32)
        if offset:
            shifted = shifted + offset
        return shifted if divisor == 1 else shifted / divisor

    return value


def take(*, offset: float = 0.0, divisor: float = 1.0, dynamic: bool = False) -> Take:
    """The function that gathers rows of stored data into a Batch of float32 values.

    With `dynamic`, an entry is 1 with probability its value and else 0, independently
    in each batch: 16 random bits are compared with t = round(65536 value), so that a
    value of 0 is never on, 1 always, and no probability is off by more than 2^-17 from
    the value: exactly so for uint8 data, whose t is computed in integers, else but for
    what float32 rounds of the value. The key is not used otherwise. NaN stays NaN. All
    weights are one.

    Raises:
        ValueError: a divisor that is not positive.
    """
    value = values(offset=offset, divisor=divisor)

    def take_rows(key: PRNGKey, data: Array, index: Int[Array, " B"]) -> Batch:
        raw = data[index]
        if dynamic:
            on = _bits(key, raw.shape) < _thresholds(raw, offset, divisor)
            x = _kept_nan(on.astype(jnp.float32), raw)
        else:
            x = value(raw)
        return Batch(x=x, index=index, weight=jnp.ones(index.shape, jnp.float32))

    return take_rows


def dequantize(num_values: int) -> Take:
    """The function that gathers rows of stored k and makes them y = (k + u) / K.

    u is fresh at each call, uniform over the 2^15 midpoints of equal parts of [0, 1],
    so that float32 holds k + u exactly: y too, inside k's own bin, where K is a power
    of two. Elsewhere y is rounded, at the rim of a bin perhaps across it, and stays
    below 1. NaN stays NaN. All weights are one.

    Args:
        num_values: K, at most 256.
    """

    def take_rows(key: PRNGKey, data: Array, index: Int[Array, " B"]) -> Batch:
        raw = data[index]
        parts = (_bits(key, raw.shape) >> 1).astype(jnp.float32)
        x = (raw.astype(jnp.float32) + (parts + 0.5) / (_FULL // 2)) / num_values
        x = jnp.minimum(x, _MOST_BELOW_ONE)  # a division may be by a reciprocal
        return Batch(x=x, index=index, weight=jnp.ones(index.shape, jnp.float32))

    return take_rows


def _thresholds(raw: Array, offset: float, divisor: float) -> Array:
    """round(65536 (raw + offset) / divisor) as uint32.

    With numerator and denominator doubled, halves (Frey Face's offset, and the half
    that rounds) are integers; 510 * 65536 and what is added stay below 2^32.
    """
    if raw.dtype == jnp.uint8 and (2 * offset).is_integer() and divisor.is_integer():
        doubled = raw.astype(jnp.uint32) * 2 + int(2 * offset)
        return (doubled * _FULL + int(divisor)) // int(2 * divisor)
    value = (raw.astype(jnp.float32) + offset) / divisor
    return jnp.round(value * _FULL).astype(jnp.uint32)


def _kept_nan(x: Array, raw: Array) -> Array:
    """x, NaN where the stored entries are; bytes never are."""
    if not jnp.issubdtype(raw.dtype, jnp.floating):
        return x
    return jnp.where(jnp.isnan(raw), jnp.nan, x)


def _bits(key: PRNGKey, shape: tuple[int, ...]) -> Array:
    """16 random bits an entry, as uint32 [B, *X]; one 32-bit word makes two entries.

    The words of a row are drawn along the batch axis, so that a sharded batch draws
    its own.
    """
    num_rows, num_entries = shape[0], int(np.prod(shape[1:]))
    words = jax.random.bits(key, (num_rows, (num_entries + 1) // 2), jnp.uint32)
    halves = jnp.concatenate([words >> 16, words & (_FULL - 1)], axis=1)
    return halves[:, :num_entries].reshape(shape)


def _thresholded(
    raw: dict[str, np.ndarray], offset: float, divisor: float
) -> dict[str, np.ndarray]:
    half = divisor / 2 - offset  # the stored entry whose value is 1/2
    return {split: (array >= half).astype(np.uint8) for split, array in raw.items()}


def _sampled(
    raw: dict[str, np.ndarray], offset: float, divisor: float, data_seed: int
) -> dict[str, np.ndarray]:
    """Zeros and ones with P(1) = value: a stream for each split, filled row by row."""
    bits = {}
    for number, (split, array) in enumerate(raw.items()):
        generator = np.random.default_rng((data_seed, number))
        bits[split] = np.empty(array.shape, np.uint8)
        for start in range(0, len(array), _ROWS):
            chunk = array[start : start + _ROWS].astype(np.float64)
            uniform = generator.random(chunk.shape, np.float32)
            bits[split][start : start + _ROWS] = uniform < (chunk + offset) / divisor
    return bits


def _dequantized(
    raw: dict[str, np.ndarray], num_values: int, data_seed: int
) -> dict[str, np.ndarray]:
    """Valid and test with noise as `dequantize` has it, train as it is."""
    noisy = {"train": raw["train"]}
    for number, split in enumerate(("valid", "test"), 1):
        generator = np.random.default_rng((data_seed, number, _OF_NOISE))
        noisy[split] = np.empty(raw[split].shape, np.float32)
        for start in range(0, len(raw[split]), _ROWS):
            chunk = raw[split][start : start + _ROWS].astype(np.float32)
            parts = np.floor(generator.random(chunk.shape, np.float32) * (_FULL // 2))
            u = (parts + np.float32(0.5)) / np.float32(_FULL // 2)
            noisy[split][start : start + _ROWS] = (chunk + u) / np.float32(num_values)
    return noisy


def _holes(
    raw: dict[str, np.ndarray], missing_rate: float, data_seed: int
) -> dict[str, np.ndarray]:
    """Which entries [N, *X] are missing: those that were, and those that are drawn."""
    holes = {s: sources.missing_entries(array) for s, array in raw.items()}
    if missing_rate:
        for number, split in enumerate(("train", "valid")):
            holes[split] = np.array(holes[split])
            generator = np.random.default_rng((data_seed, number, _OF_HOLES))
            for start in range(0, len(raw[split]), _ROWS):
                chunk = holes[split][start : start + _ROWS]
                chunk |= generator.random(chunk.shape, np.float32) < missing_rate
    return holes


def _punched(array: np.ndarray, holes: np.ndarray) -> np.ndarray:
    """The array with NaN in the holes, as it is where there are none."""
    if not holes.any():
        return array
    return np.where(holes, np.float32(np.nan), array.astype(np.float32))


def _check_probabilities(
    where: str, array: np.ndarray, offset: float, divisor: float
) -> None:
    if sources.missing_entries(array).all():
        return
    ends = np.nanmin(array), np.nanmax(array)
    low, high = ((float(end) + offset) / divisor for end in ends)
    if low < 0 or high > 1:
        raise ValueError(
            f"{where} has values from {low:g} to {high:g}, which are no probabilities: "
            "scale them to [0, 1], or take binarization none or threshold"
        )
