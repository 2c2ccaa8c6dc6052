"""The script on the posterior gap, run in process with tiny configurations."""

import json
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.command import cli
from experiments.posterior_gap import command as posterior_gap
from experiments.posterior_gap import family, joint, models, training
from vae_jax.types import Params, log_joint, log_likelihood

pytestmark = pytest.mark.uses_optax
TINY = {
    "num_seeds": 2,
    "num_rows": 8,
    "num_test": 4,
    "hidden": 2,
    "num_steps": 20,
    "num_points": 3,
    "inner_steps": (1, 2),
    "search_steps": 3,
    "num_nodes": 160,
}


def read(path):
    return json.loads(path.read_text())


@pytest.mark.slow
def test_every_part_is_measured_drawn_and_kept(tmp_path, capsys):
    config = posterior_gap.Config(workdir=str(tmp_path), **TINY)
    assert posterior_gap.main(config) == 0
    result = read(tmp_path / "posterior_gap.json")

    assert result["largest_discrepancy"]["frozen"] < 1e-6
    assert len(result["frozen"]) == 3
    for curve in result["frozen"].values():
        assert curve["step"] == [0, 10, 20]
        assert curve["theta_moved"] == [0.0] * 3
        assert len(set(curve["log_p"])) == 1, "log p(x) does not move"
        np.testing.assert_allclose(curve["gained"], curve["lost"], atol=1e-6)
        assert curve["lost"][-1] > 0.1
    assert [curve["seed"] for curve in result["joint"]] == [0, 1]
    for curve in result["joint"]:
        sum_of_two = np.array(curve["bound"]) + curve["divergence"]
        np.testing.assert_allclose(sum_of_two, curve["log_p"], atol=1e-3)
        assert min(curve["to_truth"] + curve["posterior_to_truth"]) > 0.0
    names = ["k = 1", "k = 2", "converged", "exact"]
    assert list(result["lagging"]) == names
    assert {len(curves) for curves in result["lagging"].values()} == {2}
    starts = [c["log_p"][0] for curves in result["lagging"].values() for c in curves]
    np.testing.assert_allclose(starts[2:], starts[:2] * 3)
    pictures = {f"{part}.png" for part in posterior_gap.PARTS} | {"distances.png"}
    assert {path.name for path in tmp_path.glob("*.png")} == pictures
    assert "KL differ by at most" in capsys.readouterr().out

    before = (tmp_path / "lagging.json").stat().st_mtime_ns
    assert posterior_gap.main(config) == 0
    assert (tmp_path / "lagging.json").stat().st_mtime_ns == before, "read back"


@pytest.mark.slow
def test_a_diagonal_q_moves_the_optimum_and_a_full_one_does_not(x64):
    result = family.run(posterior_gap.Config())
    np.testing.assert_allclose(result.log_p.std, 0.5, atol=1e-6)
    np.testing.assert_allclose(result.full.std, 0.5, atol=1e-6)
    np.testing.assert_allclose(result.diagonal.std, 0.63, atol=5e-4)
    np.testing.assert_allclose(result.full.values, result.log_p.values, rtol=1e-10)
    # Learned with the encoder, and not put in, the best q leads to the same.
    np.testing.assert_allclose(result.joint_std["full"], 0.5, atol=1e-5)
    wanted = result.diagonal.std
    np.testing.assert_allclose(result.joint_std["diagonal"], wanted, atol=1e-5)
    # log p at the truth, from matrices.
    w = np.array(models.COLUMNS)
    covariance = w @ w.T + 0.25 * np.eye(3)
    log_det = np.linalg.slogdet(covariance)[1]
    log_p = -0.5 * (3.0 * math.log(2.0 * math.pi) + log_det + 3.0)
    np.testing.assert_allclose(result.log_p.greatest, log_p, rtol=1e-9)


def test_the_population_has_the_covariance_of_the_model(x64):
    rows = np.asarray(family.population())
    w = np.array(models.COLUMNS)
    np.testing.assert_allclose(rows.mean(0), 0.0, atol=1e-12)
    wanted = w @ w.T + 0.25 * np.eye(3)
    np.testing.assert_allclose(rows.T @ rows / len(rows), wanted, atol=1e-12)


@pytest.mark.slow
def test_the_distance_to_the_truth_is_none_once_the_latents_are_turned_back(x64):
    problem = models.nonlinear(hidden=3, num_nodes=80, q_nodes=60)
    truth, generative = problem.truth(jax.random.key(0)), problem.model.generative
    x = models.sample(jax.random.key(1), problem, truth, 8)
    c, s = np.cos(np.radians(33.0)), np.sin(np.radians(33.0))
    turn = np.array([[c, -s], [-s, -c]])  # by 33 degrees, and reflected
    hidden = truth["decoder"]["hidden_0"]
    other = {**hidden, "kernel": jnp.asarray(turn.T) @ hidden["kernel"]}
    theta = {**truth, "decoder": {**truth["decoder"], "hidden_0": other}}
    # q of each row: the moments of the posterior, on a grid.
    axis = np.linspace(-5.0, 5.0, 81)
    z = np.stack(np.meshgrid(axis, axis), -1).reshape(-1, 2)

    @jax.jit
    @jax.vmap
    def moments(x):
        joint = jax.vmap(lambda z: log_joint(generative, Params(theta, ()), x, z))
        share = jax.nn.softmax(joint(jnp.asarray(z)))
        mean = share @ z
        variance = share @ (z - mean[None]) ** 2
        return jnp.concatenate([mean, 0.5 * jnp.log(variance)])

    h = moments(x)
    log_p = problem.log_p(truth, (), x)
    distance = joint.distance_to_truth(problem, num_nodes=80)
    got = distance(truth, theta, h, x, log_p)
    to_model = float(problem.divergence(theta, h, x).mean())
    np.testing.assert_allclose(got.degrees, -33.0, atol=3.0)
    assert to_model - 0.05 < got.to_truth < to_model + 1e-3, "the least of all turns"
    assert 0.0 <= got.posterior_to_truth < 0.05
    same = distance(truth, truth, h, x, log_p)
    assert same.posterior_to_truth > 0.5, "the same turn is no use to another theta"


@pytest.mark.slow
@pytest.mark.parametrize("full", [True, False, None])
def test_the_bound_is_the_reconstruction_less_the_divergence_from_the_prior(x64, full):
    """Apart from the library's quadratures, from draws of q on a grid in NumPy."""
    if full is None:
        problem = models.nonlinear(hidden=3, num_nodes=160, q_nodes=110)
    else:
        problem = models.linear(full=full)
    theta = problem.truth(jax.random.key(0))
    x = models.sample(jax.random.key(1), problem, theta, 3)
    h = 0.3 * jax.random.normal(jax.random.key(2), (3, problem.posterior.width))
    axis, step = np.linspace(-8.0, 8.0, 101, retstep=True)
    eps = np.stack(np.meshgrid(axis, axis), -1).reshape(-1, 2)
    weights = step**2 * np.exp(-0.5 * (eps**2).sum(1)) / (2.0 * np.pi)

    @jax.jit
    def terms(x, z):
        each = jax.vmap(log_likelihood, (None, None, None, 0))
        return each(problem.model.generative, Params(theta, ()), x, z)

    bound, divergence, log_p = (
        function(theta, h, x)
        for function in (problem.bound, problem.divergence, problem.log_p)
    )
    for i in range(3):
        mean, tril = map(np.asarray, models.moments(h[i]))
        reconstruction = weights @ np.asarray(terms(x[i], mean + eps @ tril.T))
        sigma = tril @ tril.T
        kl = 0.5 * (np.trace(sigma) + mean @ mean - 2.0 - np.linalg.slogdet(sigma)[1])
        np.testing.assert_allclose(bound[i], reconstruction - kl, atol=1e-6)
    np.testing.assert_allclose(log_p - bound, divergence, atol=1e-6)


def test_points_are_zero_and_whole_stretches_to_the_last_step():
    config = posterior_gap.Config(num_steps=300, num_points=6)
    assert training.points(config) == [0, 10, 20, 50, 130, 300]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"parts": ("frozen", "thawed")}, "--parts=thawed is unknown; known: frozen"),
        ({"num_seeds": 0}, "--num_seeds must be positive, got 0"),
        ({"num_steps": 15}, "--num_steps must be a multiple of 10, got 15"),
        ({"num_steps": 0}, "--num_steps must be 10 or more, got 0"),
        ({"learning_rate": 0.0}, r"--learning_rate must be positive, got 0\.0"),
        ({"num_points": 1}, "--num_points must be 2 or more, got 1"),
        ({"num_nodes": 20}, "--num_nodes must be 30 or more, got 20"),
        ({"inner_steps": ()}, "--inner_steps must hold at least one item"),
        (
            {"inner_steps": (1, 0)},
            r"--inner_steps must hold positive sizes, got \(1, 0\)",
        ),
    ],
)
def test_numbers_that_make_no_experiment_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        posterior_gap.Config(**changes)


def test_a_workdir_that_is_a_file_is_refused_before_the_work(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(cli.UsageError, match="file"):
        posterior_gap.main(posterior_gap.Config(workdir=str(tmp_path / "file")))
