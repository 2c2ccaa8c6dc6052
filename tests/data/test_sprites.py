import math

import jax.numpy as jnp
import numpy as np
import pytest

from vae_jax.data import sources, sprites

SMALL, LARGE = sprites.GRIDS["sprites"], sprites.GRIDS["sprites:64"]


def at(grid, **values):
    """The image of these values, and else of the least of each factor."""
    row = jnp.array([values.get(name, 0) for name in grid.sizes])
    return np.asarray(sprites.image(grid, row))


@pytest.mark.slow
def test_every_pixel_is_inside_or_not_as_its_center_is(x64):
    """Drawn again pixel by pixel, from the inequalities of the three shapes."""
    rng = np.random.default_rng(0)
    index = rng.choice(LARGE.num_images, 30, replace=False)
    for shape, scale, orientation, x, y in LARGE.factors(index):
        expected = np.zeros((64, 64))
        radius = 0.49 * 32 * (0.5 + 0.1 * scale)
        turn = np.exp(-1j * 2.0 * math.pi * orientation / 40)
        center = complex(x + 16, y + 16)  # of pixel (0, 0) is 0
        for i in range(64):
            for j in range(64):
                w = turn * (complex(j, i) - center) / radius
                a, b = 1.43 * w.real, -1.43 * w.imag
                expected[i, j] = [
                    max(abs(w.real), abs(w.imag)) <= math.sqrt(0.5),
                    w.real**2 + (2.0 * w.imag) ** 2 <= 1.0,
                    (a * a + b * b - 1.0) ** 3 - a * a * b**3 <= 0.0,
                ][shape]
        got = at(LARGE, shape=shape, scale=scale, orientation=orientation, x=x, y=y)
        np.testing.assert_array_equal(got, expected)


@pytest.mark.slow
def test_a_place_is_a_pixel_and_a_sprite_lies_within_the_image():
    source = sources.load("sprites", valid_size=0)
    images, factors = sprites.rows("sprites")
    assert images.shape == (3 * 4 * 8 * 8 * 8, 16, 16)
    assert len(np.unique(factors, axis=0)) == len(factors)
    first = {tuple(row): image for row, image in zip(factors, images, strict=True)}
    for (*others, x, y), image in first.items():
        shifted = np.roll(first[*others, 0, 0], (y, x), axis=(0, 1))
        np.testing.assert_array_equal(image, shifted)
    corner = np.stack([image for row, image in first.items() if row[3:] == (0, 0)])
    assert not corner[:, :, 8:].any()  # what goes around an edge would be there
    assert not corner[:, 8:].any()
    assert corner.sum((1, 2)).min() >= 3
    assert [len(source.train), len(source.test)] == [5530, 614]
    np.testing.assert_array_equal(source.train, images[:5530])
    np.testing.assert_array_equal(source.labels["test"], factors[5530:, 0])
    assert source.classes == ("square", "ellipse", "heart")
    assert (source.divisor, source.train.max()) == (1.0, 1)


@pytest.mark.slow
def test_sprites_of_color_have_a_hue_on_a_shade():
    grid = sprites.GRIDS["sprites:color"]
    images = sprites.images(grid, grid.factors(np.arange(grid.num_images)))
    assert images.shape == (4 * 3 * 3 * 2 * 4 * 64, 16, 16, 3)
    red = at(grid, background=2, x=4, y=4)
    np.testing.assert_allclose(red[8, 8], [1.0, 0.0, 0.0], atol=1e-6)
    np.testing.assert_allclose(red[0, 0], [0.5, 0.5, 0.5])
    hues = [at(grid, hue=hue, x=4, y=4)[8, 8] for hue in range(4)]
    expected = [[1, 0, 0], [0.5, 1, 0], [0, 1, 1], [0.5, 0, 1]]
    np.testing.assert_allclose(hues, expected, atol=1e-6)
    shape = np.asarray(sprites.sprite(grid, jnp.array([1, 2, 2, 1, 3, 5, 1])))
    seen = at(grid, hue=1, background=2, shape=2, scale=1, orientation=3, x=5, y=1)
    np.testing.assert_array_equal(seen[..., 1] == 1.0, shape)


def test_an_unknown_grid_is_refused():
    with pytest.raises(ValueError, match=r"unknown data set 'sprites:32'.* sprites:64"):
        sources.load("sprites:32")
