"""Records of pure functions: the few types that every layer shares.

A density is a `Conditional`, an observation model a `Likelihood`; networks turn them
into the two halves of a `Model`, which an estimator turns into the nats of one example,
`per_example` into an `Objective` of a batch, and an `Algorithm` into a fit.

A record is built by a function that fills what follows from the rest (`conditional`
here, `likelihoods.likelihood`, `vae.recognition`, `vae.model`), never by position, so
that the next field breaks nobody.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key

PyTree: TypeAlias = Any
PRNGKey: TypeAlias = Key[Array, ""]
Scalar: TypeAlias = Float[Array, ""]
Lift: TypeAlias = Callable[[Callable[..., Any]], Callable[..., Any]]
"""A function -> the same of other arguments, such as a whole model's parameters."""


class Params(NamedTuple):
    """All learned arrays, split as in the AEVB paper.

    Attributes:
        generative: theta: decoder, prior, observation noise.
        recognition: phi: encoder, posterior.
    """

    generative: PyTree
    recognition: PyTree


class Batch(NamedTuple):
    """Examples with their rows in the data set and their weights.

    Attributes:
        x: the examples.
        index: their rows in the data set, which per-example state hangs on.
        weight: how many rows each counts for; a fit of weight 0 is a fit without it.
    """

    x: Float[Array, "B *X"]
    index: Int[Array, " B"]  # pyright: ignore[reportIncompatibleMethodOverride]
    weight: Float[Array, " B"]


class Family(NamedTuple):
    """What closed forms know a density by (`divergences.closed_kl`).

    Attributes:
        name: of the family, as its builder is called.
        parameters: of a density's own arguments, what the family's closed forms take,
            such as (mean, log_std); None where no closed form knows the family.
    """

    name: str
    parameters: Callable[..., tuple[Array, ...]] | None = None

    def lifted(self, lift: Lift) -> "Family":
        """The same of other arguments."""
        return Family(self.name, self.parameters and lift(self.parameters))


class Transport(NamedTuple):
    """A density as an invertible map of noise whose density is fixed, y = T(eps).

    Attributes:
        forward: the arguments of the density but for the key, eps -> y.
        inverse: the same, y -> eps.
    """

    forward: Callable[..., Array]
    inverse: Callable[..., Array]

    def lifted(self, lift: Lift) -> "Transport":
        """The same of other arguments."""
        return Transport(*map(lift, self))


class Symbols(NamedTuple):
    """A density of finitely many y, written as symbols k one after the other.

    Attributes:
        of: the arguments of the density but for the key, y -> k [N].
        value: the same, k -> y.
        log_probs: the same, y -> nats of each symbol at each of N places, given those
            at the places before it, [N, K]; minus infinity where there is none.
    """

    of: Callable[..., Int[Array, " N"]]
    value: Callable[..., Array]
    log_probs: Callable[..., Float[Array, "N K"]]

    def lifted(self, lift: Lift) -> "Symbols":
        """The same of other arguments."""
        return Symbols(*map(lift, self))


class Conditional(NamedTuple):
    """A density p(y | h) over one event y; built by `conditional`.

    Attributes:
        shape: of y.
        width: length of h; 0 when unconditional.
        init: key -> the density's own parameters.
        sample: key, params, h -> y.
        log_prob: params, h, y -> nats.
        sample_and_log_prob: key, params, h -> y, nats: those of `sample` and then
            `log_prob`, whose gradient through y as well as through h the nats carry.
        moments: params, h -> mean and standard deviation of every entry of y; None
            where the family has no closed form of them. They do not say that y is
            normal.
        family: its parameters are a function of (params, h).
        transport: (params, h, eps) -> y and back; None where y is no such map.
        symbols: y by symbols, of (params, h) and more; None where none are known.
    """

    shape: tuple[int, ...]
    width: int
    init: Callable[[PRNGKey], PyTree]
    sample: Callable[[PRNGKey, PyTree, Array], Array]
    log_prob: Callable[[PyTree, Array, Array], Scalar]
    sample_and_log_prob: Callable[[PRNGKey, PyTree, Array], tuple[Array, Scalar]]
    moments: Callable[[PyTree, Array], tuple[Array, Array]] | None
    family: Family
    transport: Transport | None
    symbols: Symbols | None


class Likelihood(NamedTuple):
    """An observation model p(x | h); built by `likelihoods.likelihood`.

    Attributes:
        width: length of h.
        planes: h is as many equal parts, one behind the other, each laid out as the
            pixels of x are: what a network of maps must know.
        init: key -> its own parameters.
        sample: key, params, h -> x.
        mean: params, h -> E[x | h].
        log_prob_terms: params, h, x -> nats whose sum is log p(x | h): [*X] where p
            factorizes over the entries of x, else of any shape.
        quantity: rows of x -> what the sum of the terms is on them, "log-likelihood",
            "log-density" or "cross-entropy". On the host, of concrete arrays; NaN is a
            missing entry.
    """

    width: int
    planes: int
    init: Callable[[PRNGKey], PyTree]
    sample: Callable[[PRNGKey, PyTree, Array], Array]
    mean: Callable[[PyTree, Array], Array]
    log_prob_terms: Callable[[PyTree, Array, Array], Array]
    quantity: Callable[[Any], str]


class Network(NamedTuple):
    """A deterministic map of one example.

    Attributes:
        init: key -> parameters.
        apply: parameters, input -> output; the input is an array, or a tuple of arrays
            for the networks of a model given a context.
    """

    init: Callable[[PRNGKey], PyTree]
    apply: Callable[[PyTree, Any], Array]


class Generative(NamedTuple):
    """p_theta(x, z) = p_theta(z) p_theta(x | z).

    Attributes:
        init: key -> params.generative.
        sample_prior: key, params -> z.
        log_prior: params, z -> nats.
        log_likelihood_terms: params, x, z -> nats whose sum is log p(x | z).
        sample_observation: key, params, z -> x.
        mean_observation: params, z -> E[x | z].
        prior_family: its parameters are a function of params.
        quantity: what log p(x | z) is on rows of x, as a `Likelihood`'s; None where the
            model does not say.
        transport: the prior as (params, eps) -> z and back, or None.
        symbols: z of the prior by symbols, of params and more, or None.
    """

    init: Callable[[PRNGKey], PyTree]
    sample_prior: Callable[[PRNGKey, Params], Array]
    log_prior: Callable[[Params, Array], Scalar]
    log_likelihood_terms: Callable[[Params, Array, Array], Array]
    sample_observation: Callable[[PRNGKey, Params, Array], Array]
    mean_observation: Callable[[Params, Array], Array]
    prior_family: Family = Family("a prior without closed forms")
    quantity: Callable[[Any], str] | None = None
    transport: Transport | None = None
    symbols: Symbols | None = None

    def latents(self, params: Params) -> jax.ShapeDtypeStruct:
        """Shape and dtype of one z; the parameters may be shapes too."""
        key = jax.eval_shape(jax.random.key, 0)
        return jax.eval_shape(self.sample_prior, key, params)


class Recognition(NamedTuple):
    """q_phi(z | x) = q(z | h) at h = encode(x); built by `vae.recognition`.

    h is explicit so that an estimator encodes once for K samples, freezes h alone, or
    optimizes h itself. It may be any tree.

    Attributes:
        init: key -> params.recognition.
        encode: params, x -> h.
        sample: key, params, h -> z.
        log_prob: params, h, z -> nats.
        sample_and_log_prob: key, params, h -> z, nats, as a `Conditional`'s.
        moments: params, h -> mean and standard deviation of every latent, or None.
        family: its parameters are a function of (params, h).
    """

    init: Callable[[PRNGKey], PyTree]
    encode: Callable[[Params, Array], PyTree]
    sample: Callable[[PRNGKey, Params, PyTree], Array]
    log_prob: Callable[[Params, PyTree, Array], Scalar]
    sample_and_log_prob: Callable[[PRNGKey, Params, PyTree], tuple[Array, Scalar]]
    moments: Callable[[Params, PyTree], tuple[Array, Array]] | None
    family: Family


class Draw(NamedTuple):
    """One sample of q(z | x), and all that one pass through the model says of it.

    Attributes:
        z: the sample, with its gradient where q is reparameterized.
        log_likelihood: terms of log p(x | z), nats.
        log_prior: log p(z), nats.
        log_posterior: log q(z | x), nats, with its gradient through z as well.
        kl: nats of each group of latents, whose sum is KL(q || p) in expectation: in
            closed form where the model has one, each latent's where q and p factorize
            and each layer's, given those above, in a ladder; else log q(z | x) -
            log p(z).
    """

    z: Array
    log_likelihood: Array
    log_prior: Scalar
    log_posterior: Scalar
    kl: Float[Array, " G"]


Densities: TypeAlias = tuple[tuple[tuple[Array, ...], tuple[Array, ...]], ...]
"""Of each layer the parameters of p and those of q, each of them flat."""


class Hierarchy(NamedTuple):
    """What a model of several layers of z says of each, z_1 next to x.

    Latents come in groups that q may draw or p, in the order of z: an entry each where
    both factorize given the layers above, else all of a layer.

    Attributes:
        shapes: of z_1, ..., z_{L-1}, channels last; the rest of z is the top's.
        groups: params, h -> how many groups each layer has.
        mix: key, params, h, from_q [G] -> z and KL [G]: from the top down, each group
            is drawn from q where from_q holds and else from p, given what was drawn
            above; the KL of each in nats given the same, in closed form but for a top
            that has none, where it is log q - log p at a draw of q.
        redraw: key, params, z, num_layers, temperatures -> z with its lowest num_layers
            layers, a static number, drawn anew from p given those above. Temperatures,
            one of each layer, scale the noise; they are static too, or None.
        means: params, h -> z, each layer the mean of q given those above at theirs;
            None where q(z_L | x) has no mean in closed form.
        top: the model of z_L by itself, of the first part of h where layers lie below.
        densities: params, h, noise -> z, and of each layer below the top the parameters
            of p and those of q given what is above. Noise is of the size of z, and of
            each layer what p makes z_l of, or z_l where p is no map of noise.
    """

    shapes: tuple[tuple[int, ...], ...]
    groups: Callable[[Params, PyTree], tuple[int, ...]]
    mix: Callable[
        [PRNGKey, Params, PyTree, Bool[Array, " G"]], tuple[Array, Float[Array, " G"]]
    ]
    redraw: Callable[[PRNGKey, Params, Array, int, tuple[float, ...] | None], Array]
    means: Callable[[Params, PyTree], Array] | None
    top: "Model"
    densities: Callable[[Params, PyTree, Array], tuple[Array, Densities]]


class Model(NamedTuple):
    """A joint p(x, z) and a q(z | x), with one fused draw; built by `vae.model`.

    Attributes:
        generative: p(x, z).
        recognition: q(z | x).
        draw: key, params, x, h -> one sample of q(z | h) and its densities.
        kl: params, h -> KL(q(z | h) || p(z)) in nats of each group of latents; None
            where it has no closed form.
        hierarchy: of a ladder: its layers one by one.
    """

    generative: Generative
    recognition: Recognition
    draw: Callable[[PRNGKey, Params, Array, PyTree], Draw]
    kl: Callable[[Params, PyTree], Float[Array, " G"]] | None
    hierarchy: Hierarchy | None = None

    @property
    def lower(self) -> tuple[int, ...]:
        """Entries of each layer of z but the top, from x upward; () of one layer."""
        shapes = self.hierarchy.shapes if self.hierarchy else ()
        return tuple(math.prod(shape) for shape in shapes)

    def layer_sizes(self, params: Params) -> tuple[int, ...]:
        """Entries of each layer of z, from x upward; from shapes alone."""
        return (*self.lower, self.generative.latents(params).size - sum(self.lower))

    def init(self, key: PRNGKey) -> Params:
        """Fresh parameters theta and phi."""
        key_generative, key_recognition = jax.random.split(key)
        return Params(
            self.generative.init(key_generative), self.recognition.init(key_recognition)
        )


ExampleObjective: TypeAlias = Callable[[PRNGKey, Params, Array], Scalar]
"""(key, params, x) -> nats of one example, to be maximized: what estimators return."""


class Objective(NamedTuple):
    """What an ascent climbs: the nats of every example of a batch, with a memory.

    Attributes:
        init: params -> memory, `()` for most: steps taken, running baselines, a table
            of the data set's rows. No gradient reaches it.
        value: key, params, memory, batch -> nats [B], the memory after this batch, and
            a dictionary of scalars to be logged.
        project: params after a step, memory -> the params to go on with: where some of
            them are a function of the memory and not climbed.
    """

    init: Callable[[Params], PyTree]
    value: Callable[
        [PRNGKey, Params, PyTree, Batch],
        tuple[Float[Array, " B"], PyTree, dict[str, Scalar]],
    ]
    project: Callable[[Params, PyTree], Params] = lambda params, memory: params


class Algorithm(NamedTuple):
    """Any iterative fit: gradient ascent, EM, Monte Carlo EM, wake-sleep.

    Attributes:
        init: key, start -> state.
        step: key, state, batch -> state, info.
    """

    init: Callable[[PRNGKey, PyTree], PyTree]
    step: Callable[[PRNGKey, PyTree, Batch], tuple[PyTree, PyTree]]


def conditional(
    family: Family,
    shape: tuple[int, ...],
    *,
    width: int,
    sample: Callable[[PRNGKey, PyTree, Array], Array],
    log_prob: Callable[[PyTree, Array, Array], Scalar],
    init: Callable[[PRNGKey], PyTree] = lambda key: (),
    sample_and_log_prob: Callable[[PRNGKey, PyTree, Array], tuple[Array, Scalar]]
    | None = None,
    moments: Callable[[PyTree, Array], tuple[Array, Array]] | None = None,
    transport: Transport | None = None,
    symbols: Symbols | None = None,
) -> Conditional:
    """A density that compares what it is given with what it declares, while traced.

    Args:
        family: its name stands in messages.
        shape: of y.
        width: length of h's last axis.
        sample: key, params, h -> y.
        log_prob: params, h, y -> nats.
        init: key -> own parameters; none by default.
        sample_and_log_prob: where one pass gives both; by default one after the other.
        moments: params, h -> mean and standard deviation, where they are known.
        transport: the density as a map of noise, where it is one.
        symbols: y by symbols, where they are known.
    """

    def check_h(h: Array) -> None:
        if h.shape[-1:] != (width,):
            raise ValueError(
                f"the density {family.name} reads h of {width} entries, got {h.shape}"
            )

    def checked_sample(key: PRNGKey, params: PyTree, h: Array) -> Array:
        check_h(h)
        return sample(key, params, h)

    def checked_log_prob(params: PyTree, h: Array, y: Array) -> Scalar:
        check_h(h)
        if y.shape != shape:
            raise ValueError(
                f"the density {family.name} is of events of shape {shape}, got "
                f"{y.shape}"
            )
        return log_prob(params, h, y)

    def sampled_with_log_prob(
        key: PRNGKey, params: PyTree, h: Array
    ) -> tuple[Array, Scalar]:
        check_h(h)
        if sample_and_log_prob is not None:
            return sample_and_log_prob(key, params, h)
        y = sample(key, params, h)
        return y, log_prob(params, h, y)

    return Conditional(
        shape,
        width,
        init,
        checked_sample,
        checked_log_prob,
        sampled_with_log_prob,
        moments,
        family,
        transport,
        symbols,
    )


def per_example(
    objective: ExampleObjective,
) -> Objective:
    """The objective of a batch that is each example's own, a key for each."""

    def value(
        key: PRNGKey, params: Params, memory: PyTree, batch: Batch
    ) -> tuple[Array, PyTree, dict[str, Scalar]]:
        return each_example(objective)(key, params, batch.x), memory, {}

    return Objective(lambda params: (), value)


def per_row(
    objective: Callable[[PRNGKey, Params, Array, Int[Array, ""]], Scalar],
) -> Objective:
    """The objective of a batch whose examples know their rows in the data set.

    Args:
        objective: (key, params, x, index) -> nats of one example; `Batch.index` is to
            name rows, which it does not where rows are streamed from the host.
    """

    def of_pair(key: PRNGKey, params: Params, pair: tuple[Array, Array]) -> Scalar:
        return objective(key, params, *pair)

    def value(
        key: PRNGKey, params: Params, memory: PyTree, batch: Batch
    ) -> tuple[Array, PyTree, dict[str, Scalar]]:
        pairs = batch.x, batch.index
        return each_example(of_pair)(key, params, pairs), memory, {}

    return Objective(lambda params: (), value)


def each_example(
    function: Callable[[PRNGKey, Params, Any], PyTree],
) -> Callable[[PRNGKey, Params, Any], PyTree]:
    """Lifts a function of one example to its values over x, a tree of [B, ...]."""

    def lifted(key: PRNGKey, params: Params, x: PyTree) -> PyTree:
        keys = jax.random.split(key, jax.tree.leaves(x)[0].shape[0])
        return jax.vmap(function, in_axes=(0, None, 0))(keys, params, x)

    return lifted


def clear_weightless(batch: Batch) -> Batch:
    """The batch with zeros for what is not finite in its rows of weight 0.

    Such a row takes no part, but 0 times NaN is NaN, in values and in gradients: so it
    is not to reach the model. Everything else of the batch stays as it is.
    """

    def clear(leaf: Array) -> Array:
        if not jnp.issubdtype(leaf.dtype, jnp.inexact):
            return leaf
        weighs = jnp.reshape(batch.weight != 0.0, (-1,) + (1,) * (leaf.ndim - 1))
        return jnp.where(weighs | jnp.isfinite(leaf), leaf, jnp.zeros_like(leaf))

    return batch._replace(x=jax.tree.map(clear, batch.x))


def log_likelihood(
    generative: Generative, params: Params, x: Array, z: Array
) -> Scalar:
    """log p(x | z) in nats: the sum of the per-entry terms of one observation."""
    return generative.log_likelihood_terms(params, x, z).sum()


def log_joint(generative: Generative, params: Params, x: Array, z: Array) -> Scalar:
    """log p(x, z) = log p(z) + log p(x | z) in nats."""
    return generative.log_prior(params, z) + log_likelihood(generative, params, x, z)


def sample_joint(
    key: PRNGKey, generative: Generative, params: Params
) -> tuple[Array, Array]:
    """(z, x) drawn from p(x, z): z from the prior, then x from p(x | z)."""
    key_z, key_x = jax.random.split(key)
    z = generative.sample_prior(key_z, params)
    return z, generative.sample_observation(key_x, params, z)


def log_weight(draw: Draw) -> Scalar:
    """log w = log p(x, z) - log q(z | x) in nats, with the gradient of every path."""
    return draw.log_prior + draw.log_likelihood.sum() - draw.log_posterior
