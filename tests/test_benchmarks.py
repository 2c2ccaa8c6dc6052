"""The benchmarks on a tiny problem: what they time, and when they warn."""

import dataclasses
import importlib
import json
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.benchmark import (
    contenders,
    importance_sampling,
    iwae,
    layouts,
    ours,
    parts,
    process,
    rounds,
    scaling,
    start,
    train_step,
    whole,
)
from experiments.command import cli

pytestmark = pytest.mark.uses_optax

TINY: dict[str, Any] = {
    "dataset": "digits",
    "hidden": (8,),
    "num_latents": 2,
    "batch_size": 20,
    "num_steps": 3,
    "contenders": ("ours",),
}
RACE: dict[str, Any] = {"num_rounds": 2, "measure_memory": False}
FLAGS = contenders.Flags(**TINY)
MAPS: dict[str, Any] = {"width": 4, "num_blocks": 2, "activation": "gelu"}
NETWORKS: dict[str, dict[str, Any]] = {
    "mlp": {},
    "conv": {"network": "conv", **MAPS},
    "resnet": {"network": "resnet", **MAPS},
}


def _with(problem, **changes):
    return problem._replace(flags=dataclasses.replace(problem.flags, **changes))


@pytest.fixture(scope="module")
def problem():
    return contenders.problem(FLAGS)


def read(path):
    return json.loads(path.read_text())


def test_a_problem_has_the_shapes_of_its_flags(problem):
    assert problem.train.shape == (60, 8, 8)
    assert problem.num_steps == 3
    assert [len(layer.kernel) for layer in problem.start.encoder] == [64, 8]
    assert [len(layer.bias) for layer in problem.start.decoder] == [8, 64]
    assert 0.0 < problem.test.max() <= 1.0


@pytest.mark.slow
@pytest.mark.parametrize("network", NETWORKS)
def test_weights_go_into_our_parameters_and_back(problem, network):
    problem = contenders.problem(dataclasses.replace(FLAGS, **NETWORKS[network]))
    model = ours.built(problem).model
    at = ours.params(model, problem.layout, problem.start)
    shapes = jax.tree.map(np.shape, model.init(jax.random.key(0)))
    assert jax.tree.map(np.shape, at) == shapes
    back = ours.weights(at, problem.layout)
    jax.tree.map(np.testing.assert_array_equal, back, problem.start)


@pytest.mark.slow
@pytest.mark.parametrize("estimator", ["sgvb_b", "iwae"])
def test_an_epoch_of_ours_climbs_the_objective(problem, estimator):
    changed = _with(problem, estimator=estimator, num_samples=2)
    contender = ours.contender("ours", changed)
    before = ours.objective(changed, contender.weights())
    for _ in range(5):
        contender.epoch()
    assert ours.objective(changed, contender.weights()) > before


@pytest.mark.slow
def test_more_samples_of_the_ruler_give_a_tighter_bound(problem):
    first, many = (
        ours.objective(_with(problem, estimator="iwae", num_samples=k), problem.start)
        for k in (1, 50)
    )
    assert many > first


def test_the_products_of_a_step_are_those_of_its_layers(problem):
    work = parts.flops(problem)
    layers = [*problem.start.encoder, *problem.start.decoder]
    forward = sum(2 * 20 * layer.kernel.size for layer in layers)
    first = 2 * 20 * layers[0].kernel.size  # x needs no derivative
    assert work == 3 * forward - first
    assert parts.flops(_with(problem, num_samples=3)) > work
    maps = contenders.problem(dataclasses.replace(FLAGS, **NETWORKS["resnet"]))
    (*down, output), (start, *up) = maps.start
    forward = sum(2 * 20 * 16 * layer.kernel.size for layer in (*down, *up))
    forward += sum(2 * 20 * layer.kernel.size for layer in (output, start))
    assert parts.flops(maps) == 3 * forward - 2 * 20 * 16 * down[0].kernel.size


@pytest.mark.slow
def test_every_part_of_a_step_takes_time(problem):
    built = [*parts.PARTS.values(), parts.one_a_dispatch]
    dynamic = _with(problem, binarization="dynamic", num_samples=2)
    assert all(part(dynamic)() > 0.0 for part in built)


def test_a_peer_that_is_not_installed_is_left_out_and_named(monkeypatch, capsys):
    missing = contenders.Library("no_such_package", "no.such.module")
    monkeypatch.setitem(contenders.CONTENDERS, "torch", missing)
    assert contenders.fitting(["ours", "torch"]) == ["ours"]
    assert (
        "torch: left out, no_such_package is not installed" in capsys.readouterr().out
    )


@pytest.mark.parametrize(
    ("flags", "reason"),
    [
        ({"binarization": "dynamic"}, "fixed pixels"),
        ({"estimator": "iwae"}, "one sample alone"),
        ({"num_samples": 2}, "one sample alone"),
        ({}, ""),
    ],
)
def test_what_a_peer_does_not_have_leaves_it_out(monkeypatch, capsys, flags, reason):
    library = contenders.CONTENDERS["pythae"]._replace(package="jax")
    monkeypatch.setitem(contenders.CONTENDERS, "pythae", library)
    asked = dataclasses.replace(FLAGS, **flags)
    fitting = contenders.fitting(["ours", "pythae"], asked)
    assert fitting == (["ours"] if reason else ["ours", "pythae"])
    assert reason in capsys.readouterr().out


def test_none_that_can_run_is_an_error(monkeypatch):
    missing = contenders.Library("no_such_package", "no.such.module")
    monkeypatch.setitem(contenders.CONTENDERS, "torch", missing)
    with pytest.raises(cli.UsageError, match="--contenders=torch: none of them"):
        contenders.fitting(["torch"])


def test_a_race_says_who_is_no_contender(capsys):
    seconds = {"ours": [1.0, 2.0], "torch": [2.0, 2.0], "flax": [1.0, 1.0]}
    nats = {"ours": -1.0, "torch": -3.0, "flax": -1.9}
    race = rounds.Race(seconds, "bound", nats, {"torch": 5.0})
    assert race.note("flax") == "bound -1.90"
    assert race.note("torch") == "bound -3.00, 5 MiB, no contender: -2.0 nats"
    ratios = race.ratios("ours", ["ours", "torch", "numpyro"])
    assert list(ratios) == ["ours / torch"]
    figures = race.show(ratios, scale=1e3, unit="ms")
    assert figures["ratios"] == {"ours / torch": 0.75}
    printed = capsys.readouterr().out
    assert "no contender" in printed
    assert "ours / torch" in printed


def test_work_of_others_is_warned_of(monkeypatch, capsys):
    others = iter([0.0, 1e6])
    monkeypatch.setattr(rounds, "_others_seconds", lambda: next(others))
    seconds = rounds.interleaved({"a": lambda: 1.0}, num_rounds=3)
    assert seconds == {"a": [1.0, 1.0, 1.0]}
    assert "figures are suspect" in capsys.readouterr().out


def test_a_number_is_printed_as_soon_as_it_is_known(capsys):
    numbers, printed = iter([9.0, 1.0, 2.0]), []

    def second() -> float:
        printed.append(capsys.readouterr().out)
        return 0.5

    runs = {"a": lambda: next(numbers), "b": second}
    seconds = rounds.interleaved(runs, num_rounds=2)
    assert seconds == {"a": [1.0, 2.0], "b": [0.5, 0.5]}  # not the first, to be warm
    assert [text.split(", s: ")[-1] for text in printed] == ["a 9;", "a 1;", "a 2;"]


@pytest.mark.slow
def test_the_training_step_is_set_beside_its_limit(tmp_path, capsys):
    path = tmp_path / "step.json"
    config = train_step.Config(
        **TINY, **RACE, estimators=("dreg",), parts=False, output=str(path)
    )
    assert train_step.main(config) == 0
    printed = capsys.readouterr().out
    assert "(products + optimizer) / ours" in printed
    assert "dreg / sgvb_b" in printed
    result = read(path)
    assert set(result["seconds"]) == {"ours", "products", "optimizer", "dreg"}
    assert result["flops"] > 0


@pytest.mark.slow
@pytest.mark.parametrize("network", ["mlp", "resnet"])
def test_the_parts_and_the_rest_are_the_whole_step(tmp_path, capsys, network):
    path = tmp_path / "step.json"
    config = train_step.Config(**TINY, **RACE, **NETWORKS[network], output=str(path))
    assert train_step.main(config) == 0
    assert "where the time of our step goes" in capsys.readouterr().out
    race = rounds.Race(read(path)["seconds"])
    table = train_step.shares(race)
    whole_step = sum(table[name] for name in [*parts.of_network(network), "rest"])
    np.testing.assert_allclose(whole_step, 1.0)


@pytest.mark.slow
def test_the_benchmark_of_iwae_measures_and_writes(tmp_path, capsys):
    path = tmp_path / "iwae.json"
    config = iwae.Config(**TINY, **RACE, num_samples=3, output=str(path))
    assert iwae.main(config) == 0
    assert "bound" in capsys.readouterr().out
    assert len(read(path)["seconds"]["ours"]) == 2


@pytest.mark.slow
def test_scaling_moves_one_number_at_a_time(tmp_path, capsys):
    path = tmp_path / "scaling.json"
    few: dict[str, Any] = {
        "batch_sizes": (10,),
        "latents": (3,),
        "units": (4,),
        "samples": (2,),
    }
    config = scaling.Config(**TINY, **RACE, **few, num_rows=40, output=str(path))
    assert scaling.main(config) == 0
    assert "microseconds an example" in capsys.readouterr().out
    axes = [point["axis"] for point in read(path)["points"]]
    assert axes == ["batch_size", "num_latents", "hidden", "num_samples"]


@pytest.fixture
def children(monkeypatch, problem):
    """The cache folders of processes that are asked for, none of them run."""
    folders = []

    def trained(name, flags, *, cache=None):
        del flags
        assert name == "ours"
        folders.append(cache)
        return process.Trained(process.Process(1.0, 2.0, ""), 3.0, problem.start)

    monkeypatch.setattr(process, "trained", trained)
    return folders


def test_only_cached_starts_share_a_folder(tmp_path, children):
    path = tmp_path / "start.json"
    config = start.Config(**TINY, num_rounds=2, output=str(path))
    assert start.main(config) == 0
    times = {"ours, cold": [1.0, 1.0], "ours, cached": [1.0, 1.0]}
    assert read(path)["seconds"] == times
    assert read(path)["peak_mib"] == {"ours, cold": 3.0}
    assert len(children) == 6  # each once before the rounds
    assert children.count("") == 3
    assert len(set(children)) == 2


@pytest.mark.slow
def test_a_process_tells_when_it_was_ready_and_what_it_reached(tmp_path, problem):
    trained = process.trained(
        "ours", process.Config(**TINY, num_epochs=2), cache=str(tmp_path)
    )
    assert 0.0 < trained.process.first < trained.process.seconds
    assert trained.peak_mib > 0.0
    reached = ours.objective(problem, trained.weights)
    assert reached > ours.objective(problem, problem.start)
    assert list((tmp_path / "jax").iterdir())


@pytest.mark.slow
@pytest.mark.usefixtures("children")
def test_whole_processes_reach_what_they_print(tmp_path, capsys):
    path = tmp_path / "whole.json"
    config = whole.Config(**TINY, num_epochs=2, num_rounds=1, output=str(path))
    assert whole.main(config) == 0
    result = read(path)
    assert set(result["objectives"]) == {"ours", "experiments.train"}
    assert "ours / experiments.train" in capsys.readouterr().out


@pytest.mark.slow
def test_a_process_hands_on_its_weights(tmp_path, problem, capsys):
    path = tmp_path / "weights.npz"
    assert process.main(process.Config(**TINY, output=str(path))) == 0
    printed = capsys.readouterr().out.splitlines()
    assert printed[0] == process.FIRST
    assert json.loads(printed[-1])["peak_mib"] > 0.0
    shapes = [np.shape(leaf) for leaf in jax.tree.leaves(process.load(str(path)))]
    assert shapes == [np.shape(leaf) for leaf in jax.tree.leaves(problem.start)]


def _of_peer(name, problem):
    """Encoder and decoder of a peer at the weights that all start from."""
    if name == "flax":
        flax_vae = contenders.module(name)
        trees = map(flax_vae._tree, problem.start)
        pairs = zip(flax_vae.networks(problem), trees, strict=True)
        return [lambda x, n=n, p=p: n.apply({"params": p}, x) for n, p in pairs]
    torch = pytest.importorskip("torch")
    maps = importlib.import_module("experiments.benchmark.peers.torch_maps")
    networks = maps.networks(problem)
    for network, layers in zip(networks, problem.start, strict=True):
        jax.tree.map(np.testing.assert_array_equal, maps.layers(network), layers)
    return [
        lambda x, n=n: n(torch.from_numpy(np.array(x))).detach().numpy()
        for n in networks
    ]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["flax", "torch"])
@pytest.mark.parametrize("network", ["conv", "resnet"])
def test_convolutions_of_a_peer_compute_what_ours_do(tmp_path, name, network):
    """Of colors and sides that do not halve, too, at kernels that start anywhere."""
    rows = np.random.default_rng(0).integers(0, 256, (40, 19, 10, 3), np.uint8)
    np.savez(tmp_path / "rows.npz", train=rows)
    flags = {"dataset": f"npz:{tmp_path}/rows.npz", "num_steps": 1}
    flags = dataclasses.replace(FLAGS, **flags, **NETWORKS[network])
    problem = contenders.problem(flags)
    model = ours.built(problem).model
    at = ours.params(model, problem.layout, problem.start)
    encoder, decoder = _of_peer(name, problem)
    x = jnp.asarray(problem.train[:3], jnp.float32) / 255.0
    h = jax.vmap(model.recognition.encode, (None, 0))(at, x)
    np.testing.assert_allclose(encoder(x.reshape(3, -1)), h, atol=1e-4)
    z = h[:, :2]
    mean = jax.vmap(model.generative.mean_observation, (None, 0))(at, z)
    np.testing.assert_allclose(
        jax.nn.sigmoid(jnp.asarray(decoder(z))), mean.reshape(3, -1), atol=1e-5
    )


PEERS = [(n, "mlp", 130) for n in contenders.CONTENDERS if n != "ours"]
PEERS += [(n, "resnet", 30) for n in ("torch", "torch_bfloat16", "flax_jit")]


@pytest.mark.slow
@pytest.mark.parametrize(("name", "network", "epochs"), PEERS)
def test_a_peer_reaches_what_ours_reaches(problem, name, network, epochs):
    pytest.importorskip(contenders.CONTENDERS[name].package)
    problem = contenders.problem(dataclasses.replace(FLAGS, **NETWORKS[network]))
    assert contenders.fitting([name], problem.flags) == [name]
    reached = {}
    for each in ("ours", name):
        with jax.numpy_rank_promotion("allow"), jax.debug_key_reuse(False):  # NumPyro
            contender = contenders.module(each).contender(each, problem)
            for _ in range(epochs):  # past the steep descent, where noise is seen
                contender.epoch()
        reached[each] = ours.objective(problem, contender.weights())
    assert abs(reached["ours"] - reached[name]) < rounds.TOLERANCE


@pytest.mark.slow
@pytest.mark.parametrize("name", ["torch", "pythae"])
def test_a_peer_evaluates_as_ours_does(problem, name):
    pytest.importorskip(contenders.CONTENDERS[name].package)
    images = problem.test[:5] > 0.5
    weights = importance_sampling.near_prior(problem.start)
    of_ours, other = (
        contenders.module(each).evaluator(weights, 1000)(images)
        for each in ("ours", name)
    )
    np.testing.assert_allclose(of_ours, other, atol=0.2)


@pytest.mark.parametrize(
    ("config", "changes", "message"),
    [
        (train_step.Config, {"num_rounds": 0}, "--num_rounds must be positive, got 0"),
        (train_step.Config, {"batch_size": 0}, "--batch_size must be positive, got 0"),
        (
            whole.Config,
            {"contenders": ("ours", "keras")},
            "--contenders=keras is unknown",
        ),
        (start.Config, {"contenders": ()}, "--contenders must hold at least one"),
        (
            process.Config,
            {"contenders": ("ours", "torch")},
            "ours,torch: one a process",
        ),
        (
            train_step.Config,
            {"estimators": ("dregs",)},
            "--estimators=dregs is unknown",
        ),
        (importance_sampling.Config, {"contenders": ("flax",)}, "=flax is unknown"),
        (process.Config, {"num_epochs": 0}, "--num_epochs must be positive, got 0"),
    ],
)
def test_numbers_that_make_no_benchmark_are_refused(config, changes, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(config(), **changes)


def test_data_that_are_no_bytes_are_refused(tmp_path):
    path = tmp_path / "rows.npz"
    np.savez(path, train=np.zeros((30, 4), np.float32))
    flags = contenders.Flags(dataset=f"npz:{path}")
    with pytest.raises(cli.UsageError, match="plain bytes"):
        contenders.problem(flags)


@pytest.mark.slow
def test_layouts_are_timed_side_by_side(tmp_path, capsys):
    config = layouts.Config(
        hidden=(4,), num_latents=2, seeds=(2,), num_devices=2, num_rounds=2,
        num_steps=4, stream_steps=2, output=str(tmp_path / "layouts.json"),
    )  # fmt: skip
    assert layouts.main(config) == 0
    names = {layouts.BASE, layouts.ONE, "2 seeds", "rows from the host", "2 devices"}
    assert set(read(tmp_path / "layouts.json")["seconds"]) == names
    assert f"{layouts.BASE} / 2 seeds" in capsys.readouterr().out


def test_a_round_of_broken_pieces_is_refused():
    with pytest.raises(cli.UsageError, match="no multiple of --stream_steps=3"):
        cli.parse(layouts.Config, ["layouts", "--num_steps=4", "--stream_steps=3"])
