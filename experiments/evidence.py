r"""How p(x) may be estimated, and which estimates may be trusted.

    python -m experiments.evidence --flagfile=experiments/flags/evidence/quick.flags

Every estimator against what it costs, in decodings of z and in seconds, with its spread
over repeats and the exact log p(x) as a line, on

- `linear`: a linear-Gaussian model of ten latents, log p(x) in closed form;
- `binary`: a digit under a belief net of binary features, log p(x) by all 2^D terms:
  uniform draws of z, the sum subsampled, fail where importance sampling does not;
- `digits`: the trained VAE of digits, where no answer is known;

and the `bias` of log p-hat where p-hat has none: the mean of log p-hat - log p(x)
against K, beside -Var(w / p(x)) / (2 K), its law where the weights have a variance.
"""

import dataclasses
import pathlib
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments import cli, evidence_cases, reports
from experiments.configuration import Config as TrainConfig
from vae_jax import posteriors
from vae_jax.evaluation import marginal
from vae_jax.latent_models import ppca
from vae_jax.plots import curves, estimates, files
from vae_jax.types import Params

PARTS = ("linear", "binary", "digits", "bias")
RESULT = "evidence.json"
BIAS_SAMPLES = (1, 2, 5, 10, 20, 50, 100, 200)
WIDER = 1.3  # the proposal's std over the posterior's, where the bias is measured


@dataclasses.dataclass(frozen=True)
class Config:
    """One comparison; every field is a flag."""

    workdir: str = cli.flag("runs/evidence", "Where it is written.")
    parts: str = cli.flag(",".join(PARTS), "Comma-separated parts.")
    samples: tuple[int, ...] = cli.flag(
        (10, 100, 1000, 10_000), "Samples of z; those above 500 are multiples of it."
    )
    temperatures: tuple[int, ...] = cli.flag((10, 100, 1000), "Temperatures of AIS.")
    num_repeats: int = cli.flag(20, "Repeats of every estimate.")
    num_bits: int = cli.flag(16, "Binary features, all of whose vectors are summed.")
    binary_epochs: int = cli.flag(200, "Epochs that the belief net is trained for.")
    digits_flagfile: str = cli.flag(
        "experiments/flags/train/digits.flags", "Flag file of the trained VAE."
    )
    num_images: int = cli.flag(5, "Test images of the trained VAE.")
    bias_repeats: int = cli.flag(100_000, "Repeats of every K in `bias`.")
    seed: int = cli.flag(0, "Seed of the estimates.")

    def __post_init__(self) -> None:
        """Refuses what cannot be compared.

        Raises:
            ValueError: naming the flag and its value.
        """
        for name in ("num_repeats", "num_bits", "binary_epochs", "num_images"):
            if getattr(self, name) < 1:
                value = getattr(self, name)
                raise ValueError(f"--{name} must be positive, got {value}")
        for name in ("samples", "temperatures"):
            if not getattr(self, name) or min(getattr(self, name)) < 1:
                raise ValueError(f"--{name} must hold positive sizes")
        for k in self.samples:
            if k > evidence_cases.CHUNK and k % evidence_cases.CHUNK:
                raise ValueError(
                    f"--samples above {evidence_cases.CHUNK} must be multiples of it, "
                    f"got {k}"
                )
        if self.bias_repeats < 2:
            raise ValueError(f"--bias_repeats must be 2 or more: {self.bias_repeats}")
        unknown = [part for part in self.parts.split(",") if part not in PARTS]
        if unknown:
            raise ValueError(
                f"--parts: {', '.join(unknown)} unknown; known: {', '.join(PARTS)}"
            )


def case(config: Config, part: str, folder: pathlib.Path) -> evidence_cases.Case:
    """The model of a part, trained where it has to be."""
    if part == "linear":
        return evidence_cases.linear_case(config.samples, config.temperatures)
    if part == "binary":
        return evidence_cases.binary_case(
            str(folder / f"belief_net_{config.num_bits}"),
            num_bits=config.num_bits,
            num_epochs=config.binary_epochs,
            samples=config.samples,
        )
    argv = [
        "train",
        f"--flagfile={config.digits_flagfile}",
        f"--workdir={folder / 'digits'}",
        "--noprogress",
    ]
    return evidence_cases.trained_case(
        cli.parse(TrainConfig, argv),
        samples=config.samples,
        temperatures=config.temperatures,
        num_images=config.num_images,
    )


def compare(config: Config, on: evidence_cases.Case) -> dict[str, dict[str, list]]:
    """Each method's mean, spread over repeats, decodings and seconds, by budget."""
    keys = jax.random.split(jax.random.key(config.seed), config.num_repeats)
    found: dict[str, dict[str, list]] = {}
    for name, method in on.methods.items():
        rows: dict[str, list] = {
            "budget": [],
            "decodings": [],
            "seconds": [],
            "mean": [],
            "spread": [],
        }
        for budget in method.budgets:
            values, seconds = _repeated(on, method.build(budget), keys)
            rows["budget"].append(budget)
            rows["decodings"].append(method.decodings(budget))
            rows["seconds"].append(seconds / values.size)
            rows["mean"].append(float(values.mean()))
            spread = values.mean(axis=1).std(ddof=1) if len(values) > 1 else np.nan
            rows["spread"].append(float(spread))
            print(
                f"  {name:<28}{budget:>8}{rows['mean'][-1]:12.3f} +- "
                f"{rows['spread'][-1]:.3f} ({rows['seconds'][-1]:.2g} s)",
                flush=True,
            )
        found[name] = rows
    return found


def _repeated(
    on: evidence_cases.Case, estimate: evidence_cases.Estimate, keys: jax.Array
) -> tuple[np.ndarray, float]:
    """Estimates [R, N], and the seconds of all of them without compilation."""

    def of_key(key: jax.Array) -> jax.Array:
        each = jax.random.split(key, len(on.data))
        return jax.vmap(estimate, in_axes=(0, None, 0))(each, on.params, on.data)

    run = jax.jit(lambda keys: jax.lax.map(of_key, keys))
    compiled = run.lower(keys).compile()
    start = time.perf_counter()
    values = np.asarray(compiled(keys), np.float64)
    return values, time.perf_counter() - start


def bias(config: Config) -> dict[str, list[float]]:
    """The mean of log p-hat - log p(x) at each K, its law, and p-hat / p(x)."""
    num_latents, generative = 2, ppca.generative(2, (4,))
    weights = jnp.array([[1.0, 0.4, -0.3, 0.8], [0.2, -1.0, 0.5, 0.3]])
    theta = {
        "decoder": {"output": {"kernel": weights, "bias": jnp.zeros(4)}},
        "prior": (),
        "likelihood": {"log_std": jnp.zeros(())},
    }
    params, x = Params(theta, ()), jnp.array([1.0, -0.5, 0.3, 0.8])
    h = ppca.recognition(num_latents).encode(params, x)
    mean, scale_tril = posteriors.mean_and_scale_tril(h, num_latents)
    marginal_std = jnp.sqrt(jnp.diagonal(scale_tril @ scale_tril.T))
    wide = jnp.concatenate([mean, jnp.log(WIDER * marginal_std)])
    proposal = evidence_cases.normal_at(wide)
    exact = ppca.log_evidence(params, x)

    def ratios(num_samples: int) -> np.ndarray:
        estimate = marginal.importance_sampling(
            generative, proposal, num_samples=num_samples, chunk_size=num_samples
        )
        keys = jax.random.split(
            jax.random.fold_in(jax.random.key(config.seed), num_samples),
            config.bias_repeats,
        )
        one = jax.jit(jax.vmap(lambda key: estimate(key, params, x).log_p - exact))
        return np.asarray(one(keys), np.float64)

    variance = float(np.exp(ratios(1)).var(ddof=1))
    rows: dict[str, list[float]] = {
        "num_samples": [],
        "bias": [],
        "bias_error": [],
        "law": [],
        "ratio": [],
        "ratio_error": [],
    }
    for k in BIAS_SAMPLES:
        logs = ratios(k)
        rows["num_samples"].append(k)
        rows["bias"].append(float(logs.mean()))
        rows["bias_error"].append(float(logs.std(ddof=1) / len(logs) ** 0.5))
        rows["law"].append(-variance / (2.0 * k))
        ratio = np.exp(logs)
        rows["ratio"].append(float(ratio.mean()))
        rows["ratio_error"].append(float(ratio.std(ddof=1) / len(ratio) ** 0.5))
        print(
            f"  K = {k:>4}: mean of log p-hat - log p {rows['bias'][-1]:9.5f} +- "
            f"{rows['bias_error'][-1]:.5f}, law {rows['law'][-1]:9.5f}; mean of "
            f"p-hat / p {ratio.mean():.4f} +- {rows['ratio_error'][-1]:.4f}",
            flush=True,
        )
    return rows


def draw(folder: pathlib.Path, result: dict[str, Any]) -> None:
    """The estimates against decodings and seconds, and the bias against K."""
    compared = [part for part in PARTS if part in result and part != "bias"]
    exact = {
        part: result[part]["exact"]
        for part in compared
        if result[part]["exact"] is not None
    }
    for axis, label in (
        ("decodings", "decodings of z for each image"),
        ("seconds", "seconds for each image"),
    ):
        panels = {
            part: {
                name: (rows[axis], rows["mean"], rows["spread"])
                for name, rows in result[part]["methods"].items()
            }
            for part in compared
        }
        if panels:
            figure = estimates.estimates(
                panels, exact=exact, x_label=label, y_label="log p(x), nats"
            )
            files.save(figure, folder / f"evidence_against_{axis}.png")
    if "bias" in result:
        rows = result["bias"]
        k = rows["num_samples"]
        panels = {
            "log p(x) less the mean of log p-hat, nats": {
                "measured": (k, [-b for b in rows["bias"]]),
                "Var(w / p(x)) / (2 K)": (k, [-b for b in rows["law"]]),
            }
        }
        figure = curves.series(panels, x_label="K", y_label="nats", log="xy")
        files.save(figure, folder / "bias.png")


def main(config: Config) -> int:
    """Compares, prints, writes and draws."""
    folder = reports.claim(config.workdir)
    result: dict[str, Any] = {}
    for part in config.parts.split(","):
        print(f"{part}:", flush=True)
        if part == "bias":
            result[part] = bias(config)
            continue
        on = case(config, part, folder)
        if on.exact is not None:
            print(f"  exact {on.exact:.4f}", flush=True)
        result[part] = {"exact": on.exact, "methods": compare(config, on)}
    with cli.user_errors():
        draw(folder, result)
    reports.write(folder / RESULT, config, result)
    return 0


if __name__ == "__main__":
    cli.run(Config, main)
