r"""A sigmoid belief network trained by every estimator for binary latents.

    python -m experiments.discrete
    python -m experiments.discrete --dataset=binarized_mnist --data_dir=DIR \
        --layers=200 --num_epochs=20

Every estimator starts from the same weights and spends the same number of decoder
evaluations per image, `--num_samples` (a relaxed sample costs two: one decides the
value and theta's gradient, one phi's). The curve is the 100-sample bound of the test
split against training time, compilation and evaluation not counted; at the end log p(x)
by importance sampling is given as well. Relaxed, straight-through and DisARM gradients
need a factorial q and are left out where there is more than one layer.
Writes discrete.json and discrete.png.
"""

import dataclasses
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from experiments.choices import estimators
from experiments.choices.config import Config as TrainConfig
from experiments.choices.densities import POSTERIORS
from experiments.command import cli, report
from experiments.measures import measure
from experiments.runs import protocol
from vae_jax import vae
from vae_jax.data import batches
from vae_jax.estimators import importance
from vae_jax.evaluation import examples, marginal
from vae_jax.latent_models import sigmoid_belief
from vae_jax.plots import curves, files
from vae_jax.training import gradient, loop, timed
from vae_jax.types import Algorithm, Params, Recognition

BOUND_SAMPLES = 100


@dataclasses.dataclass(frozen=True)
class Config:
    """One experiment; every field is a flag."""

    workdir: str = cli.flag("runs/discrete", "Where the results are written.")
    dataset: str = cli.flag("digits", "Data set, as in experiments.train.")
    data_dir: str = cli.flag("", "Folder that holds the original data files.")
    binarization: str = cli.flag(
        "auto",
        "Pixels, as in experiments.train.",
        choices=("auto", "threshold", "static", "dynamic"),
    )
    layers: tuple[int, ...] = cli.flag((32,), "Binary units of each layer, x's first.")
    hidden: tuple[int, ...] = cli.flag((), "Hidden units of each layer of q.")
    estimators: str = cli.flag("", "Comma-separated names; all that fit if empty.")
    num_samples: int = cli.flag(8, "Decoder evaluations per image; even, two or more.")
    batch_size: int = cli.flag(100, "Images per step.")
    learning_rate: float = cli.flag(3e-3, "Of Adam.")
    num_epochs: int = cli.flag(300, "Passes over the training split.")
    eval_every: int = cli.flag(20, "Epochs between two points of the curve.")
    importance_samples: int = cli.flag(1000, "Samples per image of log p(x).")
    seed: int = cli.flag(0, "Seed of the weights, the order and the noise.")

    def __post_init__(self) -> None:
        """Refuses numbers that cannot be trained.

        Raises:
            ValueError: naming the flag and its value.
        """
        if self.num_samples < 2 or self.num_samples % 2:
            raise ValueError(
                f"--num_samples must be even and positive, got {self.num_samples}"
            )
        for name in ("num_epochs", "eval_every", "batch_size", "importance_samples"):
            if getattr(self, name) < 1:
                value = getattr(self, name)
                raise ValueError(f"--{name} must be positive, got {value}")
        if self.num_epochs > self.eval_every and self.num_epochs % self.eval_every:
            raise ValueError(
                f"--num_epochs={self.num_epochs} is no multiple of --eval_every="
                f"{self.eval_every}"
            )
        if not self.learning_rate > 0.0:
            raise ValueError(
                f"--learning_rate must be positive, got {self.learning_rate}"
            )
        measure.check_importance_samples(self.importance_samples)
        if not self.layers or min(self.layers) < 1:
            raise ValueError(f"--layers must hold positive sizes, got {self.layers}")


class Fit(NamedTuple):
    """An algorithm and the recognition model whose parameters it starts from."""

    algorithm: Algorithm
    recognition: Recognition


def fits(config: Config, x_shape: tuple[int, ...]) -> dict[str, Fit]:
    """Every estimator that fits the number of layers."""
    generative = sigmoid_belief.generative(config.layers, x_shape)
    recognition = sigmoid_belief.recognition(
        config.layers, x_shape, hidden=config.hidden
    )
    optimizer = gradient.adam(config.learning_rate)
    network = estimators.baseline(math.prod(x_shape))

    found = {}
    for name in estimators.fitting("bernoulli"):
        row = estimators.ESTIMATORS[name]
        factorial = not row.fits(POSTERIORS["diag_normal"])
        if factorial and len(config.layers) > 1:
            continue
        flags = TrainConfig(
            posterior="bernoulli",
            estimator=name,
            num_samples=config.num_samples // row.decodings,
        )
        objective = estimators.objective(
            flags, vae.model(generative, recognition), network=network, num_data=1
        )
        start = recognition
        if row.learns_baseline:
            start = vae.with_baseline(recognition, network)
        found[name] = Fit(gradient.ascent(objective, optimizer), start)
    return found


def train(config: Config, fit: Fit, data: protocol.Dataset) -> dict[str, Any]:
    """The curve of one estimator, and log p(x) of the test split at its end."""
    generative = sigmoid_belief.generative(config.layers, data.x_shape)
    model = vae.model(
        generative,
        sigmoid_belief.recognition(config.layers, data.x_shape, hidden=config.hidden),
    )
    key_theta, key_phi, key_run, key_order, key_eval = jax.random.split(
        jax.random.key(config.seed), 5
    )
    prepared = data.prepared
    test = jnp.asarray(prepared.test)
    bound = examples.over_examples(
        importance.iwae(model, num_samples=BOUND_SAMPLES),
        batch_size=10,
        value=prepared.value,
    )
    evidence = examples.over_examples(
        marginal.importance_sampling(
            model,
            num_samples=config.importance_samples,
            chunk_size=min(config.importance_samples, measure.IMPORTANCE_CHUNK),
        ),
        batch_size=1,
        value=prepared.value,
    )
    start = Params(generative.init(key_theta), fit.recognition.init(key_phi))
    num_epochs = min(config.eval_every, config.num_epochs)

    def test_bound(inner: Any) -> dict[str, float]:
        values = bound(jax.random.clone(key_eval), inner.params, test)
        return {"bound": float(np.asarray(values, np.float64).mean())}

    state, curve = timed.curve(
        loop.start(key_run, fit.algorithm, start),
        fit.algorithm,
        jnp.asarray(prepared.train),
        take=prepared.take,
        order=lambda scan: batches.epochs(
            jax.random.fold_in(key_order, scan),
            len(prepared.train),
            batch_size=config.batch_size,
            num_epochs=num_epochs,
        ),
        epochs_per_scan=num_epochs,
        points=range(num_epochs, config.num_epochs + 1, num_epochs),
        measure=test_bound,
    )
    log_p = np.asarray(
        evidence(jax.random.clone(key_eval), state.inner.params, test).log_p, np.float64
    )
    return curve | {
        "log_p": float(log_p.mean()),
        "log_p_standard_error": measure.standard_error(log_p),
    }


def run(config: Config) -> dict[str, Any]:
    """Trains by each estimator in turn."""
    with cli.user_errors():
        flags = TrainConfig(
            dataset=config.dataset,
            data_dir=config.data_dir,
            binarization=config.binarization,
        )
        data = protocol.load(flags)
        for split in ("train", "test"):
            if not len(getattr(data.source, split)):
                raise ValueError(f"{config.dataset} has no {split} split")
        if config.batch_size > len(data.source.train):
            raise ValueError(
                f"--batch_size={config.batch_size} is larger than the training split "
                f"of {len(data.source.train)} rows"
            )
        known = fits(config, data.x_shape)
    names = config.estimators.split(",") if config.estimators else list(known)
    unknown = [name for name in names if name not in known]
    if unknown:
        raise cli.UsageError(
            f"--estimators: {', '.join(unknown)} unknown or not for "
            f"{len(config.layers)} layers; what fits: {', '.join(known)}"
        )
    result = {}
    print(protocol.opening(flags, data))
    print(f"{'':<24}{'test bound':>12}{'log p(x)':>10}{'s.e.':>8}{'seconds':>9}")
    for name in names:
        got = result[name] = train(config, known[name], data)
        print(
            f"{name:<24}{got['bound'][-1]:12.2f}{got['log_p']:10.2f}"
            f"{got['log_p_standard_error']:8.2f}{got['seconds'][-1]:9.1f}",
            flush=True,
        )
    return result


def main(config: Config) -> int:
    """Trains, prints, writes and draws."""
    folder = report.claim(config.workdir)
    result = run(config)
    drawn = {name: (got["seconds"], got["bound"]) for name, got in result.items()}
    figure = curves.series(
        {f"{config.dataset}, layers {config.layers}": drawn},
        x_label="seconds of training",
        y_label=f"test bound, {BOUND_SAMPLES} samples, nats",
    )
    with cli.user_errors():
        files.save(figure, folder / "discrete.png")
    report.write(folder / "discrete.json", config, {"estimators": result})
    return 0


if __name__ == "__main__":
    cli.run(Config, main)
