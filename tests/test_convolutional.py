import itertools
import math
import re
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads

from tests import laws
from vae_jax import convolutional

SHAPES = [(8, 8), (28, 28), (9, 12), (5, 7, 3), (32, 32, 3)]
FAST_CASES = [((5, 7, 3), True), ((9, 12), False)]


def _normal(shape, seed=0):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape))


def _sliced(kernel, x):
    """The same by one product of shifted slices."""
    rows, columns = kernel.shape[:2]
    height, breadth, _ = x.shape
    padded = np.pad(x, [(rows // 2,) * 2, (columns // 2,) * 2, (0, 0)])
    return sum(
        padded[i : i + height, j : j + breadth] @ kernel[i, j]
        for i, j in itertools.product(range(rows), range(columns))
    )


# The convolution


@pytest.mark.parametrize("shape", [(3, 3, 2, 4), (1, 1, 2, 3), (5, 3, 1, 2)])
def test_a_convolution_is_a_product_of_shifted_slices(shape, x64):
    kernel, x = _normal(shape), _normal((6, 5, shape[2]), 1)
    got = convolutional.convolve(kernel, x)
    np.testing.assert_allclose(got, _sliced(np.asarray(kernel), x), atol=1e-12)


@pytest.mark.slow
def test_its_derivatives_are_those_of_finite_differences_in_every_mode(x64):
    kernel, x = _normal((3, 3, 2, 3)), _normal((4, 5, 2), 1)
    check_grads(convolutional.convolve, (kernel, x), order=2)
    check_grads(lambda k: convolutional.convolve(k, x), (kernel,), order=2)
    check_grads(lambda x: convolutional.convolve(kernel, x), (x,), order=2)


def _slope(kernel, x):
    return jax.value_and_grad(
        lambda *at: (convolutional.convolve(*at) ** 3).sum(), (0, 1)
    )(kernel, x)


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["cpu", "gpu"])
@pytest.mark.parametrize("axes", [(None, 0), (0, None), (0, 0)])
def test_batches_of_images_and_of_kernels_are_loops(axes, backend, monkeypatch, x64):
    kernel, x = _normal((2, 3, 3, 2, 3)), _normal((2, 4, 4, 2), 1)
    arguments = [
        a if axis == 0 else a[0] for a, axis in zip((kernel, x), axes, strict=True)
    ]
    monkeypatch.setattr(jax, "default_backend", lambda: backend)
    got = jax.jit(jax.vmap(_slope, axes))(*arguments)
    for i in range(2):
        alone = _slope(
            *(a[i] if axis == 0 else a for a, axis in zip(arguments, axes, strict=True))
        )
        chex.assert_trees_all_close(jax.tree.map(lambda leaf, i=i: leaf[i], got), alone)


@pytest.mark.slow
def test_batches_may_lie_in_each_other_and_between_derivatives(x64):
    """Kernels [2, 3], each with its two images, along any axis of them."""
    kernel, x = _normal((3, 2, 3, 3, 2, 3)), _normal((2, 3, 4, 4, 2, 2), 1)

    def both(kernel, x):
        of_images = jax.vmap(convolutional.convolve, (None, -1))
        return (jax.vmap(of_images)(kernel, x) ** 3).sum()

    by_kernel = jax.vmap(jax.grad(both, (0, 1)), (1, 0))
    got = jax.jit(by_kernel)(kernel, x)
    for i, j in itertools.product(range(2), range(3)):
        of_images = jax.vmap(_slope, (None, -1))(kernel[j, i], x[i, j])[1]
        alone = of_images[0].sum(0), jnp.moveaxis(of_images[1], 0, -1)
        chex.assert_trees_all_close((got[0][i, j], got[1][i, j]), alone)
    of_kernels = jax.jit(jax.vmap(convolutional.convolve))
    check_grads(of_kernels, (kernel[:2, 0, :1], x[0, :2, ..., 0]), order=2)


@pytest.mark.parametrize("precision", ["default", "highest"])
def test_the_precision_is_that_of_where_it_is_called(precision):
    kernel, x = jnp.ones((3, 3, 1, 1)), jnp.ones((4, 4, 1))

    def slope(x):
        with jax.default_matmul_precision(precision):
            return jax.grad(lambda x: convolutional.convolve(kernel, x).sum())(x)

    asked = re.findall(
        r"precision_config = \[(.*?)\]", jax.jit(slope).lower(x).as_text()
    )
    assert asked
    assert all(precision.upper() in both for both in asked)


@pytest.mark.slow
@pytest.mark.parametrize("num_members", [0, 2])
def test_training_runs_one_layout_ungrouped_also_inside_a_loop(num_members):
    """Of one network, and of members: XLA brings others to it in no loop."""
    network = convolutional.encoder((8, 8, 3), 2, width=4, num_blocks=1)
    ascent = convolutional.decoder(2, (8, 8, 3), 192, width=4, num_blocks=1)

    def init(key):
        keys = jax.random.split(key)
        return network.init(keys[0]), ascent.init(keys[1])

    def loss(params, x):
        z = network.apply(params[0], x)
        return (ascent.apply(params[1], z) ** 2).sum()

    def step(params, x):
        slope = jax.grad(lambda p: jax.vmap(loss, (None, 0))(p, x).sum())(params)
        return jax.tree.map(jnp.subtract, params, slope)

    params, rows = jax.jit(init)(jax.random.key(0)), jnp.zeros((2, 5, 8, 8, 3))
    if num_members:
        params = jax.vmap(init)(jax.random.split(jax.random.key(0), num_members))
        step = jax.vmap(step, (0, None))
    scan = jax.jit(lambda p: jax.lax.scan(lambda p, x: (step(p, x), None), p, rows))
    program = scan.lower(params).compile().as_text() or ""
    convolutions = re.findall(r"convolution\(.*", program)
    assert len(convolutions) > 12  # forward, and both gradients
    for convolution in convolutions:
        assert "dim_labels=b01f_01io->b01f" in convolution
        for other in ("stride", "lhs_dilate", "rhs_dilate", "group_count"):
            assert other not in convolution


# Resolutions


def test_a_kernel_that_devices_share_has_the_derivative_of_all_rows(x64):
    mesh = jax.make_mesh((2,), ("rows",), axis_types=(jax.sharding.AxisType.Auto,))
    rng = np.random.default_rng(0)
    kernel = jnp.asarray(rng.normal(size=(3, 3, 2, 3)))
    x = jnp.asarray(rng.normal(size=(4, 5, 6, 2)))

    def loss(kernel, x):
        def of_x(x):
            y = jax.vmap(convolutional.convolve, (None, 0))(kernel, x)
            return (y**3).sum()

        # A derivative of a derivative, that is, of both primitives.
        return of_x(x) + (jax.grad(of_x)(x) ** 2).sum()

    shared = jax.shard_map(
        lambda kernel, x: jax.lax.psum(loss(kernel, x), "rows"),
        mesh=mesh,
        in_specs=(jax.P(), jax.P("rows")),
        out_specs=jax.P(),
    )
    slope = jax.jit(lambda *inputs: jax.grad(shared, (0, 1))(*inputs))
    for got, wanted in zip(
        slope(kernel, x), jax.grad(loss, (0, 1))(kernel, x), strict=True
    ):
        np.testing.assert_allclose(got, wanted, rtol=1e-9)


def test_depth_to_space_is_the_inverse_of_space_to_depth():
    x = _normal((4, 6, 3))
    deep = convolutional.space_to_depth(x)
    assert deep.shape == (2, 3, 12)
    np.testing.assert_array_equal(convolutional.depth_to_space(deep), x)
    # The channels of a pixel are those of its own 2x2 pixels.
    np.testing.assert_array_equal(np.sort(deep[1, 2]), np.sort(x[2:4, 4:6].ravel()))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("shape", "residual"),
    [
        pytest.param(*case, marks=[] if case in FAST_CASES else [pytest.mark.slow])
        for case in itertools.product(SHAPES, (True, False))
    ],
)
def test_networks_read_and_give_images_of_any_size(shape, residual):
    size = math.prod(shape)
    style = {"width": 4, "num_blocks": 1, "residual": residual}
    encoder = convolutional.encoder(shape, 6, **style)
    decoder = convolutional.decoder(3, shape, 2 * size, planes=2, **style)
    keys = jax.random.split(jax.random.key(0))
    phi, theta = jax.jit(encoder.init)(keys[0]), jax.jit(decoder.init)(keys[1])
    h = jax.jit(encoder.apply)(phi, _normal(shape).astype(jnp.float32))
    x = jax.jit(decoder.apply)(theta, h[:3])
    assert (h.shape, x.shape) == ((6,), (2 * size,))
    # Every pixel is read, and every latent and pixel is reached.
    slope = jax.jit(jax.grad(lambda x: encoder.apply(phi, x).sum()))(jnp.ones(shape))
    assert np.all(slope != 0.0)
    reached = jax.jit(jax.jacfwd(lambda z: decoder.apply(theta, z)))(jnp.ones(3))
    assert np.all(np.any(reached != 0.0, axis=1))


def test_residual_blocks_start_smaller_the_more_there_are():
    def spread(network, name):
        kernel = network.init(jax.random.key(0))[name]["out"]["kernel"]
        return np.std(kernel) * np.sqrt(kernel.shape[0])

    for num_blocks in (1, 4):  # at each of two resolutions
        size: dict[str, Any] = {"width": 64, "num_blocks": num_blocks}
        encoder = convolutional.encoder((20, 20), 3, **size)
        decoder = convolutional.decoder(3, (20, 20), 400, **size)
        for network in (encoder, decoder):
            share = spread(network, "block_0_0") * np.sqrt(2 * num_blocks)
            np.testing.assert_allclose(share, 1.0, rtol=0.1)


@pytest.mark.slow
def test_blocks_in_a_loop_are_those_one_after_the_other():
    def slope(remat):
        style = {"width": 2, "num_blocks": 3, "remat": remat}
        encoder = convolutional.encoder((4, 4), 2, **style)
        decoder = convolutional.decoder(2, (4, 4), 16, **style)

        @jax.jit
        def of_start(key, x):
            key_encoder, key_decoder = jax.random.split(key)
            params = encoder.init(key_encoder), decoder.init(key_decoder)
            return jax.value_and_grad(
                lambda both: decoder.apply(both[1], encoder.apply(both[0], x)).sum()
            )(params)

        return of_start(jax.random.key(0), jnp.arange(16.0).reshape(4, 4))

    chex.assert_trees_all_close(slope(remat=True), slope(remat=False), rtol=1e-5)


@pytest.mark.slow
def test_each_number_of_the_decoder_is_of_its_own_pixel():
    """A change of the maps near one corner changes the numbers of that corner."""
    shape, planes = (12, 12, 3), 2
    decoder = convolutional.decoder(
        2, shape, planes * 432, planes=planes, width=4, num_blocks=1
    )
    params, apply = jax.jit(decoder.init)(jax.random.key(0)), jax.jit(decoder.apply)
    maps = params["input"]["bias"].reshape(6, 6, 4)
    moved = maps.at[0, 0].add(1.0).reshape(-1)
    changed = {**params, "input": {**params["input"], "bias": moved}}
    z = jnp.ones(2)
    difference = apply(changed, z) - apply(params, z)
    by_pixel = np.abs(difference.reshape(planes, *shape)).max(axis=(0, 3))
    assert by_pixel[:2, :2].min() > 0.0
    # One resolution of a block of two 3x3 convolutions, and one behind it: three.
    assert by_pixel[8:].max() == by_pixel[:, 8:].max() == 0.0
    planar = np.abs(difference.reshape(planes, *shape)).max(axis=(1, 2, 3))
    assert planar.min() > 0.0


@pytest.mark.slow
def test_latents_on_maps_are_of_their_own_pixels(x64):
    """5x5 latents of 3 entries in two planes, of images of 20x20."""
    style: dict = {"width": 4, "num_blocks": 1, "residual": False}
    up = convolutional.encoder((20, 20), 150, map_planes=2, **style)
    down = convolutional.decoder(75, (20, 20), 400, of_maps=True, **style)
    assert up.init(jax.random.key(0))["output"]["kernel"].shape == (8, 6)
    assert down.init(jax.random.key(0))["input"]["kernel"].shape == (3, 8)

    def reads(network, x):
        params = laws.jiggled(network.init(jax.random.key(0)))
        slope = jax.jacobian(lambda x: network.apply(params, x))(x)
        return np.asarray(slope != 0.0)

    of_up = reads(up, _normal((20, 20))).reshape(2, 5, 5, 3, 20, 20)
    of_down = reads(down, _normal((75,))).reshape(20, 20, 5, 5, 3)
    near, far = slice(None, 2), slice(-2, None)
    assert of_up[:, 0, 0, :, near, near].all()
    assert not of_up[:, 0, 0, :, far, far].any()
    assert not of_up[:, 4, 4, :, near, near].any()
    assert of_down[near, near, 0, 0].all()
    assert not of_down[far, far, 0, 0].any()
    assert not of_down[near, near, 4, 4].any()


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: convolutional.encoder((4,), 2, width=4, num_blocks=1), "an image is"),
        (
            lambda: convolutional.encoder((4, 4), 2, width=0, num_blocks=1),
            "width must be positive",
        ),
        (
            lambda: convolutional.encoder((4, 4), 2, width=4, num_blocks=0),
            "num_blocks must be positive",
        ),
        (
            lambda: convolutional.decoder(2, (4, 4), 17, width=4, num_blocks=1),
            "17 entries are not 1 planes",
        ),
        (
            lambda: convolutional.decoder(
                2, (4, 4), 16, planes=2, width=4, num_blocks=1
            ),
            "16 entries are not 2 planes",
        ),
        (
            lambda: convolutional.decoder(
                5, (4, 4), 16, of_maps=True, width=4, num_blocks=1
            ),
            "5 entries are not 1 planes of 2x2 pixels",
        ),
    ],
)
def test_what_no_network_can_be_made_of_is_refused(build, message):
    with pytest.raises(ValueError, match=message):
        build()
