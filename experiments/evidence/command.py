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

import time
from collections.abc import Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from experiments.command import report
from experiments.evidence import cases
from experiments.evidence.config import Config
from experiments.measures import measure
from vae_jax import compilation, posteriors, vae
from vae_jax.evaluation import marginal
from vae_jax.latent_models import ppca
from vae_jax.plots import curves, estimates
from vae_jax.types import Params

BIAS_SAMPLES = (1, 2, 5, 10, 20, 50, 100, 200)
WIDER = 1.3  # the proposal's std over the posterior's, where the bias is measured
ESTIMATES = (
    report.field("", "method", width=27),
    report.field("budget", "budget", width=8),
    report.field("decodings", "decodings", width=10),
    report.field("log p-hat", "mean", ".3f", 11),
    report.field("spread", "spread", ".3f", 8),
    report.field("seconds", "seconds", ".2g", 9),
)
BIAS = (
    report.field("K", "num_samples", width=4),
    report.field("log p-hat - log p", "bias", ".5f", 18),
    report.field("s.e.", "bias_error", ".5f", 8),
    report.field("law", "law", ".5f", 9),
    report.field("p-hat / p", "ratio", ".4f", 9),
    report.field("s.e.", "ratio_error", ".4f", 7),
)
AXES = {
    "decodings": "decodings of z for each image",
    "seconds": "seconds for each image",
}


class Estimated(NamedTuple):
    """A method at one budget: log p-hat of the images, and what it costs of each."""

    method: str
    budget: int
    decodings: int
    seconds: float
    mean: float
    spread: float  # of the repeats


class Bias(NamedTuple):
    """Of log p-hat and of p-hat / p, by K importance samples."""

    num_samples: int
    bias: float  # nats
    bias_error: float
    law: float
    ratio: float
    ratio_error: float


def compare(config: Config, case: cases.Case) -> Iterator[Estimated]:
    """Each method at each of its budgets."""
    keys = jax.random.split(jax.random.key(config.seed), config.num_repeats)
    for name, method in case.methods.items():
        for budget in method.budgets:
            values, seconds = _repeated(case, method.build(budget), keys)
            means = values.mean(axis=1)
            yield Estimated(
                *(name, budget, method.decodings(budget), seconds / values.size),
                float(values.mean()),
                float(means.std(ddof=1)) if len(means) > 1 else np.nan,
            )


def _repeated(
    case: cases.Case, estimate: cases.Estimate, keys: jax.Array
) -> tuple[np.ndarray, float]:
    """Estimates [R, N], and the seconds of all of them without compilation."""

    def of_key(key: jax.Array) -> jax.Array:
        each = jax.random.split(key, len(case.data))
        return jax.vmap(estimate, (0, None, 0))(each, case.params, case.data).log_p

    every = compilation.whole(lambda keys: jax.lax.map(of_key, keys))
    compiled = every.lower(keys).compile()
    start = time.perf_counter()
    values = np.asarray(compiled(keys), np.float64)
    return values, time.perf_counter() - start


def bias(config: Config) -> Iterator[Bias]:
    """The mean of log p-hat - log p(x) at each K, its law, and p-hat / p(x)."""
    kernel = jnp.array([[1.0, 0.4, -0.3, 0.8], [0.2, -1.0, 0.5, 0.3]])
    params = Params(ppca.parameters(kernel.T, jnp.zeros(4), jnp.zeros(())), ())
    x = jnp.array([1.0, -0.5, 0.3, 0.8])
    h = ppca.recognition(2).encode(params, x)
    mean, scale_tril = posteriors.mean_and_scale_tril(h, 2)
    marginal_std = jnp.sqrt(jnp.diagonal(scale_tril @ scale_tril.T))
    wide = jnp.concatenate([mean, jnp.log(WIDER * marginal_std)])
    model = vae.model(ppca.generative(2, (4,)), cases.normal_at(wide))
    exact = ppca.log_evidence(params, x)

    def log_ratios(k: int) -> np.ndarray:
        estimate = marginal.importance_sampling(model, num_samples=k, chunk_size=k)
        key = jax.random.fold_in(jax.random.key(config.seed), k)
        one = compilation.program(
            jax.vmap(lambda key: estimate(key, params, x).log_p - exact)
        )
        return np.asarray(one(jax.random.split(key, config.bias_repeats)), np.float64)

    variance = float(np.exp(log_ratios(1)).var(ddof=1))
    for k in BIAS_SAMPLES:
        logs = log_ratios(k)
        ratios = np.exp(logs)
        yield Bias(
            *(k, float(logs.mean()), measure.standard_error(logs)),
            -variance / (2.0 * k),
            *(float(ratios.mean()), measure.standard_error(ratios)),
        )


def pictures(result: dict[str, Any]) -> dict[str, Any]:
    """The estimates against decodings and seconds, and the bias against K."""
    compared = {part: result[part] for part in cases.CASES if part in result}
    exact = {part: rows["exact"] for part, rows in compared.items()}
    figures = {
        f"evidence_against_{axis}": estimates.estimates(
            {
                part: {
                    name: (rows[axis], rows["mean"], rows["spread"])
                    for name, rows in of_part["methods"].items()
                }
                for part, of_part in compared.items()
            },
            exact={part: value for part, value in exact.items() if value is not None},
            x_label=label,
            y_label="log p(x), nats",
        )
        for axis, label in AXES.items()
        if compared
    }
    if "bias" in result:
        k = result["bias"]["num_samples"]
        lines = {"measured": "bias", "Var(w / p(x)) / (2 K)": "law"}
        panel = {
            label: (k, np.negative(result["bias"][name]))
            for label, name in lines.items()
        }
        title = "log p(x) less the mean of log p-hat, nats"
        figures["bias"] = curves.series(
            {title: panel}, x_label="K", y_label="nats", log="xy"
        )
    return figures


def main(config: Config) -> int:
    """Compares, prints, writes and draws."""
    folder, result = report.claim(config.workdir), {}
    for part in config.parts:
        print(f"{part}:", flush=True)
        if part == "bias":
            result[part] = report.by_name(report.printed(BIAS, bias(config)))
            continue
        case = cases.CASES[part](config)
        if case.exact is not None:
            print(f"  exact {case.exact:.4f}", flush=True)
        rows = report.printed(ESTIMATES, compare(config, case))
        methods = {
            name: report.by_name(row for row in rows if row.method == name)
            for name, method in case.methods.items()
            if method.budgets  # few samples fit no normal to draws of HMC
        }
        result[part] = {"exact": case.exact, "methods": methods}
    report.write(folder / "evidence.json", config, result, pictures(result))
    return 0
