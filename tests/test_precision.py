"""Products of bfloat16 operands, and everything else in float32."""

import collections
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments import evaluate, train
from experiments.choices.config import Config
from experiments.runs import protocol, runs, trained_runs
from tests.tiny import tiny
from vae_jax import convolutional, networks

pytestmark = pytest.mark.uses_optax
HALF = jnp.dtype("bfloat16")
MAPS = {"network": "resnet", "width": 4, "activation": "elu"}
NETWORKS = {
    "mlp": {},
    "gated_mlp": {"network": "gated_mlp"},
    "residual_mlp": {"network": "residual_mlp", "width": 8},
    "resnet": MAPS,
}
EACH_NETWORK = pytest.mark.parametrize("flags", NETWORKS.values(), ids=NETWORKS)


def _dtypes(jaxpr):
    """{name of an operation: {dtype of an input or output}}, of all of a program."""
    seen = collections.defaultdict(set)
    for eqn in jaxpr.eqns:
        parts = [
            part
            for value in jax.tree.leaves(
                list(eqn.params.values()), is_leaf=lambda v: hasattr(v, "eqns")
            )
            for part in [getattr(value, "jaxpr", value)]
            if hasattr(part, "eqns")
        ]
        for part in parts:
            for name, dtypes in _dtypes(part).items():
                seen[name] |= dtypes
        if not parts:
            atoms = (*eqn.invars, *eqn.outvars)
            seen[eqn.primitive.name] |= {atom.aval.dtype for atom in atoms}
    return seen


def _step(path, **flags):
    """The program of one training step, and its result."""
    run = runs.build(tiny(path, **flags))
    state = runs.initial(run).run.inner
    batch = run.data.prepared.take(
        jax.random.key(1), jnp.asarray(run.data.prepared.train), jnp.arange(100)
    )
    arguments = jax.random.key(2), state, batch
    program = jax.make_jaxpr(run.algorithm.step)(*arguments).jaxpr
    return program, jax.jit(run.algorithm.step)(*arguments)


@pytest.mark.slow
@EACH_NETWORK
def test_a_step_has_bfloat16_in_products_alone_and_in_float32_nowhere(tmp_path, flags):
    plain, _ = _step(tmp_path, **flags)
    assert HALF not in set().union(*_dtypes(plain).values())
    half, (state, info) = _step(tmp_path, precision="bfloat16", **flags)
    dtypes = _dtypes(half)
    assert HALF in dtypes["dot_general"]
    moved = {"convert_element_type", "transpose", "reshape", "broadcast_in_dim"}
    where = {name for name, seen in dtypes.items() if HALF in seen}
    assert where - moved == {"dot_general"}
    assert {"exp", "log1p"} & set(dtypes)
    leaves = jax.tree.leaves((state.params, info))
    assert {leaf.dtype for leaf in leaves} == {jnp.dtype("float32")}


@pytest.mark.slow
@EACH_NETWORK
def test_bounds_and_gradients_are_close_to_those_of_float32(tmp_path, flags):
    flags = {"optimizer": "sgd", "learning_rate": 1.0, **flags}
    _, (plain, of_plain) = _step(tmp_path, **flags)
    _, (half, of_half) = _step(tmp_path, precision="bfloat16", **flags)
    np.testing.assert_allclose(of_half.bound, of_plain.bound, atol=0.1)
    start = runs.initial(runs.build(tiny(tmp_path, **flags))).run.inner.params
    for x, y, first in zip(
        *map(jax.tree.leaves, (half.params, plain.params, start)), strict=True
    ):
        expected = np.asarray(y - first)  # the gradient itself
        error = np.linalg.norm(np.asarray(x - first) - expected)
        assert error <= 0.02 * np.linalg.norm(expected) + 1e-5


@pytest.mark.slow
def test_a_product_rounds_its_operands_and_sums_in_float32():
    keys = jax.random.split(jax.random.key(0), 3)
    x, kernel, g = (
        jax.random.normal(key, shape)
        for key, shape in zip(keys, [(7, 500), (500, 3), (7, 3)], strict=True)
    )

    def rounded(array):
        return np.asarray(array.astype(jnp.bfloat16), np.float64)

    y, pullback = jax.vjp(networks.bfloat16_product, x, kernel)
    assert y.dtype == jnp.float32
    np.testing.assert_allclose(y, rounded(x) @ rounded(kernel), rtol=1e-4, atol=1e-4)
    d_x, d_kernel = pullback(g)
    np.testing.assert_allclose(
        d_x, rounded(g) @ rounded(kernel).T, rtol=1e-4, atol=1e-4
    )
    np.testing.assert_allclose(
        d_kernel, rounded(x).T @ rounded(g), rtol=1e-4, atol=1e-4
    )
    # Row by row, one by one, and forward.
    each = jax.vmap(networks.bfloat16_product, in_axes=(0, None))(x, kernel)
    np.testing.assert_allclose(each, y, rtol=1e-6, atol=1e-6)
    maps = networks.bfloat16_product(x.reshape(7, 1, 500), kernel)
    np.testing.assert_allclose(maps[:, 0], y, rtol=1e-6, atol=1e-6)
    _, d_y = jax.jvp(networks.bfloat16_product, (x, kernel), (x, kernel))
    np.testing.assert_allclose(d_y, 2.0 * y, rtol=0.02, atol=0.5)


@pytest.mark.slow
def test_without_a_product_networks_are_what_they_were():
    x = jnp.ones(3)
    for plain, explicit in (
        (networks.mlp(3, (4,), 2), networks.mlp(3, (4,), 2, product=None)),
        (
            convolutional.decoder(3, (4, 4), 16, width=2, num_blocks=1),
            convolutional.decoder(3, (4, 4), 16, width=2, num_blocks=1, product=None),
        ),
    ):
        params = plain.init(jax.random.key(0))
        texts = [str(jax.make_jaxpr(n.apply)(params, x)) for n in (plain, explicit)]
        assert texts[0] == texts[1]
        assert "bf16" not in texts[0]


@pytest.mark.slow
def test_bounds_of_trained_models_agree_within_a_tenth_of_a_nat(tmp_path):
    bounds = {}
    for precision in ("float32", "bfloat16"):
        folder = tmp_path / precision
        config = tiny(
            folder,
            hidden=(100,),
            num_latents=8,
            num_epochs=60,
            learning_rate=3e-3,
            eval_samples=100,
            precision=precision,
        )
        assert train.main(config) == 0
        result = json.loads((folder / "result.json").read_text())
        assert result["protocol"]["precision"] == "float32"
        bounds[precision] = result["elbo"]
        measured = {}
        for computed in ("float32", "bfloat16"):
            flags = {"precision": computed, "importance_samples": 100}
            evaluation = evaluate.Config(workdir=str(folder), **flags)
            assert evaluate.main(evaluation) == 0
            part = "" if computed == "float32" else "_precision_bfloat16"
            path = folder / f"evaluation_test{part}.json"
            measured[computed] = json.loads(path.read_text())
            assert measured[computed]["protocol"]["precision"] == computed
            text = path.with_suffix(".txt").read_text()
            assert f"computed in {computed}" in text
        for name in ("elbo", "log_p"):
            one, other = (measured[computed][name] for computed in measured)
            assert 0.0 < abs(one - other) < 0.1
    assert abs(bounds["float32"] - bounds["bfloat16"]) < 0.1


@pytest.mark.slow
def test_a_workdir_is_computed_in_float32_unless_told(tmp_path):
    config = tiny(tmp_path, precision="bfloat16", num_epochs=1)
    assert train.main(config) == 0
    result = json.loads((tmp_path / "result.json").read_text())
    assert result["protocol"]["precision"] == "float32"
    run = runs.build(config)
    x = jnp.zeros(run.data.x_shape)
    for precision in ("float32", "bfloat16"):
        (trained,) = trained_runs.load(tmp_path, checkpoint="last", precision=precision)
        encode = trained.model.recognition.encode
        program = str(jax.make_jaxpr(encode)(trained.params, x))
        assert ("bf16" in program) == (precision == "bfloat16")
        assert trained.stamp()["precision"] == precision
    (trained,) = trained_runs.load(tmp_path, checkpoint="last")
    assert trained.stamp()["precision"] == "float32"
    assert "precision" not in protocol.stamp(run.config, run.data)


def test_a_precision_that_is_unknown_is_refused():
    with pytest.raises(ValueError, match="--precision=float16 is unknown"):
        Config(precision="float16")
