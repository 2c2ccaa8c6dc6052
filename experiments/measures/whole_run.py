"""A training run with all that it ends with: the test bound and the pictures."""

from typing import Any

import jax

from experiments.choices import sweep
from experiments.choices.config import Config
from experiments.command import report
from experiments.measures import measure, pictures, validation
from experiments.runs import fit, protocol, rundir, runs, trained_runs
from experiments.runs.runs import Run, Saved
from vae_jax.training import parallel


def train(config: Config) -> tuple[Run, Saved]:
    """Trains a run to its end, or takes it up there; measures it and draws it.

    Leaves the program on a signal, as `fit.to_end`.

    Raises:
        UsageError: as `fit.to_end`; if a file of the results cannot be written.
    """
    run, saved = fit.to_end(config, validation.build)
    if jax.process_count() > 1:  # the writer goes on alone: it leaves their mesh
        run, saved = run._replace(mesh=None), parallel.local(saved)
    if parallel.is_writer():
        with rundir.storage_errors(run.workdir):
            finish(run, saved)
    return run, saved


def finish(run: Run, saved: Saved) -> None:
    """The test bound, printed and written, and the pictures: those of the first run."""
    trained = trained_runs.of_runs(run, saved, checkpoint="auto")
    keys = runs.fold_in(run.keys.evaluation, 0).reshape(-1)
    split, size = trained_runs.test_split(trained[0]), run.config.eval_samples
    bounds = [
        measure.bound(key, one, split=split, num_samples=size)
        for key, one in zip(keys, trained, strict=True)
    ]
    lines = report.numbers(bounds[0])
    result: dict[str, Any] = bounds[0]
    if run.config.trains_many:
        result = sweep.summary(run.config, bounds)
        lines = sweep.lines(result)
    stamp = {"protocol": protocol.stamp(run.config, run.data)}
    result = {"split": split, "step": trained[0].step, **result, **stamp}
    report.write_json(run.workdir / "result.json", result)
    print(
        f"{split} split, step {trained[0].step}, {run.data.quantity}, {run.data.units}:"
    )
    print("\n".join(lines))
    pictures.of_run(jax.random.fold_in(keys[0], 1), trained[0], run.workdir)
    print(f"written to {run.workdir}")
