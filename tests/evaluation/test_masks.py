import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vae_jax.evaluation import masks

HALVES = {
    "left": np.s_[:, :2],
    "right": np.s_[:, 2:],
    "top": np.s_[:3, :],
    "bottom": np.s_[3:, :],
}


@pytest.mark.parametrize("side", masks.SIDES)
def test_a_half_is_the_half_that_its_name_says(side):
    expected = np.zeros((6, 4), bool)
    expected[HALVES[side]] = True
    mask = masks.half((6, 4), side=side)(jax.random.key(0))
    np.testing.assert_array_equal(mask, expected)
    colored = masks.half((6, 4, 3), side=side)(jax.random.key(1))
    np.testing.assert_array_equal(colored, np.stack([expected] * 3, axis=-1))


def test_two_halves_of_an_odd_image_leave_its_middle_and_never_overlap():
    both = [masks.half((5, 7), side=side)(jax.random.key(0)) for side in masks.SIDES]
    left, right, top, bottom = (np.asarray(mask) for mask in both)
    np.testing.assert_array_equal(
        ~(left | right), np.arange(7)[None] == 3 + np.zeros((5, 1))
    )
    np.testing.assert_array_equal(
        ~(top | bottom), np.arange(5)[:, None] == 2 + np.zeros((1, 7))
    )
    assert not (left & right).any()
    assert not (top & bottom).any()


@pytest.mark.slow
def test_a_block_is_one_rectangle_and_equally_often_at_every_place():
    mask = jax.vmap(masks.block((4, 5), height=3, width=2))
    samples = np.asarray(mask(jax.random.split(jax.random.key(0), 20_000)))
    places = {}
    for top in range(2):
        for left in range(4):
            expected = np.zeros((4, 5), bool)
            expected[top : top + 3, left : left + 2] = True
            places[top, left] = (samples == expected).all((1, 2))
    shares = np.array([results.mean() for results in places.values()])
    np.testing.assert_allclose(shares.sum(), 1.0)
    np.testing.assert_allclose(shares, 1 / 8, atol=5 * np.sqrt(1 / 8 * 7 / 8 / 20_000))


def test_a_random_fraction_hides_that_share_independently():
    mask = jax.vmap(masks.random_fraction((2, 2), fraction=0.3))
    samples = np.asarray(mask(jax.random.split(jax.random.key(0), 20_000))).reshape(
        -1, 4
    )
    error = np.sqrt(0.3 * 0.7 / 20_000)
    np.testing.assert_allclose(samples.mean(0), 0.3, atol=5 * error)
    correlation = np.corrcoef(samples.T) - np.eye(4)
    assert np.abs(correlation).max() < 5 / np.sqrt(20_000)


@pytest.mark.parametrize(("fraction", "hidden"), [(0.0, 0), (1.0, 60_000)])
def test_a_fraction_of_zero_or_one_leaves_no_chance(fraction, hidden):
    mask = masks.random_fraction((300, 200), fraction=fraction)(jax.random.key(0))
    assert int(mask.sum()) == hidden


def test_hiding_puts_nan_in_the_mask_alone():
    x, mask = jnp.arange(4.0).reshape(2, 2), jnp.array([[True, False], [False, True]])
    hidden = masks.hide(x, mask)
    assert hidden.dtype == x.dtype
    np.testing.assert_array_equal(hidden, [[np.nan, 1.0], [2.0, np.nan]])


def test_a_mask_of_another_shape_is_refused():
    with pytest.raises(ValueError, match=r"mask of shape \(2,\) .* shape \(3, 2\)"):
        masks.hide(jnp.zeros((3, 2)), jnp.zeros(2, bool))


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: masks.half((4,), side="left"), r"x_shape must be .*\(4,\)"),
        (lambda: masks.half((4, 4), side="west"), "side must be one of .*'west'"),
        (lambda: masks.block((4, 4), height=5, width=1), "height=5 and width=1"),
        (lambda: masks.block((4, 4), height=1, width=0), "height=1 and width=0"),
        (lambda: masks.random_fraction((4,), fraction=1.1), "fraction .*1.1"),
        (lambda: masks.random_fraction((4,), fraction=float("nan")), "fraction"),
    ],
)
def test_what_makes_no_mask_is_refused(build, message):
    with pytest.raises(ValueError, match=message):
        build()


@pytest.mark.slow
def test_each_image_has_the_mask_of_its_own_key_whatever_the_others_are():
    mask, key = masks.random_fraction((3, 2), fraction=0.5), jax.random.key(3)
    three = masks.of_images(key, mask, num_images=3)
    assert three.shape == (3, 3, 2)
    for n in range(3):
        alone = mask(jax.random.fold_in(jax.random.clone(key), n))
        np.testing.assert_array_equal(three[n], alone)
    few = masks.of_images(jax.random.clone(key), mask, num_images=2)
    np.testing.assert_array_equal(three[:2], few)


def test_a_stored_mask_is_of_one_image_or_of_each():
    one = np.eye(3)
    both = np.stack([one, 1 - one])
    np.testing.assert_array_equal(masks.checked(one, (2, 3, 3)), np.stack([one] * 2))
    np.testing.assert_array_equal(masks.checked(both > 0, (2, 3, 3)), both)
    for stored, said in (
        (2 * one, "float64 that are not all 0 or 1 are no mask"),
        (both, r"of shape \(2, 3, 3\) does not fit .* \(3, 3\), 4 of them"),
        (0 * one, "hides nothing"),
    ):
        with pytest.raises(ValueError, match=said):
            masks.checked(stored, (4, 3, 3))
