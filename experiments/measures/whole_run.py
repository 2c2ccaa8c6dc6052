"""A training run with all that it ends with: the test bound and the pictures."""

from typing import Any

import jax

from experiments.choices import sweep
from experiments.choices.config import Config
from experiments.command import report
from experiments.measures import measure, pictures, validation
from experiments.runs import fit, programs, rundir, runs, trained_runs
from experiments.runs.runs import Run, Saved
from vae_jax.training import parallel
from vae_jax.types import PRNGKey


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


@programs.compiled_once()
def finish(run: Run, saved: Saved) -> None:
    """The test bound, printed and written, and the pictures: those of the first run.

    Where they are of a moving average, the bound of the raw weights of the same step
    stands beside it. All are computed in float32.
    """
    run = runs.at_precision(run, "float32")
    trained = trained_runs.of_runs(run, saved, checkpoint="auto")
    first, result = trained[0], _bounds(run, trained)
    stamp = {"step": first.step, "protocol": first.stamp()}
    if first.weights == "average" and first.step == saved.step:
        raw = trained_runs.of_runs(run, saved, checkpoint="last", weights="raw")
        stamp["raw"] = _bounds(run, raw)
    report.write_json(run.workdir / "result.json", result | stamp)
    key = jax.random.fold_in(_keys(run)[0], 1)
    bits = result.get("runs", [result])[0].get("bits_per_dimension")
    caption = "" if bits is None else f"{result['split']} bound {bits:.2f} bits/dim"
    pictures.of_run(key, first, run.workdir, caption=caption)
    print(f"written to {run.workdir}")


def _bounds(run: Run, trained: list[trained_runs.Trained]) -> dict[str, Any]:
    """The test bound of each run, which are printed too."""
    first, size = trained[0], run.config.eval_samples
    split = trained_runs.test_split(first)
    bounds = [
        measure.bound(key, one, split=split, num_samples=size)
        for key, one in zip(_keys(run), trained, strict=True)
    ]
    print(f"{split} split, {first.moment}, {run.data.quantity}, {run.data.units}:")
    if run.config.trains_many:
        result = sweep.summary(run.config, bounds)
        print("\n".join(sweep.lines(result)))
    else:
        result = bounds[0]
        print("\n".join(report.numbers(result)))
    return {"split": split, **result}


def _keys(run: Run) -> PRNGKey:
    """A key for the measurements of each run."""
    return runs.fold_in(run.keys.evaluation, 0).reshape(-1)
