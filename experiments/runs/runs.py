"""A training run, or several that train together: records, keys, and checkpoints.

Of runs that train together (`experiments.choices.sweep`) every array of the state has a
leading axis R, one entry a run; a single run's have none.
"""

import dataclasses
import pathlib
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Float, Int

from experiments.choices import algorithms, models, sweep
from experiments.choices.config import Config
from experiments.command import cli
from experiments.runs import protocol, rundir
from vae_jax import compilation
from vae_jax.data import batches, feeds
from vae_jax.training import checkpoints, gradient, loop, parallel
from vae_jax.types import Algorithm, Batch, Model, Params, PRNGKey, PyTree

_OF_EXEMPLARS = 2  # keeps their stream apart from those of binarization and holes
SCAN_STEPS = 1000  # of one compiled scan at most: how long an interrupt may wait


class Keys(NamedTuple):
    """The branches of the root key: evaluation and order never change training."""

    init: PRNGKey
    steps: PRNGKey
    order: PRNGKey
    evaluation: PRNGKey


class Saved(NamedTuple):
    """What a checkpoint holds."""

    run: loop.RunState
    best: Params  # of the best validation bound; the newest where none was taken
    best_bound: Float[Array, ""]
    best_step: Int[Array, ""]

    @property
    def weights(self) -> dict[str, Params]:
        """The newest parameters, raw, behind their moving average where one is kept.

        The first are those that are evaluated.
        """
        inner = self.run.inner
        average = getattr(inner, "average", ())
        return ({"average": average} if average else {}) | {"raw": inner.params}

    @property
    def parameters(self) -> Params:
        """What is evaluated: the newest parameters, or their moving average."""
        return next(iter(self.weights.values()))

    @property
    def step(self) -> int:
        """Steps taken, which are the same for runs that train together."""
        return int(np.max(np.asarray(self.run.step)))


class Chosen(NamedTuple):
    """Parameters out of what a checkpoint holds; with an axis R of runs together."""

    params: Params
    step: Int[Array, "*R"]  # that they are of
    weights: str  # "average" or "raw"
    is_best: bool  # by validation bound; else they are the newest


class Run(NamedTuple):
    """What stays the same from the first step to the last."""

    config: Config
    data: protocol.Dataset
    parts: algorithms.Parts
    keys: Keys
    workdir: pathlib.Path
    steps_per_epoch: int
    algorithm: Algorithm
    configs: tuple[Config, ...]  # what each run is alone; one, or those together
    mesh: Mesh | None  # the devices that share each batch; None: a single one
    start: Params | None = None  # of a trained run (--start_from); None: fresh ones

    @property
    def model(self) -> Model:
        """p and q, as they are evaluated."""
        return self.parts.model

    @property
    def steps_per_validation(self) -> int:
        """Steps between validation bounds."""
        return self.config.eval_every * self.steps_per_epoch


def build(config: Config) -> Run:
    """Reads the data and builds the records; writes nothing.

    Raises:
        UsageError: for data, sizes or flags that do not fit together.
    """
    with cli.user_errors():
        data = protocol.load(config)
        settled = dataclasses.replace(config.settled, columns=data.columns)
        return of_data(settled, data)


def of_data(config: Config, data: protocol.Dataset) -> Run:
    """The records of a run on data that are there.

    Raises:
        ValueError: for sizes or flags that do not fit together.
    """
    mesh = parallel.data_mesh(config.num_devices)
    num_rows = len(data.source.train)
    _check(config, data, mesh)
    together = sweep.expand(config)
    first, many = together[0], config.trains_many
    parts = of_flags(first, data)
    steps_per_epoch = num_rows // config.batch_size
    # A swept number is traced, and what it schedules has a memory, from the start on.
    swept = {
        name: of_runs[0] for name, of_runs in sweep.numbers(config, together).items()
    }
    steps = algorithms.Steps(num_rows, steps_per_epoch, traced=swept)
    seeds = jnp.asarray([config.seed for config in together])
    return Run(
        config=config,
        data=data,
        parts=parts,
        keys=jax.vmap(_keys)(seeds) if many else _keys(config.seed),
        workdir=config.directory(),
        steps_per_epoch=steps_per_epoch,
        algorithm=algorithms.build(first, parts, steps),
        configs=together,
        mesh=mesh,
    )


def of_flags(config: Config, data: protocol.Dataset) -> algorithms.Parts:
    """The model of the flags, with the rows of the data that some priors are made of.

    Raises:
        ValueError: as `models.build`; for more exemplars than there are rows.
    """
    exemplars = _exemplars(config, data) if config.prior == "exemplar" else None
    return models.build(config, data.x_shape, exemplars, data.context)


def _exemplars(config: Config, data: protocol.Dataset) -> Batch:
    """Training rows, drawn once by --data_seed, as the encoder reads them.

    Those of a dynamically binarized data set are drawn once here.
    """
    stored, number = data.prepared.train, config.num_exemplars
    if number > len(stored):
        raise ValueError(
            f"--num_exemplars={number} is more than the training split of "
            f"{len(stored)} rows: give as many or fewer"
        )
    generator = np.random.default_rng((config.data_seed, _OF_EXEMPLARS))
    rows = np.sort(generator.choice(len(stored), number, replace=False))
    key, places = jax.random.key(config.data_seed), jnp.arange(number)
    taken = data.prepared.take(key, jnp.asarray(stored[rows]), places)
    return taken._replace(index=jnp.asarray(rows, jnp.int32))


def _check(config: Config, data: protocol.Dataset, mesh: Mesh | None) -> None:
    num_rows = len(data.source.train)
    if config.batch_size > num_rows:
        raise ValueError(
            f"--batch_size={config.batch_size} is larger than the training split "
            f"of {num_rows} rows"
        )
    if config.early_stopping and not len(data.source.valid):
        raise ValueError(
            f"--early_stopping needs a validation split, {config.dataset} has none"
        )
    if mesh is not None and config.batch_size % mesh.size:
        raise ValueError(
            f"--batch_size={config.batch_size} does not divide among the "
            f"{mesh.size} devices of --num_devices"
        )


def at_precision(run: Run, precision: str) -> Run:
    """The run with a model whose networks compute in that precision."""
    if run.config.precision == precision:
        return run
    first, *_ = configs = tuple(
        dataclasses.replace(config, precision=precision) for config in run.configs
    )
    return run._replace(
        config=dataclasses.replace(run.config, precision=precision),
        configs=configs,
        parts=of_flags(first, run.data),
    )


Scan = Callable[[loop.RunState, Array, Array], tuple[loop.RunState, PyTree]]


def scan(run: Run) -> Scan:
    """Compiles (state, data, order [S, B]) -> (state, info): the steps of `order`.

    Of runs together: order [R, S, B], and all state and info with a leading R.
    """
    take, layout = run.data.prepared.take, parallel.whole(run.mesh)
    if not run.config.trains_many:
        return loop.scan(run.algorithm, take, layout=layout)

    def build(numbers: gradient.Settings) -> Algorithm:
        steps = algorithms.Steps(
            len(run.data.prepared.train), run.steps_per_epoch, traced=numbers
        )
        return algorithms.build(run.configs[0], run.parts, steps)

    numbers = sweep.numbers(run.config, run.configs)
    return partial(loop.scan_together(build, take, layout=layout), numbers)


def feed(run: Run, *, max_steps: int = SCAN_STEPS) -> feeds.Feed:
    """step -> the data and the order of the steps that one scan takes from there."""
    config, rows = run.config, run.data.prepared.train
    size = {"steps_per_epoch": run.steps_per_epoch}
    if config.stream_steps:
        place = partial(parallel.place_rows, run.mesh, sharded=False)
        return feeds.streamed(
            _order(run), rows, max_steps=config.stream_steps, place=place, **size
        )
    data = parallel.place_rows(run.mesh, rows, sharded=config.shard_data)
    return feeds.resident(_order(run), data, max_steps=max_steps, **size)


def _order(run: Run) -> feeds.Draw:
    """Compiles epoch -> the rows of its steps [S, B]; [R, S, B] of runs together."""
    size, keys = len(run.data.prepared.train), run.keys.order
    draw = partial(batches.order, num_rows=size, batch_size=run.config.batch_size)
    compiled = compilation.program(
        jax.vmap(draw) if keys.ndim else draw,
        layout=None
        if run.config.stream_steps
        else parallel.split(run.mesh, axis=keys.ndim + 1),
    )
    return lambda epoch: compiled(fold_in(keys, epoch))


def fold_in(keys: PRNGKey, number: int | Array) -> PRNGKey:
    """jax.random.fold_in of one key, or of each of [R] keys."""
    if not keys.ndim:
        return jax.random.fold_in(keys, number)
    return jax.vmap(jax.random.fold_in)(keys, jnp.broadcast_to(number, keys.shape))


def usual_checkpoint(config: Config) -> str:
    """Which of its parameters a run is judged by: the best if it stops early."""
    return "best" if config.early_stopping else "last"


def choose(
    config: Config, saved: Saved, *, checkpoint: str = "auto", weights: str = "auto"
) -> Chosen:
    """The parameters that a run is judged by, or others that it keeps.

    Args:
        config: the run, or the runs together.
        saved: what its checkpoint holds.
        checkpoint: "best" (by validation bound), "last", or "auto", the usual one.
        weights: "average", "raw", or "auto": the average where the run keeps one.

    Raises:
        UsageError: if the best are wanted and no validation bound was taken; for
            weights that the run does not keep.
    """
    there = saved.weights
    if checkpoint == "auto":
        checkpoint = usual_checkpoint(config)
    if weights == "auto":
        weights = next(iter(there))
    if weights not in there:
        raise cli.UsageError(
            "--weights=average needs a run that keeps one (--average_decay), and this "
            "run keeps none: take --weights=raw"
        )
    if checkpoint == "last":
        return Chosen(there[weights], saved.run.step, weights, is_best=False)
    if np.any(np.asarray(saved.best_step) == 0):
        raise cli.UsageError(
            "the best parameters are known by a validation bound, and this run took "
            "none yet: --checkpoint=last takes the newest"
        )
    if there[weights] is not saved.parameters:
        raise cli.UsageError(
            "--weights=raw goes with --checkpoint=last: the best of this run are a "
            "moving average"
        )
    return Chosen(saved.best, saved.best_step, weights, is_best=True)


def one_of(tree: PyTree, index: int) -> PyTree:
    """The arrays of one of the runs that are stacked in a tree."""

    def one(leaf: Array) -> Array:
        is_key = jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)
        return (jax.random.clone(leaf) if is_key else leaf)[index]

    return jax.tree.map(one, tree)


def initial(run: Run) -> Saved:
    """The state before the first step, made by one compiled program."""
    layout = parallel.whole(run.mesh)
    started = compilation.program(partial(_initial, run), layout=layout)
    return started(run.keys, run.start)


def with_params(run: Run, params: Params, *, step: int) -> Saved:
    """The state of one run before a step, of parameters that were fitted elsewhere."""
    saved, at = initial(run._replace(start=params)), jnp.asarray(step, jnp.int32)
    return saved._replace(run=saved.run._replace(step=at), best_step=at)


def opened(
    workdir: str | pathlib.Path,
    *,
    data_dir: str = "",
    num_devices: int = 1,
    precision: str = "float32",
) -> tuple[Run, Saved]:
    """The run in a workdir, and its newest whole checkpoint.

    Args:
        workdir: the folder of a training run.
        data_dir: overrides the run's own, for a workdir carried elsewhere.
        num_devices: devices that share rows, all for 0.
        precision: of the operands of the networks' products.

    Raises:
        UsageError: if there is no run, no checkpoint or no data; as `restore`.
    """
    folder = pathlib.Path(workdir).expanduser()
    config = rundir.read_config(folder)
    config = dataclasses.replace(
        config,
        workdir=str(folder),
        data_dir=data_dir or config.data_dir,
        num_devices=1,
        precision=precision,
    )
    try:
        run = build(config)
    except cli.UsageError as error:
        if isinstance(error.__cause__, FileNotFoundError) and ":" in config.dataset:
            raise cli.UsageError(
                f"{error}: where the run's data were moved, {folder / rundir.FLAGS} "
                "has to name their new place (--dataset)"
            ) from error
        raise
    with cli.user_errors():
        run = run._replace(mesh=parallel.data_mesh(num_devices))
    saved = restore(run)
    if saved is None:
        raise cli.UsageError(f"{folder} holds no checkpoint yet: train it first")
    return run, saved


def restore(run: Run) -> Saved | None:
    """The newest whole checkpoint of a run, damaged ones reported; None without any.

    Raises:
        UsageError: if all are damaged, or hold another model, or the data are not those
            that it was trained on.
    """
    rundir.check_data(run.workdir, protocol.stamp(run.config, run.data))
    template = jax.eval_shape(partial(_initial, run), run.keys, None)
    with cli.user_errors():
        restored = checkpoints.restore(run.workdir / rundir.CHECKPOINTS, template)
    if restored is None:
        return None
    for report in restored.damaged:
        print(f"warning: {report}", flush=True)
    return parallel.replicate(run.mesh, restored.tree)


def _keys(seed: int | Array) -> Keys:
    return Keys(*jax.random.split(jax.random.key(seed), 4))


def _initial(run: Run, keys: Keys, params: Params | None) -> Saved:
    if keys.init.ndim:
        return jax.vmap(partial(_initial, run))(keys, params)
    if params is None:
        params = _fresh(run, keys.init)
    state = loop.start(keys.steps, run.algorithm, params)
    return Saved(state, params, jnp.full((), -jnp.inf), jnp.zeros((), jnp.int32))


def _fresh(run: Run, key: PRNGKey) -> Params:
    mean = None
    if run.config.init_bias == "data":
        mean = protocol.mean_x(run.config, run.data)
    return models.started(run.config, run.model.init(key), run.data.x_shape, mean)
