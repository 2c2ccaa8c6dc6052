r"""Ladders: hierarchies of any number of latent layers, with one shared top-down pass.

    p(x, z) = p(z_L) prod_{l<L} p(z_l | z_{>l}) p(x | z),
    q(z | x) = q(z_L | x) prod_{l<L} q(z_l | z_{>l}, x),

both from the top down (bidirectional inference: Sonderby et al. 2016, arXiv:1602.02282;
Kingma et al. 2016, arXiv:1606.04934). A deterministic state goes down: s_L = z_L, then
for l = L-1, ..., 1

    (a_l, t_l) = down_l(s_{l+1}),    p(z_l | z_{>l}) = p(z_l | a_l),
    b_l = posterior_l([a_l, t_l, d_l]),    q(z_l | z_{>l}, x) = q(z_l | a_l, b_l),
    s_l = [z_l, t_l],

and the decoder reads s_1. Features of x go up: d_1 = up_1(x), d_l = up_l(d_{l-1}), and
the encoder of z_L reads d_{L-1}. Through t_l a layer hears of all above it; where there
is none, the z_l are a chain.

z is one flat vector [z_1, ..., z_L], z_1 next to x; `layout` names its parts. A layer
may be a vector or maps with channels last: states, features and what the networks give
are joined on their last axis. q reads theta, through the state that it shares.

Fused, a draw runs the pass once forward and once backward. `Draw.kl` is that of each
layer given those above, [L] from z_1 up, in closed form where the layer has one. What
the layers say one by one is `Model.hierarchy`: draws that mix q and p, and samples
below layers that stay.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from vae_jax import factors, layer_forms, networks, vae
from vae_jax.types import (
    Conditional,
    Densities,
    Draw,
    Family,
    Generative,
    Hierarchy,
    Likelihood,
    Model,
    Network,
    Params,
    PRNGKey,
    PyTree,
    Recognition,
    Scalar,
    Transport,
)


class Layer(NamedTuple):
    """One layer below the top.

    Attributes:
        shape: of z_l, channels last.
        form: its densities.
        down: s_{l+1} -> [a_l, t_l], of the shape of z_l but for more channels: those
            beyond a_l's are t_l, of which there may be none.
        up: d_{l-1}, or x, -> d_l.
        posterior: [a_l, t_l, d_l] -> b_l.
    """

    shape: tuple[int, ...]
    form: layer_forms.Form
    down: Network
    up: Network
    posterior: Network


def layout(sizes: Sequence[int]) -> factors.Layout:
    """Where z1, ..., zL, of these numbers of entries, lie in the flat z.

    Raises:
        ValueError: for no layer or a size below one.
    """
    return factors.layout({f"z{i}": size for i, size in enumerate(sizes, 1)})


def model(layers: Sequence[Layer], top: Generative, encoder: Recognition) -> Model:
    """The ladder of these layers below a top layer of any prior and posterior.

    Without layers it is `vae.model(top, encoder)`, of one layer. h is what the encoder
    makes of d_{L-1}, and (d_1, ..., d_{L-1}).

    Estimators that hold q's density fixed hold all of it, theta's share in q too.

    Args:
        layers: z_1, ..., z_{L-1}, from x upward.
        top: p(z_L), z_L a vector, and p(x | s_1), as `vae.decoder_model` makes them.
        encoder: q(z_L | d_{L-1}), as `vae.encoder_model` makes it.

    Raises:
        ValueError: when traced, for a network that gives another shape than its layer
            reads.
    """
    alone, of_layers = vae.model(top, encoder), hierarchy(layers, top, encoder)
    closed = alone.kl
    if not layers:
        return Model(top, encoder, alone.draw, closed, of_layers)

    def draw(key: PRNGKey, params: Params, x: Array, h: PyTree) -> Draw:
        keys, (h_top, features) = jax.random.split(key, len(layers) + 1), h

        def choose(i: int, c: Array) -> tuple[Array, tuple[Scalar, Scalar, Scalar]]:
            form, a = layers[i].form, _a_of(layers[i], c)
            b = _b_of(layers, i, params, c, features[i])
            p, q = form.prior(a), form.posterior(a, b)
            z = form.sample(keys[i], q)
            return z, (form.log_prob(p, z), form.log_prob(q, z), form.kl(a, b))

        z_top, log_q = encoder.sample_and_log_prob(keys[-1], params, h_top)
        log_p = top.log_prior(params, z_top)
        kl = log_q - log_p if closed is None else closed(params, h_top).sum()
        state, zs, nats = _descend(layers, params, z_top, choose)
        of_p, of_q, kls = zip(*nats, (log_p, log_q, kl), strict=True)
        return Draw(
            _join(zs),
            top.log_likelihood_terms(params, x, state),
            log_prior=jnp.stack(of_p).sum(),
            log_posterior=jnp.stack(of_q).sum(),
            kl=jnp.stack(kls),
        )

    return Model(
        generative(layers, top), recognition(layers, encoder), draw, None, of_layers
    )


def generative(layers: Sequence[Layer], top: Generative) -> Generative:
    """p(x, z) of a ladder of one layer or more below the top, as in `model`.

    Its parameters are those of `top`, a dictionary, and `layer_1`, ... of each `down`.
    """

    def init(key: PRNGKey) -> PyTree:
        key_top, *keys = jax.random.split(key, len(layers) + 1)
        each = zip(_names(layers), layers, keys, strict=True)
        return top.init(key_top) | {name: of.down.init(key) for name, of, key in each}

    def sample_prior(key: PRNGKey, params: Params) -> Array:
        keys = jax.random.split(key, len(layers) + 1)

        def choose(i: int, c: Array) -> tuple[Array, None]:
            form = layers[i].form
            return form.sample(keys[i], form.prior(_a_of(layers[i], c))), None

        z_top = top.sample_prior(keys[-1], params)
        return _join(_descend(layers, params, z_top, choose)[1])

    def log_prior(params: Params, z: Array) -> Scalar:
        zs = _split(layers, z)

        def choose(i: int, c: Array) -> tuple[Array, Scalar]:
            form = layers[i].form
            return zs[i], form.log_prob(form.prior(_a_of(layers[i], c)), zs[i])

        nats = _descend(layers, params, zs[-1], choose)[2]
        return jnp.stack([*nats, top.log_prior(params, zs[-1])]).sum()

    def state(params: Params, z: Array) -> Array:
        zs = _split(layers, z)
        return _descend(layers, params, zs[-1], lambda i, c: (zs[i], None))[0]

    maps = [layer.form.transport for layer in layers]

    def from_noise(params: Params, eps: Array) -> Array:
        noise = _split(layers, eps)

        def choose(i: int, c: Array) -> tuple[Array, None]:
            of_layer = maps[i]
            assert of_layer is not None
            p = layers[i].form.prior(_a_of(layers[i], c))
            return of_layer.forward(p, noise[i]), None

        assert top.transport is not None
        z_top = top.transport.forward(params, noise[-1])
        return _join(_descend(layers, params, z_top, choose)[1])

    def to_noise(params: Params, z: Array) -> Array:
        zs = _split(layers, z)

        def choose(i: int, c: Array) -> tuple[Array, Array]:
            of_layer = maps[i]
            assert of_layer is not None
            p = layers[i].form.prior(_a_of(layers[i], c))
            return zs[i], of_layer.inverse(p, zs[i])

        assert top.transport is not None
        noise = _descend(layers, params, zs[-1], choose)[2]
        return _join([*noise, top.transport.inverse(params, zs[-1])])

    return Generative(
        init,
        sample_prior,
        log_prior,
        lambda params, x, z: top.log_likelihood_terms(params, x, state(params, z)),
        lambda key, params, z: top.sample_observation(key, params, state(params, z)),
        lambda params, z: top.mean_observation(params, state(params, z)),
        Family(layers[0].form.family),
        top.quantity,
        Transport(from_noise, to_noise) if all((top.transport, *maps)) else None,
    )


def recognition(layers: Sequence[Layer], encoder: Recognition) -> Recognition:
    """q(z | x) of a ladder of one layer or more below the top, as in `model`.

    Its parameters are those of `encoder`, a dictionary, and `layer_1`, ..., each with
    `up` and `posterior`; it reads theta's `layer_1`, ... as well.
    """

    def init(key: PRNGKey) -> PyTree:
        key_top, *keys = jax.random.split(key, len(layers) + 1)
        inits = [
            networks.init_each({"up": layer.up, "posterior": layer.posterior})
            for layer in layers
        ]
        each = zip(_names(layers), inits, keys, strict=True)
        return encoder.init(key_top) | {name: start(key) for name, start, key in each}

    def encode(params: Params, x: Array) -> tuple[PyTree, tuple[Array, ...]]:
        features, d = [], x
        for name, layer in zip(_names(layers), layers, strict=True):
            d = layer.up.apply(params.recognition[name]["up"], d)
            features.append(d)
        return encoder.encode(params, d), tuple(features)

    def density(i: int, params: Params, h: PyTree, c: Array) -> tuple[Array, ...]:
        b = _b_of(layers, i, params, c, h[1][i])
        return layers[i].form.posterior(_a_of(layers[i], c), b)

    def sample(key: PRNGKey, params: Params, h: PyTree) -> Array:
        keys = jax.random.split(key, len(layers) + 1)

        def choose(i: int, c: Array) -> tuple[Array, None]:
            return layers[i].form.sample(keys[i], density(i, params, h, c)), None

        z_top = encoder.sample(keys[-1], params, h[0])
        return _join(_descend(layers, params, z_top, choose)[1])

    def log_prob(params: Params, h: PyTree, z: Array) -> Scalar:
        zs = _split(layers, z)

        def choose(i: int, c: Array) -> tuple[Array, Scalar]:
            return zs[i], layers[i].form.log_prob(density(i, params, h, c), zs[i])

        nats = _descend(layers, params, zs[-1], choose)[2]
        return jnp.stack([*nats, encoder.log_prob(params, h[0], zs[-1])]).sum()

    def sample_and_log_prob(
        key: PRNGKey, params: Params, h: PyTree
    ) -> tuple[Array, Scalar]:
        keys = jax.random.split(key, len(layers) + 1)

        def choose(i: int, c: Array) -> tuple[Array, Scalar]:
            form, q = layers[i].form, density(i, params, h, c)
            z = form.sample(keys[i], q)
            return z, form.log_prob(q, z)

        z_top, log_q = encoder.sample_and_log_prob(keys[-1], params, h[0])
        _, zs, nats = _descend(layers, params, z_top, choose)
        return _join(zs), jnp.stack([*nats, log_q]).sum()

    return Recognition(
        init,
        encode,
        sample,
        log_prob,
        sample_and_log_prob,
        moments=None,
        family=Family(layers[0].form.family),
    )


def hierarchy(
    layers: Sequence[Layer], top: Generative, encoder: Recognition
) -> Hierarchy:
    """The layers of the ladder one by one, of any number below the top.

    Entries are a group each, but for a top whose KL is in no closed form that is a sum
    over them. Where `mix` draws all of q or all of p, it draws what
    `draw` or `sample_prior` draws of that key. Temperatures are of the noise that p is
    a map of: 0 gives a normal's mean.
    """
    alone, ends = vae.model(top, encoder), _ends(layers)
    closed, shapes = alone.kl, tuple(layer.shape for layer in layers)
    lower = tuple(math.prod(shape) for shape in shapes)

    def keys_of_layers(key: PRNGKey) -> PRNGKey:
        return jax.random.split(key, len(layers) + 1) if layers else key[None]

    def groups(params: Params, h: PyTree) -> tuple[int, ...]:
        if closed is None:
            return (*lower, 1)
        of_top = jax.eval_shape(closed, params, h[0] if layers else h)
        return (*lower, of_top.size)

    def mix(
        key: PRNGKey, params: Params, h: PyTree, from_q: Array
    ) -> tuple[Array, Array]:
        *keys, key_top = keys_of_layers(key)
        h_top, features = h if layers else (h, ())
        *of_layers, of_top = jnp.split(from_q, ends)

        def choose(i: int, c: Array) -> tuple[Array, Array]:
            layer, a, key = layers[i], _a_of(layers[i], c), keys[i]
            b = _b_of(layers, i, params, c, features[i])
            z_q = layer.form.sample(key, layer.form.posterior(a, b))
            z_p = layer.form.sample(jax.random.clone(key), layer.form.prior(a))
            z = jnp.where(of_layers[i].reshape(layer.shape), z_q, z_p)
            return z, jax.vmap(layer.form.kl)(_entries(a, layer), _entries(b, layer))

        z_q, log_q = encoder.sample_and_log_prob(key_top, params, h_top)
        z_p = top.sample_prior(jax.random.clone(key_top), params)
        if closed is None:
            kl = (log_q - top.log_prior(params, z_q))[None]
        else:
            kl = closed(params, h_top)
        z_top = jnp.where(jnp.repeat(of_top, z_q.size // kl.size), z_q, z_p)
        _, zs, kls = _descend(layers, params, z_top, choose)
        return _join(zs), jnp.concatenate([*kls, kl])

    def redraw(
        key: PRNGKey,
        params: Params,
        z: Array,
        num_layers: int,
        temperatures: tuple[float, ...] | None,
    ) -> Array:
        depth = len(layers) + 1
        each = _check_redraw(num_layers, temperatures, depth)
        keys, zs = keys_of_layers(key), _split(layers, z)

        def choose(i: int, c: Array) -> tuple[Array, None]:
            form = layers[i].form
            if i >= num_layers:
                return zs[i], None
            p = form.prior(_a_of(layers[i], c))
            z_p = form.sample(keys[i], p)
            return _tempered(form.transport, p, z_p, each[i], layer=i + 1), None

        z_top = zs[-1]
        if num_layers == depth:
            z_p = top.sample_prior(keys[-1], params)
            z_top = _tempered(top.transport, params, z_p, each[-1], layer=depth)
        return _join(_descend(layers, params, z_top, choose)[1])

    def means(params: Params, h: PyTree) -> Array:
        h_top, features = h if layers else (h, ())

        def choose(i: int, c: Array) -> tuple[Array, None]:
            form, a = layers[i].form, _a_of(layers[i], c)
            b = _b_of(layers, i, params, c, features[i])
            return form.mean(form.posterior(a, b)), None

        assert encoder.moments is not None
        z_top = encoder.moments(params, h_top)[0]
        return _join(_descend(layers, params, z_top, choose)[1])

    def densities(params: Params, h: PyTree, noise: Array) -> tuple[Array, Densities]:
        features, eps = h[1] if layers else (), _split(layers, noise)

        def choose(i: int, c: Array) -> tuple[Array, Any]:
            form, a = layers[i].form, _a_of(layers[i], c)
            b = _b_of(layers, i, params, c, features[i])
            p, q = form.prior(a), form.posterior(a, b)
            z = form.transport.forward(p, eps[i]) if form.transport else eps[i]
            return z, jax.tree.map(jnp.ravel, (p, q))

        z_top = top.transport.forward(params, eps[-1]) if top.transport else eps[-1]
        _, zs, of_layers = _descend(layers, params, z_top, choose)
        return _join(zs), tuple(of_layers)

    of_means = means if encoder.moments else None
    return Hierarchy(shapes, groups, mix, redraw, of_means, alone, densities)


def _check_redraw(
    num_layers: int, temperatures: tuple[float, ...] | None, depth: int
) -> tuple[float, ...]:
    if not 0 <= num_layers <= depth:
        raise ValueError(
            f"num_layers must be 0 to the {depth} layers, got {num_layers}"
        )
    each = (1.0,) * depth if temperatures is None else temperatures
    if len(each) != depth or not all(0.0 <= t < math.inf for t in each):
        raise ValueError(
            f"temperatures must be one number of each of {depth} layers, 0 or more and "
            f"finite, got {temperatures}"
        )
    return each


def _tempered(
    transport: Transport | None, p: Any, z: Array, temperature: float, *, layer: int
) -> Array:
    """z with its noise scaled; p: what the transport takes beside z."""
    if temperature == 1.0:
        return z
    if transport is None:
        raise ValueError(
            f"temperatures scale noise, and z_{layer} is no map of noise: its "
            f"temperature must be 1, got {temperature:g}"
        )
    return transport.forward(p, temperature * transport.inverse(p, z))


def _entries(numbers: Array, layer: Layer) -> Array:
    """What a network gives of each entry of z_l, [D_l, W], in the order of z."""
    apart = numbers.reshape(*layer.shape[:-1], -1, layer.shape[-1])
    return jnp.moveaxis(apart, -2, -1).reshape(math.prod(layer.shape), -1)


def _descend(
    layers: Sequence[Layer],
    params: Params,
    z_top: Array,
    choose: Callable[[int, Array], tuple[Array, Any]],
) -> tuple[Array, list[Array], list[Any]]:
    """The pass: s_1, z_1 to z_L, and what `choose` gives beside each z_l below the top.

    choose(l - 1, [a_l, t_l]) -> z_l and anything; it is called from the top down.
    """
    state, zs, rest = z_top, [z_top], []
    for i in reversed(range(len(layers))):
        name, read = _names(layers)[i], _channels(layers[i])
        c = layers[i].down.apply(params.generative[name], state)
        _check_shape(f"{name}.down", c, layers[i].shape, read)
        z, more = choose(i, c)
        state = jnp.concatenate([z, c[..., read:]], axis=-1)
        zs.insert(0, z)
        rest.insert(0, more)
    return state, zs, rest


def _a_of(layer: Layer, c: Array) -> Array:
    return c[..., : _channels(layer)]


def _b_of(
    layers: Sequence[Layer], i: int, params: Params, c: Array, feature: Array
) -> Array:
    layer, name = layers[i], _names(layers)[i]
    seen = jnp.concatenate([c, feature], axis=-1)
    b = layer.posterior.apply(params.recognition[name]["posterior"], seen)
    wanted = layer.form.posterior_width * layer.shape[-1]
    _check_shape(f"{name}.posterior", b, layer.shape, wanted, exactly=True)
    return b


def _names(layers: Sequence[Layer]) -> list[str]:
    return [f"layer_{i}" for i in range(1, len(layers) + 1)]


def _split(layers: Sequence[Layer], z: Array) -> list[Array]:
    """z_1 to z_L in their shapes; what the layers leave is the top's."""
    *parts, z_top = jnp.split(z, _ends(layers))
    below = zip(parts, layers, strict=True)
    return [part.reshape(layer.shape) for part, layer in below] + [z_top]


def _ends(layers: Sequence[Layer]) -> np.ndarray:
    return np.cumsum([math.prod(layer.shape) for layer in layers], dtype=int)


def _join(zs: Sequence[Array]) -> Array:
    return jnp.concatenate([z.reshape(-1) for z in zs])


def _channels(layer: Layer) -> int:
    return layer.form.prior_width * layer.shape[-1]


def _check_shape(
    network: str,
    output: Array,
    shape: tuple[int, ...],
    channels: int,
    *,
    exactly: bool = False,
) -> None:
    enough = output.shape[-1:] == (channels,) or (
        not exactly and output.shape[-1:] > (channels,)
    )
    if output.shape[:-1] != shape[:-1] or not enough:
        least = "" if exactly else " or more on the last axis"
        raise ValueError(
            f"the network {network} gives {output.shape}, but its layer reads "
            f"{(*shape[:-1], channels)}{least}"
        )


def mlp(
    sizes: Sequence[int],
    x_shape: tuple[int, ...],
    *,
    hidden: Sequence[Sequence[int]],
    form: layer_forms.Form,
    posterior: Conditional,
    prior: Conditional,
    likelihood: Likelihood,
    activation: Callable[[Array], Array] = jnp.tanh,
    initializer: networks.Initializer | None = None,
    product: networks.Product | None = None,
) -> Model:
    """A ladder of vectors, its networks fully connected.

    The decoder and the networks that read x have the hidden layers of z_1, and `down_l`
    and `up_{l+1}` those of z_{l+1}. The last hidden layer of z_l is d_l, and t_l is as
    wide; the posterior of z_l has one hidden layer of that width. With one size it is
    the usual VAE of two networks.

    Args:
        sizes: entries of z_1, ..., z_L, from x upward.
        x_shape: of one observation.
        hidden: units of the hidden layers of each z_l, one or more.
        form: the densities of every layer below the top.
        posterior: q(z_L | x).
        prior: p(z_L).
        likelihood: p(x | z).
        activation: applied after each hidden layer.
        initializer: `networks.glorot()` where none is given.
        product: of all networks, as in `networks.mlp`.

    Raises:
        ValueError: for no size or one below one, hidden layers that are not one list
            for each, or densities that are not of the top's size.

    Examples:
        >>> from vae_jax import likelihoods, posteriors, priors
        >>> pair = mlp(
        ...     (4, 2),
        ...     (8, 8),
        ...     hidden=((32,), (16,)),
        ...     form=layer_forms.residual_normal(),
        ...     posterior=posteriors.diag_normal(2),
        ...     prior=priors.standard_normal(2),
        ...     likelihood=likelihoods.bernoulli((8, 8)),
        ... )
        >>> params, x = pair.init(jax.random.key(0)), jnp.ones((8, 8))
        >>> h = pair.recognition.encode(params, x)
        >>> sampled = pair.draw(jax.random.key(1), params, x, h)
        >>> sampled.z.shape, sampled.kl.shape
        ((6,), (2,))
    """
    layout(sizes)
    if len(hidden) != len(sizes) or not all(hidden[:-1]):
        raise ValueError(
            f"hidden must be one list of units for each of {len(sizes)} layers, not "
            f"empty below the top, got {hidden}"
        )
    if not (sizes[-1],) == posterior.shape == prior.shape:
        raise ValueError(
            f"the top of sizes={sizes} is [{sizes[-1]}], but posterior and prior are "
            f"of shapes {posterior.shape} and {prior.shape}"
        )

    def net(num_inputs: int, units: Sequence[int], num_outputs: int) -> Network:
        return networks.mlp(
            num_inputs,
            units,
            num_outputs,
            activation=activation,
            initializer=initializer,
            product=product,
        )

    def features(num_inputs: int, units: Sequence[int]) -> Network:
        layer = net(num_inputs, units[:-1], units[-1])
        return Network(layer.init, lambda params, d: activation(layer.apply(params, d)))

    def descent(num_inputs: int, i: int) -> Network:
        of_a, of_t = form.prior_width * sizes[i], hidden[i][-1]
        layer = net(num_inputs, hidden[i + 1], of_a + of_t)

        def apply(params: PyTree, state: Array) -> Array:
            a, t = jnp.split(layer.apply(params, state), [of_a])
            return jnp.concatenate([a, activation(t)])

        return Network(layer.init, apply)

    below = [math.prod(x_shape), *(units[-1] for units in hidden[:-1])]
    states = [
        size + units[-1] for size, units in zip(sizes[:-1], hidden[:-1], strict=True)
    ] + [sizes[-1]]
    layers = []
    for i, size in enumerate(sizes[:-1]):
        width, of_q = hidden[i][-1], form.posterior_width * size
        read = form.prior_width * size + 2 * width
        layers.append(
            Layer(
                (size,),
                form,
                down=descent(states[i + 1], i),
                up=features(below[i], hidden[i]),
                posterior=net(read, (width,), of_q),
            )
        )
    decoder = net(states[0], hidden[0], likelihood.width)
    encoder = net(below[-1], hidden[-1], posterior.width)
    return model(
        layers,
        vae.decoder_model(decoder, prior, likelihood),
        vae.encoder_model(encoder, posterior),
    )
