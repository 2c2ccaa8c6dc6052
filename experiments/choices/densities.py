"""The densities and networks that flags can name: q(z | x), p(z), p(x | z)."""

import functools
import math
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
from jaxtyping import Array

from experiments.choices.rows import NO_FLAGS, Choice, Traits
from vae_jax import (
    conditional,
    convolutional,
    counts,
    discretized,
    finite_scalar,
    flows,
    likelihoods,
    networks,
    posteriors,
    priors,
    tables,
)
from vae_jax.types import Conditional, Likelihood, Model, Network, PyTree

Reading: TypeAlias = tuple[Callable[[Array], Array], int]
"""x -> what q sees of it, and how many numbers that is."""

ROUNDED = "finite_scalar"
DISCRETE = {"bernoulli", "categorical", "layers of bits", ROUNDED}  # families of z


class Posterior(NamedTuple):
    """A family of q(z | x): a `Choice`, and what a fit has to know of it.

    Attributes:
        build: num_latents, hidden, own numbers -> the density.
        flags: as a `Choice`'s.
        reads: as a `Choice`'s.
        traits: of the family, its KL being that to N(0, I).
        h_of_std: num_latents, std= -> the first entries of an h of mean zero and that
            standard deviation, the others being zero; None where z has no scale.
        priors: those of z that is not real, by the names that --prior has for them.
    """

    build: Callable[..., Conditional]
    flags: Mapping[str, str] = NO_FLAGS
    reads: tuple[str, ...] = ("posterior_std",)
    traits: Traits = Traits()
    h_of_std: Callable[..., Array] | None = posteriors.diag_normal_h
    priors: Mapping[str, Choice] = MappingProxyType({})


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
    """

    build: Callable[..., Likelihood]
    flags: Mapping[str, str] = NO_FLAGS
    reads: tuple[str, ...] = ()
    h_of_mean: Callable[[Array, Any], Array] | None = None
    reading: Callable[[Any, tuple[int, ...]], Reading] | None = None


def traits(model: Model) -> Traits:
    """Those of the q of a model that is there, whoever built it."""
    q, p = model.recognition.family.name, model.generative.prior_family.name
    closed = model.kl is not None
    return Traits(
        continuous=DISCRETE.isdisjoint({q, p}),
        closed_kl=closed,
        factorizes=closed and q in ("diag_normal", "bernoulli"),
        layered=bool(model.lower) or q == "layers of bits",
        rounded=q == ROUNDED,
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


def _uniform(num_latents: int, *, num_levels: int) -> Conditional:
    return finite_scalar.uniform_prior((num_levels,) * num_latents)


def _autoregressive_codes(
    num_latents: int, *, num_levels: int, units: int
) -> Conditional:
    """A masked network of the levels before; it starts uniform."""
    network = networks.made(
        num_latents,
        (units, units),
        outputs_per_input=num_levels,
        activation=jax.nn.elu,
    )
    return finite_scalar.autoregressive_prior(
        (num_levels,) * num_latents, networks.from_zero(network)
    )


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
        {"num_levels": "num_levels"},
        reads=(),
        traits=Traits(continuous=False, rounded=True),
        h_of_std=None,
        priors={
            "standard_normal": Choice(_uniform, {"num_levels": "num_levels"}),
            "autoregressive": Choice(
                _autoregressive_codes,
                {"num_levels": "num_levels", "units": "prior_units"},
            ),
        },
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
    "poisson": Observed(counts.poisson, NO_FLAGS, _STARTS, _log, _read_counts),
    "negative_binomial": Observed(
        counts.negative_binomial, _DISPERSION, _STARTS, _log, _read_counts
    ),
    "zero_inflated_negative_binomial": Observed(
        counts.zero_inflated_negative_binomial,
        _DISPERSION,
        _STARTS,
        _log,
        _read_counts,
    ),
    "beta_binomial": Observed(
        counts.beta_binomial, {"num_trials": "num_trials"}, reading=_read_counts
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


class Coders(NamedTuple):
    """The networks of a model of x.

    Attributes:
        encoder: shape of x, numbers of outputs and of entries of a context -> [x, c],
            flattened, to them; x itself to them without a context.
        decoder: number of inputs, shape of x, p(x | h) -> z to h.
        shift_decoder: its parameters, a shift of h, shape of x, p(x | h) -> those with
            the shift in the output's bias. An encoder's output is always affine.
    """

    encoder: Callable[[tuple[int, ...], int, int], Network]
    decoder: Callable[[int, tuple[int, ...], Likelihood], Network]
    shift_decoder: Callable[[PyTree, Array, tuple[int, ...], Likelihood], PyTree]


def _perceptrons(
    *,
    hidden: tuple[int, ...],
    encoder_hidden: tuple[int, ...],
    precision: str,
    **names: str,
) -> Coders:
    network = functools.partial(
        networks.mlp, **style(**names), product=PRODUCTS[precision]
    )
    return _of_vectors(
        lambda size, outputs: network(size, encoder_hidden or hidden, outputs),
        lambda size, outputs: network(size, hidden[::-1], outputs),
    )


def _gated(
    *,
    hidden: tuple[int, ...],
    encoder_hidden: tuple[int, ...],
    init: str,
    precision: str,
) -> Coders:
    network = functools.partial(
        networks.gated_mlp,
        initializer=INITIALIZERS[init],
        product=PRODUCTS[precision],
    )
    return _of_vectors(
        lambda size, outputs: network(size, encoder_hidden or hidden, outputs),
        lambda size, outputs: network(size, hidden[::-1], outputs),
    )


def _residual(*, width: int, num_blocks: int, precision: str, **names: str) -> Coders:
    network = functools.partial(
        networks.residual_mlp,
        num_blocks=num_blocks,
        product=PRODUCTS[precision],
        **style(**names),
    )
    return _of_vectors(*2 * (lambda size, outputs: network(size, width, outputs),))


def _of_vectors(
    up: Callable[[int, int], Network], down: Callable[[int, int], Network]
) -> Coders:
    """Networks of numbers of inputs and outputs, for x as one vector."""

    def encoder(
        x_shape: tuple[int, ...], num_outputs: int, num_context: int
    ) -> Network:
        return up(math.prod(x_shape) + num_context, num_outputs)

    def decoder(size: int, x_shape: tuple[int, ...], observed: Likelihood) -> Network:
        del x_shape
        return down(size, observed.width)

    def shift_decoder(
        params: PyTree, shift: Array, x_shape: tuple[int, ...], observed: Likelihood
    ) -> PyTree:
        del x_shape, observed
        return networks.shift_output(params, shift)

    return Coders(encoder, decoder, shift_decoder)


def style(*, activation: str, init: str) -> dict[str, Any]:
    """Keyword arguments of a perceptron from the names that flags have for them."""
    return {
        "activation": ACTIVATIONS[activation],
        "initializer": INITIALIZERS[init],
    }


def _convolutions(residual: bool) -> Callable[..., Coders]:
    def build(*, activation: str, precision: str, **others: Any) -> Coders:
        style: dict[str, Any] = {
            "residual": residual,
            "activation": ACTIVATIONS[activation],
            "product": PRODUCTS[precision],
            **others,
        }

        def encoder(
            x_shape: tuple[int, ...], num_outputs: int, num_context: int
        ) -> Network:
            if not num_context:
                return convolutional.encoder(x_shape, num_outputs, **style)
            planes = math.prod(x_shape[2:]) + num_context
            network = convolutional.encoder(
                (*x_shape[:2], planes), num_outputs, **style
            )
            return conditional.as_planes(network, x_shape)

        def decoder(
            size: int, x_shape: tuple[int, ...], observed: Likelihood
        ) -> Network:
            return convolutional.decoder(
                size, x_shape, observed.width, planes=observed.planes, **style
            )

        def shift_decoder(
            params: PyTree, shift: Array, x_shape: tuple[int, ...], observed: Likelihood
        ) -> PyTree:
            return convolutional.shift_decoder(
                params, shift, x_shape=x_shape, planes=observed.planes
            )

        return Coders(encoder, decoder, shift_decoder)

    return build


_OF_MAPS = {
    "width": "width",
    "num_blocks": "num_blocks",
    "activation": "activation",
    "precision": "precision",
}
_OF_IMAGES = {**_OF_MAPS, "remat": "remat"}
_OF_LAYERS = {
    "hidden": "hidden",
    "encoder_hidden": "encoder_hidden",
    "init": "init",
    "precision": "precision",
}
NETWORKS = {
    "mlp": Choice(_perceptrons, {**_OF_LAYERS, "activation": "activation"}),
    "gated_mlp": Choice(_gated, _OF_LAYERS),
    "residual_mlp": Choice(_residual, {**_OF_MAPS, "init": "init"}, ("hidden",)),
    # Those of flows stay perceptrons of float32.
    "conv": Choice(_convolutions(residual=False), _OF_IMAGES, ("hidden",)),
    "resnet": Choice(_convolutions(residual=True), _OF_IMAGES, ("hidden",)),
}
ACTIVATIONS = {
    "tanh": jnp.tanh,
    "relu": jax.nn.relu,
    "softplus": jax.nn.softplus,
    "gelu": jax.nn.gelu,
    "elu": jax.nn.elu,
}
PRODUCTS = {"float32": None, "bfloat16": networks.bfloat16_product}
INITIALIZERS = {
    "glorot": networks.glorot(),
    "normal_0.01": networks.normal(std=0.01),
    "normal_0.1": networks.normal(std=0.1),
}
