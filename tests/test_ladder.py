import functools
import itertools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests import ladders, laws, testing
from vae_jax import ladder, layer_forms, likelihoods, networks, posteriors, priors, vae
from vae_jax.estimators import importance, regularized, sgvb
from vae_jax.types import log_joint, log_weight

IMAGE = np.array([[1.0, 0.0, 1.0], [0.0, 1.0, 1.0]])
EVERY_FORM = pytest.mark.parametrize("name", ladders.NORMAL)


def _made(model, x=IMAGE):
    x = jnp.asarray(x)
    params = laws.jiggled(jax.jit(model.init)(jax.random.key(0)))
    return params, jax.jit(model.recognition.encode)(params, x)


@functools.cache
def _sampled(name):
    """A ladder of three layers, and 20,000 draws of it in double precision."""
    model = ladders.normals(ladders.NORMAL[name]())
    params, h = _made(model)
    keys = jax.random.split(jax.random.key(2), 20_000)
    x = jnp.asarray(IMAGE)

    @jax.jit
    def draw_all(keys):
        sampled = jax.vmap(lambda key: model.draw(key, params, x, h))(keys)
        log_q = jax.vmap(lambda z: model.recognition.log_prob(params, h, z))
        log_p = jax.vmap(lambda z: log_joint(model.generative, params, x, z))
        return sampled, log_p(sampled.z) - log_q(sampled.z)

    return model, params, *draw_all(keys)


# One layer


@pytest.mark.slow
def test_one_layer_is_the_plain_model_bit_for_bit():
    parts = {
        "posterior": posteriors.diag_normal(2),
        "prior": priors.standard_normal(2),
        "likelihood": likelihoods.bernoulli((2, 3)),
    }
    tall = ladder.mlp(
        (2,), (2, 3), hidden=((5, 4),), form=layer_forms.plain_normal(), **parts
    )
    plain = vae.model(
        vae.decoder_model(
            networks.mlp(2, (5, 4), 6), parts["prior"], parts["likelihood"]
        ),
        vae.encoder_model(networks.mlp(6, (5, 4), 4), parts["posterior"]),
    )
    outcomes = []
    for model in (tall, plain):
        params, x = model.init(jax.random.key(0)), jnp.asarray(IMAGE, jnp.float32)
        elbo = jax.jit(jax.value_and_grad(sgvb.sgvb_b(model, num_samples=3), 1))
        h = model.recognition.encode(params, x)
        z = model.generative.sample_prior(jax.random.key(2), params)
        outcomes.append((params, elbo(jax.random.key(1), params, x), h, z))
    chex.assert_trees_all_equal(*outcomes)


# The linear-Gaussian chain, of known answers


@functools.cache
def _chain(depth, form):
    return ladders.chain(depth, form=form)


SLOW = pytest.mark.slow
DEPTHS = [
    (1, "plain"),
    (3, "residual"),
    (3, "merged"),
    (4, "plain"),
    pytest.param(2, "plain", marks=SLOW),
    pytest.param(8, "residual", marks=SLOW),
]
PAIR = np.array([0.8, -1.3])


@pytest.mark.slow
@pytest.mark.parametrize(("depth", "form"), DEPTHS)
def test_at_the_exact_posterior_every_log_weight_is_log_p(x64, depth, form):
    known = _chain(depth, form)
    model, params, x = known.model, known.params, jnp.asarray(PAIR)
    h = model.recognition.encode(params, x)
    keys = jax.random.split(jax.random.key(0), 64)
    sampled = jax.jit(jax.vmap(lambda key: model.draw(key, params, x, h)))(keys)
    log_w = jax.vmap(log_weight)(sampled)
    np.testing.assert_allclose(log_w, known.log_p(PAIR), rtol=1e-9)
    mean, covariance = known.posterior(PAIR)
    testing.assert_mean_equals(sampled.z, mean)
    gaps = sampled.z - mean[None]
    testing.assert_mean_equals(gaps[:, :, None] * gaps[:, None], covariance)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("build", "num_samples"),
    [
        (importance.stick_the_landing, 1),
        pytest.param(importance.stick_the_landing, 3, marks=SLOW),
        (importance.dreg, 3),
    ],
)
@pytest.mark.parametrize(("depth", "form"), [(3, "residual"), (4, "plain")])
def test_at_the_exact_posterior_the_path_gradient_is_zero_in_phi(
    x64, depth, form, build, num_samples
):
    known, x = _chain(depth, form), jnp.asarray(PAIR)
    objective = build(known.model, num_samples=num_samples)
    value, grads = jax.jit(jax.value_and_grad(objective, 1))(
        jax.random.key(1), known.params, x
    )
    np.testing.assert_allclose(value, known.log_p(PAIR), rtol=1e-6)
    for leaf in jax.tree.leaves(grads.recognition):
        np.testing.assert_allclose(leaf, 0.0, atol=1e-9)
    with_score = jax.jit(
        jax.grad(importance.iwae(known.model, num_samples=num_samples), 1)
    )
    noisy = with_score(jax.random.key(1), known.params, x).recognition
    assert max(float(jnp.abs(leaf).max()) for leaf in jax.tree.leaves(noisy)) > 1e-3


# Any parameters


@pytest.mark.slow
@EVERY_FORM
def test_the_fused_draw_and_the_four_functions_give_the_same_log_weight(x64, name):
    _, _, sampled, apart = _sampled(name)
    fused = jax.vmap(log_weight)(sampled)
    np.testing.assert_allclose(fused, apart, rtol=1e-9)
    assert float(fused.std()) > 0.1


@pytest.mark.slow
@EVERY_FORM
def test_the_kl_of_the_layers_has_the_mean_of_the_log_ratio(x64, name):
    _, _, sampled, _ = _sampled(name)
    assert sampled.kl.shape == (20_000, 3)
    assert float(sampled.kl.min()) > 0.0
    ratio = sampled.log_posterior - sampled.log_prior
    testing.assert_mean_equals(ratio - sampled.kl.sum(1), 0.0)
    # The closed form is the quieter of the two.
    assert float(sampled.kl.sum(1).std()) < float(ratio.std())


def _silent(params):
    """phi with every last layer that q's densities read at zero."""

    def quiet(path, leaf):
        names = [entry.key for entry in path]
        read = "posterior" in names or "encoder" in names
        return jnp.zeros_like(leaf) if read and "output" in names else leaf

    phi = jax.tree_util.tree_map_with_path(quiet, params.recognition)
    return params._replace(recognition=phi)


@pytest.mark.slow
@pytest.mark.parametrize("binary", [False, True], ids=["normals", "bits"])
def test_a_residual_q_that_adds_nothing_is_the_prior_draw_for_draw(binary):
    if binary:
        model, x = ladders.bits(residual=True), np.ones(5)
    else:
        model, x = ladders.normals(layer_forms.residual_normal()), np.ones((2, 3))
    params, x = _silent(_made(model, x)[0]), jnp.asarray(x)
    if binary:  # the top's own logits are zero
        params.generative["prior"]["logits"] *= 0.0
    h = model.recognition.encode(params, x)
    for seed in range(3):
        sampled = jax.jit(model.draw)(jax.random.key(seed), params, x, h)
        dreamt = jax.jit(model.generative.sample_prior)(jax.random.key(seed), params)
        np.testing.assert_array_equal(sampled.z, dreamt)
        np.testing.assert_allclose(sampled.kl, 0.0, atol=1e-12)


@pytest.mark.slow
def test_more_samples_tighten_the_bound_of_a_ladder():
    model = ladders.normals(layer_forms.merged_normal())
    params, _ = _made(model)
    means = []
    for num_samples in (1, 4, 64):
        bound = importance.iwae(model, num_samples=num_samples)
        keys = jax.random.split(jax.random.key(3), 2_000)
        nats = jax.jit(jax.vmap(bound, (0, None, None)))(
            keys, params, jnp.asarray(IMAGE)
        )
        means.append((float(nats.mean()), float(nats.std()) / 2_000**0.5))
    for (low, error), (high, other) in itertools.pairwise(means):
        assert high - low > 5.0 * (error + other)


@pytest.mark.slow
def test_free_bits_leave_a_layer_below_its_budget_without_a_gradient(x64):
    model = ladders.normals(layer_forms.residual_normal())
    params, h = _made(model)
    key, x = jax.random.key(4), jnp.asarray(IMAGE)
    kl = model.draw(jax.random.clone(key), params, x, h).kl
    budget, above = float(jnp.sort(kl)[1]) * 1.0001, int(jnp.argmax(kl))
    assert float(kl[above]) > budget

    def penalized(penalty):
        return sgvb.elbo(model, num_samples=1, penalty=penalty)

    @jax.jit
    def of_each(params):
        return [
            jax.value_and_grad(objective, 1)(jax.random.clone(key), params, x)
            for objective in (
                regularized.free_bits(model, num_samples=1, min_nats=budget, beta=0.3),
                sgvb.sgvb_b(model, num_samples=1),
                penalized(lambda kl: 0.3 * kl[above]),
                regularized.free_bits(model, num_samples=1, min_nats=1e3),
                penalized(lambda kl: 0.0 * kl[above]),
            )
        ]

    (value, free), (bound, _), (_, alone), (_, all_free), (_, none) = of_each(params)
    np.testing.assert_allclose(value, bound, rtol=1e-12)
    chex.assert_trees_all_close(free, alone, rtol=1e-12)
    chex.assert_trees_all_equal(all_free, none)


@pytest.mark.slow
def test_balanced_layers_weigh_by_their_kl_for_their_size(x64):
    model = ladders.normals(layer_forms.residual_normal())
    params, h = _made(model)
    key, x = jax.random.key(4), jnp.asarray(IMAGE)
    kl = model.draw(jax.random.clone(key), params, x, h).kl
    dense = (np.asarray(kl) + 0.01) / np.array([3.0, 2.0, 1.0])
    weights = dense / dense.mean()
    assert weights.max() > 1.5 * weights.min()

    @jax.jit
    def of_each(params):
        return [
            jax.value_and_grad(objective, 1)(jax.random.clone(key), params, x)
            for objective in (
                sgvb.sgvb_b(model, num_samples=1, beta=0.5, balance=jnp.asarray(1.0)),
                sgvb.elbo(
                    model, num_samples=1, penalty=lambda kl: 0.5 * (weights @ kl)
                ),
                sgvb.sgvb_b(model, num_samples=1, balance=jnp.asarray(0.0)),
                sgvb.sgvb_b(model, num_samples=1),
            )
        ]

    balanced, wanted, off, plain = of_each(params)
    chex.assert_trees_all_close(balanced, wanted, rtol=1e-9)
    chex.assert_trees_all_close(off, plain, rtol=1e-12)
    with pytest.raises(ValueError, match="balance weighs layers of a ladder"):
        sgvb.sgvb_b(ladders.normals(None, sizes=(2,)), num_samples=1, balance=1.0)


@pytest.mark.slow
def test_z_has_named_parts_from_x_upward(x64):
    model, params, sampled, _ = _sampled("plain")
    z = sampled.z[0]
    parts = ladder.layout((3, 2, 1)).split(z)
    assert {name: part.size for name, part in parts.items()} == {
        "z1": 3,
        "z2": 2,
        "z3": 1,
    }
    assert model.layer_sizes(params) == (3, 2, 1)
    latents = model.generative.latents(jax.eval_shape(lambda: params))
    assert (latents.shape, latents.dtype) == (z.shape, z.dtype)
    of_z = jax.jit(jax.hessian(model.generative.log_prior, 1))(params, z)
    # p(z_1 | z_2, z_3) factorizes given those above, and reads all of them.
    np.testing.assert_allclose(of_z[:3, :3], jnp.diag(jnp.diag(of_z)[:3]), atol=1e-12)
    assert (np.abs(of_z[:3, 3:]) > 1e-6).all()


@pytest.mark.slow
def test_the_prior_is_a_map_of_noise(x64):
    model, params, sampled, _ = _sampled("merged")
    z, prior = sampled.z[0], model.generative
    assert prior.transport is not None
    eps = prior.transport.inverse(params, z)
    np.testing.assert_allclose(prior.transport.forward(params, eps), z, rtol=1e-9)
    slope = jax.jit(jax.jacobian(prior.transport.forward, 1))(params, eps)
    log_det = jnp.linalg.slogdet(slope)[1]
    nats = -0.5 * (eps**2).sum() - 3.0 * np.log(2.0 * np.pi) - log_det
    np.testing.assert_allclose(prior.log_prior(params, z), nats, rtol=1e-9)


# Bits


SIZES = (5, 4, 3)
BITS = np.array([1.0, 0.0, 1.0, 1.0, 0.0])


@functools.cache
def _enumerated():
    """Twelve bits in three layers: every z, log p(x, z) and log q(z | x)."""
    model = ladders.bits(sizes=SIZES)
    assert model.generative.transport is None
    params, h = _made(model, BITS)
    x = jnp.asarray(BITS)

    @jax.jit
    @jax.vmap
    def densities(z):
        log_p = log_joint(model.generative, params, x, z)
        log_q = model.recognition.log_prob(params, h, z)
        return log_p, log_q, model.generative.log_prior(params, z)

    return model, params, h, *densities(ladders.every(12))


@pytest.mark.slow
def test_the_densities_of_twelve_bits_sum_to_one(x64):
    *_, log_q, log_prior = _enumerated()
    np.testing.assert_allclose(jax.nn.logsumexp(log_q), 0.0, atol=1e-9)
    np.testing.assert_allclose(jax.nn.logsumexp(log_prior), 0.0, atol=1e-9)


@pytest.mark.slow
def test_draws_of_twelve_bits_have_the_elbo_and_the_kl_of_the_sum(x64):
    model, params, h, log_p, log_q, log_prior = _enumerated()
    keys = jax.random.split(jax.random.key(5), 20_000)
    sampled = jax.jit(jax.vmap(model.draw, (0, None, None, None)))(
        keys, params, jnp.asarray(BITS), h
    )
    q = jnp.exp(log_q)
    testing.assert_mean_equals(jax.vmap(log_weight)(sampled), q @ (log_p - log_q))
    testing.assert_mean_equals(sampled.kl.sum(1), q @ (log_q - log_prior))
    log_w = jax.vmap(log_weight)(sampled)
    testing.assert_mean_equals(jnp.exp(log_w - jax.nn.logsumexp(log_p)), 1.0)


# Refusals


def _model(layer):
    prior, likelihood = priors.standard_normal(1), likelihoods.bernoulli((2, 3))
    return ladder.model(
        [layer],
        vae.decoder_model(networks.linear(2, 6), prior, likelihood),
        vae.encoder_model(networks.linear(2, 2), posteriors.diag_normal(1)),
    )


def _layer(**changed):
    layer = ladder.Layer(
        (2,),
        layer_forms.plain_normal(),
        down=networks.linear(1, 4),
        up=networks.linear(6, 2),
        posterior=networks.linear(6, 4),
    )
    return layer._replace(**changed)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"down": networks.linear(1, 3)}, r"layer_1.down gives \(3,\).*\(4,\) or more"),
        (
            {"posterior": networks.linear(6, 5)},
            r"layer_1.posterior gives \(5,\), but its layer reads \(4,\)$",
        ),
        ({"shape": (1, 2)}, r"layer_1.down gives \(4,\).*\(1, 4\)"),
    ],
)
def test_a_network_of_another_shape_is_refused_by_name(changed, message):
    def draw(layer):
        model = _model(layer)
        params, h = _made(model)
        return model.draw(jax.random.key(1), params, jnp.asarray(IMAGE), h)

    assert draw(_layer()).z.shape == (3,)
    with pytest.raises(ValueError, match=message):
        draw(_layer(**changed))


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"sizes": ()}, "sizes must be positive"),
        ({"sizes": (3, 0, 1)}, "sizes must be positive"),
        ({"hidden": [(4,)]}, "hidden must be one list .* 3 layers"),
        ({"hidden": [(4,), (), (4,)]}, "hidden must be one list .* not empty below"),
        ({"posterior": posteriors.diag_normal(2)}, r"is \[1\], .* \(2,\) and \(1,\)"),
        ({"prior": priors.standard_normal(2)}, r"is \[1\], .* \(1,\) and \(2,\)"),
    ],
)
def test_what_makes_no_ladder_of_vectors_is_refused(changed, message):
    parts = {
        "sizes": (3, 2, 1),
        "hidden": [(4,)] * 3,
        "form": layer_forms.plain_normal(),
        "posterior": posteriors.diag_normal(1),
        "prior": priors.standard_normal(1),
        "likelihood": likelihoods.bernoulli((2, 3)),
    } | changed
    with pytest.raises(ValueError, match=message):
        ladder.mlp(parts.pop("sizes"), (2, 3), **parts)
