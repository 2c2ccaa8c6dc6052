"""Where fresh parameters start: at the data's mean, and at a narrow q."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments import train
from experiments.choices import densities
from experiments.choices.config import Config
from experiments.runs import fit, protocol, runs
from tests.tiny import TINY, tiny
from vae_jax import convolutional, likelihoods, networks, posteriors
from vae_jax.data import batches, sources

pytestmark = pytest.mark.uses_optax


# The pure functions


def test_a_shift_of_the_output_is_a_shift_of_what_a_network_computes(x64):
    network = networks.mlp(3, (4,), 2, initializer=networks.normal(std=0.5))
    params, x = network.init(jax.random.key(0)), jnp.array([0.3, -1.0, 2.0])
    shift = jnp.array([5.0, -7.0])
    shifted = networks.shift_output(params, shift)
    np.testing.assert_allclose(
        network.apply(shifted, x), network.apply(params, x) + shift, rtol=1e-12
    )
    assert params["output"]["bias"].dtype == shifted["output"]["bias"].dtype
    with pytest.raises(ValueError, match=r"a shift of \(3,\) for an output bias of"):
        networks.shift_output(params, jnp.zeros(3))
    with pytest.raises(ValueError, match="no output layer among hidden"):
        networks.shift_output({"hidden": 1}, shift)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("x_shape", "planes", "per_entry"),
    [((6, 9), 2, 2), ((7, 8, 3), 1, 1), ((5, 6, 3), 2, 2)],
)
def test_a_decoder_of_maps_is_shifted_by_the_mean_over_pixels(
    x64, x_shape, planes, per_entry
):
    size = math.prod(x_shape) * per_entry
    decoder = convolutional.decoder(
        3, x_shape, size, planes=planes, width=4, num_blocks=1
    )
    params, z = decoder.init(jax.random.key(0)), jnp.array([0.3, -1.0, 2.0])
    shift = jax.random.normal(jax.random.key(1), (size,))
    shifted = convolutional.shift_decoder(params, shift, x_shape=x_shape, planes=planes)
    moved = decoder.apply(shifted, z) - decoder.apply(params, z)
    means = shift.reshape(planes, *x_shape[:2], -1).mean((1, 2), keepdims=True)
    expected = jnp.broadcast_to(means, (planes, *x_shape[:2], means.shape[-1]))
    np.testing.assert_allclose(moved, expected.ravel(), rtol=1e-9, atol=1e-12)


def test_logits_of_means_are_their_inverse_and_finite_at_the_ends():
    mean = jnp.array([0.0, 0.2, 0.5, 0.9, 1.0])
    logits = likelihoods.logit_of_mean(mean, least=0.01)
    np.testing.assert_allclose(
        jax.nn.sigmoid(logits), [0.01, 0.2, 0.5, 0.9, 0.99], rtol=1e-5
    )


@pytest.mark.slow
@pytest.mark.parametrize(
    ("density", "h_of_std"),
    [
        (posteriors.diag_normal, posteriors.diag_normal_h),
        (posteriors.full_normal, posteriors.full_normal_h),
    ],
)
def test_an_h_of_a_std_has_it_in_every_latent(density, h_of_std):
    for size in (1, 4):
        mean, std = density(size).moments((), h_of_std(size, std=0.14))
        np.testing.assert_allclose(mean, np.zeros(size))
        np.testing.assert_allclose(std, np.full(size, 0.14), rtol=1e-6)
    with pytest.raises(ValueError, match=r"std must lie in \(0, inf\), got 0"):
        h_of_std(2, std=0.0)


# Runs


def _initial(path, **flags):
    run = runs.build(tiny(path, **flags))
    return run, runs.initial(run).run.inner.params


DATA = {
    "none": {"binarization": "none"},
    "zeros and ones": {},
    "counts": {"binarization": "none", "data_range": "value"},
}
MAPS = {"network": "conv", "width": 4, "activation": "elu"}
OBSERVED = [
    ("bernoulli", "zeros and ones", {}),
    ("bernoulli", "zeros and ones", {"binarization": "dynamic"}),
    ("bernoulli", "zeros and ones", {"binarization": "static"}),
    ("normal", "none", {}),
    ("normal", "none", {"squash_mean": True}),
    ("normal_learned_std", "none", {}),
    ("normal_per_pixel_std", "none", {}),
    ("laplace", "none", {}),
    ("student_t", "none", {}),
    ("discretized_logistic", "none", {"num_values": 17}),
    ("discretized_logistic_mixture", "none", {"num_values": 17}),
    ("poisson", "counts", {}),
    ("negative_binomial", "counts", {}),
    ("zero_inflated_negative_binomial", "counts", {}),
]


@pytest.mark.slow
@pytest.mark.parametrize(("name", "data", "flags"), OBSERVED)
def test_a_decoder_starts_at_the_mean_of_the_training_rows(tmp_path, name, data, flags):
    flags = {"likelihood": name, **DATA[data], **flags}
    if data == "counts":
        rows = sources.load("digits").train.astype(np.float32)
        np.savez(tmp_path / "counts.npz", train=rows)
        flags |= {"dataset": f"npz:{tmp_path / 'counts.npz'}"}
    run, params = _initial(tmp_path, init_bias="data", **flags)
    _, plain = _initial(tmp_path, **flags)
    prepared = run.data.prepared
    index = jnp.arange(len(prepared.train))
    draws = [
        prepared.take(jax.random.key(i), jnp.asarray(prepared.train), index).x.mean(0)
        for i in range(30 if flags.get("binarization") == "dynamic" else 1)
    ]
    mean = protocol.mean_x(run.config, run.data)
    np.testing.assert_allclose(
        mean, np.mean(draws, axis=0), atol=0.02 * len(draws) / 30
    )

    # At zero weights the output is the bias: what p(x | h) then has as its mean.
    decoder = params.generative["decoder"]
    silent = jax.tree.map(jnp.zeros_like, decoder) | {
        "output": {
            "kernel": jnp.zeros_like(decoder["output"]["kernel"]),
            "bias": decoder["output"]["bias"],
        }
    }
    theta = params._replace(generative={**params.generative, "decoder": silent})
    z = jnp.zeros(run.config.num_latents)
    got = run.model.generative.mean_observation(theta, z)
    if name == "discretized_logistic":  # whose scale, one, reaches over both ends
        got = (decoder["output"]["bias"][: mean.size].reshape(mean.shape) + 1.0) / 2.0
    if name == "discretized_logistic_mixture":  # of components on both sides of it
        m = run.config.num_logistics
        means = decoder["output"]["bias"].reshape(-1, *mean.shape)[m : 2 * m]
        got = (means.mean(0) + 1.0) / 2.0
    if name == "zero_inflated_negative_binomial":  # half of which is zero
        got = 2.0 * got
    np.testing.assert_allclose(got, mean, atol=2e-3)

    for x, y in zip(
        jax.tree.leaves(params.recognition),
        jax.tree.leaves(plain.recognition),
        strict=True,
    ):
        np.testing.assert_array_equal(x, y)
    assert float(jnp.abs(plain.generative["decoder"]["output"]["bias"]).max()) == 0.0


@pytest.mark.slow
def test_a_decoder_of_maps_starts_at_the_mean_over_pixels(tmp_path):
    run, params = _initial(tmp_path, init_bias="data", **MAPS)
    _, plain = _initial(tmp_path, **MAPS)
    shifts = [
        after - before
        for after, before in zip(
            jax.tree.leaves(params), jax.tree.leaves(plain), strict=True
        )
    ]
    moved = [shift for shift in shifts if np.any(shift != 0.0)]
    mean = jnp.asarray(protocol.mean_x(run.config, run.data))
    expected = likelihoods.logit_of_mean(mean).mean()
    assert len(moved) == 1
    np.testing.assert_allclose(moved[0], np.full(4, expected), rtol=1e-5)


@pytest.mark.parametrize("binarization", ["none", "grid", "dequantized"])
def test_the_mean_is_of_what_x_is_made_of_what_is_stored(binarization):
    of_grid = {"likelihood": "discretized_logistic", "num_values": 17}
    flags = of_grid if binarization == "grid" else {"likelihood": "normal"}
    config = dataclasses.replace(TINY, binarization=binarization, **flags)
    data = protocol.load(config)
    source = data.source._replace(offset=0.5, divisor=17.0)  # as Frey Face is stored
    prepared = batches.prepare(source, binarization=binarization)
    data = data._replace(source=source, prepared=prepared)
    rows, index = jnp.asarray(prepared.train), jnp.arange(len(prepared.train))
    keys = jax.random.split(jax.random.key(0), 100)
    take = jax.jit(lambda key: prepared.take(key, rows, index).x.mean(0))
    average = np.mean([take(key) for key in keys], axis=0)
    tolerance = 1e-6 if binarization != "dequantized" else 6.0 / 17.0 / 1.2e6**0.5
    np.testing.assert_allclose(
        protocol.mean_x(config, data), average, atol=tolerance, rtol=0.0
    )


def test_the_mean_is_of_what_is_not_missing(tmp_path):
    rows = np.array([[0.0, 1.0, np.nan], [1.0, np.nan, np.nan]] * 10, np.float32)
    np.savez(tmp_path / "a.npz", train=rows)
    config = tiny(
        tmp_path / "run",
        dataset=f"npz:{tmp_path / 'a.npz'}",
        missing="nan",
        binarization="none",
        batch_size=10,
    )
    data = runs.build(config).data
    np.testing.assert_allclose(protocol.mean_x(config, data), [0.5, 1.0, 2.0 / 3.0])


@pytest.mark.slow
@pytest.mark.parametrize(
    ("posterior", "places"),
    [
        ("diag_normal", [2, 3]),
        ("full_normal", [2, 4]),
        ("iaf", [2, 3]),
        ("planar", [2, 3]),
    ],
)
def test_q_starts_around_its_std(tmp_path, posterior, places):
    flags = {"posterior": posterior, "estimator": "sgvb_a", "init_bias": "data"}
    _, narrow = _initial(tmp_path, posterior_std=0.14, **flags)
    _, plain = _initial(tmp_path, **flags)
    shift = (
        narrow.recognition["encoder"]["output"]["bias"]
        - plain.recognition["encoder"]["output"]["bias"]
    )
    expected = np.zeros(len(shift))
    expected[places] = math.log(0.14)
    np.testing.assert_allclose(shift, expected, rtol=1e-6)
    decoders = (p.generative["decoder"] for p in (narrow, plain))
    jax.tree.map(np.testing.assert_array_equal, *decoders)


@pytest.mark.slow
def test_runs_together_start_so_each(tmp_path):
    flags = {"init_bias": "data", "posterior_std": 0.5}
    _, together = _initial(tmp_path, num_seeds=2, seed=3, **flags)
    for i in range(2):
        _, alone = _initial(tmp_path, seed=3 + i, **flags)
        jax.tree.map(
            lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-6, atol=1e-7),
            runs.one_of(together, i),
            alone,
        )


@pytest.mark.slow
@pytest.mark.parametrize("network", [{}, {**MAPS, "posterior_std": 0.14}])
def test_a_run_from_such_a_start_trains_and_is_taken_up(tmp_path, network):
    config = tiny(tmp_path, init_bias="data", **network)
    assert train.main(config) == 0
    assert fit.restore(runs.build(config)).step == 20


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (
            {"init_bias": "data", "likelihood": "categorical"},
            "--init_bias has no effect with --likelihood=categorical",
        ),
        (
            {"init_bias": "data", "algorithm": "full_vb", "weight_decay": 1.0},
            "--init_bias has no effect with --algorithm=full_vb",
        ),
        (
            {"posterior_std": 0.1, "algorithm": "mcem"},
            "--posterior_std has no effect with --algorithm=mcem",
        ),
        (
            {"posterior_std": 0.1, "posterior": "bernoulli", "estimator": "disarm"},
            "--posterior_std has no effect with --posterior=bernoulli",
        ),
        ({"posterior_std": 0.0}, "--posterior_std must be positive"),
        ({"init_bias": "mean"}, "--init_bias=mean is unknown"),
    ],
)
def test_starts_that_nothing_reads_are_refused(flags, message):
    with pytest.raises(ValueError, match=message):
        Config(**flags)


def test_each_likelihood_that_reads_the_mean_is_tried_here():
    readers = {n for n, r in densities.LIKELIHOODS.items() if "init_bias" in r.reads}
    assert readers == {name for name, _, _ in OBSERVED}
    assert readers == {n for n, r in densities.LIKELIHOODS.items() if r.h_of_mean}
