"""Composition: networks and densities in, a joint, a recognition model and both out."""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from vae_jax import divergences, numerics, priors
from vae_jax.types import (
    Conditional,
    Draw,
    Family,
    Generative,
    Likelihood,
    Model,
    Network,
    Params,
    PRNGKey,
    PyTree,
    Recognition,
    Scalar,
)


def model(
    generative: Generative,
    recognition: Recognition,
    *,
    kl: Callable[[Params, PyTree], Float[Array, " G"]] | None = None,
) -> Model:
    """The pair, with a draw composed of their functions.

    The KL of a draw is in closed form where `divergences.closed_kl` knows the families
    of q and of the prior, or where `kl` gives it; else it is log q(z | x) - log p(z).
    So a closed form never meets a prior that it is not of.

    Args:
        generative: the joint p(x, z).
        recognition: q(z | x), of the same z.
        kl: (params, h) -> KL(q || prior) in nats of each group of latents, for families
            of one's own.

    Examples:
        >>> from vae_jax import likelihoods, networks, posteriors
        >>> p = decoder_model(
        ...     networks.linear(2, 3),
        ...     priors.standard_normal(2),
        ...     likelihoods.normal((3,), std=0.5),
        ... )
        >>> q = encoder_model(networks.linear(3, 4), posteriors.diag_normal(2))
        >>> pair = model(p, q)
        >>> params = pair.init(jax.random.key(0))
        >>> x = jnp.ones(3)
        >>> drawn = pair.draw(jax.random.key(1), params, x, q.encode(params, x))
        >>> drawn.z.shape, drawn.log_likelihood.shape, drawn.kl.shape
        ((2,), (3,), (2,))
    """
    closed = kl or _closed_kl(generative.prior_family, recognition.family)

    def draw(key: PRNGKey, params: Params, x: Array, h: PyTree) -> Draw:
        z, log_q = recognition.sample_and_log_prob(key, params, h)
        log_prior = generative.log_prior(params, z)
        groups = (log_q - log_prior)[None] if closed is None else closed(params, h)
        terms = generative.log_likelihood_terms(params, x, z)
        return Draw(z, terms, log_prior, log_q, groups)

    return Model(generative, recognition, draw, closed)


def _closed_kl(
    prior: Family, posterior: Family
) -> Callable[[Params, PyTree], Float[Array, " G"]] | None:
    of_q, of_p = posterior.parameters, prior.parameters
    form = divergences.closed_kl(posterior.name, prior.name)
    if form is None or of_q is None or of_p is None:
        return None
    return lambda params, h: form(*of_q(params, h), *of_p(params))


def decoder_model(
    decoder: Network, prior: Conditional, likelihood: Likelihood
) -> Generative:
    """p(x, z) from an unconditional prior and a decoder that feeds the likelihood.

    The decoder's output may have any shape of as many entries as the likelihood reads.
    Its parameters are a dictionary with `decoder`, `prior` and `likelihood`.

    Raises:
        ValueError: if the prior is conditional; when traced, if the decoder gives more
            or fewer entries than the likelihood reads.

    Examples:
        >>> from vae_jax import likelihoods, networks
        >>> p = decoder_model(
        ...     networks.mlp(2, (16,), 64),
        ...     priors.standard_normal(2),
        ...     likelihoods.bernoulli((8, 8)),
        ... )
        >>> params = Params(p.init(jax.random.key(0)), ())
        >>> z = p.sample_prior(jax.random.key(1), params)
        >>> z.shape, p.mean_observation(params, z).shape
        ((2,), (8, 8))
    """
    if prior.width != 0:
        raise ValueError(f"the prior is conditional on h of width {prior.width}")

    def nothing(params: Params) -> Array:
        return jnp.zeros((0,), _dtype(params.generative))

    def init(key: PRNGKey) -> PyTree:
        key_decoder, key_prior, key_likelihood = jax.random.split(key, 3)
        return {
            "decoder": decoder.init(key_decoder),
            "prior": prior.init(key_prior),
            "likelihood": likelihood.init(key_likelihood),
        }

    def decode(params: Params, z: Array) -> Array:
        h = decoder.apply(params.generative["decoder"], z)
        return _flat("decoder", h, "likelihood", likelihood.width)

    def sample_prior(key: PRNGKey, params: Params) -> Array:
        return prior.sample(key, params.generative["prior"], nothing(params))

    def log_prior(params: Params, z: Array) -> Scalar:
        return prior.log_prob(params.generative["prior"], nothing(params), z)

    def log_likelihood_terms(params: Params, x: Array, z: Array) -> Array:
        h = decode(params, z)
        return likelihood.log_prob_terms(params.generative["likelihood"], h, x)

    def sample_observation(key: PRNGKey, params: Params, z: Array) -> Array:
        h = decode(params, z)
        return likelihood.sample(key, params.generative["likelihood"], h)

    def mean_observation(params: Params, z: Array) -> Array:
        return likelihood.mean(params.generative["likelihood"], decode(params, z))

    def of_prior(function: Callable[..., Any]) -> Callable[..., Any]:
        """Of the parameters of all, and more."""
        return lambda params, *rest: function(
            params.generative["prior"], nothing(params), *rest
        )

    return Generative(
        init,
        sample_prior,
        log_prior,
        log_likelihood_terms,
        sample_observation,
        mean_observation,
        prior.family.lifted(of_prior),
        likelihood.quantity,
        prior.transport and prior.transport.lifted(of_prior),
        prior.symbols and prior.symbols.lifted(of_prior),
    )


def encoder_model(
    encoder: Network,
    posterior: Conditional,
    *,
    read: Callable[[Params], PyTree] | None = None,
) -> Recognition:
    """q(z | x) from an encoder that feeds an approximate posterior.

    The encoder's output may have any shape of as many entries as the posterior reads.
    Its parameters are a dictionary with `encoder` and `posterior`.

    Args:
        encoder: x -> h.
        posterior: q(z | h).
        read: params -> the posterior's own parameters, where they are p's, such as the
            codebooks of `vector_quantized.read`: phi has no `posterior` then.

    Raises:
        ValueError: when traced, if the encoder gives more or fewer entries than that.

    Examples:
        >>> from vae_jax import networks, posteriors
        >>> q = encoder_model(networks.mlp(64, (16,), 4), posteriors.diag_normal(2))
        >>> params = Params((), q.init(jax.random.key(0)))
        >>> h = q.encode(params, jnp.zeros((8, 8)))
        >>> z, log_q = q.sample_and_log_prob(jax.random.key(1), params, h)
        >>> h.shape, z.shape, log_q.shape
        ((4,), (2,), ())
    """

    def init(key: PRNGKey) -> PyTree:
        key_encoder, key_posterior = jax.random.split(key)
        phi = {"encoder": encoder.init(key_encoder)}
        return phi if read else phi | {"posterior": posterior.init(key_posterior)}

    def encode(params: Params, x: Array) -> Array:
        h = encoder.apply(params.recognition["encoder"], x)
        return _flat("encoder", h, "posterior", posterior.width)

    return recognition(
        encode,
        posterior,
        init=init,
        read=read or (lambda params: params.recognition["posterior"]),
    )


def recognition(
    encode: Callable[[Params, Array], Array],
    density: Conditional,
    *,
    init: Callable[[PRNGKey], PyTree] = lambda key: (),
    read: Callable[[Params], PyTree] = lambda params: (),
) -> Recognition:
    """q(z | x) = density(z | h) at h = encode(params, x).

    Args:
        encode: params, x -> h.
        density: of z given h.
        init: key -> params.recognition; nothing by default.
        read: params -> the density's own parameters; none by default.
    """

    def of_read(function: Callable[..., Any]) -> Callable[..., Any]:
        """Of the parameters of all, and more."""
        return lambda params, *rest: function(read(params), *rest)

    return Recognition(
        init=init,
        encode=encode,
        sample=lambda key, params, h: density.sample(key, read(params), h),
        log_prob=of_read(density.log_prob),
        sample_and_log_prob=lambda key, params, h: density.sample_and_log_prob(
            key, read(params), h
        ),
        moments=density.moments and of_read(density.moments),
        family=density.family.lifted(of_read),
    )


def _flat(part: str, h: Array, reader: str, width: int) -> Array:
    if h.size != width:
        raise ValueError(
            f"the {part} gives {h.size} entries, but the {reader} reads {width}"
        )
    return h.reshape(-1)


def _dtype(params: PyTree) -> DTypeLike:
    """What networks and densities of these parameters compute in."""
    dtypes = [jnp.result_type(leaf) for leaf in jax.tree.leaves(params)]
    floating = [dtype for dtype in dtypes if jnp.issubdtype(dtype, jnp.floating)]
    return jnp.result_type(float, *floating)


def check_latents(model: Model, params: Params, x: Array) -> None:
    """Refuses a q(z | x) whose z has not the shape of the generative model's z.

    A z of another shape would fail deep inside the decoder, or be broadcast and give a
    wrong number. Shapes alone are traced, so a compiled function does not pay for it.

    Raises:
        ValueError: naming both shapes.
    """

    recognition = model.recognition

    def sample(key: PRNGKey, params: Params, x: Array) -> Array:
        return recognition.sample(key, params, recognition.encode(params, x))

    key = jax.eval_shape(jax.random.key, 0)
    z_shape = jax.eval_shape(sample, key, params, x).shape
    wanted = model.generative.latents(params).shape
    if z_shape != wanted:
        raise ValueError(
            f"the recognition model draws z of shape {z_shape}, but the generative "
            f"model has z of shape {wanted}"
        )


def with_reading(model: Model, read: Callable[[Array], Array]) -> Model:
    """The model of x whose q is what the given one's is of read(x): p stays of x.

    So x keeps its units, and log p(x) with them, whatever numbers an encoder needs.

    Args:
        model: whose encoder takes read(x).
        read: x -> what q sees of it; nothing of it is learned.
    """
    recognition = model.recognition

    def encode(params: Params, x: Array) -> PyTree:
        return recognition.encode(params, read(x))

    return model._replace(recognition=recognition._replace(encode=encode))


def masked(model: Model, *, fill: float | None = 0.0) -> Model:
    r"""The model of partial observations, in which NaN marks a missing entry.

    Where the observation model factorizes over the entries of x (a mixture of full
    covariance does not), $\log p(x_{obs}|z)$ is the sum of the terms of those that are
    there: the other terms are zero. q(z | x_obs) is that of x with `fill` in the holes,
    as Mattei & Frellsen 2019 (arXiv:1812.02633) have it. Every bound, estimator and
    evaluator of the model is then one of log p(x_obs); for x without holes it is what
    it was. A sleep phase still dreams of whole x.

    No NaN reaches a network, a density or a gradient: entries are replaced before
    anything is computed, and terms again after. Likelihoods see zeros in the holes.

    Args:
        model: of complete x.
        fill: what the encoder sees in the holes, in the units of x; None: NaN, for one
            that reads holes itself.

    Raises:
        ValueError: if fill is not finite; when traced, if the terms of the likelihood
            are not one for each entry of x.
    """
    if fill is not None and not math.isfinite(fill):
        raise ValueError(f"fill must be finite, got {fill}")
    generative, recognition = model.generative, model.recognition

    def observed(terms: Array, x: Array) -> Array:
        if terms.shape != x.shape:
            raise ValueError(
                f"the likelihood has terms of shape {terms.shape} for x of {x.shape}: "
                "only one that factorizes over the entries of x can leave some out"
            )
        return jnp.where(jnp.isnan(x), 0.0, terms)

    def without_holes(x: Array) -> Array:
        return jnp.where(jnp.isnan(x), 0.0, x)

    def log_likelihood_terms(params: Params, x: Array, z: Array) -> Array:
        terms = generative.log_likelihood_terms(params, without_holes(x), z)
        return observed(terms, x)

    def encode(params: Params, x: Array) -> PyTree:
        if fill is not None:
            x = jnp.where(jnp.isnan(x), fill, x)
        return recognition.encode(params, x)

    def draw(key: PRNGKey, params: Params, x: Array, h: PyTree) -> Draw:
        whole = model.draw(key, params, without_holes(x), h)
        return whole._replace(log_likelihood=observed(whole.log_likelihood, x))

    return Model(
        generative._replace(log_likelihood_terms=log_likelihood_terms),
        recognition._replace(encode=encode),
        draw,
        model.kl,
        model.hierarchy,
    )


def with_baseline(model: Model, network: Network) -> Model:
    """The model whose q also keeps `network`'s parameters, as `baseline`.

    For estimators whose baseline is a learned function of x (`score_function.nvil`).
    """
    return with_parameters(model, "baseline", network.init)


def with_parameters(
    model: Model, name: str, init_own: Callable[[PRNGKey], PyTree]
) -> Model:
    """The model whose q also keeps an estimator's own parameters, by a name.

    Args:
        model: of a q whose parameters are a dictionary; they start as they would alone.
        name: of the new ones among them.
        init_own: key -> the new ones.
    """
    recognition = model.recognition

    def init(key: PRNGKey) -> PyTree:
        key_own = numerics.apart(key)
        return recognition.init(key) | {name: init_own(key_own)}

    return model._replace(recognition=recognition._replace(init=init))


def with_prior(
    generative: Generative,
    *,
    init: Callable[[PRNGKey], PyTree],
    sample: Callable[[PRNGKey, Params], Array],
    log_prob: Callable[[Params, Array], Scalar],
    family: Family,
) -> Generative:
    """The model with another p(z), which may be a function of theta and phi alike.

    Args:
        generative: any model of z whose parameters are a dictionary; its own prior is
            not used.
        init: key -> the prior's parameters, which stand in `params.generative["prior"]`
            in the place of those that the model's own had.
        sample: key, params -> z.
        log_prob: params, z -> nats.
        family: its parameters are a function of params.
    """

    def init_all(key: PRNGKey) -> PyTree:
        # The rest starts as it would with another prior.
        key_prior = numerics.apart(key)
        return generative.init(key) | {"prior": init(key_prior)}

    return generative._replace(
        init=init_all,
        sample_prior=sample,
        log_prior=log_prob,
        prior_family=family,
        transport=None,
        symbols=None,
    )


def with_vamp_prior(
    generative: Generative,
    encoder: Network,
    posterior: Conditional,
    *,
    num_components: int,
    x_shape: tuple[int, ...],
) -> Generative:
    r"""The model with the mixture of q at learned pseudo-inputs as its prior.

    Tomczak & Welling 2018 (arXiv:1705.07120) equation 9: $p(z) = \frac1C\sum_c
    q(z | u_c)$, for the recognition model `encoder_model(encoder, posterior)`, of whose
    parameters the prior is a function: its gradient reaches the encoder and the
    pseudo-inputs. u_c is a free parameter clipped to [0, 1], the paper's hardtanh, and
    so for data of that range; it starts uniform there, and outside has no gradient.

    `params.generative["prior"]` holds `pseudo_inputs` [C, *X], in the place of the
    parameters of the prior that the model had. The components do not depend on x or z:
    under `vmap` over examples or samples the C encodings are made once, not per row.

    Args:
        generative: any model of z; its prior is not used.
        encoder: the recognition model's own.
        posterior: the recognition model's own.
        num_components: C.
        x_shape: shape of one observation.

    Raises:
        ValueError: if num_components is below one or x_shape has a size below one.
    """
    numerics.check_positive(num_components=num_components)
    numerics.check_sizes(x_shape=x_shape)
    mixture = priors.equal_mixture(posterior)

    def init(key: PRNGKey) -> PyTree:
        inputs = jax.random.uniform(key, (num_components, *x_shape))
        return {"pseudo_inputs": inputs}

    def components(params: Params) -> Float[Array, "C H"]:
        inputs = jnp.clip(params.generative["prior"]["pseudo_inputs"], 0.0, 1.0)

        def encode(x: Array) -> Array:
            h = encoder.apply(params.recognition["encoder"], x)
            return _flat("encoder", h, "posterior", posterior.width)

        return jax.vmap(encode)(inputs)

    def sample_prior(key: PRNGKey, params: Params) -> Array:
        posterior_params = params.recognition["posterior"]
        return mixture.sample(key, posterior_params, components(params))

    def log_prior(params: Params, z: Array) -> Scalar:
        posterior_params = params.recognition["posterior"]
        return mixture.log_prob(posterior_params, components(params), z)

    of_component = posterior.family.parameters

    def parameters(params: Params) -> tuple[Array, ...]:
        assert of_component is not None
        each = jax.vmap(of_component, in_axes=(None, 0))
        of_each = each(params.recognition["posterior"], components(params))
        return jnp.zeros(num_components), *of_each

    of_normals = posterior.family.name == "diag_normal"
    return with_prior(
        generative,
        init=init,
        sample=sample_prior,
        log_prob=log_prior,
        family=Family("vamp", parameters if of_normals else None),
    )
