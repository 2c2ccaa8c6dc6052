"""Records of pure functions: the few types that every layer shares."""

from collections.abc import Callable
from typing import Any, NamedTuple, TypeAlias

from jaxtyping import Array, Float, Int, Key

PyTree: TypeAlias = Any
PRNGKey: TypeAlias = Key[Array, ""]
Scalar: TypeAlias = Float[Array, ""]


class Params(NamedTuple):
    """All learned arrays, split as in the AEVB paper."""

    generative: PyTree  # theta: decoder, prior, observation noise
    recognition: PyTree  # phi: encoder, posterior


class Batch(NamedTuple):
    """Examples with their rows in the data set and their weights."""

    x: Float[Array, "B *X"]
    index: Int[Array, " B"]  # pyright: ignore[reportIncompatibleMethodOverride]
    weight: Float[Array, " B"]


class Conditional(NamedTuple):
    """A density p(y | h) over one event y."""

    width: int  # length of h; 0 when unconditional
    init: Callable[[PRNGKey], PyTree]  # the density's own parameters
    sample: Callable[[PRNGKey, PyTree, Array], Array]  # key, params, h -> y
    log_prob: Callable[[PyTree, Array, Array], Scalar]  # params, h, y -> nats


class Likelihood(NamedTuple):
    """An observation model p(x | h), factorized over the entries of x."""

    width: int  # length of h
    init: Callable[[PRNGKey], PyTree]
    sample: Callable[[PRNGKey, PyTree, Array], Array]  # key, params, h -> x
    mean: Callable[[PyTree, Array], Array]  # params, h -> E[x | h]
    log_prob_terms: Callable[[PyTree, Array, Array], Array]  # params, h, x -> [*X]


class Network(NamedTuple):
    """A deterministic map of one example."""

    init: Callable[[PRNGKey], PyTree]
    apply: Callable[[PyTree, Array], Array]


class Generative(NamedTuple):
    """p_theta(x, z) = p_theta(z) p_theta(x | z)."""

    init: Callable[[PRNGKey], PyTree]  # -> params.generative
    sample_prior: Callable[[PRNGKey, Params], Array]  # -> z
    log_prior: Callable[[Params, Array], Scalar]  # params, z -> nats
    log_likelihood_terms: Callable[[Params, Array, Array], Array]  # params, x, z
    sample_observation: Callable[[PRNGKey, Params, Array], Array]  # key, params, z -> x
    mean_observation: Callable[[Params, Array], Array]  # params, z -> E[x | z]


class Recognition(NamedTuple):
    """q_phi(z | x) = q(z | h) at h = encode(x).

    h is explicit so that an estimator encodes once for K samples, freezes h alone,
    or optimizes h itself.
    """

    init: Callable[[PRNGKey], PyTree]  # -> params.recognition
    encode: Callable[[Params, Array], Array]  # params, x -> h
    sample: Callable[[PRNGKey, Params, Array], Array]  # key, params, h -> z
    log_prob: Callable[[Params, Array, Array], Scalar]  # params, h, z -> nats


Objective: TypeAlias = Callable[[PRNGKey, Params, Array], Scalar]
"""(key, params, x) -> nats of one example, to be maximized."""


class Algorithm(NamedTuple):
    """Any iterative fit: gradient ascent, EM, Monte Carlo EM, wake-sleep."""

    init: Callable[[PRNGKey, PyTree], PyTree]  # key, start -> state
    step: Callable[[PRNGKey, PyTree, Batch], tuple[PyTree, PyTree]]
    # key, state, batch -> state, info


def log_likelihood(
    generative: Generative, params: Params, x: Array, z: Array
) -> Scalar:
    """log p(x | z) in nats: the sum of the per-entry terms of one observation."""
    return generative.log_likelihood_terms(params, x, z).sum()


def log_joint(generative: Generative, params: Params, x: Array, z: Array) -> Scalar:
    """log p(x, z) = log p(z) + log p(x | z) in nats."""
    return generative.log_prior(params, z) + log_likelihood(generative, params, x, z)
