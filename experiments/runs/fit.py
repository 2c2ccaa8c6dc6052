"""The fit of a run, from the state that is taken up to its last epoch."""

import contextlib
import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple, NoReturn, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from experiments.choices import sweep
from experiments.choices.algorithms import ALGORITHMS
from experiments.choices.config import Config
from experiments.choices.estimators import ESTIMATORS
from experiments.command import cli, report
from experiments.runs import collapse, protocol, rundir, runs, starts
from experiments.runs.runs import Run, Saved
from vae_jax import compilation
from vae_jax.training import checkpoints, interrupts, journal, parallel
from vae_jax.types import Params, PRNGKey, PyTree

Row: TypeAlias = dict[str, Any]
Validate: TypeAlias = Callable[[PRNGKey, Params], dict[str, float]]
"""(key, params) of one run -> what is measured of the validation split."""
Best: TypeAlias = tuple[PyTree, Array, Array]
"""Parameters, their validation bound and their step."""

WATCHED = {"elbo": "bound", "importance": "importance_bound"}
MOST_SKIPPED = 100  # steps in a row, after which a run that skips them ends


def claim(config: Config) -> Run:
    """Builds the run, takes its workdir and writes what it is.

    Raises:
        UsageError: for whatever is wrong with what the user gave.
    """
    run = runs.build(config)
    if config.start_from and not checkpoints.steps(run.workdir / rundir.CHECKPOINTS):
        start = starts.read(run)  # before anything is written
        run = run._replace(start=start.params)
        _say(start.line)
    rundir.claim(run.config)
    stamp = protocol.stamp(run.config, run.data)
    rundir.check_data(run.workdir, stamp)
    if parallel.is_writer():
        about = {"protocol": stamp, "environment": report.environment()}
        with cli.user_errors():
            report.write_json(run.workdir / rundir.RUN, about)
    _say(protocol.opening(run.config, run.data))
    return run


def restore(run: Run) -> Saved:
    """The newest whole checkpoint, or the state before the first step.

    That of --start_from is saved at once: the run is then continued without the other.
    """
    saved = runs.restore(run)
    if saved is None:
        saved = runs.initial(run)
        if run.start is not None:
            _save(run, saved)
        return saved
    _say(f"continuing {run.workdir} from step {saved.step}")
    return saved


def to_end(
    config: Config, validation: Callable[[Run], Validate | None]
) -> tuple[Run, Saved]:
    """Trains, or continues, a run to its last epoch, as `claim`, `restore` and `fit`.

    Leaves the program on a signal, once the run is saved.

    Args:
        config: the run.
        validation: makes what measures the validation split.

    Raises:
        UsageError: as `claim` and `fit`.
    """
    started = time.monotonic()
    run = claim(config)
    with interrupts.deferred() as received, rundir.storage_errors(run.workdir):
        saved = restore(run)
        try:
            saved = fit(run, saved, received, started=started, validate=validation(run))
        except (jax.errors.JaxRuntimeError, ValueError) as error:
            if not parallel.is_lost_process(error):
                raise
            reason = str(error).splitlines()[0][:120]
            parallel.leave(
                f"another process of this run is gone ({reason}); "
                "start all of them again with the same commands: the run continues "
                "from its newest checkpoint"
            )
    leave_if(received, saved)
    return run, saved


def leave_if(received: Sequence[signal.Signals], saved: Saved) -> None:
    """Ends the program if a signal was received, with the status that a shell has."""
    if received:
        name = received[0].name
        _say(f"{name}: saved at step {saved.step}; the same command continues")
        sys.exit(128 + received[0])


def fit(
    run: Run,
    saved: Saved,
    received: list[signal.Signals],
    *,
    started: float,
    validate: Validate | None,
) -> Saved:
    """Runs the epochs that are left, writing rows and checkpoints on the way.

    Ends early on a signal (after saving) and by early stopping.

    Args:
        run: what is trained.
        saved: the state that it goes on from.
        received: signals, as `interrupts.deferred` collects them.
        started: the clock's time, in seconds, that rows count from.
        validate: measures the validation split, for the best parameters; None: not.

    Raises:
        UsageError: at a bound that is not finite, or after too many skipped steps in a
            row, naming the step; if another process trains in the workdir.
    """
    total = run.config.num_epochs * run.steps_per_epoch
    scan, feed = runs.scan(run), runs.feed(run)
    step = last_saved = saved.step
    saved_at = started
    with contextlib.ExitStack() as opened:
        opened.callback(feed.close)
        note = opened.enter_context(
            _diary(run, step=step, total=total, started=started)
        )
        while step < total and not _is_stopped(run, saved):
            if interrupts.shared(received):
                break
            clock = time.monotonic()
            state, info = scan(saved.run, *feed.at(step))
            info = jax.tree.map(np.asarray, info)
            row = _row(run, step, info, seconds=time.monotonic() - clock)
            saved = saved._replace(run=state)
            step = row["step"]
            if validate is not None and step % run.steps_per_validation == 0:
                saved, measured = _validated(run, saved, validate)
                row |= measured
            note(row)
            if time.monotonic() - saved_at > run.config.checkpoint_seconds:
                _save(run, saved)
                last_saved, saved_at = step, time.monotonic()
    if step > last_saved:
        _save(run, saved)
    if step < total and _is_stopped(run, saved):
        _say_why(run, saved)
    if run.config.skip_norm:
        _say_skipped(saved)
    return saved


def over_runs(name: str, values: np.ndarray) -> Row:
    """One run's number; of runs [R] that train together, the mean, std and each."""
    if not values.ndim:
        return {name: values.item()}
    return sweep.mean_and_std(name, values) | {f"each_{name}": values.tolist()}


def _row(run: Run, first: int, info: NamedTuple, *, seconds: float) -> Row:
    """Means over the steps of one scan of whatever the algorithm reports.

    Those that were skipped are counted and in no mean.

    Raises:
        UsageError: if what a step fits, its info's first field, is not finite and the
            step was not skipped; after too many skipped steps in a row.
    """
    fields = info._asdict()
    fields |= fields.pop("monitored", {})
    fields.pop("spread", None)
    skips = fields.pop("skips", ())
    fitted, values = next(iter(fields.items()))
    is_taken = skips.in_a_row == 0 if skips else np.ones(values.shape, bool)
    if not np.isfinite(values[is_taken]).all():
        _report_divergence(run, first, fitted, np.where(is_taken, values, 0.0))
    if skips and skips.in_a_row.max() >= MOST_SKIPPED:
        _report_skips(run, first, skips.in_a_row)
    num_steps = values.shape[-1]
    step = first + num_steps
    row: Row = {"step": step, "epoch": step / run.steps_per_epoch}
    has_norm = fields.get("gradient_norm", values) >= 0.0
    if not has_norm.any():  # a short scan may hold no step with one
        fields.pop("gradient_norm", None)
    means = {
        name: _mean(
            values, is_taken & has_norm if name == "gradient_norm" else is_taken
        )
        for name, values in fields.items()
    }
    splits = ALGORITHMS[run.config.algorithm].splits_bound
    if splits and ESTIMATORS[run.config.gradient].of_elbo:
        means["reconstruction"] = means["bound"] + means["kl"]
    for name, mean in run.data.labeled(means).items():
        row |= over_runs(name, mean)
    if skips:
        row |= over_runs("skipped_steps", (~is_taken).sum(axis=-1))
        row |= over_runs("total_skipped_steps", skips.total[..., -1])
    num_examples = num_steps * run.config.batch_size * len(run.configs)
    return row | {"examples_per_second": num_examples / seconds, "seconds": seconds}


def _mean(values: np.ndarray, where: np.ndarray) -> np.ndarray:
    """The mean over the last axis of the entries that count; NaN where none does."""
    count = where.sum(axis=-1)
    total = values.astype(np.float64).sum(axis=-1, where=where)
    return np.where(count > 0, total / np.maximum(count, 1), np.nan)


def _validated(run: Run, saved: Saved, validate: Validate) -> tuple[Saved, Row]:
    """Measures the validation split, and keeps the parameters that are best so far.

    Where a moving average is kept it is the one that competes for the best, and the raw
    weights are measured beside it.
    """
    step, params = saved.run.step, saved.parameters
    keys = runs.fold_in(run.keys.evaluation, step)
    each = {
        "valid_" if weights is params else "valid_raw_": _measured(
            keys, weights, validate
        )
        for weights in saved.weights.values()
    }
    measured = each["valid_"]
    bound = jnp.asarray(measured[WATCHED[run.config.watch]], saved.best_bound.dtype)
    best = (saved.best, saved.best_bound, saved.best_step)
    saved = Saved(saved.run, *_better((params, bound, step), best))
    row: Row = {}
    for split, numbers in each.items():
        for name, values in run.data.labeled(numbers).items():
            row |= over_runs(f"{split}{name}", values)
    return saved, row


@compilation.program
def _better(new: Best, old: Best) -> Best:
    """The one of the greater bound, of a run or of each of runs that train together."""
    is_better = new[1] > old[1]

    def chosen(new: Array, old: Array) -> Array:
        of_runs = is_better.reshape(
            is_better.shape + (1,) * (new.ndim - is_better.ndim)
        )
        return jnp.where(of_runs, new, old)

    return jax.tree.map(chosen, new, old)


def _measured(
    keys: PRNGKey, params: Params, validate: Validate
) -> dict[str, np.ndarray]:
    """What `validate` says of one run, or of each of those that train together."""
    keys = jax.random.clone(keys)
    if not keys.ndim:
        return {name: np.asarray(x) for name, x in validate(keys, params).items()}
    # One by one: validation has its own memory, and is compiled once.
    each = [validate(keys[i], runs.one_of(params, i)) for i in range(len(keys))]
    return {name: np.array([one[name] for one in each]) for name in each[0]}


@contextlib.contextmanager
def _diary(
    run: Run, *, step: int, total: int, started: float
) -> Iterator[Callable[[Row], None]]:
    """What takes up each row: journal, progress, and warnings; of one process alone."""
    if not parallel.is_writer():
        yield lambda row: None
        return
    with rundir.locked(run.workdir), contextlib.ExitStack() as opened:
        log = journal.open(run.workdir, resume_step=step or None)
        opened.callback(log.close)
        progress = None
        if run.config.progress:
            progress = journal.progress(total, initial=step, unit="step")
            opened.callback(progress.close)
        changes = collapse.changes(run)

        def note(row: Row) -> None:
            row = row | collapse.share(run, row)
            log.write(row | {"elapsed": time.monotonic() - started})
            if progress is not None:
                progress.update(row["step"], **_watched(run, row))
            for line in changes(row):
                print(line, flush=True)

        yield note


def _watched(run: Run, row: Row) -> Row:
    """What a row's model is fitted and watched by, and the steps that were skipped."""
    nats = dict.fromkeys((*WATCHED.values(), "log_joint"), 0.0)
    names = [
        f"{split}{name}"
        for split in ("", "valid_", "valid_raw_")
        for name in run.data.labeled(nats)
    ]
    return {n: row[n] for n in (*names, "total_skipped_steps") if n in row}


def _save(run: Run, saved: Saved) -> None:
    if parallel.is_writer():
        folder = run.workdir / rundir.CHECKPOINTS
        checkpoints.save(folder, saved.step, parallel.local(saved))


def _is_stopped(run: Run, saved: Saved) -> bool:
    """Early stopping, as a function of the state alone, so that it resumes too."""
    if not run.config.early_stopping:
        return False
    since = int(saved.run.step - saved.best_step) // run.steps_per_epoch
    return run.config.early_stopping <= since


def _say_why(run: Run, saved: Saved) -> None:
    best = int(saved.best_step) // run.steps_per_epoch
    _say(
        f"early stopping: no better validation bound for {run.config.early_stopping} "
        f"epochs; the best, {float(saved.best_bound):.4f} nats, is of epoch {best}"
    )


def _say_skipped(saved: Saved) -> None:
    total = np.asarray(saved.run.inner.skips.total)
    _say(f"skipped {np.array2string(total, separator=', ')} of {saved.step} steps")


def _say(line: str) -> None:
    if parallel.is_writer():
        print(line, flush=True)


def _report_divergence(
    run: Run, first: int, fitted: str, values: np.ndarray
) -> NoReturn:
    values = np.atleast_2d(values)  # [R, steps]
    at = int(np.argmin(np.isfinite(values).all(axis=0)))
    which = int(np.argmin(np.isfinite(values[:, at])))
    rows = journal.read(run.workdir)
    last = (
        f"step {first + at}: {fitted} {values[which, at - 1]:.4f}"
        if at
        else (f"row of step {rows[-1]['step']}" if rows else "none")
    )
    whole = checkpoints.steps(run.workdir / rundir.CHECKPOINTS)
    back = f"checkpoint of step {whole[-1]}" if whole else "no checkpoint yet"
    raise cli.UsageError(
        f"the {fitted.replace('_', ' ')}{_of_run(run, which)} is {values[which, at]} "
        f"at step {first + at + 1}; last finite metrics: {last}; to go back to: {back} "
        f"in {run.workdir}; try a smaller --learning_rate or --clip_norm, in a new "
        "--workdir"
    )


def _report_skips(run: Run, first: int, in_a_row: np.ndarray) -> NoReturn:
    is_too_many = np.atleast_2d(in_a_row) >= MOST_SKIPPED  # [R, steps]
    at = int(np.argmax(is_too_many.any(axis=0)))
    which = int(np.argmax(is_too_many[:, at]))
    raise cli.UsageError(
        f"the {MOST_SKIPPED} steps{_of_run(run, which)} up to step {first + at + 1} "
        "were all skipped, as the bound or the gradient's norm was not finite, or the "
        f"norm above --skip_norm={run.config.skip_norm:g}: give a larger --skip_norm, "
        "a smaller --learning_rate or --clip_norm, in a new --workdir"
    )


def _of_run(run: Run, which: int) -> str:
    """Which of the runs that train together; nothing of a single one."""
    if not run.config.trains_many:
        return ""
    return f" of the run with {sweep.names(run.config)[which]}"
