"""experiments.export: trained models, carried elsewhere."""

import dataclasses
import json
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy

import vae_jax
from experiments.command import cli
from experiments.export import cards
from experiments.export import command as export
from experiments.measures import pictures
from experiments.runs import protocol, runs, trained_runs
from tests import testing
from tests.architectures import ARCHITECTURES, TINY, untrained
from vae_jax import artifacts
from vae_jax.training import checkpoints

# What a process may not import; run with -I, so that no path of the project is there.
FRESH = """
import importlib.abc, sys

BLOCKED = {"vae_jax", "experiments", "flax", "optax", "orbax", "safetensors"}

class Blocker(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in BLOCKED:
            raise ImportError(name)

sys.meta_path.insert(0, Blocker())
import jax.export
import numpy as np

folder = sys.argv[1]
inputs, results = np.load(folder + "/inputs.npz"), {}
for name in sys.argv[2:]:
    content = open(folder + "/" + name + ".stablehlo", "rb").read()
    call = jax.jit(jax.export.deserialize(content).call)
    for size in (1, 3, 8):
        arguments = [inputs[key][:size] for key in inputs if key.startswith(name + ".")]
        for i, out in enumerate(jax.tree.leaves(call(*arguments))):
            results[f"{name}.{size}.{i}"] = np.asarray(out)
assert not BLOCKED & {name.split(".")[0] for name in sys.modules}
np.savez(folder + "/results.npz", **results)
"""


@pytest.fixture(scope="module")
def digits():
    """The data that every model here is built for."""
    return protocol.load(TINY)


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    """A run's folder with a checkpoint, before its first step."""
    path = tmp_path_factory.mktemp("runs") / "tiny"
    path.mkdir()
    config = dataclasses.replace(TINY, workdir=str(path))
    (path / "flags.txt").write_text(cli.write_flagfile(config))
    with jax.numpy_dtype_promotion("standard"):
        run = runs.build(config)
        checkpoints.save(path / "checkpoints", 0, runs.initial(run))
    return path


@pytest.mark.slow
def test_the_card_says_what_x_is_and_where_the_numbers_come_from(workdir):
    results = {
        "result": {"step": 0, "elbo": -20.5, "active_units": float("nan")},
        "evaluation_test": {"step": 0, "log_p": -19.0, "kl_per_latent": [1.0]},
        "evaluation_valid": {"step": 300, "log_p": -1.0},
    }
    for name, result in results.items():
        (workdir / f"{name}.json").write_text(json.dumps(result))
    trained = trained_runs.load(workdir, checkpoint="last")[0]
    export.main(export.Config(workdir=str(workdir)))
    card = artifacts.read_model(workdir / "model.safetensors")[1]
    assert card == json.loads(json.dumps(cards.of_trained(trained)))
    assert card["x"] == {
        "shape": [8, 8],
        "dtype": "float32",
        "stored_dtype": "uint8",
        "offset": 0.0,
        "divisor": 16.0,
        "binarization": "threshold",
        "holes": "none: NaN gives NaN",
        "value": "x = 1 where stored / 16 >= 0.5, else 0",
    }
    assert card["z"] == {"shape": [2]}
    assert card["protocol"]["split_sizes"] == {"train": 1000, "valid": 350, "test": 447}
    # of this step alone, and what is one number
    assert card["results"] == {
        "result": {"step": 0, "elbo": -20.5},
        "evaluation_test": {"step": 0, "log_p": -19.0},
    }
    packages = card["environment"]["packages"]
    assert packages["jax"] == jax.__version__
    assert packages["vae_jax"] == vae_jax.__version__
    assert not {"workdir", "data_dir", "progress"} & card["flags"].keys()
    assert card["flags"]["hidden"] == [5]


# Functions


def write_functions(folder, digits, wanted):
    """Exports NAME.FUNCTION of each architecture; returns originals and inputs."""
    generator, functions, inputs = np.random.default_rng(0), {}, {}
    for name, whats in wanted.items():
        trained = untrained(digits, **ARCHITECTURES[name])
        for what in whats:
            made = export.FUNCTIONS[what](trained)
            stem = f"{name}_{what}"
            path = folder / f"{stem}.stablehlo"
            artifacts.save_function(path, made.function, made.inputs, {})
            functions[stem] = jax.jit(jax.vmap(made.function))
            for i, (kind, array) in enumerate(made.inputs.items()):
                inputs[f"{stem}.{i}"] = {
                    "key_data": lambda: generator.integers(0, 2**32, (8, 2)),
                    "x": lambda: generator.integers(0, 2, (8, 8, 8)),
                    "z": lambda array=array: generator.normal(size=(8, *array.shape)),
                }[kind]().astype(array.dtype)
    np.savez(folder / "inputs.npz", **inputs)
    return functions, inputs


@pytest.mark.slow
@pytest.mark.parametrize(
    "wanted",
    [
        pytest.param({"mlp": ["encoder"]}, id="quick"),
        pytest.param(
            {
                "mlp": ["decoder", "sampler", "log_weight"],
                "full_normal": ["encoder", "log_weight"],
                "iaf": ["encoder", "log_weight"],
                "bernoulli": ["encoder", "sampler", "log_weight"],
                "vamp": ["sampler", "log_weight"],
                "exemplar": ["sampler", "log_weight"],
                "ladder": ["encoder", "decoder", "sampler", "log_weight"],
                "learned_std": ["decoder", "sampler", "log_weight"],
                "full_vb": ["decoder", "sampler"],
                "vem": ["log_weight"],
            },
            id="all",
            marks=[pytest.mark.slow, pytest.mark.uses_optax],
        ),
    ],
)
def test_a_process_without_the_project_runs_what_was_exported(tmp_path, digits, wanted):
    functions, inputs = write_functions(tmp_path, digits, wanted)
    # After that the lines that the docstring promises, as they stand there.
    lines = str(export.__doc__).splitlines()
    promised = [line[4:] for line in lines if line.startswith("    ")]
    promised = promised[promised.index("import jax.export") :]
    stem = next(name for name in functions if name.endswith("encoder"))
    (tmp_path / "encoder.stablehlo").symlink_to(tmp_path / f"{stem}.stablehlo")
    program = "\n".join([FRESH, *promised])
    done = subprocess.run(
        [sys.executable, "-I", "-c", program, str(tmp_path), *functions],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.endswith("(3, 2)\n")
    results = np.load(tmp_path / "results.npz")
    compared = 0
    for name, function in functions.items():
        columns = [array for key, array in inputs.items() if key.startswith(f"{name}.")]
        for size in (1, 3, 8):
            for i, out in enumerate(
                jax.tree.leaves(function(*(array[:size] for array in columns)))
            ):
                got = results[f"{name}.{size}.{i}"]
                assert got.dtype == out.dtype
                np.testing.assert_allclose(got, out, rtol=1e-6, atol=1e-6)
                compared += 1
    assert compared == len(results.files)


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", ["full_normal", "bernoulli", pytest.param("mlp", marks=pytest.mark.slow)]
)
def test_the_encoder_gives_the_mean_and_standard_deviation_of_q(digits, name):
    trained = untrained(digits, **ARCHITECTURES[name])
    x = jnp.asarray(digits.prepared.test[0], jnp.float32)
    mean, std = jax.jit(export.encoder(trained).function)(x)
    recognition, params = trained.model.recognition, trained.params

    def draw(key):
        return recognition.sample(key, params, recognition.encode(params, x))

    z = jax.jit(jax.vmap(draw))(jax.random.split(jax.random.key(0), 20_000))
    testing.assert_mean_equals(z, mean)
    testing.assert_mean_equals((z - mean[None]) ** 2, std**2)


@pytest.mark.parametrize("name", ["iaf", "ladder"])
def test_where_q_has_no_mean_in_closed_form_the_encoder_gives_h_and_says_so(
    digits, name
):
    trained = untrained(digits, **ARCHITECTURES[name])
    made = export.encoder(trained)
    h = jax.eval_shape(made.function, *made.inputs.values())
    encode = trained.model.recognition.encode
    assert h == jax.eval_shape(encode, trained.params, *made.inputs.values())
    assert made.returns.startswith("h, from which")
    assert "no closed form" in made.returns


def test_the_sampler_draws_what_generate_draws(digits):
    trained = untrained(digits)
    wanted = pictures.samples(jax.random.key(4), trained, num=6)["x"]
    keys = jax.random.key_data(jax.random.split(jax.random.key(4), 6))
    made = export.sampler(trained)
    np.testing.assert_array_equal(jax.jit(jax.vmap(made.function))(keys), wanted)


# The command


@pytest.mark.parametrize("what", ["model", "sampler"])
def test_the_command_writes_what_it_then_finds_whole(workdir, tmp_path, what, capsys):
    out = tmp_path / ("a.safetensors" if what == "model" else "a.stablehlo")
    assert (
        export.main(export.Config(workdir=str(workdir), what=what, out=str(out))) == 0
    )
    assert f"written to {out}" in capsys.readouterr().out
    export.main(export.Config(check=str(out)))
    card = json.loads(capsys.readouterr().out)
    assert card["x"]["shape"] == [8, 8]
    assert card.get("function", "model") == what
    assert len(list(tmp_path.iterdir())) == (1 if what == "model" else 2)


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda content: content[: len(content) // 2], "is damaged"),
        (lambda content: content[:-1] + bytes([content[-1] ^ 1]), "is damaged"),
        (lambda content: b"", "is damaged"),
    ],
    ids=["cut", "bit", "empty"],
)
@pytest.mark.parametrize("suffix", ["safetensors", "stablehlo"])
def test_a_damaged_file_is_one_line(workdir, tmp_path, digits, suffix, damage, said):
    trained, path = untrained(digits), tmp_path / f"a.{suffix}"
    if suffix == "safetensors":
        artifacts.save_model(path, trained.params, cards.of_trained(trained))
    else:
        made = export.decoder(trained)
        artifacts.save_function(path, made.function, made.inputs, {})
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(cli.UsageError, match=said) as raised:
        export.main(export.Config(check=str(path)))
    assert "\n" not in str(raised.value)


def test_a_model_of_another_version_is_one_line(tmp_path):
    path = tmp_path / "a.safetensors"
    metadata = {"format": "vae_jax model", "version": "2"}
    safetensors.numpy.save_file({"w": np.ones(1)}, path, metadata)
    with pytest.raises(cli.UsageError, match="version 2 of its format"):
        export.main(export.Config(check=str(path)))
    (tmp_path / "a.safetensors.json").write_text('{"format": "a diary"}')
    with pytest.raises(cli.UsageError, match="no card of a function"):
        export.main(export.Config(check=str(path)))
    with pytest.raises(cli.UsageError, match=r"none\.stablehlo"):
        export.main(export.Config(check=str(tmp_path / "none.stablehlo")))


def test_a_check_refuses_what_it_does_not_read():
    with pytest.raises(ValueError, match=r"^--member, --out, --what: not read with"):
        export.Config(check="a.safetensors", what="encoder", out="b", member=1)


def test_a_folder_is_no_file_to_check(tmp_path):
    (tmp_path / "a.stablehlo").mkdir()
    for path in (tmp_path, tmp_path / "a.stablehlo"):
        with pytest.raises(cli.UsageError, match=f"^--check={path} is a folder: name"):
            export.main(export.Config(check=str(path)))


def test_a_folder_without_a_run_or_a_checkpoint_is_one_line(workdir, tmp_path):
    with pytest.raises(cli.UsageError, match=r"holds no run \(flags"):
        export.main(export.Config(workdir=str(tmp_path)))
    (tmp_path / "flags.txt").write_text((workdir / "flags.txt").read_text())
    with pytest.raises(cli.UsageError, match="holds no checkpoint yet"):
        export.main(export.Config(workdir=str(tmp_path)))


def test_a_place_that_cannot_be_written_is_named_before_the_work(workdir, tmp_path):
    (tmp_path / "file").write_text("mine")
    for out, said in (
        (tmp_path, "is a folder: name a file"),
        (tmp_path / "none" / "a", "there is no folder"),
        (tmp_path / "file" / "a", "there is no folder"),
    ):
        with pytest.raises(cli.UsageError, match=said):
            export.main(export.Config(workdir="no such run", out=str(out)))


def test_a_write_that_fails_is_one_line(workdir, tmp_path, monkeypatch):
    def full(*paths):
        raise OSError("no space left")

    monkeypatch.setattr("os.replace", full)
    for what in ("model", "decoder"):
        with pytest.raises(cli.UsageError, match="no space left"):
            export.main(
                export.Config(
                    workdir=str(workdir), what=what, out=str(tmp_path / "out")
                )
            )
    assert not list(tmp_path.iterdir())


def test_what_a_model_has_not_is_not_exported(digits):
    with pytest.raises(ValueError, match="--algorithm=vem trains no encoder"):
        export.encoder(untrained(digits, **ARCHITECTURES["vem"]))
    grays = protocol.load(dataclasses.replace(TINY, binarization="none"))
    trained = untrained(grays, binarization="none")
    with pytest.raises(ValueError, match="--what=log_weight: targets are not binary"):
        export.log_weight(trained)
