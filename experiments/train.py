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
from collections.abc import Callable, Sequence
from typing import NamedTuple, NoReturn, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np

from experiments import (
    cli,
    interrupts,
    measure,
    models,
    pictures,
    protocol,
    rundir,
    runs,
)
from experiments.choices import OF_THE_ELBO, WITHOUT_ENCODER
from experiments.configuration import Config
from experiments.runs import Run, Saved
from vae_jax.data import batches
from vae_jax.evaluation import representation
from vae_jax.training import checkpoints, journal, loop
from vae_jax.types import Params, PRNGKey

SPLIT_BOUND = ("aevb", "wake_sleep", "rws")  # bound + KL = reconstruction
COLLAPSED = 0.01  # nats per image: a mean KL below it
SCAN_STEPS = 1000  # of one compiled scan at most: how long an interrupt may wait


def main(config: Config) -> int:
    """Trains, or continues, the run; returns the exit status."""
    started = time.monotonic()
    run = claim(config)
    with interrupts.deferred() as received:
        saved = fit(run, restore(run), received, started=started)
    if received:
        step = int(saved.run.step)
        print(f"{received[0].name}: saved at step {step}; the same command continues")
        return 128 + received[0]
    finish(run, saved)
    return 0


def claim(config: Config) -> Run:
    """Builds the run, takes its workdir and writes what it is.

    Raises:
        UsageError: for whatever is wrong with what the user gave.
    """
    run = runs.build(config)
    rundir.claim(config)
    about = {
        "protocol": protocol.stamp(config, run.data),
        "environment": protocol.environment(),
    }
    rundir.write_json(run.workdir / rundir.RUN, about)
    return run


def restore(run: Run) -> Saved:
    """The newest whole checkpoint, or the state before the first step."""
    saved = runs.restore(run)
    if saved is None:
        return runs.initial(run)
    step = int(saved.run.step)
    print(f"continuing {run.workdir} from step {step}", flush=True)
    return saved


def fit(
    run: Run, saved: Saved, received: Sequence[signal.Signals], *, started: float
) -> Saved:
    """Runs the epochs that are left, writing rows and checkpoints on the way.

    Ends early on a signal (after saving) and by early stopping.

    Raises:
        UsageError: at a bound that is not finite, naming the step; if another process
            trains in the workdir.
    """
    total = run.config.num_epochs * run.steps_per_epoch
    quantity = protocol.quantity(run.config, run.data)
    scan = loop.scan(run.algorithm, run.data.prepared.take)
    draw = jax.jit(batches.order, static_argnums=1, static_argnames="batch_size")
    train = jnp.asarray(run.data.prepared.train)
    validate = _validation(run)
    step = last_saved = int(saved.run.step)
    saved_at, order, told = started, None, False
    with contextlib.ExitStack() as opened:
        opened.enter_context(rundir.locked(run.workdir))
        log = journal.open(run.workdir, resume_step=step or None)
        opened.callback(log.close)
        show = _progress(run, total, step, opened)
        while step < total and not received and not _is_stopped(run, saved):
            epoch, offset = divmod(step, run.steps_per_epoch)
            if offset == 0 or order is None:
                key = jax.random.fold_in(run.keys.order, epoch)
                order = draw(key, len(train), batch_size=run.config.batch_size)
            clock = time.monotonic()
            state, info = scan(saved.run, train, order[offset : offset + SCAN_STEPS])
            info = jax.tree.map(np.asarray, info)
            row = _row(run, step, info, seconds=time.monotonic() - clock)
            saved = saved._replace(run=state)
            step += len(info[0])
            if validate is not None and step % run.steps_per_validation == 0:
                saved, measured = _validated(run, saved, validate)
                row |= measured
            row |= _collapse(run, row)
            row = protocol.named(row, quantity=quantity)
            log.write(row | {"elapsed": time.monotonic() - started})
            show(step, **_shown(row))
            told = _tell_of_collapse(row, told)
            if time.monotonic() - saved_at > run.config.checkpoint_seconds:
                _save(run, saved)
                last_saved, saved_at = step, time.monotonic()
    if step > last_saved:
        _save(run, saved)
    return saved


def _progress(
    run: Run, total: int, step: int, opened: contextlib.ExitStack
) -> Callable[..., None]:
    if not run.config.progress:
        return lambda step, **shown: None
    progress = journal.progress(total, initial=step, unit="step")
    opened.callback(progress.close)
    return progress.update


def _shown(row: dict[str, float]) -> dict[str, float]:
    """What a row's model is fitted and watched by."""
    endings = ("bound", "objective", "log_joint")
    return {name: row[name] for name in row if name.endswith(endings)}


def _save(run: Run, saved: Saved) -> None:
    step = int(saved.run.step)
    checkpoints.save(run.workdir / rundir.CHECKPOINTS, step, saved)


def _is_stopped(run: Run, saved: Saved) -> bool:
    """Early stopping, as a function of the state alone, so that it resumes too."""
    since = int(saved.run.step - saved.best_step) // run.steps_per_epoch
    return 0 < run.config.early_stopping <= since


def _row(run: Run, first: int, info: NamedTuple, *, seconds: float) -> dict[str, float]:
    """Means over the steps of one scan of whatever the algorithm reports.

    Raises:
        UsageError: if what a step fits, its info's first field, is not finite.
    """
    fields = info._asdict()
    fields |= fields.pop("monitored", {})
    fields.pop("spread", None)
    fitted, values = next(iter(fields.items()))
    finite = np.isfinite(values)
    if not finite.all():
        _report_divergence(run, first, fitted, values, int(np.argmin(finite)))
    step = first + len(values)
    row = {"step": step, "epoch": step / run.steps_per_epoch} | {
        name: float(np.nanmean(values.astype(np.float64)))
        for name, values in fields.items()
        if not np.isnan(values).all()  # a short scan may hold no step with a norm
    }
    if run.config.algorithm in SPLIT_BOUND and run.config.gradient in OF_THE_ELBO:
        row["reconstruction"] = row["bound"] + row["kl"]
    num_examples = len(values) * run.config.batch_size
    return row | {"examples_per_second": num_examples / seconds, "seconds": seconds}


def _report_divergence(
    run: Run, first: int, fitted: str, values: np.ndarray, at: int
) -> NoReturn:
    rows = journal.read(run.workdir)
    last = (
        f"step {first + at}: {fitted} {values[at - 1]:.4f}"
        if at
        else (f"row of step {rows[-1]['step']}" if rows else "none")
    )
    whole = checkpoints.steps(run.workdir / rundir.CHECKPOINTS)
    back = f"checkpoint of step {whole[-1]}" if whole else "no checkpoint yet"
    raise cli.UsageError(
        f"the {fitted.replace('_', ' ')} is {values[at]} at step {first + at + 1}; "
        f"last finite metrics: {last}; to go back to: {back} in {run.workdir}; try a "
        "smaller --learning_rate or --clip_norm, in a new --workdir"
    )


Validate: TypeAlias = Callable[[PRNGKey, Params], dict[str, float]]
WATCHED = {"elbo": "valid_bound", "importance": "valid_importance_bound"}


def _validation(run: Run) -> Validate | None:
    """(key, params) -> bounds of the validation split; None without a split or a q.

    MCEM's q is made of HMC chains, for which an epoch's end is no time.
    """
    prepared, size = run.data.prepared, run.config.valid_samples
    if not len(prepared.valid) or run.config.algorithm == "mcem":
        return None
    valid = jnp.asarray(prepared.valid)
    terms = measure.elbo_over_examples(run.model, prepared, num_samples=size)
    importance = measure.importance_bound_over_examples(
        run.model, prepared, num_samples=size
    )

    codes = None
    if _has_cheap_codes(run.config) and len(valid) > 1:
        codes = measure.codes_over_examples(run.config, run.model, prepared)

    def validate(key: PRNGKey, params: Params) -> dict[str, float]:
        drawn = terms(key, params, valid)
        reconstruction, kl = (
            float(np.asarray(term).mean(dtype=np.float64)) for term in drawn
        )
        found = {
            "valid_bound": reconstruction - kl,
            "valid_reconstruction": reconstruction,
            "valid_kl": kl,
        }
        if codes is not None:
            means = codes(jax.random.clone(key), params, valid)
            found["valid_active_units"] = float(representation.active_units(means))
        if run.config.watch == "importance":
            nats = importance(jax.random.clone(key), params, valid)
            mean = np.asarray(nats).mean(dtype=np.float64)
            found["valid_importance_bound"] = float(mean)
        return found

    return validate


def _validated(
    run: Run, saved: Saved, validate: Validate
) -> tuple[Saved, dict[str, float]]:
    """Takes the validation bounds, and keeps the parameters if they are best so far."""
    step, params = saved.run.step, saved.run.inner.params
    found = validate(jax.random.fold_in(run.keys.evaluation, step), params)
    bound = found[WATCHED[run.config.watch]]
    if bound > saved.best_bound:
        best = jax.tree.map(jnp.copy, params)
        saved = Saved(saved.run, best, jnp.asarray(bound, jnp.float32), jnp.copy(step))
    return saved, found


def _collapse(run: Run, row: dict[str, float]) -> dict[str, float]:
    """Whether the posterior has collapsed to the prior, after every validation.

    It is when no latent is active (`representation.active_units`), or the mean KL is
    below 0.01 nats: the KL is I(x; z) and more (Hoffman & Johnson 2016, ELBO surgery),
    so that z tells at most that of x. Of the validation split, or the training rows' KL
    alone where there is none; not during --kl_warmup.
    """
    due = row["step"] % run.steps_per_validation == 0
    kl = row.get("valid_kl", row.get("kl"))
    if not due or kl is None or row["epoch"] <= run.config.kl_warmup:
        return {}
    active = row.get("valid_active_units", 1.0)
    return {"collapsed": float(kl < COLLAPSED or active < 1.0)}


def _has_cheap_codes(config: Config) -> bool:
    """Whether an encoder gives E_q[z | x] without samples or a search."""
    return config.algorithm not in WITHOUT_ENCODER and (
        models.posterior_mean(config) is not None
    )


def _tell_of_collapse(row: dict[str, float], told: bool) -> bool:
    """Prints a line when the posterior collapses, and when it is back."""
    collapsed = bool(row.get("collapsed", told))
    if collapsed != told:
        kl = row.get("valid_kl", row.get("kl", float("nan")))
        where = f"epoch {row['epoch']:g}: KL {kl:.4f} nats per image"
        if "valid_active_units" in row:
            where += f", {row['valid_active_units']:.0f} active units"
        print(
            f"warning: posterior collapse at {where}; z tells next to nothing of x; "
            "--kl_warmup, a smaller --beta or --estimator=free_bits may help"
            if collapsed
            else f"no posterior collapse any more at {where}",
            flush=True,
        )
    return collapsed


def finish(run: Run, saved: Saved) -> None:
    """The test bound, said and written, and the pictures."""
    trained = measure.of_run(run, saved, checkpoint="auto")
    split = measure.test_split(trained)
    key = jax.random.fold_in(run.keys.evaluation, 0)
    bound = measure.bound(
        key, trained, split=split, num_samples=run.config.eval_samples
    )
    quantity = protocol.quantity(run.config, run.data)
    named = protocol.named(bound, quantity=quantity)
    rundir.write_json(
        run.workdir / "result.json",
        {"split": split, "step": trained.step, **named}
        | {"protocol": protocol.stamp(run.config, run.data)},
    )
    print(f"{split} split, step {trained.step}, {quantity}, nats per example:")
    for name, number in named.items():
        print(f"  {name:<28}{number:12.4f}")
    pictures.of_run(jax.random.fold_in(key, 1), trained, run.workdir)
    print(f"written to {run.workdir}")


if __name__ == "__main__":
    cli.run(Config, main)
