import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sklearn import neighbors

from tests import testing
from vae_jax.evaluation import sample_quality

nearest = jax.jit(sample_quality.nearest)
precision_recall = jax.jit(sample_quality.precision_recall)


def normals(number, *shape):
    return jax.random.normal(jax.random.key(number), shape)


def distances(a, b):
    """All pairs, as differences."""
    return np.linalg.norm(np.asarray(a)[:, None] - np.asarray(b)[None], axis=-1)


def test_the_nearest_rows_are_those_of_all_pairs(x64):
    a, b = (normals(0, 300, 3), normals(1, 40, 3))
    got = nearest(a, b)
    exact = distances(a, b)
    np.testing.assert_array_equal(got.row, exact.argmin(1))
    np.testing.assert_allclose(got.distance, exact.min(1), rtol=1e-9)


def test_a_copied_row_is_found_at_distance_zero_far_from_the_origin():
    b = 100.0 + normals(0, 50, 5)
    got = nearest(b[7:9], b)
    np.testing.assert_array_equal(got.row, [7, 8])
    np.testing.assert_array_equal(got.distance, [0.0, 0.0])
    assert got.distance.dtype == jnp.float32


def test_the_share_that_is_closer_counts_pairs_and_ties_for_half(x64):
    a, b = jnp.array([0.0, 1.0, 2.0]), jnp.array([1.0, 1.0, 5.0, 0.5])
    pairs = np.asarray(a)[:, None] - np.asarray(b)[None]
    expected = np.mean((pairs < 0) + 0.5 * (pairs == 0))
    got = sample_quality.share_closer(a, b)
    np.testing.assert_allclose(got, expected, rtol=1e-12)
    np.testing.assert_allclose(sample_quality.share_closer(a, a), 0.5, rtol=1e-12)
    assert sample_quality.share_closer(a - 9.0, b) == 1.0


def test_precision_and_recall_are_those_of_balls_around_every_row(x64):
    data = normals(2, 60, 2)
    samples = 1.0 + 0.5 * normals(3, 50, 2)
    got = precision_recall(data, samples)

    def covered(rows, others):
        tree = neighbors.NearestNeighbors(n_neighbors=4).fit(others)
        radii = tree.kneighbors(others)[0][:, 3]  # the first is the row itself
        return (distances(rows, others) <= radii[None]).any(1).mean()

    np.testing.assert_allclose(got.precision, covered(samples, data), rtol=1e-12)
    np.testing.assert_allclose(got.recall, covered(data, samples), rtol=1e-12)
    assert got.precision > got.recall  # few of the data, all of them inside


@pytest.mark.parametrize("num_neighbors", [1, 2, 3])
def test_a_ball_reaches_its_kth_neighbor_and_no_further(x64, num_neighbors):
    # Data at 0, 1, 3, 7, 15: the ball of 15 has a radius of 8, 12, 14.
    data = jnp.array([[0.0], [1.0], [3.0], [7.0], [15.0]])
    radius = [8.0, 12.0, 14.0][num_neighbors - 1]
    far = jnp.array([[200.0], [300.0], [400.0], [500.0]])
    for step, inside in ((-0.1, 0.2), (0.1, 0.0)):
        samples = jnp.concatenate([jnp.array([[15.0 + radius + step]]), far])
        among = {"num_neighbors": num_neighbors}
        got = sample_quality.precision_recall(data, samples, **among)
        np.testing.assert_allclose(got.precision, inside, rtol=1e-12)
        turned = sample_quality.precision_recall(samples, data, **among)
        np.testing.assert_allclose(turned.recall, inside, rtol=1e-12)


def test_rows_of_bits_that_tie_with_a_ball_are_inside():
    """Whole numbers are exact, and many a row is as far as a ball is wide."""
    random = np.random.default_rng(0)
    chance = random.random(784) ** 3
    data, samples = (random.random((2, 200, 784)) < chance).astype(np.float32)
    got = precision_recall(jnp.asarray(data), jnp.asarray(samples))

    def covered(rows, others):
        rows, others = rows.astype(int), others.astype(int)
        among = np.abs(others[:, None] - others[None]).sum(-1)
        radii = np.sort(among, axis=1)[:, 3]
        apart = np.abs(rows[:, None] - others[None]).sum(-1)
        assert (apart == radii[None]).mean() > 0.001
        return (apart <= radii[None]).any(1).mean(), (apart < radii[None]).any(1).mean()

    for value, (closed, open_) in (
        (got.precision, covered(samples, data)),
        (got.recall, covered(data, samples)),
    ):
        assert closed > open_ + 0.02
        np.testing.assert_allclose(value, closed, rtol=1e-6)


@pytest.mark.slow
def test_equal_sets_have_precision_and_recall_one_and_sets_apart_zero():
    data = normals(4, 300, 4)
    same = precision_recall(data, data)
    assert (same.precision, same.recall) == (1.0, 1.0)
    apart = precision_recall(data, data + 50.0)
    assert (apart.precision, apart.recall) == (0.0, 0.0)
    collapsed = jnp.tile(data[:1], (300, 1)) + 1e-4 * normals(5, 1, 4)
    mode = precision_recall(data, collapsed)
    assert mode.precision == 1.0
    assert mode.recall < 0.01


@pytest.mark.slow
def test_mmd_is_the_sum_over_pairs_without_the_diagonal(x64):
    x, y = normals(0, 30, 2), normals(1, 20, 2) + 1
    kernel = [np.exp(-distances(*pair) ** 2 / (2 * 0.7**2)) for pair in
              ((x, x), (y, y), (x, y))]  # fmt: skip
    within = [(k.sum() - len(k)) / (len(k) * (len(k) - 1)) for k in kernel[:2]]
    expected = within[0] + within[1] - 2 * kernel[2].mean()
    got = sample_quality.mmd(x, y, bandwidth=0.7)
    np.testing.assert_allclose(got, expected, rtol=1e-9)


@pytest.mark.slow
def test_mmd_is_unbiased_for_two_normals_and_for_one_twice():
    """E k over N(a, s^2 I) and N(b, t^2 I) is a normal density of the difference."""
    size, bandwidth, scale, shift = 2, 1.3, 0.6, 0.5

    def mean_kernel(variance, distance_squared):
        total = bandwidth**2 + variance
        damping = np.exp(-0.5 * distance_squared / total)
        return (bandwidth**2 / total) ** (size / 2) * damping

    exact = mean_kernel(2.0, 0.0) + mean_kernel(2 * scale**2, 0.0)
    exact -= 2.0 * mean_kernel(1.0 + scale**2, size * shift**2)

    def draw(key):
        key_x, key_y, key_z = jax.random.split(key, 3)
        x, same = jax.random.normal(key_x, (12, size)), jax.random.normal(key_z, (9, 2))
        y = shift + scale * jax.random.normal(key_y, (9, size))
        of_two = sample_quality.mmd(x, y, bandwidth=bandwidth)
        return of_two, sample_quality.mmd(x, same, bandwidth=bandwidth)

    of_two, of_one = jax.jit(jax.vmap(draw))(jax.random.split(jax.random.key(6), 5000))
    testing.assert_mean_equals(of_two, exact)
    testing.assert_mean_equals(of_one, 0.0)


def test_the_median_distance_is_over_different_rows(x64):
    rows = jnp.array([[0.0, 0.0], [3.0, 4.0], [0.0, 1.0]])
    # Distances 5, 1 and sqrt(18).
    got = sample_quality.median_distance(rows)
    np.testing.assert_allclose(got, np.sqrt(18.0), rtol=1e-12)


@pytest.mark.slow
def test_compiled_and_eager_agree():
    x, y = normals(0, 6, 2), normals(1, 6, 2)
    for function in (sample_quality.nearest, sample_quality.precision_recall):
        for a, b in zip(jax.jit(function)(x, y), function(x, y), strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)


@pytest.mark.slow
def test_a_comparison_holds_each_measure_beside_that_of_fresh_data():
    train, test, samples = normals(0, 60, 2), normals(1, 40, 2), 0.5 * normals(2, 40, 2)
    got = sample_quality.compare(train, test, samples)
    to_train = [distances(rows, train).min(1) for rows in (samples, test)]
    np.testing.assert_allclose(
        [got.nearest_train_samples, got.nearest_train_test],
        np.median(to_train, axis=1),
        rtol=1e-5,
    )
    share = (to_train[0][:, None] < to_train[1][None]).mean()
    np.testing.assert_allclose(got.share_closer, share, rtol=1e-5)
    for rows, precision, recall, mmd in (
        (samples, got.precision, got.recall, got.mmd),
        (train[:40], got.precision_of_train, got.recall_of_train, got.mmd_of_train),
    ):
        expected = precision_recall(test, rows)
        np.testing.assert_allclose([precision, recall], expected, rtol=1e-6)
        wanted = sample_quality.mmd(rows, test, bandwidth=got.bandwidth)
        np.testing.assert_allclose(mmd, wanted, rtol=1e-4)
    pooled = sample_quality.median_distance(jnp.concatenate([test, samples]))
    np.testing.assert_allclose(got.bandwidth, pooled, rtol=1e-5)


@pytest.mark.slow
def test_copies_of_training_rows_are_closer_than_data_and_have_no_bandwidth_alone():
    train, test = normals(0, 60, 2), normals(1, 40, 2)
    assert sample_quality.compare(train, test, train[5:45]).share_closer == 1.0
    one = jnp.ones((40, 2))
    got = sample_quality.compare(train, one, one)
    assert got.bandwidth == 0.0
    assert np.isnan([got.mmd, got.mmd_of_train]).all()


def test_rows_that_are_mostly_equal_have_no_median_distance():
    # Of expanded squares rounding alone is left, which is no bandwidth.
    for seed in range(5):
        random = np.random.default_rng(seed)
        rows = np.tile(random.normal(size=64), (50, 1))
        rows[:10] = random.normal(size=(10, 64))
        got = jax.jit(sample_quality.median_distance)(jnp.asarray(rows, jnp.float32))
        assert got == 0.0


def test_what_cannot_be_measured_is_refused():
    rows, other = jnp.ones((3, 2)), jnp.ones((3, 4))
    with pytest.raises(ValueError, match=r"\(3, 2\) and \(3, 4\)"):
        sample_quality.nearest(rows, other)
    with pytest.raises(ValueError, match="no rows"):
        sample_quality.nearest(rows, rows[:0])
    with pytest.raises(ValueError, match="below the 3 rows of samples, got 3"):
        sample_quality.precision_recall(jnp.ones((9, 2)), rows, num_neighbors=3)
    with pytest.raises(ValueError, match=r"bandwidth must lie in \(0, inf\), got 0"):
        sample_quality.mmd(rows, rows, bandwidth=0.0)
    with pytest.raises(ValueError, match="two rows or more of each, got 3 and 1"):
        sample_quality.mmd(rows, rows[:1], bandwidth=1.0)
    with pytest.raises(ValueError, match="num_rows must be 2 or more, got 1"):
        sample_quality.median_distance(rows[:1])
