"""The code of a trained model: its densities as codecs, joined by bits back.

Real latents are coded as bins of the noise that their prior is a map of, z = T(eps):
bins of equal mass under N(0, 1), so that the prior's symbols are all alike, and q is
that of eps given x. It is a normal where q is one and T is affine: below N(0, I), of
diagonal or full covariance, and in each layer of normals of a ladder, where eps_l is
z_l in units of p(z_l | z_{>l}). Below a flow it is not, and the normal of T's inverse,
linear around the mean of q(z | x), stands in its place: another q, whose KL is paid for
as that of any q, and is small where q is narrow. A mixture of normals is no such map:
it is coded by its CDFs, in units of its mean and variance.

Of a q that is a point mass at a code (`codes`), x tells the symbols, so no bits come
back: a row is x by p(x | k) and k by p(k), symbol after symbol.

Both directions run the same compiled programs, of `num_lanes` rows, on one device: any
other program may round its last bits differently, and then nothing is decoded. Fewer
rows are coded with others beside them that mean nothing, and change nothing: programs
are of each row by itself.
"""

import functools
import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float
from scipy import special

from vae_jax.coding import bits_back, tables
from vae_jax.types import Densities, Generative, Model, Params, PRNGKey, PyTree


class Quantization(NamedTuple):
    """How finely a model's densities are rounded to integer frequencies.

    Attributes:
        latent_bits: log2 of the bins of a real latent.
        latent_precision: bits of a frequency of q(z | x).
        precision: bits of a frequency of x, and of a discrete latent.
    """

    latent_bits: int = 12
    latent_precision: int = 24
    precision: int = 18


QUANTIZATION = Quantization()


def coder(
    model: Model,
    params: Params,
    *,
    x_shape: tuple[int, ...],
    values: Float[np.ndarray, " K"],
    num_lanes: int,
    has_more_values: bool = False,
    quantization: Quantization = QUANTIZATION,
) -> tables.Codec:
    """The code of a model, for `num_lanes` rows of symbols k, which stand for values.

    Args:
        model: with its q(z | x).
        params: theta and phi.
        x_shape: of one observation.
        values: that an entry of x may have, such as k / (K - 1).
        num_lanes: rows at a time.
        has_more_values: whether p(x | z) is of others too, which no row has, as of
            counts above the largest: they are one more symbol, K.
        quantization: how finely probabilities are rounded.

    Raises:
        ValueError: for latents without a code, or a p(x | z) that gives the entries of
            x no probabilities: a density on real x, or terms that are neither each
            entry's nor a pixel's that sums out channels that are NaN.
    """
    latents = _latents(model, params, x_shape, num_lanes, quantization)
    grid = jnp.asarray(values, jnp.result_type(float))
    num_symbols = len(values) + has_more_values
    tables_of = _tables(model.generative, params, x_shape, grid, has_more_values)

    @jax.jit
    def encode(x: Array) -> PyTree:
        return jax.vmap(model.recognition.encode, in_axes=(None, 0))(params, x)

    def rows(symbols: np.ndarray) -> Array:
        return grid[symbols].reshape(num_lanes, *x_shape)

    nothing = np.zeros((num_lanes, latents.size), int)
    channels = _channels(tables_of, latents.value(nothing), x_shape)
    num_entries = math.prod(x_shape)
    groups = [slice(c or 0, num_entries, len(channels)) for c in channels]

    def likelihood(symbols: np.ndarray) -> tables.Codec:
        z = latents.value(symbols)

        def of_channel(i: int, x: np.ndarray) -> tables.Codec:
            log_probs = np.asarray(tables_of(z, rows(x), channels[i]))
            flat = log_probs.reshape(num_lanes, num_symbols, -1)
            return tables.categorical(
                np.moveaxis(flat, 1, 2), precision=quantization.precision
            )

        return tables.in_turn(num_lanes, groups, of_channel)

    return bits_back.code(
        latents.prior, lambda x: latents.posterior(encode(rows(x))), likelihood
    )


def _tables(
    generative: Generative,
    params: Params,
    x_shape: tuple[int, ...],
    values: Array,
    has_more_values: bool,
) -> Callable[[Array, Array, int | None], Float[Array, "L K *X"]]:
    """z, x, channel -> nats of each value of every entry, or of one channel's entries.

    Where there are more values, a last symbol has the mass that those leave.
    Those of a channel are of the channels before it, as they are in x, as well.
    """

    @functools.partial(jax.jit, static_argnums=2)
    def log_probs(z: Array, x: Array, channel: int | None) -> Array:
        def one(z: Array, x: Array) -> Array:
            def terms(value: Array) -> Array:
                image = jnp.broadcast_to(value, x_shape)
                if channel is not None:
                    place = jnp.broadcast_to(jnp.arange(x_shape[-1]), x_shape)
                    image = jnp.where(place < channel, x, image)
                    image = jnp.where(place > channel, jnp.nan, image)
                return generative.log_likelihood_terms(params, image, z)

            log_p = jax.vmap(terms)(values)
            if not has_more_values:
                return log_p
            rest = -jnp.expm1(jax.nn.logsumexp(log_p, axis=0, keepdims=True))
            least = jnp.finfo(log_p.dtype).tiny
            return jnp.concatenate([log_p, jnp.log(jnp.maximum(rest, least))])

        return jax.vmap(one)(z, x)

    return log_probs


def _channels(
    log_probs: Callable[[Array, Array, int | None], Array],
    z: Array,
    x_shape: tuple[int, ...],
) -> list[int | None]:
    """The channels that are coded in turn; [None]: all entries are coded at once.

    Raises:
        ValueError: for terms that are no log-probabilities of an entry's values.
    """
    x = jnp.zeros((len(z), *x_shape))
    shape = jax.eval_shape(lambda z, x: log_probs(z, x, None), z, x).shape[2:]
    channels: list[int | None] = [None]
    if shape != x_shape and shape == x_shape[:-1]:
        channels = [*range(x_shape[-1])]
    elif shape != x_shape:
        raise ValueError(
            f"p(x | z) has terms of shape {shape} for x of shape {x_shape}: entries "
            "that depend on each other given z cannot be coded"
        )
    before = 0.0
    for channel in channels:
        log_p = log_probs(z, x, channel)
        mass = np.exp(np.asarray(jax.nn.logsumexp(log_p, axis=1) - before))
        if not np.allclose(mass, 1.0, atol=1e-3):
            raise ValueError(
                "p(x | z) gives an entry's values a mass of "
                f"{mass.flat[np.abs(mass - 1.0).argmax()]:.4g}, not 1: a density on "
                "real x has no code of finite length"
            )
        before = log_p[:, 0]
    return channels


class _Latents(NamedTuple):
    """Codecs of latents, of a ladder or of its top.

    Attributes:
        size: their number.
        prior: of p(z).
        posterior: h of every lane -> of q(z | x).
        value: symbols -> the z of every lane; of one layer, what T makes it of.
    """

    size: int
    prior: tables.Codec
    posterior: Callable[[PyTree], tables.Codec]
    value: Callable[[np.ndarray], Array]


def _latents(
    model: Model,
    params: Params,
    x_shape: tuple[int, ...],
    num_lanes: int,
    quantization: Quantization,
) -> _Latents:
    """The layers of a ladder from the top down, each given those above; or the one."""
    top, densities = model, _of_one_layer(model.generative)
    if model.hierarchy is not None:
        top, densities = model.hierarchy.top, model.hierarchy.densities
    lower, codecs = model.lower, _Codecs(num_lanes, quantization)
    of_top = _of_top(top, params, codecs)
    ends = [int(end) for end in np.cumsum([*lower, of_top.size])]
    sizes = [*lower, of_top.size][::-1]
    groups = [slice(end - n, end) for end, n in zip(ends[::-1], sizes, strict=True)]
    x = jax.ShapeDtypeStruct(x_shape, jnp.result_type(float))
    h_of_x = jax.eval_shape(model.recognition.encode, params, x)
    unread = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), h_of_x)

    @jax.jit
    def of_p(noise: Array) -> tuple[Array, list[tuple[Array, ...]]]:
        def one(noise: Array) -> tuple[Array, list[tuple[Array, ...]]]:
            z, layers = densities(params, unread, noise)
            return z, [p for p, _ in layers][::-1]

        return jax.vmap(one)(noise)

    @jax.jit
    def of_q(h: PyTree, noise: Array) -> list[tuple[Array, ...]]:
        def one(h: PyTree, noise: Array) -> list[tuple[Array, ...]]:
            layers = densities(params, h, noise)[1]
            return [_in_units(p, q) for p, q in layers][::-1]

        return jax.vmap(one)(h, noise)

    flat = jax.ShapeDtypeStruct((num_lanes, ends[-1]), jnp.result_type(float))
    kinds = [_is_real(p) for p in jax.eval_shape(of_p, flat)[1]]  # from the top down

    def noise(symbols: np.ndarray) -> Array:
        below = [
            codecs.noise(symbols[:, at], is_real=is_real)
            for at, is_real in zip(groups[1:], kinds, strict=True)
        ]
        return jnp.concatenate([*below[::-1], of_top.value(symbols[:, groups[0]])], 1)

    def prior(i: int, symbols: np.ndarray) -> tables.Codec:
        if i == 0:
            return of_top.prior
        if kinds[i - 1]:
            return codecs.uniform(sizes[i])
        return codecs.of(*of_p(noise(symbols))[1][i - 1])

    def posterior(h: PyTree) -> tables.Codec:
        def of_layer(i: int, symbols: np.ndarray) -> tables.Codec:
            if i == 0:
                return of_top.posterior(h[0] if lower else h)
            return codecs.of(*of_q(h, noise(symbols))[i - 1])

        return tables.in_turn(num_lanes, groups, of_layer)

    return _Latents(
        ends[-1],
        tables.in_turn(num_lanes, groups, prior),
        posterior,
        lambda symbols: of_p(noise(symbols))[0],
    )


def _of_one_layer(
    generative: Generative,
) -> Callable[[Params, PyTree, Array], tuple[Array, Densities]]:
    """As a `Hierarchy`'s, of no layer below the top."""
    transport = generative.transport

    def densities(params: Params, h: PyTree, noise: Array) -> tuple[Array, Densities]:
        del h
        return transport.forward(params, noise) if transport else noise, ()

    return densities


def _is_real(parameters: tuple[Array, ...]) -> bool:
    """Whether they are a normal's mean and log_std, and not the logits of bits."""
    return len(parameters) == 2


def _in_units(p: tuple[Array, ...], q: tuple[Array, ...]) -> tuple[Array, ...]:
    """q of the noise that p is a map of; of bits, q."""
    if not _is_real(p):
        return q
    (mean_p, log_std_p), (mean_q, log_std_q) = p, q
    return (mean_q - mean_p) * jnp.exp(-log_std_p), log_std_q - log_std_p


class _Codecs(NamedTuple):
    """The codecs of latents.

    Attributes:
        num_lanes: rows at a time.
        quantization: how finely they are rounded.
    """

    num_lanes: int
    quantization: Quantization

    @property
    def bins(self) -> dict[str, int]:
        """Of real latents."""
        rounded = self.quantization
        return {
            "num_bins": 2**rounded.latent_bits,
            "precision": rounded.latent_precision,
        }

    def uniform(self, size: int) -> tables.Codec:
        """Of noise by N(0, I)."""
        num_bits = self.quantization.latent_bits
        return tables.uniform(self.num_lanes, size, num_bits=num_bits)

    def of(self, *parameters: Array) -> tables.Codec:
        """Of a normal's mean and log_std, or of the logits of bits."""
        first, *rest = (np.asarray(p, np.float64) for p in parameters)
        if rest:
            return tables.normal(first, np.exp(rest[0]), **self.bins)
        logits = np.stack([np.zeros_like(first), first], axis=-1)
        return tables.categorical(logits, precision=self.quantization.precision)

    def noise(
        self,
        symbols: np.ndarray,
        *,
        is_real: bool,
        at: np.ndarray | float = 0.0,
        unit: np.ndarray | float = 1.0,
    ) -> Array:
        """The centers of bins, in units from `at`; or bits."""
        values = np.arange(2.0)
        if is_real:
            values = tables.centers(2**self.quantization.latent_bits)
        return jnp.asarray(at + unit * values[symbols], jnp.result_type(float))


def _of_top(top: Model, params: Params, codecs: _Codecs) -> _Latents:
    """One layer, by the families of its q and p.

    Raises:
        ValueError: for families without a code.
    """
    q, p = top.recognition.family, top.generative.prior_family
    names, transport = (q.name, p.name), top.generative.transport
    of_q, of_p = q.parameters, p.parameters
    size = top.generative.latents(params).size

    def of_lanes(
        read: Callable[[tuple[Array, ...]], tuple[Array, ...]],
    ) -> Callable[[PyTree], tuple[Array, ...]]:
        """h of every lane -> what is read from the parameters of each q."""

        def one(h: PyTree) -> tuple[Array, ...]:
            assert of_q is not None
            return read(of_q(params, h))

        return jax.jit(jax.vmap(one))

    if names == ("bernoulli", "bernoulli"):
        assert of_p is not None
        (logits,) = of_p(params)
        plain = of_lanes(lambda q: q)
        return _Latents(
            size,
            codecs.of(jnp.tile(logits, (codecs.num_lanes, 1))),
            lambda h: codecs.of(*plain(h)),
            lambda symbols: codecs.noise(symbols, is_real=False),
        )
    if names == ("diag_normal", "standard_normal"):
        plain = of_lanes(lambda q: q)
        return _Latents(
            size,
            codecs.uniform(size),
            lambda h: codecs.of(*plain(h)),
            lambda symbols: codecs.noise(symbols, is_real=True),
        )
    if q.name in ("diag_normal", "full_normal") and transport is not None:
        inverse = functools.partial(transport.inverse, params)

        def of_noise(q: tuple[Array, ...]) -> tuple[Array, ...]:
            mean, scale = q
            factor = jnp.diag(jnp.exp(scale)) if scale.ndim == 1 else scale
            return inverse(mean), jax.jacfwd(inverse)(mean) @ factor

        linear = of_lanes(of_noise)
        return _Latents(
            size,
            codecs.uniform(size),
            lambda h: tables.full_normal(*map(np.asarray, linear(h)), **codecs.bins),
            lambda symbols: codecs.noise(symbols, is_real=True),
        )
    if q.name == "diag_normal" and p.name in _MIXTURES and of_p is not None:
        logits, *rest = of_p(params)
        mean, log_std = (np.asarray(a, np.float64) for a in rest)
        weights, std = special.softmax(np.asarray(logits, float)), np.exp(log_std)
        center = weights @ mean
        unit = np.sqrt(weights @ (std**2 + (mean - center) ** 2))
        shift, log_unit = (jnp.asarray(a, logits.dtype) for a in (center, np.log(unit)))
        in_units = of_lanes(
            lambda q: ((q[0] - shift) * jnp.exp(-log_unit), q[1] - log_unit)
        )
        return _Latents(
            size,
            tables.normal_mixture(
                weights,
                (mean - center) / unit,
                std / unit,
                num_lanes=codecs.num_lanes,
                **codecs.bins,
            ),
            lambda h: codecs.of(*in_units(h)),
            lambda symbols: codecs.noise(symbols, is_real=True, at=center, unit=unit),
        )
    if q.name in _POINT_MASSES and top.generative.symbols is not None:
        return _of_point_mass(top, params, codecs)
    raise ValueError(
        f"q of family {q.name} with a prior of family {p.name} has no code: it takes "
        "diag_normal or full_normal with a prior that is a map of noise, diag_normal "
        f"with {' or '.join(_MIXTURES)}, bernoulli with bernoulli, or "
        f"{' or '.join(_POINT_MASSES)} with a prior of codes"
    )


def _of_point_mass(top: Model, params: Params, codecs: _Codecs) -> _Latents:
    """The symbols of the code of x, which cost what p says of each after the others."""
    symbols, sample = top.generative.symbols, top.recognition.sample
    assert symbols is not None
    of_p, key = symbols, jax.random.key(0)  # which a point mass does not read

    def of_a_draw(key: PRNGKey) -> Array:
        return of_p.of(params, top.generative.sample_prior(key, params))

    (size,) = jax.eval_shape(of_a_draw, key).shape

    @jax.jit
    @jax.vmap
    def code(h: PyTree) -> Array:
        return of_p.of(params, sample(key, params, h))

    @jax.jit
    @jax.vmap
    def value(k: Array) -> Array:
        return of_p.value(params, k)

    @jax.jit
    @jax.vmap
    def log_probs(k: Array) -> Array:
        return of_p.log_probs(params, of_p.value(params, k))

    def of_place(n: int, k: np.ndarray) -> tables.Codec:
        before = np.where(np.arange(size) < n, k, 0)
        of_symbols = np.asarray(log_probs(jnp.asarray(before)))[:, n : n + 1]
        return tables.categorical(of_symbols, precision=codecs.quantization.precision)

    places = [slice(n, n + 1) for n in range(size)]
    return _Latents(
        size,
        tables.in_turn(codecs.num_lanes, places, of_place),
        lambda h: tables.known(np.asarray(code(h))),
        lambda k: value(jnp.asarray(k)),
    )


_POINT_MASSES = ("finite_scalar", "vector_quantized")
_MIXTURES = ("normal_mixture", "vamp")  # of normals, with their parameters
