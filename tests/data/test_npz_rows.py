import numpy as np
import pytest

from vae_jax.data import csv_tables, npz_rows, sources


def test_rows_of_a_file_are_read_as_the_test_rows_of_a_data_set_of_it(tmp_path):
    rows = np.random.default_rng(0).integers(0, 256, (6, 4, 4, 1), np.uint8)
    rows[0] = 255
    path = tmp_path / "rows.npz"
    np.savez(path, train=rows[:2], test=rows[2:], test_labels=np.arange(4))
    whole, source = sources.load(f"npz:{path}"), npz_rows.load(path)
    np.testing.assert_array_equal(source.test, whole.test)
    np.testing.assert_array_equal(source.labels["test"], whole.labels["test"])
    for name in ("offset", "divisor", "origin"):
        assert getattr(source, name) == getattr(whole, name)
    assert len(source.train) == len(source.valid) == 0
    read_so = npz_rows.load(path, data_range="value")
    assert read_so.divisor == 1
    assert read_so.origin == f"{source.origin}, data_range value"
    np.savez(path, mine=rows, mine_context=np.arange(6.0)[:, None])
    assert npz_rows.load(path).contexts["test"].tolist() == [[i] for i in range(6)]
    np.savez(path, mine=rows)
    alone = npz_rows.load(path)
    assert alone.contexts == {}
    assert (alone.name, alone.test.shape, alone.labels) == ("mine", (6, 4, 4), {})


def test_rows_of_a_table_are_coded_as_its_columns(tmp_path):
    columns = (
        csv_tables.Column("x0", "normal"),
        csv_tables.Column("x1", "categorical", ("1", "2", "3")),
    )
    path = tmp_path / "rows.npz"
    rows = np.array([[0.5, 3.0], [np.nan, 1.0]])
    np.savez(path, mine=rows, mine_labels=[5, 6], mine_context=[[1.0], [2.0]])
    table = npz_rows.load_table(path, columns)
    np.testing.assert_array_equal(table.arrays["test"], [[0.5, 1.0], [np.nan, 0.0]])
    np.testing.assert_array_equal(table.labels["test"], [5, 6])
    np.testing.assert_array_equal(table.contexts["test"], [[1.0], [2.0]])
    np.savez(path, mine=rows, mine_labels=[5])
    with pytest.raises(ValueError, match="give one integer for each of the 2 rows"):
        npz_rows.load_table(path, columns)
    np.savez(path, a=rows, b=rows)
    with pytest.raises(ValueError, match="it holds a, b: name the array of rows test"):
        npz_rows.load_table(path, columns)
