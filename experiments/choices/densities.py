"""The densities that flags can name: q(z | x), p(z), p(x | z)."""

import math
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
from jaxtyping import Array

from experiments.choices.rows import NO_FLAGS, Choice, Traits
from vae_jax import (
    codes,
    counts,
    discretized,
    finite_scalar,
    flows,
    likelihoods,
    networks,
    posteriors,
    power_spherical,
    priors,
    tables,
    vector_quantized,
)
from vae_jax.types import Conditional, Likelihood, Model, Network, Params, PyTree

Reading: TypeAlias = tuple[Callable[[Array], Array], int]
"""x -> what q sees of it, and how many numbers that is."""

CODEBOOK = "vector_quantized"
ROUNDED = {"finite_scalar", CODEBOOK}  # families of q that are point masses
DISCRETE = {"bernoulli", "categorical", "layers of bits", *ROUNDED}  # families of z
SPHERICAL = {"power_spherical", "uniform_sphere"}


class Posterior(NamedTuple):
    """A family of q(z | x): a `Choice`, and what a fit has to know of it.

    Attributes:
        build: num_latents, hidden, own numbers -> the density.
        flags: as a `Choice`'s.
        reads: as a `Choice`'s.
        traits: of the family, its KL being that to N(0, I).
        h_of_std: num_latents, std= -> the first entries of an h of mean zero and that
            standard deviation, the others being zero; None where z has no scale.
        priors: those of z that is no real vector, by the names that --prior has for
            them.
        read: params -> q's own parameters, where they are p's.
        decoder_of: decoder of num_latents, own numbers -> that of z, where z is not of
            num_latents.
    """

    build: Callable[..., Conditional]
    flags: Mapping[str, str] = NO_FLAGS
    reads: tuple[str, ...] = ("posterior_std",)
    traits: Traits = Traits()
    h_of_std: Callable[..., Array] | None = posteriors.diag_normal_h
    priors: Mapping[str, Choice] = MappingProxyType({})
    read: Callable[[Params], PyTree] | None = None
    decoder_of: Callable[..., Network] = lambda decoder, **numbers: decoder


class Observed(NamedTuple):
    """A family of p(x | z): a `Choice`, and where its decoder may start.

    Attributes:
        build: shape of x, own numbers -> the likelihood.
        flags: as a `Choice`'s.
        reads: as a `Choice`'s.
        h_of_mean: E[x], the flags -> the first entries of an h around that mean, the
            others being zero; None where there is no simple one.
        reading: the flags, shape of x -> what q sees of x, NaN where it is missing, and
            how many numbers; None: x itself, holes filled with zeros.
        is_sized: whether `build` takes the log_size of a size factor.
        of_counts: whether x is made of counts 0, 1, 2, ...
    """

    build: Callable[..., Likelihood]
    flags: Mapping[str, str] = NO_FLAGS
    reads: tuple[str, ...] = ()
    h_of_mean: Callable[[Array, Any], Array] | None = None
    reading: Callable[[Any, tuple[int, ...]], Reading] | None = None
    is_sized: bool = False
    of_counts: bool = False


def traits(model: Model) -> Traits:
    """Those of the q of a model that is there, whoever built it."""
    q, p = model.recognition.family.name, model.generative.prior_family.name
    closed = model.kl is not None
    return Traits(
        continuous=DISCRETE.isdisjoint({q, p}),
        spherical=not SPHERICAL.isdisjoint({q, p}),
        closed_kl=closed,
        factorizes=closed and q in ("diag_normal", "bernoulli"),
        layered=bool(model.lower) or q == "layers of bits",
        rounded=q in ROUNDED,
        codebook=q == CODEBOOK,
    )


def _flow(
    layer: Callable[[int, tuple[int, ...], int], flows.Flow],
) -> Callable[..., Conditional]:
    """A diagonal normal through flows that each read num_latents numbers of context."""

    def build(size: int, hidden: tuple[int, ...], *, num_layers: int) -> Conditional:
        layers = [layer(size, hidden[:1], i) for i in range(num_layers)]
        return posteriors.flow(posteriors.diag_normal(size), flows.chain(*layers))

    return build


def _coupling(size: int, hidden: tuple[int, ...], index: int) -> flows.Flow:
    passed = size // 2
    network = networks.mlp(passed + size, hidden, 2 * (size - passed))
    return flows.affine_coupling(network, size, context_width=size, flip=index % 2 == 1)


def _autoregressive(size: int, hidden: tuple[int, ...], index: int) -> flows.Flow:
    del index
    network = networks.made(size, hidden, num_context=size)
    autoregressive = flows.inverse_autoregressive(network, size, context_width=size)
    return flows.chain(autoregressive, flows.reverse(size))


def _grid(num_latents: int, *, num_levels: int) -> codes.Codes:
    return finite_scalar.grid((num_levels,) * num_latents)


def _places(num_latents: int, width: int) -> int:
    number, rest = divmod(num_latents, width)
    if rest:
        raise ValueError(
            f"--num_latents={num_latents} must be a multiple of --code_width={width}"
        )
    return number


def _rows(num_latents: int, *, width: int, **sizes: int) -> codes.Codes:
    return vector_quantized.rows(_places(num_latents, width), width=width, **sizes)


def _quantizer(
    num_latents: int, hidden: tuple[int, ...], *, width: int, **numbers: Any
) -> Conditional:
    del hidden
    places = _places(num_latents, width)
    return vector_quantized.posterior(places, width=width, **numbers)


def _summed(decoder: Network, *, width: int, num_levels: int, **others: Any) -> Network:
    del others
    return vector_quantized.summed(decoder, width=width, num_levels=num_levels)


def _autoregressive_codes(values: codes.Codes, units: int) -> Conditional:
    """A masked network of the symbols before; it starts uniform."""
    network = networks.made(
        len(values.sizes),
        (units, units),
        outputs_per_input=int(values.sizes.max()),
        width=values.entries,
        activation=jax.nn.elu,
    )
    return codes.autoregressive_prior(values, networks.from_zero(network))


def _of_codes(
    build: Callable[..., codes.Codes], flags: Mapping[str, str]
) -> Mapping[str, Choice]:
    """The priors of codes that these flags describe."""

    def uniform(num_latents: int, **numbers: int) -> Conditional:
        return codes.uniform_prior(build(num_latents, **numbers))

    def autoregressive(num_latents: int, *, units: int, **numbers: int) -> Conditional:
        return _autoregressive_codes(build(num_latents, **numbers), units)

    return {
        "standard_normal": Choice(uniform, flags),
        "autoregressive": Choice(autoregressive, {**flags, "units": "prior_units"}),
    }


_LEVELS = {"num_levels": "num_levels"}
_CODEBOOKS = {
    "width": "code_width",
    "num_rows": "codebook_rows",
    "num_levels": "residual_levels",
}
_LAYERS, _OF_FLOWS = {"num_layers": "flow_layers"}, Traits(own_parameters=True)
POSTERIORS = {
    "diag_normal": Posterior(
        lambda size, hidden: posteriors.diag_normal(size),
        traits=Traits(closed_kl=True, factorizes=True),
    ),
    "full_normal": Posterior(
        lambda size, hidden: posteriors.full_normal(size),
        traits=Traits(closed_kl=True),
        h_of_std=posteriors.full_normal_h,
    ),
    "planar": Posterior(
        _flow(lambda size, hidden, index: flows.planar(size)),
        _LAYERS,
        traits=_OF_FLOWS,
    ),
    "coupling": Posterior(_flow(_coupling), _LAYERS, traits=_OF_FLOWS),
    "iaf": Posterior(_flow(_autoregressive), _LAYERS, traits=_OF_FLOWS),
    "bernoulli": Posterior(
        lambda size, hidden: posteriors.bernoulli(size),
        reads=(),
        traits=Traits(continuous=False),
        h_of_std=None,
        priors={"standard_normal": Choice(priors.bernoulli)},
    ),
    "finite_scalar": Posterior(
        lambda size, hidden, *, num_levels: finite_scalar.posterior(
            (num_levels,) * size
        ),
        _LEVELS,
        reads=(),
        traits=Traits(continuous=False, rounded=True),
        h_of_std=None,
        priors=_of_codes(_grid, _LEVELS),
    ),
    "vector_quantized": Posterior(
        _quantizer,
        {**_CODEBOOKS, "rotate": "rotate"},
        reads=(),
        traits=Traits(continuous=False, rounded=True, codebook=True),
        h_of_std=None,
        priors=_of_codes(_rows, _CODEBOOKS),
        read=vector_quantized.read,
        decoder_of=_summed,
    ),
    "power_spherical": Posterior(
        lambda size, hidden: power_spherical.posterior(size),
        reads=(),
        traits=Traits(spherical=True, closed_kl=True),
        h_of_std=None,
        priors={"standard_normal": Choice(power_spherical.uniform_prior)},
    ),
}


def _flow_prior(num_latents: int, *, num_layers: int, units: int) -> Conditional:
    """Couplings that start at N(0, I)."""
    if num_latents < 2:
        raise ValueError(
            "--prior=flow couples latents: give --num_latents of 2 or more"
        )
    passed = num_latents // 2
    network = networks.from_zero(
        networks.mlp(
            passed, (units, units), 2 * (num_latents - passed), activation=jax.nn.elu
        )
    )
    layers = [
        flows.affine_coupling(network, num_latents, flip=i % 2 == 1)
        for i in range(num_layers)
    ]
    return posteriors.flow(priors.standard_normal(num_latents), flows.chain(*layers))


def _autoregressive_prior(
    num_latents: int, *, num_layers: int, units: int
) -> Conditional:
    """Masked autoregressive flows, whose density is one pass; they start at N(0, I)."""
    network = networks.from_zero(
        networks.made(num_latents, (units, units), activation=jax.nn.elu)
    )
    layer = flows.inverse_autoregressive(network, num_latents)
    layers = [layer, flows.reverse(num_latents)] * num_layers
    flow = flows.inverted(flows.chain(*layers[:-1]))
    return posteriors.flow(priors.standard_normal(num_latents), flow)


_OF_FLOW_PRIORS = {"num_layers": "prior_layers", "units": "prior_units"}
PRIORS = {
    "standard_normal": Choice(priors.standard_normal),
    "flow": Choice(_flow_prior, _OF_FLOW_PRIORS),
    "autoregressive": Choice(_autoregressive_prior, _OF_FLOW_PRIORS),
    "normal_mixture": Choice(
        priors.normal_mixture, {"num_components": "num_components"}
    ),
    # Of the encoder: `vae.with_vamp_prior` and `exemplars.with_exemplar_prior` take the
    # place of what is built here.
    "vamp": Choice(priors.standard_normal, reads=("num_components",)),
    "exemplar": Choice(priors.standard_normal, reads=("num_exemplars",)),
}


def _squashed(
    build: Callable[..., Likelihood],
) -> Callable[..., Likelihood]:
    """The likelihood's builder with a flag in the place of its squashing function."""

    def of_flag(x_shape: tuple[int, ...], *, squash: bool, **stds: float) -> Likelihood:
        return build(x_shape, squash=jax.nn.sigmoid if squash else None, **stds)

    return of_flag


def _logit(mean: Array, config: Any) -> Array:
    del config
    return likelihoods.logit_of_mean(mean)


def _location(mean: Array, config: Any) -> Array:
    return likelihoods.logit_of_mean(mean) if config.squash_mean else mean


def _on_grid(mean: Array, config: Any) -> Array:
    del config
    return 2.0 * mean - 1.0  # of u, which lies in [-1, 1]


def _mixture(mean: Array, config: Any) -> Array:
    return discretized.mixture_around(mean, num_components=config.num_logistics)


def table_columns(texts: tuple[str, ...]) -> list[tables.Column]:
    """Those of --columns of a run, NAME:FAMILY:NUMBER:..., that x is made of."""
    parsed = [text.split(":")[1:] for text in texts]
    return [
        tables.Column(family, tuple(map(float, numbers)))
        for family, *numbers in parsed
        if family in tables.FAMILIES
    ]


def _table(
    x_shape: tuple[int, ...], *, columns: tuple[str, ...], **settings: Any
) -> Likelihood:
    of_table = table_columns(columns)
    if x_shape != (len(of_table),):
        raise ValueError(
            f"--likelihood=columns is of --dataset=csv:PATH, not of x of {x_shape}"
        )
    return tables.likelihood(of_table, **settings)


def _read_table(config: Any, x_shape: tuple[int, ...]) -> Reading:
    del x_shape
    of_table = table_columns(config.columns)
    return tables.reading(of_table), tables.num_features(of_table)


def _read_counts(config: Any, x_shape: tuple[int, ...]) -> Reading:
    del config
    return tables.log1p_reading, math.prod(x_shape)


def _log(mean: Array, config: Any) -> Array:
    del config
    return jnp.log(jnp.maximum(mean, 1e-3))


_SQUASH, _GRID = {"squash": "squash_mean"}, {"num_values": "num_values"}
_STARTS, _DISPERSION = ("init_bias",), {"dispersion": "dispersion"}
_OF_COUNTS = _STARTS, _log, _read_counts, True, True  # from `reads` on
LIKELIHOODS = {
    "bernoulli": Observed(likelihoods.bernoulli, NO_FLAGS, _STARTS, _logit),
    "normal": Observed(
        _squashed(likelihoods.normal), {"std": "std", **_SQUASH}, _STARTS, _location
    ),
    "normal_learned_std": Observed(
        _squashed(likelihoods.normal_learned_std),
        {"initial_std": "std", "min_std": "min_std", **_SQUASH},
        _STARTS,
        _location,
    ),
    "normal_per_pixel_std": Observed(
        _squashed(likelihoods.normal_per_pixel_std),
        {"min_std": "min_std", **_SQUASH},
        _STARTS,
        _location,
    ),
    "continuous_bernoulli": Observed(likelihoods.continuous_bernoulli),
    "laplace": Observed(
        likelihoods.laplace, {"min_scale": "min_std"}, _STARTS, _location
    ),
    "student_t": Observed(
        likelihoods.student_t,
        {"min_scale": "min_std", "degrees": "degrees"},
        _STARTS,
        _location,
    ),
    "log_normal": Observed(likelihoods.log_normal, {"min_std": "min_std"}),
    "poisson": Observed(counts.poisson, NO_FLAGS, *_OF_COUNTS),
    "negative_binomial": Observed(counts.negative_binomial, _DISPERSION, *_OF_COUNTS),
    "zero_inflated_negative_binomial": Observed(
        counts.zero_inflated_negative_binomial, _DISPERSION, *_OF_COUNTS
    ),
    "beta_binomial": Observed(
        counts.beta_binomial,
        {"num_trials": "num_trials"},
        reading=_read_counts,
        of_counts=True,
    ),
    "columns": Observed(
        _table,
        {
            "columns": "columns",
            "min_std": "min_std",
            "degrees": "degrees",
            **_DISPERSION,
        },
        reading=_read_table,
        is_sized=True,
    ),
    "categorical": Observed(discretized.categorical, _GRID),
    "ordinal": Observed(discretized.ordinal, _GRID),
    "discretized_logistic": Observed(discretized.logistic, _GRID, _STARTS, _on_grid),
    "discretized_logistic_mixture": Observed(
        discretized.logistic_mixture,
        {"num_components": "num_logistics", **_GRID},
        _STARTS,
        _mixture,
    ),
}
