r"""Trains a variational autoencoder, by Auto-Encoding Variational Bayes or a rival.

    python -m experiments.train
    python -m experiments.train --flagfile=experiments/flags/train/mnist.flags
    python -m experiments.train --algorithm=mcem --num_latents=2

Kingma & Welling 2013 (arXiv:1312.6114), whose rivals --algorithm names. Writes to
--workdir: the flags, versions and protocol, metrics.jsonl and TensorBoard events,
checkpoints, the test bound, pictures. The same command again continues from the newest
whole checkpoint, bit for bit.
"""

import contextlib
import signal
import time
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from experiments.choices import sweep
from experiments.choices.config import Config
from experiments.command import cli, report
from experiments.measures import measure, pictures, validation
from experiments.runs import interrupts, metrics, protocol, rundir, runs, trained_runs
from experiments.runs.runs import Run, Saved
from vae_jax.training import checkpoints, journal, parallel


def main(config: Config) -> int:
    """Trains, or continues, the run; returns the exit status."""
    started = time.monotonic()
    with cli.user_errors():
        parallel.initialize(
            config.coordinator_address,
            num_processes=config.num_processes,
            process_id=config.process_id,
        )
    run = claim(config)
    with interrupts.deferred() as received, rundir.storage_errors(run.workdir):
        saved = _fit_with_others(run, restore(run), received, started=started)
    if received:
        name = received[0].name
        _say(f"{name}: saved at step {saved.step}; the same command continues")
        return 128 + received[0]
    if parallel.is_writer():
        with rundir.storage_errors(run.workdir):
            finish(*_alone(run, saved))
    return 0


def claim(config: Config) -> Run:
    """Builds the run, takes its workdir and writes what it is.

    Raises:
        UsageError: for whatever is wrong with what the user gave.
    """
    run = runs.build(config)
    rundir.claim(run.config)
    stamp = protocol.stamp(run.config, run.data)
    rundir.check_data(run.workdir, stamp)
    about = {
        "protocol": stamp,
        "environment": report.environment(),
    }
    if parallel.is_writer():
        with cli.user_errors():
            report.write_json(run.workdir / rundir.RUN, about)
    _say(protocol.opening(run.config, run.data))
    return run


def restore(run: Run) -> Saved:
    """The newest whole checkpoint, or the state before the first step."""
    saved = runs.restore(run)
    if saved is None:
        return runs.initial(run)
    _say(f"continuing {run.workdir} from step {saved.step}")
    return saved


def fit(
    run: Run, saved: Saved, received: list[signal.Signals], *, started: float
) -> Saved:
    """Runs the epochs that are left, writing rows and checkpoints on the way.

    Ends early on a signal (after saving) and by early stopping.

    Raises:
        UsageError: at a bound that is not finite, naming the step; if another process
            trains in the workdir.
    """
    total = run.config.num_epochs * run.steps_per_epoch
    scan, feed = runs.scan(run), runs.feed(run)
    validate = validation.build(run)
    step = last_saved = saved.step
    saved_at = started
    with contextlib.ExitStack() as opened:
        opened.callback(feed.close)
        note = _diary(run, opened, step=step, total=total, started=started)
        while step < total and not _is_stopped(run, saved):
            if interrupts.shared(received):
                break
            clock = time.monotonic()
            state, info = scan(saved.run, *feed.at(step))
            info = jax.tree.map(np.asarray, info)
            seconds = time.monotonic() - clock
            row = metrics.of_scan(run, step, info, seconds=seconds)
            saved = saved._replace(run=state)
            step = row["step"]
            if validate is not None and step % run.steps_per_validation == 0:
                saved, measured = validation.update(run, saved, validate)
                row |= measured
            note(row)
            if time.monotonic() - saved_at > run.config.checkpoint_seconds:
                _save(run, saved)
                last_saved, saved_at = step, time.monotonic()
    if step > last_saved:
        _save(run, saved)
    return saved


def _fit_with_others(
    run: Run, saved: Saved, received: list[signal.Signals], *, started: float
) -> Saved:
    """`fit`, and the way out when another process of the run is gone."""
    try:
        return fit(run, saved, received, started=started)
    except (jax.errors.JaxRuntimeError, ValueError) as error:
        if not parallel.is_lost_process(error):
            raise
        reason = str(error).splitlines()[0][:120]
        parallel.leave(
            f"another process of this run is gone ({reason}); "
            "start all of them again with the same commands: the run continues from "
            "its newest checkpoint"
        )


def _alone(run: Run, saved: Saved) -> tuple[Run, Saved]:
    """The run as one process has it: several leave their mesh when they are done."""
    if jax.process_count() == 1:
        return run, saved
    return run._replace(mesh=None), parallel.local(saved)


def _say(line: str) -> None:
    if parallel.is_writer():
        print(line, flush=True)


def _diary(
    run: Run, opened: contextlib.ExitStack, *, step: int, total: int, started: float
) -> Callable[[metrics.Row], None]:
    """What takes up each row: journal, progress, and warnings; of one process alone."""
    if not parallel.is_writer():
        return lambda row: None
    quantity = protocol.quantity(run.config, run.data)
    opened.enter_context(rundir.locked(run.workdir))
    log = journal.open(run.workdir, resume_step=step or None)
    opened.callback(log.close)
    progress = None
    if run.config.progress:
        progress = journal.progress(total, initial=step, unit="step")
        opened.callback(progress.close)
    told = 0.0

    def note(row: metrics.Row) -> None:
        nonlocal told
        row = protocol.named(row | metrics.collapse(run, row), quantity=quantity)
        log.write(row | {"elapsed": time.monotonic() - started})
        if progress is not None:
            progress.update(row["step"], **metrics.shown(row))
        told = metrics.tell_of_collapse(row, told)

    return note


def _save(run: Run, saved: Saved) -> None:
    if parallel.is_writer():
        step, own = saved.step, parallel.local(saved)
        checkpoints.save(run.workdir / rundir.CHECKPOINTS, step, own)


def _is_stopped(run: Run, saved: Saved) -> bool:
    """Early stopping, as a function of the state alone, so that it resumes too."""
    if not run.config.early_stopping:
        return False
    since = int(saved.run.step - saved.best_step) // run.steps_per_epoch
    return run.config.early_stopping <= since


def finish(run: Run, saved: Saved) -> None:
    """The test bound, said and written, and the pictures: those of the first run."""
    trained = trained_runs.of_runs(run, saved, checkpoint="auto")
    keys = runs.fold_in(run.keys.evaluation, 0).reshape(-1)
    split, size = trained_runs.test_split(trained[0]), run.config.eval_samples
    quantity = protocol.quantity(run.config, run.data)
    bounds = [
        protocol.named(
            measure.bound(key, one, split=split, num_samples=size), quantity=quantity
        )
        for key, one in zip(keys, trained, strict=True)
    ]
    said = [f"  {name:<28}{number:12.4f}" for name, number in bounds[0].items()]
    result: dict[str, Any] = bounds[0]
    if run.config.trains_many:
        result = sweep.summary(run.config, bounds)
        said = sweep.lines(result)
    stamp = {"protocol": protocol.stamp(run.config, run.data)}
    result = {"split": split, "step": trained[0].step, **result, **stamp}
    report.write_json(run.workdir / "result.json", result)
    print(f"{split} split, step {trained[0].step}, {quantity}, nats per example:")
    print("\n".join(said))
    pictures.of_run(jax.random.fold_in(keys[0], 1), trained[0], run.workdir)
    print(f"written to {run.workdir}")


if __name__ == "__main__":
    cli.run(Config, main)
