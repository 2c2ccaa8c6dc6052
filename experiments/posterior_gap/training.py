"""The training of `experiments.posterior_gap`: theta frozen, joint, and lagging."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.lax import stop_gradient
from jaxtyping import Array, Int

from experiments.posterior_gap import models as gap_models
from vae_jax import vae
from vae_jax.estimators import sgvb
from vae_jax.evaluation import exact
from vae_jax.inference import variational_em
from vae_jax.training import gradient, loop
from vae_jax.types import (
    Algorithm,
    Batch,
    ExampleObjective,
    Objective,
    Params,
    PRNGKey,
    PyTree,
    Scalar,
    per_example,
)

STRETCH = 10  # steps of one compiled scan
EXACT_NODES = 40  # a side of the grid that theta alone climbs log p(x) on


class Setting(NamedTuple):
    """What the runs of one part share."""

    num_rows: int  # of the training data; every step sees all of them
    num_test: int
    num_steps: int  # of theta, or of phi where theta is frozen
    num_points: int
    learning_rate: float  # of both Adams
    num_samples: int  # L, of every draw of the bound
    search_steps: int  # of a row's own search


class Alternating(NamedTuple):
    """Two ascents on the same parameters, each with its optimizer's memory."""

    phi: gradient.AscentState
    theta: gradient.AscentState

    @property
    def params(self) -> Params:
        """The parameters, where an ascent's state has them."""
        return self.theta.params


def points(setting: Setting) -> list[int]:
    """Steps at which is measured: 0, then evenly in logarithm, in whole stretches."""
    spaced = np.geomspace(STRETCH, setting.num_steps, setting.num_points - 1)
    return sorted({0} | {STRETCH * round(step / STRETCH) for step in spaced})


def bound_of(model: gap_models.Model, *, num_samples: int) -> ExampleObjective:
    """AEVB's estimator: B where q is a diagonal normal, A where it is a full one."""
    pair = vae.model(model.generative, model.recognition)
    if model.posterior.family.name == "diag_normal":
        return sgvb.sgvb_b(pair, num_samples=num_samples)
    return sgvb.sgvb_a(pair, num_samples=num_samples)


def of_one(objective: ExampleObjective, *, theta: bool) -> Objective:
    """The objective with a gradient for theta alone, or for phi alone."""

    def held(key: PRNGKey, params: Params, x: Array) -> Scalar:
        generative, recognition = params
        if theta:
            return objective(key, Params(generative, stop_gradient(recognition)), x)
        return objective(key, Params(stop_gradient(generative), recognition), x)

    return per_example(held)


def alternating(
    objective: ExampleObjective, *, learning_rate: float, num_inner: int
) -> Algorithm:
    """num_inner updates of phi, each with fresh noise, then one of theta."""
    phi = gradient.ascent(
        of_one(objective, theta=False), gradient.adam(learning_rate), norm_every=1000
    )
    theta = gradient.ascent(
        of_one(objective, theta=True), gradient.adam(learning_rate), norm_every=1000
    )

    def init(key: PRNGKey, start: Params) -> Alternating:
        key_phi, key_theta = jax.random.split(key)
        return Alternating(phi.init(key_phi, start), theta.init(key_theta, start))

    def step(
        key: PRNGKey, state: Alternating, batch: Batch
    ) -> tuple[Alternating, gradient.AscentInfo]:
        key_phi, key_theta = jax.random.split(key)

        def update(
            inner: gradient.AscentState, t: Int[Array, ""]
        ) -> tuple[gradient.AscentState, None]:
            return phi.step(jax.random.fold_in(key_phi, t), inner, batch)[0], None

        inner, _ = jax.lax.scan(update, state.phi, jnp.arange(num_inner))
        outer = state.theta._replace(params=inner.params)
        outer, info = theta.step(key_theta, outer, batch)
        return Alternating(inner._replace(params=outer.params), outer), info

    return Algorithm(init, step)


def methods(
    model: gap_models.Model, setting: Setting, *, inner_steps: Sequence[int]
) -> dict[str, Algorithm]:
    """From lagging to exact inference: name -> what makes one step of theta each."""
    objective = bound_of(model, num_samples=setting.num_samples)
    rate = setting.learning_rate
    found = {
        f"k = {k}": alternating(objective, learning_rate=rate, num_inner=k)
        for k in inner_steps
    }
    found["converged"] = variational_em.variational_em(
        model.generative,
        model.posterior,
        gradient.adam(rate),
        num_data=setting.num_rows,
        num_samples=setting.num_samples,
        num_steps=setting.search_steps,
    )
    log_p = exact.grid_quadrature(
        model.generative,
        num_latents=gap_models.NUM_LATENTS,
        num_nodes=EXACT_NODES,
        limit=4.5,
    )
    found["exact"] = gradient.ascent(
        per_example(lambda key, params, x: log_p(params, x)), gradient.adam(rate)
    )
    return found


def runner(
    algorithm: Algorithm, setting: Setting
) -> Callable[..., list[dict[str, Any]]]:
    """(key, start, x, measure) -> what is measured of the state at each point.

    Compiled once for all seeds.
    """

    def take(key: PRNGKey, data: Array, index: Array) -> Batch:
        del key
        return Batch(data[index], index, jnp.ones(index.shape, data.dtype))

    scan = loop.scan(algorithm, take)
    order = jnp.broadcast_to(jnp.arange(setting.num_rows), (STRETCH, setting.num_rows))

    def run(
        key: PRNGKey,
        start: Params,
        x: Array,
        measure: Callable[[Any], dict[str, Any]],
    ) -> list[dict[str, Any]]:
        # Methods that are compared start from one key.
        state = loop.start(jax.random.clone(key), algorithm, start)
        found, done = [], 0
        for point in points(setting):
            while done < point:
                state, _ = scan(state, x, order)
                done += STRETCH
            found.append({"step": point, **measure(state.inner)})
        return found

    return run


class Draw(NamedTuple):
    """One seed's truth, data and start."""

    truth: PyTree
    train: Array
    test: Array
    start: Params
    key: PRNGKey  # of the run's noise


def drawn(model: gap_models.Model, setting: Setting, *, seed: int) -> Draw:
    """The truth, rows of it, and where training starts."""
    keys = jax.random.split(jax.random.key(seed), 6)
    truth = model.truth(keys[0])
    start = Params(model.generative.init(keys[1]), model.recognition.init(keys[2]))
    return Draw(
        truth,
        gap_models.draw(keys[3], model, truth, setting.num_rows),
        gap_models.draw(keys[4], model, truth, setting.num_test),
        start,
        keys[5],
    )


def encoder(model: gap_models.Model) -> Callable[[Params, Array], Array]:
    """Compiles (params, x [N, P]) -> h [N, H]."""
    return jax.jit(jax.vmap(model.recognition.encode, in_axes=(None, 0)))


def measured(
    model: gap_models.Model, theta: PyTree, h: Array, x: Array
) -> dict[str, float]:
    """Means of the three exact numbers in nats, and the largest disagreement of a row.

    None is formed from the others: `discrepancy` is |log p - bound - divergence|.
    """
    rows = {
        name: np.asarray(function(theta, h, x))
        for name, function in model.exact._asdict().items()
    }
    apart = np.abs(rows["log_p"] - rows["bound"] - rows["divergence"])
    means = {name: float(values.mean()) for name, values in rows.items()}
    return {**means, "discrepancy": float(apart.max())}


def frozen(
    models: dict[str, gap_models.Model], setting: Setting, *, seed: int
) -> dict[str, Any]:
    """(a) Theta is the truth and stays; phi climbs the bound on the rows drawn."""
    return {name: _frozen(model, setting, seed=seed) for name, model in models.items()}


def _frozen(model: gap_models.Model, setting: Setting, *, seed: int) -> dict[str, Any]:
    objective = bound_of(model, num_samples=setting.num_samples)
    algorithm = gradient.ascent(
        of_one(objective, theta=False),
        gradient.adam(setting.learning_rate),
        norm_every=1000,
    )
    draw, encode = drawn(model, setting, seed=seed), encoder(model)
    some = draw.train[: setting.num_test]

    def measure(state: gradient.AscentState) -> dict[str, Any]:
        moved = jax.tree.map(
            lambda now, then: jnp.abs(now - then).max(),
            state.params.generative,
            draw.truth,
        )
        return {
            **measured(model, draw.truth, encode(state.params, some), some),
            "theta_moved": float(max(jax.tree.leaves(moved))),
        }

    start = Params(draw.truth, draw.start.recognition)
    curve = runner(algorithm, setting)(draw.key, start, draw.train, measure)
    found = _columns(curve)
    bound, divergence = np.array(found["bound"]), np.array(found["divergence"])
    gained, lost = bound - bound[0], divergence[0] - divergence
    return {
        **found,
        "gained": gained.tolist(),
        "lost": lost.tolist(),
        "largest_difference": float(np.abs(gained - lost).max()),
    }


def joint(
    model: gap_models.Model, setting: Setting, *, seeds: Sequence[int], num_nodes: int
) -> list[dict[str, Any]]:
    """(b) AEVB on theta and phi; a curve for each seed, measured on test rows."""
    algorithm = gradient.ascent(
        per_example(bound_of(model, num_samples=setting.num_samples)),
        gradient.adam(setting.learning_rate),
        norm_every=1000,
    )
    run, encode = runner(algorithm, setting), encoder(model)
    distance = gap_models.distance_to_truth(model, num_nodes=num_nodes)

    def curve(seed: int) -> dict[str, Any]:
        draw = drawn(model, setting, seed=seed)
        nothing = jnp.zeros((len(draw.test), model.posterior.width))
        true_log_p = model.exact.log_p(draw.truth, nothing, draw.test)

        def measure(state: gradient.AscentState) -> dict[str, Any]:
            theta, h = state.params.generative, encode(state.params, draw.test)
            far = distance(draw.truth, theta, h, draw.test, true_log_p)
            return {
                **measured(model, theta, h, draw.test),
                "to_truth": far.divergence,
                "posterior_to_truth": far.of_posterior,
                "degrees": far.degrees,
                "std": _std(theta),
            }

        rows = run(draw.key, draw.start, draw.train, measure)
        mean = float(true_log_p.mean())
        return {"seed": seed, "true_log_p": mean, **_columns(rows)}

    return [curve(seed) for seed in seeds]


def lagging(
    model: gap_models.Model,
    setting: Setting,
    *,
    seeds: Sequence[int],
    inner_steps: Sequence[int],
) -> dict[str, list[dict[str, Any]]]:
    """(c) The same steps of theta after more and more inference; curves by method."""
    encode, found = encoder(model), {}
    draws = {seed: drawn(model, setting, seed=seed) for seed in seeds}

    def log_p(theta: PyTree, x: Array) -> float:
        nothing = jnp.zeros((len(x), model.posterior.width), x.dtype)
        return float(model.exact.log_p(theta, nothing, x).mean())

    def measure_in(name: str, draw: Draw) -> Callable[[Any], dict[str, Any]]:
        def measure(state: Any) -> dict[str, Any]:
            theta = state.params.generative
            row = {"test_log_p": log_p(theta, draw.test), "std": _std(theta)}
            if name == "exact":  # its q is the posterior: the bound is log p(x)
                value = log_p(theta, draw.train)
                tight = {"divergence": 0.0, "discrepancy": 0.0}
                return {**row, "log_p": value, "bound": value, **tight}
            some = draw.train[: setting.num_test]
            own = name == "converged"
            h = state.memory[: len(some)] if own else encode(state.params, some)
            found = measured(model, theta, h, some)
            return {**found, **row, "log_p": log_p(theta, draw.train)}

        return measure

    for name, algorithm in methods(model, setting, inner_steps=inner_steps).items():
        run = runner(algorithm, setting)
        found[name] = [
            {
                "seed": seed,
                "true_log_p": log_p(draw.truth, draw.train),
                "true_test_log_p": log_p(draw.truth, draw.test),
                **_columns(
                    run(draw.key, draw.start, draw.train, measure_in(name, draw))
                ),
            }
            for seed, draw in draws.items()
        ]
    return found


def _std(theta: PyTree) -> float:
    return float(jnp.exp(theta["likelihood"]["log_std"]))


def _columns(rows: list[dict[str, Any]]) -> dict[str, list[Any]]:
    return {name: [row[name] for row in rows] for name in rows[0]}
