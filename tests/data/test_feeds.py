"""What a scan is fed with: from the device, or from the host."""

import threading

import jax
import numpy as np
import pytest

from vae_jax.data import batches, feeds

ROWS = np.arange(60, dtype=np.uint8).reshape(20, 3)
STEPS = 5  # an epoch


def draw(epoch):
    key = jax.random.fold_in(jax.random.key(3), epoch)
    return batches.order(key, len(ROWS), batch_size=4)


def taken(feed, *, steps):
    """The rows that the steps see, in order, until the feed has given them all."""
    seen, step = [], 0
    while step < steps:
        data, order = feed.at(step)
        seen.extend(np.asarray(data)[np.asarray(index)] for index in order)
        step += len(order)
    feed.close()
    return np.stack(seen)


@pytest.mark.parametrize("max_steps", [1, 2, 5, 100])
def test_both_feeds_give_the_rows_of_each_epochs_order(max_steps):
    expected = np.stack([ROWS[np.asarray(i)] for e in range(3) for i in draw(e)])
    sizes = {"steps_per_epoch": STEPS, "max_steps": max_steps}
    resident = feeds.resident(draw, jax.numpy.asarray(ROWS), **sizes)
    streamed = feeds.streamed(draw, ROWS, **sizes)
    np.testing.assert_array_equal(taken(resident, steps=15), expected)
    np.testing.assert_array_equal(taken(streamed, steps=15), expected)


@pytest.mark.parametrize("step", [3, 7, 14])
def test_a_stream_starts_at_any_step(step):
    epoch, offset = divmod(step, STEPS)
    feed = feeds.streamed(draw, ROWS, steps_per_epoch=STEPS, max_steps=2)
    data, order = feed.at(step)
    feed.close()
    expected = ROWS[np.asarray(draw(epoch)[offset : offset + 2])]
    np.testing.assert_array_equal(np.asarray(data)[np.asarray(order)], expected)


def test_a_stream_reads_a_file_as_it_is_asked_for(tmp_path):
    path = tmp_path / "rows.bin"
    ROWS.tofile(path)
    mapped = np.memmap(path, np.uint8, "r", shape=ROWS.shape)
    feed = feeds.streamed(draw, mapped, steps_per_epoch=STEPS, max_steps=2)
    expected = np.stack([ROWS[np.asarray(index)] for index in draw(0)])
    np.testing.assert_array_equal(taken(feed, steps=STEPS), expected)


def test_the_rows_that_follow_are_fetched_meanwhile():
    fetched = threading.Semaphore(0)

    def place(rows):
        fetched.release()
        return jax.numpy.asarray(rows)

    feed = feeds.streamed(draw, ROWS, steps_per_epoch=STEPS, max_steps=2, place=place)
    feed.at(0)
    for _ in range(2):  # those of step 0, and of step 2 before anyone asks
        assert fetched.acquire(timeout=10.0)
    assert not fetched.acquire(timeout=0.05)  # and no more than that
    feed.close()


def test_an_error_on_the_host_reaches_the_one_who_waits():
    feed = feeds.streamed(draw, ROWS[:3], steps_per_epoch=STEPS, max_steps=2)
    with pytest.raises(IndexError):
        feed.at(0)
    feed.close()


def test_runs_that_train_together_stream_the_rows_of_each():
    def draw_two(epoch):
        return jax.numpy.stack([draw(epoch), draw(epoch + 100)])

    streamed = feeds.streamed(draw_two, ROWS, steps_per_epoch=STEPS, max_steps=3)
    resident = feeds.resident(
        draw_two, jax.numpy.asarray(ROWS), steps_per_epoch=STEPS, max_steps=3
    )
    for step in (0, 3):
        (data, order), (whole, wanted) = streamed.at(step), resident.at(step)
        seen = np.asarray(data)[np.asarray(order)]
        np.testing.assert_array_equal(seen, np.asarray(whole)[np.asarray(wanted)])
    streamed.close()


def test_behind_an_epochs_last_steps_the_next_epochs_first_are_fetched():
    fetched = []

    def place(rows):
        fetched.append(np.asarray(rows))
        return jax.numpy.asarray(rows)

    feed = feeds.streamed(draw, ROWS, steps_per_epoch=STEPS, max_steps=2, place=place)
    for step in (0, 2, 4, 5):
        feed.at(step)
    feed.close()
    assert len(fetched) <= 5  # each once, and one that nobody asked for yet
    np.testing.assert_array_equal(fetched[3], ROWS[np.asarray(draw(1)[:2]).reshape(-1)])
