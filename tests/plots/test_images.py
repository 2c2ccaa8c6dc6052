import numpy as np
import pytest
from sklearn.datasets import load_digits

from vae_jax.plots import images

PIXELS = np.asarray(load_digits(return_X_y=True)[0], np.float32)
DIGITS = PIXELS.reshape(-1, 8, 8) / 16.0


def canvas(figure):
    return np.asarray(figure.axes[0].images[0].get_array())


def test_a_grid_holds_the_images_pixel_for_pixel():
    picture = canvas(images.grid(DIGITS[:7], num_columns=3, padding=2))
    assert picture.shape == (3 * 8 + 2 * 2, 3 * 8 + 2 * 2)
    for n in range(7):
        top, left = 10 * (n // 3), 10 * (n % 3)
        np.testing.assert_array_equal(
            picture[top : top + 8, left : left + 8], DIGITS[n]
        )
    assert np.isnan(picture[20:, 10:]).all()  # two blanks
    assert np.isnan(picture[8:10]).all()  # a gap


def test_each_original_stands_above_its_reconstruction():
    other = 1.0 - DIGITS[:5]
    picture = canvas(images.pairs(DIGITS[:5], other, num_columns=3, padding=1))
    assert picture.shape == (4 * 8 + 1 + 3 + 1, 3 * 8 + 2)
    for n in range(5):
        top, left = 20 * (n // 3), 9 * (n % 3)
        original = picture[top : top + 8, left : left + 8]
        np.testing.assert_array_equal(original, DIGITS[n])
        reconstruction = picture[top + 9 : top + 17, left : left + 8]
        np.testing.assert_array_equal(reconstruction, other[n])


def test_a_manifold_has_no_gaps():
    sheet = DIGITS[:12].reshape(3, 4, 8, 8)
    picture = canvas(images.manifold(sheet))
    np.testing.assert_array_equal(picture, np.block([list(row) for row in sheet]))


def test_colors_are_kept_and_a_single_channel_is_gray():
    color = np.stack([DIGITS[:4], DIGITS[4:8], DIGITS[8:12]], axis=-1)
    picture = canvas(images.grid(color, num_columns=2, padding=0))
    assert picture.shape == (16, 16, 3)
    np.testing.assert_array_equal(picture[:8, 8:], color[1])
    gray = images.grid(DIGITS[:4, ..., None], num_columns=2)
    np.testing.assert_array_equal(
        canvas(gray), canvas(images.grid(DIGITS[:4], num_columns=2))
    )
    assert gray.axes[0].images[0].get_cmap().name == "gray"


def test_values_beyond_the_unit_interval_are_clipped():
    picture = canvas(images.grid(4.0 * DIGITS[:1] - 2.0, num_columns=1))
    assert picture.min() == 0.0
    assert picture.max() == 1.0


@pytest.mark.parametrize("shape", [(8, 8), (28, 28), (28, 20), (64, 64, 3), (300, 300)])
def test_a_pixel_is_a_square_of_whole_dots(shape):
    num = np.random.default_rng(0).uniform(size=(6, *shape))
    figure = images.grid(num, num_columns=3, title="samples")
    figure.canvas.draw()
    pixels = canvas(figure).shape
    box = figure.axes[0].get_window_extent()
    scale = box.height / pixels[0]
    assert scale == pytest.approx(box.width / pixels[1])
    assert scale == pytest.approx(round(scale))
    assert scale >= 1.0


def test_pixels_on_paper_are_those_of_the_images(tmp_path):
    from PIL import Image

    from vae_jax.plots import files

    files.save(images.grid(DIGITS[:4], num_columns=2), tmp_path / "a.png")
    dots = np.asarray(Image.open(tmp_path / "a.png").convert("RGB"))
    inner = dots[8:-8, 8:-8]
    assert inner.shape == (170, 170, 3)
    shades = np.stack([canvas(images.grid(DIGITS[:4], num_columns=2))] * 3, axis=-1)
    expected = np.where(np.isnan(shades), images.SEPARATOR, shades).repeat(10, 0)
    np.testing.assert_allclose(inner / 255.0, expected.repeat(10, 1), atol=1 / 200)
    frame = np.concatenate([dots[4:8, 4:-4].ravel(), dots[-8:-4, 4:-4].ravel()])
    wanted = np.tile(images.SEPARATOR, len(frame) // 3)
    np.testing.assert_allclose(frame / 255.0, wanted, atol=1 / 200)
    assert (dots[:3] == 255).all()


def test_what_lies_between_images_is_no_shade_of_gray_whatever_their_channels():
    assert len({*images.SEPARATOR}) == 3
    colored = np.stack([DIGITS[:2]] * 3, axis=-1)
    colored[0, 0, 0] = np.nan
    picture = canvas(images.grid(colored, num_columns=2))
    np.testing.assert_allclose(picture[:, 8], np.tile(images.SEPARATOR, (8, 1)))
    np.testing.assert_allclose(picture[0, 0], images.SEPARATOR)
    gray = images.grid(DIGITS[:2], num_columns=2).axes[0].images[0]
    np.testing.assert_allclose(gray.get_cmap().get_bad()[:3], images.SEPARATOR)


def test_groups_stand_side_by_side_with_a_wider_gap_between():
    left, right = DIGITS[:2].reshape(2, 1, 8, 8), DIGITS[2:6].reshape(2, 2, 8, 8)
    picture = canvas(images.groups([left, right]))
    assert picture.shape == (2 * 8 + 1, 3 * 8 + 1 + 4)
    np.testing.assert_array_equal(picture[:8, :8], DIGITS[0])
    np.testing.assert_array_equal(picture[9:, 12:20], DIGITS[4])
    np.testing.assert_array_equal(picture[9:, 21:], DIGITS[5])
    assert np.isnan(picture[:, 8:12]).all()
    with pytest.raises(ValueError, match="parts differ in their rows or images"):
        images.groups([left, right[:1]])
    with pytest.raises(ValueError, match="at least one group"):
        images.groups([])


@pytest.mark.parametrize("title", [None, "samples from the prior", "a word " * 20])
def test_a_title_fits_above_the_picture(title):
    figure = images.grid(DIGITS[:4], num_columns=2, title=title)
    assert figure.get_suptitle() == (title or "")
    if title:
        figure.canvas.draw()
        picture = figure.texts[0].get_window_extent()
        assert picture.x0 >= 0.0
        assert picture.x1 <= figure.bbox.width
        assert picture.y0 >= figure.axes[0].get_window_extent().y1
        assert picture.y1 <= figure.bbox.height


def test_there_are_no_axes_and_no_smoothing():
    axes = images.grid(DIGITS[:4], num_columns=2).axes[0]
    assert not axes.axison
    assert axes.images[0].get_interpolation() == "nearest"


@pytest.mark.parametrize("shape", [(5, 7), (5,), (5, 8, 8, 2), (2, 5, 8, 8, 3)])
def test_vectors_are_not_images(shape):
    with pytest.raises(ValueError, match=str(shape).replace("(", r"\(")[:-1]):
        images.grid(np.zeros(shape), num_columns=2)


def test_bad_arguments_are_named():
    with pytest.raises(ValueError, match="nothing to draw"):
        images.grid(DIGITS[:0], num_columns=2)
    with pytest.raises(ValueError, match="num_columns"):
        images.grid(DIGITS[:2], num_columns=0)
    with pytest.raises(ValueError, match="padding"):
        images.grid(DIGITS[:2], num_columns=1, padding=-1)
    with pytest.raises(ValueError, match="integers to 255"):
        images.grid((255 * DIGITS[:2]).astype(np.uint8), num_columns=1)
    with pytest.raises(ValueError, match="differ in shape"):
        images.pairs(DIGITS[:2], DIGITS[:3], num_columns=1)
    with pytest.raises(ValueError, match=r"\[R, C, H, W\]"):
        images.manifold(DIGITS[:4])


@pytest.mark.parametrize(
    ("limits", "note"),
    [((-1.0, 1.0), "; black -1, white 1"), ((0.0, 0.5), "; black 0, white 0.5, cut")],
)
def test_limits_are_black_and_white_and_the_title_says_them(limits, note):
    low, high = limits
    sheet = DIGITS[:12].reshape(3, 4, 8, 8)
    scaled = np.clip((DIGITS[:1] - low) / (high - low), 0.0, 1.0)[0]
    for figure in (
        images.grid(DIGITS[:4], num_columns=2, title="a", limits=limits),
        images.pairs(DIGITS[:4], DIGITS[:4], num_columns=2, title="a", limits=limits),
        images.manifold(sheet, title="a", limits=limits),
    ):
        assert figure.get_suptitle().startswith(f"a{note}")
        np.testing.assert_allclose(canvas(figure)[:8, :8], scaled, atol=1e-6)
        assert np.nanmax(canvas(figure)) <= 1.0


def test_a_cut_is_said_and_a_scale_of_zero_to_one_is_not():
    figure = images.grid(4.0 * DIGITS[:1] - 2.0, num_columns=1, title="a")
    assert figure.get_suptitle() == "a; black 0, white 1, cut beyond"
    assert images.grid(DIGITS[:1], num_columns=1, title="a").get_suptitle() == "a"
    assert images.grid(2.0 * DIGITS[:1], num_columns=1).get_suptitle().startswith("bl")


def test_integers_are_drawn_with_limits_and_limits_have_an_order():
    shades = (255 * DIGITS[:1]).astype(np.uint8)
    picture = canvas(images.grid(shades, num_columns=1, limits=(0.0, 255.0)))
    np.testing.assert_allclose(picture, DIGITS[0], atol=1 / 255)
    with pytest.raises(ValueError, match=r"black's value, then white's, got \(1, 0\)"):
        images.grid(DIGITS[:1], num_columns=1, limits=(1, 0))
