import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from vae_jax.data import batches, sources

SCALES = {"eight bits": (0.0, 255.0, 256), "digits": (0.0, 16.0, 17)}
SCALES |= {"frey": (0.5, 256.0, 256), "binary": (0.0, 1.0, 2)}


def source(train, *, valid=None, test=None, offset=0.0, divisor=255.0):
    none = train[:0]
    return sources.Source(
        name="made",
        train=train,
        valid=none if valid is None else valid,
        test=none if test is None else test,
        labels={},
        offset=offset,
        divisor=divisor,
        origin="a test",
    )


def noise(num_rows, *shape, seed=0):
    generator = np.random.default_rng(seed)
    return generator.integers(0, 256, (num_rows, *shape), np.uint8)


@pytest.mark.slow
@pytest.mark.parametrize("binarization", ["dynamic", "dequantized", "grid"])
def test_a_context_lies_behind_x_and_changes_nothing_of_it(binarization):
    raw = noise(6, 3, 2)
    plain = batches.prepare(source(raw, test=raw[:2]), binarization=binarization)
    contexts = {
        "train": np.arange(24.0, dtype=np.float32).reshape(6, 4) - 0.5,
        "valid": np.zeros((0, 4), np.float32),
        "test": np.full((2, 4), 300.5, np.float32),
    }
    both = batches.with_context(plain, contexts)
    index, key = jnp.array([5, 0, 2]), jax.random.key(0)
    expected = plain.take(key, jnp.asarray(plain.train), index)
    taken = both.take(jax.random.clone(key), jnp.asarray(both.train), index)
    x, c = taken.x[:, :6], taken.x[:, 6:]
    np.testing.assert_array_equal(x, expected.x.reshape(3, 6))
    np.testing.assert_array_equal(c, contexts["train"][index])
    np.testing.assert_array_equal(taken.index, index)
    value = both.value(jnp.asarray(both.test))
    expected = plain.value(jnp.asarray(plain.test)).reshape(2, 6)
    np.testing.assert_array_equal(value[:, :6], expected)
    np.testing.assert_array_equal(value[:, 6:], contexts["test"])
    np.testing.assert_array_equal(both.value(jnp.asarray(both.test[1])), value[1])


def test_bytes_beside_a_context_are_on_by_the_same_random_bits(monkeypatch):
    raw = np.arange(256, dtype=np.uint8)[None]
    at_threshold = batches._thresholds(jnp.asarray(raw), 0.0, 255.0)
    monkeypatch.setattr(batches, "_bits", lambda key, shape: at_threshold)
    plain = batches.prepare(source(raw), binarization="dynamic")
    contexts = {"train": np.ones((1, 1), np.float32), "valid": np.zeros((0, 1))}
    both = batches.with_context(plain, contexts | {"test": contexts["valid"]})
    for prepared in (plain, both):
        train, index = jnp.asarray(prepared.train), jnp.arange(1)
        x = prepared.take(jax.random.key(0), train, index).x[:, :256]
        np.testing.assert_array_equal(x, 0.0)


def test_noise_never_rounds_up_to_one(monkeypatch):
    monkeypatch.setattr(
        batches, "_bits", lambda key, shape: jnp.full(shape, 65535, jnp.uint32)
    )
    for number in (2, 17, 221, 240, 255, 256):
        data = jnp.full((1, 1), number - 1, jnp.uint8)
        take = jax.jit(batches.dequantize(number))
        batch = take(jax.random.key(0), data, jnp.arange(1))
        assert 1.0 - 1.0 / number < float(batch.x[0, 0]) < 1.0


def test_contexts_of_other_rows_are_refused():
    with pytest.raises(ValueError, match="3 contexts are not those of 4 rows"):
        batches.packed(np.zeros((4, 2)), np.zeros((3, 1)))


def test_an_order_holds_distinct_rows_and_drops_the_remainder():
    rows = batches.order(jax.random.key(0), 103, batch_size=10)
    assert rows.shape == (10, 10)
    assert len(set(rows.ravel().tolist())) == 100
    assert int(rows.min()) >= 0
    assert int(rows.max()) < 103


def test_every_row_is_equally_likely_at_every_place():
    keys = jax.random.split(jax.random.key(0), 4000)
    order = jax.vmap(lambda key: batches.order(key, 5, batch_size=2))
    counts = jax.nn.one_hot(order(keys), 5).mean(0)
    five_errors = 5 * np.sqrt(0.2 * 0.8 / 4000)
    np.testing.assert_allclose(counts, 0.2, atol=five_errors)


def test_epochs_stand_one_behind_the_other_each_in_an_order_of_its_own():
    rows = batches.epochs(jax.random.key(0), 11, batch_size=5, num_epochs=3)
    assert rows.shape == (6, 5)
    orders = rows.reshape(3, 10).tolist()
    assert all(len(set(order)) == 10 for order in orders)
    assert orders[0] != orders[1] != orders[2]


@pytest.mark.parametrize(
    ("batch_size", "message"),
    [(0, "=0 is not"), (-3, "=-3 is not"), (11, "=11 is larger than .* 10 rows")],
)
def test_a_batch_size_that_makes_no_batch_is_refused(batch_size, message):
    with pytest.raises(ValueError, match=message):
        batches.order(jax.random.key(0), 10, batch_size=batch_size)


@pytest.mark.parametrize("scale", SCALES)
def test_values_are_what_was_stored_plus_offset_over_divisor(scale):
    offset, divisor, num = SCALES[scale]
    raw = np.arange(num, dtype=np.uint8)
    value = batches.values(offset=offset, divisor=divisor)(jnp.asarray(raw))
    assert value.dtype == jnp.float32
    np.testing.assert_allclose(value, (raw + offset) / divisor, rtol=2e-7)
    assert float(value[-1]) <= 1


def test_a_batch_holds_the_rows_asked_for_with_weight_one():
    data = noise(20, 3, 2)
    index = jnp.array([7, 0, 19, 7])
    batch = batches.take(divisor=255.0)(jax.random.key(0), jnp.asarray(data), index)
    np.testing.assert_allclose(batch.x, data[[7, 0, 19, 7]] / 255, rtol=2e-7)
    np.testing.assert_array_equal(batch.index, index)
    np.testing.assert_array_equal(batch.weight, np.ones(4))
    assert batch.x.dtype == batch.weight.dtype == jnp.float32


@pytest.mark.parametrize("scale", SCALES)
def test_thresholds_of_bytes_are_the_probability_rounded_to_16_bits(scale):
    offset, divisor, num = SCALES[scale]
    raw = np.arange(num, dtype=np.uint8)
    twice = [2 * int(r) + int(2 * offset) for r in raw]
    exact = [(65536 * t + int(divisor)) // int(2 * divisor) for t in twice]
    got = batches._thresholds(jnp.asarray(raw), offset, divisor)
    np.testing.assert_array_equal(got, exact)
    floats = batches._thresholds(jnp.asarray(raw, jnp.float32), offset, divisor)
    np.testing.assert_allclose(floats.astype(float), exact, atol=1)
    np.testing.assert_allclose(exact, 65536 * (raw + offset) / divisor, atol=0.5)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [np.uint8, np.float32])
def test_dynamic_entries_are_on_with_probability_their_value(dtype):
    raw = np.arange(256).astype(dtype)[None]  # one example with every shade
    divisor = 255.0
    if dtype == np.float32:
        raw, divisor = raw / np.float32(255), 1.0
    take = batches.take(divisor=divisor, dynamic=True)
    index = jnp.zeros(20_000, jnp.int32)
    x = np.asarray(take(jax.random.key(0), jnp.asarray(raw), index).x)
    assert set(np.unique(x)) == {0, 1}
    value = np.arange(256) / 255
    error = np.sqrt(value * (1 - value) / len(index))
    assert (np.abs(x.mean(0) - value) <= 5 * error + 2.0**-16).all()
    assert not x[:, 0].any()
    assert x[:, 255].all()


@pytest.mark.parametrize("value", [0, 1])
def test_two_million_certain_entries_never_go_the_other_way(value):
    """An off-by-one in the comparison of 16 bits would turn about 30 of them."""
    data = jnp.full((1, 1 << 21), 255 * value, jnp.uint8)
    take = jax.jit(batches.take(divisor=255.0, dynamic=True))
    x = take(jax.random.key(0), data, jnp.zeros(1, jnp.int32)).x
    assert (x == value).all()


def test_dynamic_entries_are_independent_also_within_one_random_word():
    data = jnp.full((1, 7, 9), 128, jnp.uint8)  # odd: the last word is halved
    index = jnp.zeros(10_000, jnp.int32)
    x = batches.take(divisor=255.0, dynamic=True)(jax.random.key(1), data, index).x
    correlation = np.corrcoef(np.asarray(x).reshape(len(index), -1).T)
    assert np.abs(correlation - np.eye(63)).max() < 5.5 / np.sqrt(len(index))


def test_dynamic_entries_are_drawn_afresh_for_each_key_and_row():
    data = jnp.full((2, 100), 128, jnp.uint8)
    take = batches.take(divisor=255.0, dynamic=True)
    index = jnp.array([0, 0, 1])
    key = jax.random.key(0)
    first, other, again = (
        take(k, data, index).x
        for k in (key, jax.random.key(1), jax.random.clone(jax.random.key(0)))
    )
    np.testing.assert_array_equal(first, again)
    draws = np.concatenate([first, other])
    assert len({row.tobytes() for row in draws}) == 6


@pytest.mark.slow
@pytest.mark.parametrize("dynamic", [False, True])
def test_taking_is_the_same_compiled_and_sharded(dynamic):
    data, index = jnp.asarray(noise(40, 5, 3)), jnp.arange(0, 32, 2)
    take = batches.take(divisor=255.0, dynamic=dynamic)
    key = jax.random.key(0)
    eager = take(key, data, index)
    compiled = jax.jit(take)(jax.random.clone(key), data, index)
    mesh = Mesh(np.array(jax.devices()[:4]), ("batch",))
    spread = jax.device_put(index, NamedSharding(mesh, PartitionSpec("batch")))
    sharded = jax.jit(take)(jax.random.clone(key), data, spread)
    for other in (compiled, sharded):
        np.testing.assert_allclose(other.x, eager.x, rtol=2e-7)
        np.testing.assert_array_equal(other.index, eager.index)


def test_a_whole_epoch_runs_in_one_scan():
    data = jnp.asarray(noise(30, 4))
    take = batches.take(divisor=255.0)

    @jax.jit
    def total(key, data):
        key_order, key_take = jax.random.split(key)
        order = batches.order(key_order, 30, batch_size=5)
        keys = jax.random.split(key_take, len(order))

        def step(sum_, args):
            return sum_ + take(args[0], data, args[1]).x.sum(), None

        return jax.lax.scan(step, jnp.float32(0), (keys, order))[0]

    expected = np.asarray(data).sum() / 255
    np.testing.assert_allclose(total(jax.random.key(0), data), expected, rtol=1e-5)


def test_none_leaves_the_splits_and_their_scale():
    made = source(noise(9, 4), test=noise(3, 4, seed=1), offset=0.5, divisor=256.0)
    ready = batches.prepare(made, binarization="none")
    assert ready.train is made.train
    expected = (made.test + 0.5) / 256
    np.testing.assert_allclose(ready.value(jnp.asarray(ready.test)), expected, 2e-7)
    x = ready.take(jax.random.key(0), jnp.asarray(ready.train), jnp.arange(9)).x
    np.testing.assert_allclose(x, (made.train + 0.5) / 256, rtol=2e-7)


@pytest.mark.parametrize(("scale", "first_on"), [("eight bits", 128), ("digits", 8)])
def test_threshold_is_on_from_half_the_scale(scale, first_on):
    offset, divisor, num = SCALES[scale]
    raw = np.arange(num, dtype=np.uint8)[:, None]
    made = source(raw, valid=raw, test=raw, offset=offset, divisor=divisor)
    ready = batches.prepare(made, binarization="threshold")
    for split in (ready.train, ready.valid, ready.test):
        assert split.dtype == np.uint8
        np.testing.assert_array_equal(split, raw >= first_on)
    x = ready.take(jax.random.key(0), jnp.asarray(ready.train), jnp.arange(num)).x
    np.testing.assert_array_equal(x, ready.train)


def test_threshold_of_frey_faces_and_of_floats_is_on_from_one_half():
    raw = np.arange(256, dtype=np.uint8)[:, None]
    frey = batches.prepare(
        source(raw, offset=0.5, divisor=256.0), binarization="threshold"
    )
    np.testing.assert_array_equal(frey.train, (raw + 0.5) / 256 >= 0.5)
    floats = np.array([[0.0], [np.nextafter(np.float32(0.5), 0)], [0.5], [1.0]])
    made = source(floats.astype(np.float32), divisor=1.0)
    ready = batches.prepare(made, binarization="threshold")
    assert ready.train.ravel().tolist() == [0, 0, 1, 1]


def test_static_draws_have_their_values_as_means():
    raw = np.tile(np.arange(256, dtype=np.uint8), (4000, 1))
    samples = batches.prepare(source(raw), binarization="static", data_seed=3).train
    value = np.arange(256) / 255
    error = np.sqrt(value * (1 - value) / len(raw))
    assert (np.abs(samples.mean(0) - value) <= 5 * error).all()
    assert not samples[:, 0].any()
    assert samples[:, 255].all()


@pytest.mark.slow
def test_dynamic_leaves_train_and_draws_valid_and_test_as_static_does():
    made = source(noise(50, 30), valid=noise(20, 30), test=noise(20, 30))
    static = batches.prepare(made, binarization="static", data_seed=1)
    dynamic = batches.prepare(made, binarization="dynamic", data_seed=1)
    np.testing.assert_array_equal(dynamic.train, made.train)
    np.testing.assert_array_equal(dynamic.valid, static.valid)
    np.testing.assert_array_equal(dynamic.test, static.test)
    assert (static.valid != static.test).any()  # equal rows, separate draws
    np.testing.assert_array_equal(dynamic.value(jnp.asarray(static.test)), static.test)
    index = jnp.arange(50)
    x = dynamic.take(jax.random.key(0), jnp.asarray(dynamic.train), index).x
    assert set(np.unique(x)) == {0, 1}
    other = dynamic.take(jax.random.key(1), jnp.asarray(dynamic.train), index).x
    assert (x != other).any()


def test_static_draws_depend_on_the_seed_and_not_on_the_size_of_valid():
    raw, test = noise(3000, 9), noise(20, 9)
    short = source(raw[:2500], valid=raw[2500:], test=test)
    prepare = batches.prepare
    whole = prepare(source(raw, test=test), binarization="static", data_seed=0)
    split = prepare(short, binarization="static", data_seed=0)
    other = prepare(short, binarization="static", data_seed=1)
    np.testing.assert_array_equal(whole.test, split.test)
    np.testing.assert_array_equal(whole.train[:2500], split.train)
    assert (other.test != split.test).any()


@pytest.mark.parametrize("binarization", ["static", "dynamic"])
def test_values_that_are_no_probabilities_are_refused(binarization):
    good = np.zeros((3, 2), np.float32)
    for bad in (-0.1, 1.5):
        made = source(good, test=np.full((3, 2), bad, np.float32), divisor=1.0)
        with pytest.raises(ValueError, match=f"test has values from {bad} to {bad}"):
            batches.prepare(made, binarization=binarization)


def test_bad_settings_are_refused_by_name():
    made = source(noise(3, 2))
    with pytest.raises(ValueError, match="binarization='fixed': choose one of none"):
        batches.prepare(made, binarization="fixed")
    with pytest.raises(ValueError, match="data_seed=-1"):
        batches.prepare(made, binarization="static", data_seed=-1)
    with pytest.raises(ValueError, match="divisor=0"):
        batches.take(divisor=0.0)


# Stored values


@pytest.mark.parametrize("name", SCALES)
def test_stored_values_are_counted_from_the_scale(name):
    offset, divisor, number = SCALES[name]
    rows = np.arange(number, dtype=np.uint8).reshape(-1, 1)
    for train in (rows, rows.astype(np.float32)):
        made = source(train, offset=offset, divisor=divisor)
        assert batches.num_stored_values(made) == number
        ready = batches.prepare(made, binarization="grid")
        on_grid = np.arange(number, dtype=np.float32) / np.float32(number - 1)
        x = ready.value(jnp.asarray(train))
        np.testing.assert_allclose(x[:, 0], on_grid, rtol=1e-6)
        x = ready.take(jax.random.key(0), jnp.asarray(train), jnp.arange(number)).x
        np.testing.assert_allclose(x[:, 0], on_grid, rtol=1e-6)


@pytest.mark.parametrize(
    ("rows", "divisor"),
    [
        (np.array([[0.0, 0.5]], np.float32), 255.0),
        (np.array([[0.0, 2.0]], np.float32), 1.0),
        (np.array([[-1.0, 0.0]], np.float32), 255.0),
        (np.array([[0, 17]], np.uint8), 16.0),
        (np.array([[0.0, 9.0]], np.float32), 65535.0),
        (np.array([[0, 1]], np.uint8), 0.5),
    ],
)
@pytest.mark.parametrize("binarization", ["grid", "dequantized"])
def test_entries_that_are_no_stored_values_are_refused(rows, divisor, binarization):
    whole = np.zeros_like(rows)
    made = source(whole, test=rows, divisor=divisor)
    with pytest.raises(ValueError, match=r"made: t.* does not hold whole numbers from"):
        batches.prepare(made, binarization=binarization)


@pytest.mark.parametrize("name", SCALES)
def test_noise_is_uniform_in_the_bin_of_its_value_and_fresh_in_training_alone(name):
    offset, divisor, number = SCALES[name]
    rows = np.random.default_rng(0).integers(0, number, (400, 50), np.uint8)
    made = source(rows, valid=rows, test=rows, offset=offset, divisor=divisor)
    ready = batches.prepare(made, binarization="dequantized", data_seed=1)
    np.testing.assert_array_equal(ready.train, rows)
    index = jnp.arange(400)
    first, second = (
        np.asarray(ready.take(jax.random.key(i), jnp.asarray(rows), index).x)
        for i in (0, 1)
    )
    splits = [
        np.asarray(ready.value(jnp.asarray(x))) for x in (ready.valid, ready.test)
    ]
    seen = []
    for y in (first, second, *splits):
        assert y.dtype == np.float32
        scaled = y.astype(np.float64) * number
        np.testing.assert_array_equal(np.floor(scaled), rows)
        noise = scaled - rows
        counts = np.histogram(noise, bins=20, range=(0.0, 1.0))[0]
        expected = noise.size / 20
        assert ((counts - expected) ** 2 / expected).sum() < 60.0  # 19 degrees
        seen.append(noise.ravel())
    off_diagonal = np.corrcoef(seen) - np.eye(4)
    assert np.abs(off_diagonal).max() < 5 / np.sqrt(rows.size)
    again = batches.prepare(made, binarization="dequantized", data_seed=1)
    np.testing.assert_array_equal(again.test, ready.test)
    other = batches.prepare(made, binarization="dequantized", data_seed=2)
    assert (other.test != ready.test).mean() > 0.9
    fewer = made._replace(test=rows[:30], valid=rows[:0])
    fewer = batches.prepare(fewer, binarization="dequantized", data_seed=1)
    np.testing.assert_array_equal(fewer.test, ready.test[:30])


# Missing entries


@pytest.mark.slow
@pytest.mark.parametrize("binarization", batches.BINARIZATIONS)
def test_what_is_missing_stays_missing_and_the_rest_is_as_without_holes(binarization):
    whole = noise(60, 7).astype(np.float32)
    holes = np.random.default_rng(0).random(whole.shape) < 0.3
    punched = np.where(holes, np.float32(np.nan), whole)
    ready, complete = (
        batches.prepare(
            source(train, valid=train, test=train), binarization=binarization
        )
        for train in (punched, whole)
    )
    rows, key = jnp.arange(60), jax.random.key(0)
    x = ready.take(key, jnp.asarray(ready.train), rows).x
    other = complete.take(jax.random.clone(key), jnp.asarray(complete.train), rows).x
    np.testing.assert_array_equal(x, np.where(holes, np.nan, other))
    for split in ("valid", "test"):
        got, expected = (
            one.value(jnp.asarray(getattr(one, split))) for one in (ready, complete)
        )
        np.testing.assert_array_equal(got, np.where(holes, np.nan, expected))


@pytest.mark.slow
@pytest.mark.parametrize("binarization", batches.BINARIZATIONS)
def test_a_missing_rate_hides_that_share_of_train_and_valid_and_nothing_of_test(
    binarization,
):
    made = source(noise(3000, 20), valid=noise(500, 20), test=noise(50, 20))
    settings = {"binarization": binarization, "data_seed": 1}
    ready = batches.prepare(made, missing_rate=0.3, **settings)
    complete = batches.prepare(made, **settings)
    for split in ("train", "valid"):
        got, whole = getattr(ready, split), getattr(complete, split)
        holes = np.isnan(got)
        error = np.sqrt(0.3 * 0.7 / holes.size)
        assert abs(holes.mean() - 0.3) < 5 * error
        np.testing.assert_array_equal(got[~holes], whole[~holes])
        # Completely at random: what is hidden has the mean of what is not.
        values = complete.value(jnp.asarray(whole))
        apart = values[holes].mean() - values[~holes].mean()
        assert abs(apart) < 5 * values.std() * np.sqrt(
            1 / holes.sum() + 1 / (~holes).sum()
        )
    np.testing.assert_array_equal(ready.test, complete.test)


def test_holes_depend_on_the_data_seed_and_the_row_and_not_on_the_rows_after():
    made = source(noise(3000, 9))
    holes = {
        (rows, seed): np.isnan(
            batches.prepare(
                made._replace(train=made.train[:rows]),
                binarization="none",
                data_seed=seed,
                missing_rate=0.5,
            ).train
        )
        for rows, seed in ((3000, 0), (1500, 0), (3000, 1))
    }
    np.testing.assert_array_equal(holes[3000, 0][:1500], holes[1500, 0])
    assert (holes[3000, 0] != holes[3000, 1]).any()


@pytest.mark.parametrize("rate", [-0.1, 1.0, float("nan")])
def test_a_rate_that_is_no_share_is_refused(rate):
    with pytest.raises(ValueError, match=f"missing_rate={rate} does not lie"):
        batches.prepare(source(noise(3, 2)), binarization="none", missing_rate=rate)


def test_train_and_valid_have_holes_of_their_own():
    rows = noise(50, 4)
    made = source(rows, valid=rows, test=rows)
    ready = batches.prepare(made, binarization="none", missing_rate=0.5)
    assert (np.isnan(ready.train) != np.isnan(ready.valid)).any()
