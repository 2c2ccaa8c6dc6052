"""Tables in .csv files: what is guessed of them, what is refused, and the way back."""

import re

import numpy as np
import pytest

from vae_jax.data import csv_tables, sources

TEXT = """age,income,visits,smoker,city,grade,group
31,1200.5,0,no,Rome,2,b
?,-3,7,yes,"Bern, old town",1,a
44,NA,1,no,Rome,3,b
28,88.25,0,,Paris,2,a
"""


@pytest.fixture
def save(tmp_path):
    def save(text=TEXT, name="people.csv"):
        (tmp_path / name).write_text(text)
        return tmp_path / name

    return save


def test_types_are_guessed_and_cells_are_numbers_or_places_among_levels(save):
    table = csv_tables.read(save(), {"grade": "ordinal", "group": "label"})
    families = {c.name: c.family for c in table.columns}
    assert families == {
        "age": "negative_binomial",
        "income": "normal",
        "visits": "negative_binomial",
        "smoker": "bernoulli",
        "city": "categorical",
        "grade": "ordinal",
        "group": "label",
    }
    assert table.columns[4].levels == ("Bern, old town", "Paris", "Rome")
    nan = np.nan
    expected = [
        [31, 1200.5, 0, 0, 1, 0.5],
        [nan, -3, 7, 1, 0, 0],
        [44, nan, 1, 0, 1, 1],
        [28, 88.25, 0, nan, 0.5, 0.5],
    ]
    np.testing.assert_array_equal(table.arrays["train"], np.array(expected, np.float32))
    assert table.classes == ("a", "b")
    assert table.labels["train"].tolist() == [1, 0, 1, 0]


def test_rows_are_written_as_they_were_read(save, tmp_path):
    said = {"group": "skip", "income": "student_t"}
    first = csv_tables.read(save(), said)
    columns = csv_tables.observed(first.columns)
    csv_tables.write(tmp_path / "again.csv", columns, first.arrays["train"])
    families = {c.name: c.family for c in columns}
    again = csv_tables.read(tmp_path / "again.csv", families)
    np.testing.assert_array_equal(again.arrays["train"], first.arrays["train"])
    assert again.columns == columns
    rows = {"": first.arrays["train"], "_low": np.full((4, 6), np.nan)}
    csv_tables.write(tmp_path / "ends.csv", columns, rows)
    lines = (tmp_path / "ends.csv").read_text().splitlines()
    assert lines[0].startswith("age,age_low,income,income_low")
    assert lines[2] == ',,-3,,7,,yes,,"Bern, old town",,1,'


def test_levels_that_are_numbers_are_told_apart_as_numbers(save):
    text = "a,b,c\n1.0,2e0,7\n1,2,x\n,10,07\n3.00,010,7\n"
    said = {"a": "ordinal", "b": "label", "c": "categorical"}
    table = csv_tables.read(save(text), said)
    assert [column.levels for column in table.columns] == [
        ("1", "3.00"),
        ("2", "10"),
        ("07", "7", "x"),  # of texts: 7 and 07 are two
    ]
    np.testing.assert_array_equal(table.arrays["train"][:, 0], [0, 0, np.nan, 1])
    assert table.labels["train"].tolist() == [0, 0, 1, 1]
    more = csv_tables.read_rows(save("a,b,c\n3,2.0,x\n", "more.csv"), table.columns)
    np.testing.assert_array_equal(more.arrays["test"], [[1, 1]])
    assert more.labels["test"].tolist() == [0]
    ids = save("a,b\n1,12345678901234567\n2,12345678901234568\n", "ids.csv")
    assert csv_tables.read(ids, {"b": "label"}).labels["train"].tolist() == [0, 1]
    guessed = csv_tables.read(save("a\n0\n1\n1.0\n0\n", "bits.csv"), {})
    assert guessed.columns[0].levels == ("0", "1")


def test_text_with_underscores_is_no_number(save):
    codes = ["11_1", "1_11", "2_3", "2_4"]
    table = csv_tables.read(save("a\n" + "\n".join(codes) + "\n"), {})
    assert table.columns[0] == csv_tables.Column("a", "categorical", tuple(codes))
    with pytest.raises(ValueError, match="'-nan' is no number"):
        csv_tables.read(save("a\n1.5\n-nan\n"), {})


def test_numbers_are_written_with_all_their_digits(save, tmp_path):
    columns = (csv_tables.Column("a", "normal"),)
    generator = np.random.default_rng(0)
    values = np.array(
        [20230116, 0.1, 1e-30, 3e30, 1 / 3, np.nan, -7.0, 123456.79], np.float32
    )
    rows = np.concatenate([values, generator.normal(size=200).astype(np.float32)])
    csv_tables.write(tmp_path / "a.csv", columns, rows[:, None])
    again = csv_tables.read(tmp_path / "a.csv", {"a": "normal"}).arrays["train"]
    np.testing.assert_array_equal(again[:, 0], rows)
    lines = (tmp_path / "a.csv").read_text().splitlines()
    assert lines[1:9] == [
        *("20230116", "0.1", "1e-30", "3e+30", "0.33333334", '""', "-7", "123456.79"),
    ]


def test_a_folder_holds_the_splits_and_the_levels_are_of_all(save, tmp_path):
    save("a,b\n1.5,x\n2.5,y\n", "train.csv")
    save("a,b\n0.5,z\n", "test.csv")
    source = sources.load(f"csv:{tmp_path}", missing="nan", valid_size=0)
    assert (len(source.train), len(source.valid), len(source.test)) == (2, 0, 1)
    assert source.test.tolist() == [[0.5, 1.0]]
    assert source.columns[1].levels == ("x", "y", "z")
    save("a,c\n0.5,z\n", "test.csv")
    with pytest.raises(ValueError, match=r"test\.csv: its header is not that of"):
        sources.load(f"csv:{tmp_path}")


REFUSED = {
    "a text among numbers": (
        TEXT.replace("44", "forty"),
        {},
        "people.csv line 4, column age: 'forty' is no number",
    ),
    "half a count": (
        TEXT.replace(",7,", ",7.5,"),
        {"visits": "poisson"},
        "line 3, column visits: 7.5 is no count, which poisson needs",
    ),
    "a logarithm of nothing": (
        TEXT,
        {"income": "log_normal"},
        "line 3, column income: -3 is no positive number, which log_normal needs",
    ),
    "a logarithm of what float32 makes 0": (
        TEXT.replace("-3", "1e-50"),
        {"income": "log_normal"},
        "line 3, column income: 1e-50 is less than float32 holds: scale the column",
    ),
    "a logarithm of what the device makes 0": (
        TEXT.replace("-3", "1e-40"),
        {"income": "log_normal"},
        "line 3, column income: 1e-40 is less than float32 holds: scale the column",
    ),
    "infinity": (
        TEXT.replace("-3", "inf"),
        {},
        "line 3, column income: inf is no finite number",
    ),
    "more than float32": (
        TEXT.replace("88.25", "1e300"),
        {},
        "people.csv line 5, column income: 1e+300 is more than float32 holds: scale",
    ),
    "semicolons": (
        "a;b\n1,5;2\n",
        {},
        "people.csv: its header is one cell, 'a;b': part the cells by commas",
    ),
    "an order of texts": (TEXT, {"city": "ordinal"}, "has no place in an order"),
    "bits of three": (TEXT, {"city": "bernoulli"}, "needs two levels, and has 3"),
    "blank lines": (TEXT + "\n\n1,2\n", {}, "people.csv line 8 has 2 cells"),
    "a short row": (TEXT + "1,2\n", {}, "people.csv line 6 has 2 cells, the header 7"),
    "no header": (
        "1,2\n3,4\n",
        {},
        "its first row holds '1': give every column a name",
    ),
    "a name with a comma": ('"a, b",c\n1,2\n', {}, "first row holds 'a, b'"),
    "twice a name": ("a,a\n1,2\n", {}, "two columns are named 'a'"),
    "no rows": ("a,b\n", {}, "give a header and at least one row"),
    "an unknown name": (TEXT, {"wage": "normal"}, "no column is named 'wage': choose"),
    "an unknown family": (TEXT, {"age": "gauss"}, "age cannot be 'gauss': choose of"),
    "nothing left": ("a\n1\n", {"a": "skip"}, "no column is left"),
    "one level": ("a,b\nx,1\nx,2\n", {}, "column a as categorical needs 2 levels"),
    "too many levels": (
        "a\n" + "\n".join(f"name {i}" for i in range(60)),
        {},
        "column a has 60 levels, more than 50: say a:skip",
    ),
    "a number of a customer": (
        "a,b\n1,16777216\n2,16777217\n",
        {"b": "poisson"},
        "line 3, column b: 16777217 is a count that float32 rounds: say b:skip",
    ),
    "more digits than float32": (
        "a\n1000000000.5\n1000000001.5\n1000000003\n",
        {},
        "column a lies around 1e+09 and varies by 1",
    ),
    "no label": (TEXT, {"smoker": "label"}, "line 5, column smoker: no label is there"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_a_bad_cell_is_named_in_one_line(save, case):
    text, families, said = REFUSED[case]
    with pytest.raises(ValueError, match=re.escape(said)) as error:
        csv_tables.read(save(text), families)
    assert "\n" not in str(error.value)


def test_a_column_whose_family_is_said_may_have_many_levels(save):
    text = "a,b\n" + "\n".join(f"{i},{i % 7}" for i in range(60))
    for family in ("ordinal", "categorical", "label"):
        table = csv_tables.read(save(text), {"a": family})
        assert len(table.columns[0].levels) == 60


def test_a_file_that_is_not_there_or_no_text_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"there is no file .*none\.csv"):
        csv_tables.read(tmp_path / "none.csv", {})
    (tmp_path / "a.csv").write_bytes(b"\xff\xfe\x00\x01")
    with pytest.raises(ValueError, match=r"is no \.csv file of UTF-8 text"):
        csv_tables.read(tmp_path / "a.csv", {})


def test_columns_of_context_are_numbers_and_one_hot_levels_beside_the_rest(save):
    said = {"income": "skip", "age": "skip", "city": "context", "visits": "context"}
    table = csv_tables.read(save(), said)
    names = [column.name for column in csv_tables.observed(table.columns)]
    assert names == ["smoker", "grade", "group"]
    assert table.context_names == (
        "visits",
        *("city=Bern, old town", "city=Paris", "city=Rome"),
    )
    expected = [[0, 0, 0, 1], [7, 1, 0, 0], [1, 0, 0, 1], [0, 0, 1, 0]]
    np.testing.assert_array_equal(table.contexts["train"], expected)
    message = "line 3, column age: nothing is there, and a context has no holes"
    with pytest.raises(ValueError, match=message):
        csv_tables.read(save(), {"age": "context"})


def test_further_rows_are_those_of_the_table_by_the_names_of_its_columns(save):
    table = csv_tables.read(save(), {"group": "label", "grade": "context"})
    path = save("group,grade,other,city,smoker,visits,income,age\na,2,9,Rome,,5,-3,?\n")
    rows = csv_tables.read_rows(path, table.columns)
    whole = dict(
        zip(csv_tables.observed(table.columns), rows.arrays["test"].T, strict=True)
    )
    named = {column.name: value[0] for column, value in whole.items()}
    assert named["income"] == -3
    assert named["visits"] == 5
    assert named["city"] == 1.0  # the last of three levels
    assert np.isnan(named["age"])
    assert np.isnan(named["smoker"])
    assert rows.labels["test"] == [0]
    np.testing.assert_array_equal(rows.contexts["test"], [[2.0]])
    path.write_text("age,income,visits,smoker,city,grade\n1,2,3,no,Rome,1\n")
    assert csv_tables.read_rows(path, table.columns).labels == {}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("age,income,visits,smoker,grade\n1,2,3,no,1", "no column is named 'city'"),
        (
            "age,income,visits,smoker,city,grade\n1,2,3,no,Oslo,1",
            "line 2, column city: 'Oslo' is none of its levels: \"Bern, old town\", P",
        ),
        (
            "age,income,visits,smoker,city,grade\n1,2,3,no,Rome,1\n1,2,3.5,no,Rome,1",
            "line 3, column visits: 3.5 is no count",
        ),
        (
            "age,income,visits,smoker,city,grade\n1,2,three,no,Rome,1",
            "line 2, column visits: 'three' is no number",
        ),
    ],
)
def test_further_rows_of_other_columns_or_cells_are_refused(save, text, message):
    columns = csv_tables.read(save(), {"group": "label"}).columns
    with pytest.raises(ValueError, match=message):
        csv_tables.read_rows(save(text), columns)


def test_arrays_of_numbers_are_tables_as_files_are(tmp_path):
    train = np.array([[2.5, 0, 3, 10], [np.nan, 7, 1, 20], [-1, 0, 2, 10]], np.float32)
    said = {"x0": "normal", "x2": "ordinal", "x3": "label"}
    table = csv_tables.of_arrays("own", {"train": train}, said)
    families = [column.family for column in table.columns]
    assert families == ["normal", "bernoulli", "ordinal", "label"]
    expected = [[2.5, 0, 1], [np.nan, 1, 0], [-1, 0, 0.5]]
    np.testing.assert_array_equal(table.arrays["train"], expected)
    np.testing.assert_array_equal(table.labels["train"], [0, 1, 0])
    ids = np.array([[2_000_000_001, 1], [2_000_000_002, 2], [2_000_000_001, 3]])
    large = csv_tables.of_arrays("ids", {"train": ids}, {"x0": "label"})
    assert large.labels["train"].tolist() == [0, 1, 0]
    assert large.classes == ("2000000001", "2000000002")
    tenths = np.array([[0.1, 0], [0.2, 1], [0.1, 2]], np.float32)
    shares = csv_tables.of_arrays("tenths", {"train": tenths}, {"x0": "ordinal"})
    assert shares.columns[0].levels == ("0.1", "0.2")
    more = csv_tables.further_rows("more", train[1:, :3], table.columns)
    np.testing.assert_array_equal(more.arrays["test"], expected[1:])
    assert more.labels == {}
    path = tmp_path / "own.npz"
    np.savez(path, train=np.tile(train, (10, 1)), train_context=np.zeros((30, 1)))
    source = sources.load(f"npz:{path}", columns=said, missing="nan")
    assert (len(source.train), len(source.valid), len(source.test)) == (25, 2, 3)
    assert source.labels["test"].shape == (3,)
    assert source.contexts["test"].shape == (3, 1)
    for array, message in (
        (train[:, 0], "a table's columns are those of"),
        (train.astype(str), "own: a table's array holds numbers"),
        (train[:, :2], "no column is named 'x2': choose of x0, x1"),
    ):
        with pytest.raises(ValueError, match=message):
            csv_tables.of_arrays("own", {"train": array}, said)
    with pytest.raises(ValueError, match="more row 0, column x2: '9' is none of its"):
        csv_tables.further_rows("more", train[:1] * 3, table.columns)


@pytest.mark.parametrize(
    ("cells", "family"),
    [
        ([0, 0, 1, 1, 1, 1, 1, 3], "negative_binomial"),  # mean 1, variance 3/4
        ([0, 0, 1, 1, 1, 1, 2, 2], "negative_binomial"),  # 1/2 of the mean
        ([0, 1, 1, 1, 1, 1, 1, 2], "normal"),  # 1/4 of it
    ],
)
def test_counts_are_guessed_where_they_spread_as_counts_do(save, cells, family):
    table = csv_tables.read(save("a\n" + "\n".join(map(str, cells)) + "\n"), {})
    assert [c.family for c in table.columns] == [family]


def test_fifty_levels_are_not_too_many(save):
    text = "a\n" + "\n".join(f"level{i}" for i in range(csv_tables.MOST_LEVELS)) + "\n"
    assert len(csv_tables.read(save(text), {}).columns[0].levels) == 50


def test_each_row_has_one_level_of_a_context_of_many(save):
    levels = [f"level{i:02d}" for i in range(csv_tables.MOST_LEVELS)]
    lines = "".join(f"{i},{level}\n" for i, level in enumerate(levels))
    table = csv_tables.read(save("a,b\n" + lines), {"b": "context"})
    np.testing.assert_array_equal(table.contexts["train"], np.eye(50))
