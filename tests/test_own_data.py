"""What is read of a user's own file, and what is refused of it."""

import dataclasses
import re
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest

from experiments import discrete, train
from experiments.choices.config import Config
from experiments.command import cli
from experiments.estimator_variance import command as estimator_variance
from experiments.measures import pictures
from experiments.runs import fit, new_rows, protocol, runs, trained_runs
from tests.tiny import tiny
from vae_jax.data import sources
from vae_jax.plots import files

pytestmark = pytest.mark.uses_optax


@pytest.fixture
def save(tmp_path):
    """Writes the splits of a file; its name as a data set."""

    def save(**arrays) -> str:
        np.savez(tmp_path / "own.npz", **arrays)
        return f"npz:{tmp_path / 'own.npz'}"

    return save


def values(low: float, high: float, *shape: int) -> np.ndarray:
    """Float32 values that reach both ends."""
    return np.linspace(low, high, int(np.prod(shape)), dtype=np.float32).reshape(shape)


def integers(high: int) -> np.ndarray:
    """Integers from 0 to high."""
    return values(0, high, 40, 4).round().astype(np.int64)


def test_results_on_the_current_folder_are_named_after_it(tmp_path, monkeypatch):
    (tmp_path / "cats").mkdir()
    monkeypatch.chdir(tmp_path / "cats")
    for name in (".", "../cats"):
        config = Config(dataset=f"images:{name}")
        assert str(config.directory()) == "runs/cats"
    assert str(Config(dataset="npz:a/own.npz").directory()) == "runs/own"


def test_another_data_set_is_read_as_the_runs_own(save):
    """Integers to 49 might be bytes or values, and the flag of the run says which."""
    name = save(train=integers(49), test=integers(49))
    config = Config(dataset=name, data_range="value", likelihood="poisson")
    data = protocol.load(config)
    new = new_rows.of_dataset(name, config, data)
    np.testing.assert_array_equal(new.rows, data.source.test)


def test_no_bits_are_told_of_a_table_whose_cells_may_be_empty(tmp_path, save):
    path = tmp_path / "counts.csv"
    path.write_text("a,b\n" + "".join(f"{i % 7},{i % 3}\n" for i in range(40)) + "4,\n")
    for name, has_bits in ((f"csv:{path}", False), (save(train=integers(9)), True)):
        read = "auto" if name.startswith("csv") else "value"
        data = protocol.load(
            Config(dataset=name, likelihood="poisson", data_range=read)
        )
        assert bool(data.in_bits({"elbo": -1.0})) == has_bits


def test_channels_before_pixels_are_no_image(save):
    name = save(train=np.zeros((40, 3, 8, 8), np.uint8))
    config = Config(dataset=name, network="conv", batch_size=5)
    with pytest.raises((ValueError, cli.UsageError), match=r"\[3, 8, 8\]: move its"):
        runs.build(config)


@pytest.mark.parametrize("split", sources.SPLITS)
def test_every_split_is_held_against_the_likelihood(save, split):
    arrays = {name: values(0, 1, 6, 4) for name in sources.SPLITS}
    name = save(**{**arrays, split: values(0, 255, 6, 4)})
    config = Config(dataset=name, binarization="none")
    with pytest.raises(ValueError, match=rf"the {split} split of .* has \[0, 255\]"):
        protocol.load(config)


CHOOSE = (
    "has values between 0 and 1: give --binarization=static or dynamic .* or threshold "
    r".*--likelihood=normal_per_pixel_std for real values, or --binarization=none"
)
NORMAL: dict[str, Any] = {"likelihood": "normal"}
REFUSED: dict[str, tuple[np.ndarray, dict[str, Any], str]] = {
    "shades as floats": (values(0, 1, 40, 4), {}, CHOOSE),
    "shades as bytes": (integers(255), {}, CHOOSE),
    "16 shades": (integers(16), {}, "integers up to 16, which .*: store floats"),
    "16 shades, drawn": (integers(16), {"binarization": "static"}, "up to 16"),
    "counts": (integers(90), NORMAL, "integers up to 90, which are taken for shades"),
    "reals": (values(-3, 3, 40, 4), {}, r"has \[-3, 3\]: .*normal_per_pixel_std"),
    "reals, cut": (
        values(-1, 1, 40, 4),
        {**NORMAL, "binarization": "threshold"},
        r"--binarization=threshold needs values in \[0, 1\], the train .* \[-1, 1\]",
    ),
    "bytes as floats": (values(0, 255, 40, 4), {}, r"cannot read .* \[0, 255\]"),
    "bytes as floats, cut": (
        values(0, 255, 40, 4),
        {"binarization": "threshold"},
        r"\[0, 255\]: scale it",
    ),
    "nothing above a half": (
        values(0, 0.1, 40, 4),
        {"binarization": "threshold"},
        r"1 from 1/2 on, .* has \[0, 0\.1\]: scale it",
    ),
    "squashed means": (
        values(0, 255, 40, 4),
        {**NORMAL, "squash_mean": True},
        r"--squash_mean needs values in \[0, 1\], .*leave --squash_mean out",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_no_flag_settles_is_refused_with_the_flag_that_does(tmp_path, save, case):
    rows, flags, said = REFUSED[case]
    config = tiny(tmp_path / "run", dataset=save(train=rows), batch_size=10, **flags)
    with pytest.raises(cli.UsageError, match=said) as error:
        fit.claim(config)
    assert "\n" not in str(error.value)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("split", ["valid", "test"])
def test_another_split_on_another_scale_is_refused(save, split):
    with pytest.raises(ValueError, match="train holds integers up to 1, which"):
        sources.load(save(train=integers(1), **{split: integers(255)}))
    rows = {"train": values(0, 1, 40, 4).round(), split: values(0, 1, 40, 4)}
    with pytest.raises(ValueError, match=f"the {split} split of .*{CHOOSE}"):
        protocol.load(Config(dataset=save(**rows)))
    rows[split] = values(0, 2, 40, 4)
    with pytest.raises(ValueError, match=f"--squash_mean needs .* the {split} split"):
        protocol.load(Config(dataset=save(**rows), **NORMAL, squash_mean=True))


def test_a_file_of_holes_alone_is_refused(save):
    name = save(train=np.full((40, 4), np.nan), test=values(0, 1, 40, 4))
    with pytest.raises(ValueError, match="every entry of the train split is missing"):
        protocol.load(Config(dataset=name, missing="nan"))


TAKEN: dict[str, tuple[np.ndarray, dict[str, Any], str]] = {
    "bits": (
        integers(1),
        {},
        "40 train, 0 valid, 0 test rows of 4 uint8, stored 0 to 1; --binarization=none:"
        " x = stored / 1; --likelihood=bernoulli: a row's number is a log-likelihood",
    ),
    "bits as floats": (
        values(0, 1, 40, 4).round(),
        {},
        "4 float32, stored 0 to 1; --binarization=none: .* a log-likelihood in nats",
    ),
    "bits as shades": (255 * integers(1), {}, "0 to 255; .* a log-likelihood in nats"),
    "bits with holes": (
        np.where(values(0, 1, 40, 4) > 0.9, np.nan, values(0, 1, 40, 4).round()),
        {"missing": "nan"},
        "stored 0 to 1, up to 10% of a split missing; .* a log-likelihood in nats",
    ),
    "shades, drawn": (
        integers(255),
        {"binarization": "dynamic"},
        "0 to 255; --binarization=dynamic: x = 1 with probability stored / 255, else 0;"
        " --likelihood=bernoulli: a row's number is a log-likelihood in nats",
    ),
    "shades as targets": (
        values(0, 1, 40, 4),
        {"binarization": "none"},
        "x = stored / 1; --likelihood=bernoulli: a row's number is a cross-entropy in",
    ),
    "shades on a grid": (
        integers(15) / 15,
        {"likelihood": "categorical", "num_values": 16},
        "x = stored / 1; --likelihood=categorical of 16 values: a row's number is a",
    ),
    "reals": (
        values(-3, 3, 40, 4),
        NORMAL,
        "stored -3 to 3; --binarization=none: x = stored / 1; --likelihood=normal: a "
        "row's number is a log-density in nats",
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("case", TAKEN)
def test_one_line_says_what_was_read_and_the_workdir_how(tmp_path, save, capsys, case):
    rows, flags, said = TAKEN[case]
    name = save(train=rows)
    config = tiny(tmp_path / "run", dataset=name, batch_size=10, **flags)
    run = fit.claim(config)
    printed = capsys.readouterr().out
    assert printed.count("\n") == 1
    assert printed.startswith(f"{name}: ")
    assert re.search(said, printed), printed
    chosen = flags.get("binarization", "none")
    assert f"--binarization={chosen}\n" in (tmp_path / "run" / "flags.txt").read_text()
    assert run.config.binarization == chosen
    fit.claim(config)  # the same command goes on
    fit.claim(dataclasses.replace(config, binarization=chosen))


def test_bits_are_what_they_would_be_by_any_binarization(save):
    name = save(train=integers(1))
    took = [
        prepared.value(jnp.asarray(prepared.train))
        for prepared in (
            protocol.load(Config(dataset=name, binarization=binarization)).prepared
            for binarization in ("auto", "threshold", "static")
        )
    ]
    np.testing.assert_array_equal(took[0], integers(1))
    for other in took[1:]:
        np.testing.assert_array_equal(took[0], other)


def test_the_embedded_data_set_is_thresholded_as_its_protocol_has_it(tmp_path, capsys):
    run = fit.claim(tiny(tmp_path / "run"))
    assert run.config.binarization == "threshold"
    assert capsys.readouterr().out == (
        "digits: 1000 train, 350 valid, 447 test rows of 8x8 uint8, stored 0 to 16; "
        "--binarization=threshold: x = 1 where stored / 16 >= 0.5, else 0; "
        "--likelihood=bernoulli: a row's number is a log-likelihood in nats; bits per "
        "dimension are -nats / (64 ln 2), of the values themselves\n"
    )


def test_its_real_values_have_to_be_asked_for_or_refused():
    with pytest.raises(ValueError, match=r"give --binarization=none for .* threshold"):
        protocol.load(Config(likelihood="normal"))
    prepared = protocol.load(Config(likelihood="normal", binarization="none")).prepared
    assert np.unique(prepared.value(jnp.asarray(prepared.train))).size == 17
    protocol.load(Config(likelihood="normal", binarization="threshold"))


def test_a_workdir_from_before_has_its_binarization_in_its_flags(tmp_path):
    config = tiny(tmp_path / "run")
    fit.claim(config)
    path = tmp_path / "run" / "flags.txt"
    assert "--binarization=threshold\n" in path.read_text()
    fit.claim(config)
    with pytest.raises(cli.UsageError, match="--binarization=threshold there, static"):
        fit.claim(dataclasses.replace(config, binarization="static"))


@pytest.mark.parametrize("script", [discrete, estimator_variance])
def test_other_scripts_binarize_no_file_in_silence(tmp_path, save, script):
    config = script.Config(
        workdir=str(tmp_path / "out"), dataset=save(train=values(0, 1, 200, 4))
    )
    with pytest.raises(cli.UsageError, match=CHOOSE):
        script.main(config)


@pytest.mark.slow
def test_pictures_are_drawn_on_the_scale_of_the_data(tmp_path, save):
    def limits(rows: np.ndarray, **flags) -> pictures.Limits:
        config = tiny(
            tmp_path / str(len(list(tmp_path.iterdir()))),
            dataset=save(train=rows),
            batch_size=10,
            **flags,
        )
        run = fit.claim(config)
        saved = runs.initial(run)
        return pictures.limits(trained_runs.of_run(run, saved, checkpoint="last"))

    assert limits(values(-1, 1, 20, 2, 2), **NORMAL) == (-1.0, 1.0)
    assert limits(values(0, 255, 20, 2, 2), **NORMAL) == (0.0, 255.0)
    assert limits(values(0.2, 0.7, 20, 2, 2), **NORMAL) == (0.0, 1.0)
    assert limits(values(3, 3, 20, 2, 2), **NORMAL) == (3.0, 4.0)
    assert limits(values(0, 1, 20, 2, 2), binarization="static") == (0.0, 1.0)


@pytest.mark.slow
def test_a_run_on_reals_draws_them_whole(tmp_path, save, monkeypatch):
    titles = []
    monkeypatch.setattr(
        files, "save", lambda figure, path: titles.append(figure.get_suptitle())
    )
    name = save(train=values(-40, 60, 30, 4, 4), test=values(-40, 60, 30, 4, 4))
    config = tiny(tmp_path / "run", dataset=name, batch_size=10, **NORMAL)
    assert train.main(config) == 0
    draws = [title for title in titles if "black -40, white 60" in title]
    assert len(draws) == 3  # samples, reconstructions, manifold


def test_errors_of_what_is_read_name_the_flags(tmp_path):
    rows = np.ones((20, 4), np.float32)
    rows[3, 1] = np.nan
    np.savez(tmp_path / "holes.npz", train=rows)
    np.savez(tmp_path / "splits.npz", train=rows[4:], valid=rows[4:])
    np.savez(tmp_path / "dark.npz", train=np.full((9, 4), 40, np.uint8))
    cases: dict[str, tuple[str, dict[str, Any]]] = {
        "holes": (r"\(--missing=nan\)$", {}),
        "splits": ("npz: --valid_size=2, but .*: leave --valid_size out$", {}),
        "dark": (r" \(--data_range=byte, word or value\)$", {"valid_size": -1}),
    }
    for name, (said, flags) in cases.items():
        config = Config(dataset=f"npz:{tmp_path / name}.npz")
        config = dataclasses.replace(config, **({"valid_size": 2} | flags))
        with pytest.raises(ValueError, match=said):
            protocol.load(config)
    digits = Config()
    with pytest.raises(cli.UsageError, match=r"\(--data_range=byte, word or value\)$"):
        new_rows.read(str(tmp_path / "dark.npz"), digits, protocol.load(digits))


def test_a_path_with_a_flags_name_in_it_stays_as_it_is():
    path = "/my/missing=1 (old)/leave/image_size=3/image_size).npz"
    with pytest.raises(ValueError, match="no rows") as error, protocol.naming_flags():
        raise ValueError(f"{path}: no rows: scale all (image_size)")
    assert str(error.value) == f"{path}: no rows: scale all (--image_size)"
