import numpy as np
import pytest
from sklearn import linear_model

from vae_jax.evaluation import probes

GENERATOR = np.random.default_rng(0)
CENTERS = np.array([[0.0, 0.0], [9.0, 0.0], [0.0, 9.0]])


def labeled(num_rows, *, scale=1.0):
    labels = np.arange(num_rows) % 3
    codes = CENTERS[labels] + GENERATOR.normal(size=(num_rows, 2))
    return probes.Labeled(scale * codes, labels)


TRAIN, TEST = labeled(300), labeled(90)


def test_classes_that_are_apart_are_told_apart():
    probe = probes.linear_probe(TRAIN, TEST)
    assert probe == (1.0, True)
    assert probes.nearest_neighbors(TRAIN, TEST, num_neighbors=5) == 1.0
    few = probes.few_labels(TRAIN, TEST, num_labels=6, num_draws=4, random_state=0)
    assert few.shape == (4,)
    assert few.min() > 0.9


def test_codes_that_carry_nothing_are_told_apart_by_chance():
    noise = probes.Labeled(GENERATOR.normal(size=(300, 2)), TRAIN.labels)
    other = probes.Labeled(GENERATOR.normal(size=(900, 2)), np.arange(900) % 3)
    assert abs(probes.linear_probe(noise, other).accuracy - 1 / 3) < 0.1


def test_the_linear_probe_does_not_depend_on_the_scale_of_a_feature():
    stretch = np.array([1e4, 1e-4]), np.array([5.0, -3.0])
    noisy = [
        probes.Labeled(rows.codes + 5 * GENERATOR.normal(size=rows.codes.shape), y)
        for rows, y in ((TRAIN, TRAIN.labels), (TEST, TEST.labels))
    ]
    scaled = [
        probes.Labeled(rows.codes * stretch[0] + stretch[1], rows.labels)
        for rows in noisy
    ]
    first, second = probes.linear_probe(*noisy), probes.linear_probe(*scaled)
    assert first.accuracy == second.accuracy < 0.99


def test_a_single_nearest_neighbor_finds_the_row_itself():
    shuffled = probes.Labeled(TRAIN.codes, GENERATOR.permutation(TRAIN.labels))
    assert probes.nearest_neighbors(shuffled, shuffled, num_neighbors=1) == 1.0


def test_the_nearest_rows_come_in_the_order_of_their_distance():
    queries = TEST.codes[:5]
    got = probes.nearest_rows(TRAIN.codes, queries, num_neighbors=4)
    distances = np.linalg.norm(TRAIN.codes[None] - queries[:, None], axis=-1)
    np.testing.assert_array_equal(got, np.argsort(distances, axis=1)[:, :4])
    with pytest.raises(ValueError, match="1 to the 300 rows, got 0"):
        probes.nearest_rows(TRAIN.codes, queries, num_neighbors=0)


def test_a_fit_that_ran_out_of_steps_says_so():
    assert not probes.linear_probe(TRAIN, TEST, max_steps=1).converged


def test_every_draw_of_few_labels_has_all_classes():
    samples = list(probes._stratified(TRAIN.labels, 7, 20, 0))
    for rows in samples:
        assert len(set(rows.tolist())) == 7
        counts = np.bincount(TRAIN.labels[rows], minlength=3)
        assert sorted(counts.tolist()) == [2, 2, 3]
    assert len({tuple(rows) for rows in samples}) == 20


def test_few_labels_do_not_read_the_others():
    """Labels beyond the rows that are drawn change nothing."""
    first = next(probes._stratified(TRAIN.labels, 3, 1, 0))
    got = probes.few_labels(TRAIN, TEST, num_labels=3, num_draws=1, random_state=0)
    few = probes.Labeled(TRAIN.codes[first], TRAIN.labels[first])
    want = probes._probe(few, TEST, TRAIN.codes, strength=1.0, max_steps=1000)
    assert got[0] == want.accuracy


def test_what_cannot_be_probed_is_refused():
    one = probes.Labeled(TRAIN.codes, np.zeros(300, int))
    with pytest.raises(ValueError, match="two classes"):
        probes.linear_probe(one, TEST)
    with pytest.raises(ValueError, match=r"strength must lie in \(0, inf\], got 0\.0"):
        probes.linear_probe(TRAIN, TEST, strength=0.0)
    with pytest.raises(ValueError, match="1 to the 300 rows, got 301"):
        probes.nearest_neighbors(TRAIN, TEST, num_neighbors=301)
    for num_labels in (2, 301):
        with pytest.raises(ValueError, match=f"num_labels={num_labels} takes 1 to 100"):
            probes.few_labels(
                TRAIN, TEST, num_labels=num_labels, num_draws=1, random_state=0
            )
    with pytest.raises(ValueError, match="num_draws must be positive, got 0"):
        probes.few_labels(TRAIN, TEST, num_labels=3, num_draws=0, random_state=0)


def test_codes_are_judged_by_each_measure_and_clusters_without_labels():
    judged = probes.judge(TRAIN, TEST, num_neighbors=3, random_state=0)
    assert judged == probes.Judged(*[1.0] * 9)
    two = probes.judge(TRAIN, TEST, num_neighbors=3, num_clusters=2, random_state=0)
    assert two.linear_probe == 1.0
    assert two.k_means_accuracy == pytest.approx(2 / 3, abs=0.02)
    shuffled = probes.Labeled(TRAIN.codes, np.roll(TRAIN.labels, 1))
    moved = probes.judge(shuffled, TEST, num_neighbors=3, random_state=0)
    assert moved.linear_probe < 0.1
    assert moved.mixture_accuracy == 1.0


def test_a_curve_of_few_labels_leaves_out_what_not_every_class_has():
    train = probes.Labeled(TRAIN.codes[:31], TRAIN.labels[:31])  # 11, 10 and 10
    curve = probes.few_labels_curve(
        train, TEST, sizes=(2, 3, 30, 31), num_draws=2, random_state=0
    )
    assert [*curve] == [3, 30]
    alone = probes.few_labels(train, TEST, num_labels=3, num_draws=2, random_state=0)
    np.testing.assert_array_equal(curve[3], alone)


def test_codes_are_standardized_as_all_training_rows_are():
    alone = probes.Labeled(TEST.codes[::3], TEST.labels[::3])  # of one class
    assert probes.linear_probe(TRAIN, alone).accuracy == 1.0
    noise = np.random.default_rng(0).normal(size=(300, 2))
    noisy = probes.Labeled(TRAIN.codes * [1.0, 0.1] + 3.0 * noise, TRAIN.labels)
    got = probes.few_labels(noisy, TEST, num_labels=7, num_draws=9, random_state=1)
    center, scale = noisy.codes.mean(0), noisy.codes.std(0)
    for rows, accuracy in zip(
        probes._stratified(noisy.labels, 7, 9, 1), got, strict=True
    ):
        judge = linear_model.LogisticRegression(max_iter=1000)
        judge.fit((noisy.codes[rows] - center) / scale, noisy.labels[rows])
        assert judge.score((TEST.codes - center) / scale, TEST.labels) == accuracy


def test_every_class_may_have_the_label_that_is_left_over():
    samples = probes._stratified(TRAIN.labels, 7, 20, 0)
    most = {int(np.bincount(TRAIN.labels[rows]).argmax()) for rows in samples}
    assert most == {0, 1, 2}


@pytest.mark.parametrize("other", [1, 2])
def test_there_are_as_many_clusters_as_labels_in_training(other):
    is_there = np.isin(TEST.labels, [0, other])
    test = probes.Labeled(TEST.codes[is_there], TEST.labels[is_there])
    judged = probes.judge(TRAIN, test, num_neighbors=3, random_state=0)
    assert judged.k_means_accuracy == judged.mixture_accuracy == 1.0
