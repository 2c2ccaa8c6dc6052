"""Small ladders, and one whose answers are known."""

import itertools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from tests import laws, problems, testing
from vae_jax import (
    ladder,
    ladder_of_maps,
    layer_forms,
    likelihoods,
    networks,
    posteriors,
    priors,
    vae,
)
from vae_jax.types import Model, Params, log_joint

START = networks.normal(std=0.6)
NORMAL = {
    "plain": layer_forms.plain_normal,
    "residual": layer_forms.residual_normal,
    "merged": layer_forms.merged_normal,
}


def normals(
    form, *, sizes=(3, 2, 1), x_shape=(2, 3), units=4, posterior=None, prior=None
) -> Model:
    """A ladder of small networks, its images of bits."""
    return ladder.mlp(
        sizes,
        x_shape,
        hidden=[(units,)] * len(sizes),
        form=form,
        posterior=posterior or posteriors.diag_normal(sizes[-1], max_log_std=3.0),
        prior=prior or priors.standard_normal(sizes[-1]),
        likelihood=likelihoods.bernoulli(x_shape),
        initializer=START,
    )


def maps() -> Model:
    """Images of 2x3 pixels below z_1 of two channels a pixel, below a vector."""
    return ladder_of_maps.images(
        ((2, 3, 2),),
        (2, 3),
        width=2,
        num_blocks=1,
        form=layer_forms.plain_normal(),
        posterior=posteriors.diag_normal(2),
        prior=priors.standard_normal(2),
        likelihood=likelihoods.bernoulli((2, 3)),
    )


def bits(*, sizes=(2, 2, 1), x_shape=(5,), units=3, residual=False) -> Model:
    """A sigmoid belief network with a state."""
    return ladder.mlp(
        sizes,
        x_shape,
        hidden=[(units,)] * len(sizes),
        form=layer_forms.bernoulli(residual=residual),
        posterior=posteriors.bernoulli(sizes[-1]),
        prior=priors.bernoulli(sizes[-1]),
        likelihood=likelihoods.bernoulli(x_shape),
        initializer=START,
    )


class Chain(NamedTuple):
    """A linear-Gaussian ladder of scalars, its exact posterior, and log p(x).

    z_L ~ N(0, 1), z_l = a_l z_{l+1} + c_l + s_l eps, x = w z_1 + v + s_x eps.
    """

    model: Model
    params: Params  # q is p(z | x)
    log_p: Callable[..., Any]  # params, x -> log p(x), nats, from the joint covariance
    posterior: Callable[..., Any]  # x -> mean [L] and covariance [L, L] of z


MAX_LOG_STD = 4.0


def chain(depth: int, *, form: str, num_features: int = 2, seed: int = 0) -> Chain:
    """At a double precision's parameters, q exact in any form."""
    rng = np.random.default_rng(seed)
    a, c = rng.normal(size=depth - 1), rng.normal(size=depth - 1)
    s = np.exp(0.3 * rng.normal(size=depth - 1))
    w, v = rng.normal(size=num_features), rng.normal(size=num_features)
    s_x = 0.7
    layer_form = NORMAL[form](max_log_std=MAX_LOG_STD)
    linear = networks.linear
    layers = [
        ladder.Layer(
            (1,),
            layer_form,
            down=linear(1, 2),
            up=linear(num_features if i == 0 else 1, 1),
            posterior=linear(3, 2),
        )
        for i in range(depth - 1)
    ]
    decoder, encoder = linear(1, num_features), linear(num_features, 2)
    if depth > 1:
        encoder = linear(1, 2)
    model = ladder.model(
        layers,
        vae.decoder_model(
            decoder,
            priors.standard_normal(1),
            likelihoods.normal((num_features,), std=s_x),
        ),
        vae.encoder_model(encoder, posteriors.diag_normal(1)),
    )

    # log p(x | z_l) = score z_l - seen z_l^2 / 2 and more: d_l is the score.
    seen, kernel, bias = float(w @ w) / s_x**2, w[:, None] / s_x**2, -w @ v / s_x**2
    theta, phi = jax.tree.map(np.asarray, model.init(jax.random.key(0)))
    for i in range(depth - 1):
        precision = 1.0 / s[i] ** 2 + seen
        share, log_std = 1.0 / s[i] ** 2 / precision, -0.5 * np.log(precision)
        of_prior, of_score, free = {
            "plain": (share, 1.0 / precision, log_std),
            "residual": (share - 1.0, 1.0 / precision, log_std - np.log(s[i])),
            "merged": (0.0, 1.0 / seen, -0.5 * np.log(seen)),
        }[form]
        theta[f"layer_{i + 1}"] = _affine([[a[i], 0.0]], [c[i], _free(np.log(s[i]))])
        phi[f"layer_{i + 1}"] = {
            "up": _affine(kernel, [bias]),
            "posterior": _affine(
                [[of_prior, 0.0], [0.0, 0.0], [of_score, 0.0]], [0.0, _free(free)]
            ),
        }
        ratio = a[i] / (1.0 + seen * s[i] ** 2)
        kernel, bias = np.array([[ratio]]), -ratio * seen * c[i]
        seen = a[i] * ratio * seen
    precision = 1.0 + seen
    theta["decoder"] = _affine(w[None], v)
    phi["encoder"] = _affine(
        np.concatenate([kernel / precision, np.zeros_like(kernel)], 1),
        [bias / precision, -0.5 * np.log(precision)],
    )
    params = jax.tree.map(jnp.asarray, Params(theta, phi))

    # The joint, from matrices.
    scale, mean = np.zeros((depth, depth)), np.zeros(depth)
    scale[-1, -1] = 1.0
    for i in reversed(range(depth - 1)):
        scale[i], mean[i] = a[i] * scale[i + 1], a[i] * mean[i + 1] + c[i]
        scale[i, i] = s[i]
    of_z = scale @ scale.T
    of_x = of_z[0, 0] * np.outer(w, w) + s_x**2 * np.eye(num_features)
    mean_x = w * mean[0] + v

    def log_p(x):
        gap = x - mean_x
        _, log_det = np.linalg.slogdet(2.0 * math.pi * of_x)
        return -0.5 * (gap @ np.linalg.solve(of_x, gap) + log_det)

    def posterior(x):
        across = np.outer(of_z[:, 0], w)  # of z and x
        gains = np.linalg.solve(of_x, across.T).T
        return mean + gains @ (x - mean_x), of_z - gains @ across.T

    return Chain(model, params, log_p, posterior)


def _free(log_std):
    """What is bounded to this log std."""
    return MAX_LOG_STD * np.arctanh(log_std / MAX_LOG_STD)


def _affine(kernel, bias):
    return {"output": {"kernel": np.array(kernel, float), "bias": np.array(bias)}}


def every(num_bits):
    """All vectors of so many bits."""
    return jnp.asarray(list(itertools.product((0.0, 1.0), repeat=num_bits)))


def bits_problem() -> problems.BinaryModel:
    """Five bits in three layers, of which q reads theta, with every z in a table."""
    model = bits()
    params = laws.jiggled(jax.jit(model.init)(jax.random.key(0)))
    rows = np.asarray(every(5))

    def table(params, x):
        z = jnp.asarray(rows, x.dtype)
        h = model.recognition.encode(params, x)
        q = jax.vmap(lambda z: model.recognition.log_prob(params, h, z))(z)
        p = jax.vmap(lambda z: log_joint(model.generative, params, x, z))(z)
        return z, jnp.exp(q), jnp.exp(p)

    def elbo(params, x):
        _, q, p = table(params, x)
        return jnp.sum(q * jnp.log(p / q))

    def log_p(params, x):
        return jnp.log(table(params, x)[2].sum())

    return problems.BinaryModel(
        model.generative, model.recognition, params, elbo, log_p, table
    )


class Two(NamedTuple):
    """Two scalar layers of normals beside the exact posterior, q reading theta."""

    model: Model
    params: Params
    k_sample_bound: Any  # num_samples -> (params, x) -> L_K, by quadrature


def two_scalars() -> Two:
    """Its q is not the posterior, and its prior's scale moves with z_2."""
    known = chain(2, form="residual")
    model, params = known.model, laws.jiggled(known.params, std=0.2)
    nodes = np.linspace(-6.5, 6.5, 53)
    eps = np.stack(np.meshgrid(nodes, nodes), -1).reshape(-1, 2)
    form = layer_forms.residual_normal(max_log_std=MAX_LOG_STD)

    def k_sample_bound(num_samples):
        def bound(params, x):
            h_top, (d,) = h = model.recognition.encode(params, x)

            def log_weight(eps):
                z_2 = h_top[:1] + jnp.exp(h_top[1:]) * eps[1:]
                a = apply(params.generative["layer_1"], z_2)
                b = apply(params.recognition["layer_1"]["posterior"], jnp.append(a, d))
                mean, log_std = form.posterior(a, b)
                z = jnp.concatenate([mean + jnp.exp(log_std) * eps[:1], z_2])
                log_q = model.recognition.log_prob(params, h, z)
                return log_joint(model.generative, params, x, z) - log_q

            return testing.expected_log_mean_exp(
                jax.vmap(log_weight)(jnp.asarray(eps)),
                jax.nn.softmax(-0.5 * jnp.asarray((eps**2).sum(1))),
                num_samples=num_samples,
                num_nodes=1200,
            )

        return bound

    return Two(model, params, k_sample_bound)


def apply(layer, x):
    """An affine layer of these parameters."""
    return x @ layer["output"]["kernel"] + layer["output"]["bias"]
