"""Files of rows: whole, of their own model, and as long as the table says."""

import dataclasses
import json

import jax
import numpy as np
import pytest

from experiments import compress, train
from experiments.command import cli
from experiments.runs import trained_runs
from tests.tiny import ROOT, tiny
from vae_jax.coding import files
from vae_jax.data import codecs

pytestmark = pytest.mark.uses_optax


def _trained(path, **changes):
    with jax.numpy_dtype_promotion("standard"):
        assert train.main(tiny(path, **changes)) == 0
    return path


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    """A tiny run of digits, with the file of its first rows of test."""
    path = _trained(tmp_path_factory.mktemp("compress") / "run")
    config = _config(path, output=str(path / "test.bits"), importance_samples=4)
    with jax.numpy_dtype_promotion("standard"):
        assert compress.main(config) == 0
    return path


def _trained_on_counts(folder, train_rows, test_rows, **flags):
    np.savez(folder / "counts.npz", train=train_rows, test=test_rows)
    return _trained(
        folder / "run",
        dataset=f"npz:{folder / 'counts.npz'}",
        data_range="value",
        binarization="none",
        **flags,
    )


def _config(path, **flags):
    """The flags of a file of 250 rows without log p(x)."""
    start = compress.Config(workdir=str(path), num_images=250, importance_samples=0)
    return dataclasses.replace(start, **flags)


def _rows(path):
    trained = trained_runs.load(path, checkpoint="auto")[0]
    return np.asarray(trained_runs.spread_rows(trained, split="test", num_images=250))


@pytest.mark.slow
def test_the_rows_come_back_as_they_are_stored(workdir):
    output = workdir / "rows.npz"
    config = compress.Config(
        workdir=str(workdir), decompress=str(workdir / "test.bits"), output=str(output)
    )
    assert compress.main(config) == 0
    np.testing.assert_array_equal(np.load(output)["test"], _rows(workdir))


@pytest.mark.slow
def test_the_table_is_of_the_file(workdir):
    result = json.loads((workdir / "compressed_250_images.json").read_text())
    whole, header, first_bits, net, bound, evidence, *generic = result["table"]
    assert whole["bytes"] == (workdir / "test.bits").stat().st_size
    assert header["bytes"] == whole["bytes"] - 4 * len(
        files.read(workdir / "test.bits")[1]
    )
    parts = header["bytes"] + first_bits["bytes"] + net["bytes"]
    np.testing.assert_allclose(parts, whole["bytes"])
    assert first_bits["name"] == "its first bits, which come back"
    np.testing.assert_allclose(net["bytes"], bound["bytes"], rtol=0.005)
    assert 0.9 * bound["bytes"] < evidence["bytes"] < bound["bytes"]
    names = [*compress.GENERIC, *compress.IMAGES.values()]
    assert [row["name"] for row in generic] == names
    images = _rows(workdir).reshape(-1, 8, 8).astype(bool)
    for row, codec in zip(generic[3:], compress.IMAGES, strict=True):
        assert row["bytes"] == codecs.sizes(images, codec).sum()
    packed = np.packbits(_rows(workdir).astype(np.uint8)).tobytes()
    assert generic[1]["bytes"] == len(compress.GENERIC["bz2"](packed))
    for row in result["table"]:
        bits = 8.0 * row["bytes"] / (250 * 64)
        np.testing.assert_allclose(row["bits_per_dimension"], bits)
    by_name = (workdir / "compressed_250_images.csv").read_text().splitlines()
    assert by_name[0] == "name,bits_per_dimension,bytes"
    assert len(by_name) == 1 + len(result["table"])
    assert (workdir / "compressed_250_images.png").stat().st_size > 0
    text = (workdir / "compressed_250_images.txt").read_text()
    assert f"{net['bits_per_dimension']:.4f}" in text


@pytest.mark.slow
def test_a_written_file_is_verified(workdir, capsys):
    config = compress.Config(workdir=str(workdir), verify=str(workdir / "test.bits"))
    assert compress.main(config) == 0
    assert "250 rows, which decode as written" in capsys.readouterr().out


def _changed(workdir, tmp_path, **changes):
    header, words = files.read(workdir / "test.bits")
    files.write(tmp_path / "a.bits", header | changes, words)
    return compress.Config(workdir=str(workdir), verify=str(tmp_path / "a.bits"))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["model", "versions", "device", "shape", "num_values"])
def test_a_file_of_another_decoder_is_refused(workdir, tmp_path, name):
    config = _changed(workdir, tmp_path, **{name: "another"})
    with pytest.raises(
        cli.UsageError, match=f"with another {name.replace('_', ' ')} .*another"
    ):
        compress.main(config)


SOUND = {"latent_bits": 12, "latent_precision": 24, "precision": 18}


@pytest.mark.slow
@pytest.mark.parametrize(
    "changes",
    [
        {"num_rows": 10**12},
        {"num_rows": -1},
        {"num_rows": None},
        {"num_rows": "250"},
        {"rows_sha256": None},
        {"batch_size": 0},
        {"batch_size": 251},
        {"batch_size": True},
        {"quantization": None},
        {"quantization": SOUND | {"latent_bits": 24}},
        {"quantization": SOUND | {"latent_bits": 0}},
        {"quantization": SOUND | {"precision": 29}},
        {"quantization": SOUND | {"precision": 18.0}},
        {"quantization": SOUND | {"other": 1}},
    ],
    ids=str,
)
def test_a_header_that_none_is_written_with_is_not_believed(workdir, tmp_path, changes):
    config = _changed(workdir, tmp_path, **changes)
    with pytest.raises(cli.UsageError, match="made by something else"):
        compress.main(config)


@pytest.mark.slow
def test_words_of_other_rows_are_not_taken_for_them(workdir, tmp_path):
    config = _changed(workdir, tmp_path, rows_sha256="0")
    with pytest.raises(cli.UsageError, match=r"a\.bits .* not those that were encoded"):
        compress.main(config)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda content: content[:-9], "is damaged"),
        (lambda content: content[:99] + b"?" + content[100:], "is damaged"),
        (lambda content: b"PK" + content, "no such file"),
    ],
)
def test_a_damaged_file_is_one_line_and_nothing_is_written(
    workdir, tmp_path, damage, said
):
    (tmp_path / "a.bits").write_bytes(damage((workdir / "test.bits").read_bytes()))
    output = tmp_path / "rows.npz"
    config = compress.Config(
        workdir=str(workdir), decompress=str(tmp_path / "a.bits"), output=str(output)
    )
    with pytest.raises(cli.UsageError, match=said):
        compress.main(config)
    assert not output.exists()


@pytest.mark.slow
def test_a_file_that_is_not_there_is_named(workdir, tmp_path):
    config = compress.Config(workdir=str(workdir), verify=str(tmp_path / "a.bits"))
    with pytest.raises(cli.UsageError, match=r"a\.bits"):
        compress.main(config)


@pytest.mark.slow
def test_a_folder_is_no_file_of_bits(workdir, tmp_path):
    config = compress.Config(workdir=str(workdir), decompress=str(tmp_path))
    with pytest.raises(cli.UsageError, match=f"^{tmp_path} is a folder"):
        compress.main(config)


@pytest.mark.slow
def test_rows_without_a_code_are_refused(tmp_path):
    flags = {"likelihood": "normal_learned_std", "binarization": "none"}
    path = _trained(tmp_path / "run", num_epochs=1, **flags)
    output = tmp_path / "a.bits"
    with pytest.raises(cli.UsageError, match=r"log-density .* has no code"):
        compress.main(_config(path, output=str(output)))
    assert not output.exists()


@pytest.mark.slow
@pytest.mark.parametrize(
    "flags",
    [
        {"likelihood": "categorical", "num_values": 17, "binarization": "none"},
        {
            "likelihood": "discretized_logistic_mixture",
            "num_values": 17,
            "binarization": "none",
        },
        {"posterior": "bernoulli", "estimator": "vimco", "num_samples": 2},
        {"ladder": ("3", "2"), "num_latents": 16},
        {"posterior": "finite_scalar", "estimator": "sgvb_a"},
        {
            "posterior": "vector_quantized",
            "prior": "autoregressive",
            "estimator": "codebook_gradient",
            "code_width": 2,
        },
    ],
    ids=["categorical", "mixture", "bits", "ladder", "grid", "codebook"],
)
def test_values_and_latents_of_other_kinds_come_back(tmp_path, flags):
    path = _trained(tmp_path / "run", num_epochs=1, **flags)
    output = tmp_path / "a.bits"
    assert compress.main(_config(path, output=str(output), num_images=30)) == 0
    assert compress.main(compress.Config(workdir=str(path), verify=str(output))) == 0
    text = (path / "compressed_30_images.txt").read_text()
    is_point_mass = flags.get("posterior") in ("finite_scalar", "vector_quantized")
    assert ("come back" in text) != is_point_mass


@pytest.mark.slow
@pytest.mark.parametrize(
    "flags",
    [
        {"likelihood": "poisson"},
        {"likelihood": "beta_binomial", "num_trials": 300},
    ],
    ids=["poisson", "beta-binomial"],
)
def test_counts_come_back_and_cost_minus_their_bound(tmp_path, flags):
    counts = np.random.default_rng(0).binomial(300, 0.01, size=(600, 3, 4))
    rows = counts.astype(np.uint16)
    workdir = _trained_on_counts(tmp_path, rows[:300], rows[300:], **flags)
    config = _config(workdir, num_images=0)
    trained = trained_runs.load(workdir, checkpoint="auto")[0]
    result = compress.compress(config, trained, tmp_path / "a.bits")
    assert result["header"]["num_values"] == 1 + rows[300:].max()
    net, bound = (row["bytes"] for row in result["table"][3:5])
    np.testing.assert_allclose(net, bound, rtol=0.01)
    assert compress._of_floor(result) == []
    decoded = compress.decompress(str(tmp_path / "a.bits"), trained)
    np.testing.assert_array_equal(decoded, rows[300:])
    header, words = files.read(tmp_path / "a.bits")
    for number, said in (
        (0, "made by something else"),
        (2**17, "made by something else"),
        (header["num_values"] + 1, r"b\.bits has not the words"),
    ):
        files.write(tmp_path / "b.bits", header | {"num_values": number}, words)
        with pytest.raises(ValueError, match=said):
            compress.decompress(str(tmp_path / "b.bits"), trained)


@pytest.mark.slow
def test_a_count_whose_tables_are_too_large_is_refused(tmp_path):
    rows = np.full((120, 4), 70_000, np.int32)
    flags = {"likelihood": "poisson", "num_epochs": 1}
    workdir = _trained_on_counts(tmp_path, rows, rows, **flags)
    config = _config(workdir, num_images=0, output=str(tmp_path / "a.bits"))
    with pytest.raises(cli.UsageError, match="a count of 70000 is beyond 65535"):
        compress.main(config)


@pytest.mark.slow
def test_a_file_shorter_than_the_bound_says_why(tmp_path, capsys):
    rows = np.random.default_rng(0).integers(0, 300, size=(40, 3, 4)).astype(np.uint16)
    workdir = _trained_on_counts(
        tmp_path, rows, rows, likelihood="poisson", batch_size=20
    )
    config = _config(workdir, num_images=0, output=str(tmp_path / "a.bits"))
    assert compress.main(config) == 0
    assert "shorter than minus the bound: every value has" in capsys.readouterr().out


@pytest.mark.slow
def test_columns_of_a_table_are_refused(tmp_path):
    table = f"csv:{ROOT / 'tests' / 'rooms.csv'}"
    workdir = _trained(tmp_path / "run", dataset=table, num_epochs=1, batch_size=10)
    config = _config(workdir, num_images=0, output=str(tmp_path / "a.bits"))
    with pytest.raises(cli.UsageError, match=r"^columns of a table have no code"):
        compress.main(config)


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        ({"output": "a", "verify": "b"}, "writes nothing"),
        ({"verify": "b", "decompress": "c"}, "one of the two"),
        ({"output": "a", "decompress": "b"}, "written as .npz"),
        ({"output": "a", "importance_samples": 501}, "multiple"),
        ({"verify": "b", "num_images": 3, "seed": 1}, "^--num_images, --seed: not rea"),
        (
            {"decompress": "b", "latent_bits": 3},
            "^--latent_bits: not .* --decompress=b",
        ),
    ],
)
def test_flags_that_do_not_go_together_are_refused(flags, said):
    with pytest.raises(ValueError, match=said):
        compress.Config(**flags)


@pytest.mark.slow
def test_a_seed_gives_the_same_file_and_another_other_bits(workdir, tmp_path):
    trained = trained_runs.load(workdir, checkpoint="auto")[0]
    contents = []
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        config = _config(workdir, num_images=20, seed=seed)
        compress.compress(config, trained, tmp_path / name)
        contents.append(files.read(tmp_path / name)[1].tobytes())
    assert contents[0] == contents[1] != contents[2]
