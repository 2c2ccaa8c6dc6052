"""Models whose log p(x) is known or trained, and the estimators that are put to it."""

import math
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from experiments.choices.config import Config as TrainConfig
from experiments.command import cli
from experiments.evidence.config import Config
from experiments.measures import measure, whole_run
from experiments.runs import protocol, trained_runs
from vae_jax import compilation, posteriors, vae
from vae_jax.estimators import enumerated
from vae_jax.evaluation import annealed, annealing, hmc_density, marginal
from vae_jax.latent_models import ppca, ppca_bounds
from vae_jax.types import Generative, Model, Params, PRNGKey, Recognition

NUM_CHAINS, NUM_LEAPFROG = 10, 4
BOX = 4.5  # half a side of the box that uniform draws of real z come from

Estimate: TypeAlias = Callable[[PRNGKey, Params, Array], Any]
"""(key, params, x) -> a record with log p-hat, nats, as `log_p`."""


class Method(NamedTuple):
    """An estimator of log p(x) at each of its budgets."""

    build: Callable[[int], Estimate]  # of a budget
    budgets: tuple[int, ...]
    decodings: Callable[[int], int]  # budget -> z decoded, a gradient counted as two


class Case(NamedTuple):
    """A model, images, and what is put to them."""

    params: Params
    data: Array  # [N, *X]; an estimate is the mean over them
    methods: Mapping[str, Method]
    exact: float | None  # log p(x) in nats, mean over data


def linear(config: Config) -> Case:
    """Ten latents, twenty features, W_ij ~ N(0, 1/10), noise of std 1; one drawn x."""
    num_latents, num_features = 10, 20
    generative = ppca.generative(num_latents, (num_features,))
    rng = np.random.default_rng(0)
    kernel = rng.normal(size=(num_latents, num_features)) / math.sqrt(num_latents)
    z = rng.normal(size=num_latents)
    x = jnp.asarray(z @ kernel + rng.normal(size=num_features), jnp.float32)
    w = jnp.asarray(kernel.T, jnp.float32)
    params = Params(ppca.parameters(w, jnp.zeros(num_features), jnp.zeros(())), ())
    h = jnp.concatenate(compilation.program(ppca_bounds.best_diagonal)(params, x))
    best = vae.model(generative, normal_at(h))
    reverse = partial(_reverse_ais, generative, ppca.recognition(num_latents))
    methods = {
        **_sampling(config, best, "best diagonal q", limit=BOX),
        "AIS": _annealed(config, partial(annealed.ais, generative)),
        "reverse AIS": _annealed(config, reverse),
        "HMC density": _density(config, generative, num_latents),
    }
    log_p = compilation.program(ppca.log_evidence)(params, x)
    return Case(params, x[None], methods, float(log_p))


def binary(config: Config) -> Case:
    """A digit under a trained belief net of num_bits, whose 2^D terms are summed.

    Decoder and encoder are affine and trained by VIMCO with ten samples.
    """
    trained = _trained(
        TrainConfig(
            workdir=f"{config.workdir}/belief_net_{config.num_bits}",
            posterior="bernoulli",
            estimator="vimco",
            num_samples=10,
            num_latents=config.num_bits,
            hidden=(),
            learning_rate=3e-3,
            num_epochs=config.binary_epochs,
            eval_every=config.binary_epochs,
            progress=False,
        )
    )
    total = enumerated.log_evidence(
        trained.model.generative,
        num_latents=config.num_bits,
        max_terms=2**config.num_bits,
    )
    methods, data = _sampling(config, trained.model, "q(z | x)"), _images(trained, 1)
    log_p = compilation.program(total)(trained.params, data[0])
    return Case(trained.params, data, methods, float(log_p))


def digits(config: Config) -> Case:
    """A trained VAE with real latents on test images: no exact answer.

    Raises:
        UsageError: for flags or data that have none, before it is trained.
    """
    flagfile, workdir = config.digits_flagfile, f"{config.workdir}/digits"
    argv = ["train", f"--flagfile={flagfile}", f"--workdir={workdir}", "--noprogress"]
    run = cli.parse(TrainConfig, argv)
    with cli.user_errors():
        data = protocol.load(run)
        protocol.check_likelihood(run, data)
        if run.posterior == "bernoulli" or run.trains_many:
            raise ValueError(
                "--digits_flagfile must be of one run with real latents: not "
                "--posterior=bernoulli, --num_seeds or --sweep"
            )
        protocol.check_rows(data, config.num_images, splits=("test",))
    trained = _trained(run)
    generative = trained.model.generative
    methods = {
        **_sampling(config, trained.model, "q(z | x)", limit=BOX),
        "AIS": _annealed(config, partial(annealed.ais, generative)),
        "HMC density": _density(config, generative, run.num_latents),
    }
    return Case(trained.params, _images(trained, config.num_images), methods, None)


CASES = {"linear": linear, "binary": binary, "digits": digits}


def normal_at(h: Float[Array, " H"]) -> Recognition:
    """The diagonal normal at one h = [mean, log_std], whatever x is."""
    density = posteriors.diag_normal(len(h) // 2)
    return vae.recognition(lambda params, x: h, density)


def _trained(config: TrainConfig) -> trained_runs.Trained:
    """The run of a configuration, made where it is not there yet."""
    return trained_runs.of_run(*whole_run.train(config), checkpoint="auto")


def _images(trained: trained_runs.Trained, num_images: int) -> Array:
    rows = trained_runs.rows(trained, split="test", num_images=num_images)
    return trained.data.prepared.value(rows)


def _sampling(
    config: Config, model: Model, q: str, *, limit: float | None = None
) -> dict[str, Method]:
    """Draws that know nothing of x, and draws of the q that is so called."""
    uniform = "uniform" if limit is None else f"uniform in the box of {2.0 * limit:g}"
    generative = model.generative
    estimators: dict[str, Callable[..., Estimate]] = {
        uniform: partial(marginal.uniform_sampling, generative, limit=limit),
        "prior": partial(marginal.prior_sampling, generative),
        f"importance, {q}": partial(marginal.importance_sampling, model),
    }

    def method(estimator: Callable[..., Estimate]) -> Method:
        return Method(
            lambda k: estimator(
                num_samples=k, chunk_size=min(k, measure.IMPORTANCE_CHUNK)
            ),
            config.samples,
            lambda k: k,
        )

    return {name: method(estimator) for name, estimator in estimators.items()}


def _annealed(
    config: Config, estimator: Callable[[annealing.Chains], Estimate]
) -> Method:
    """Chains of each number of temperatures, with pilots of at most a hundred."""

    def build(num_temperatures: int) -> Estimate:
        return estimator(
            annealing.chains(
                temperatures=annealing.linear(num_temperatures),
                num_chains=NUM_CHAINS,
                kernel=annealing.hmc_kernel(num_leapfrog=NUM_LEAPFROG),
                num_pilot=min(num_temperatures, 100),
            )
        )

    def decodings(num_temperatures: int) -> int:
        transitions = num_temperatures + 2 * min(num_temperatures, 100)
        return NUM_CHAINS * transitions * 2 * (NUM_LEAPFROG + 1)

    return Method(build, config.temperatures, decodings)


def _reverse_ais(
    generative: Generative, posterior: Recognition, chains: annealing.Chains
) -> Estimate:
    """From draws of the posterior, one for each estimate."""
    estimate = annealed.reverse_ais(generative, chains)

    def log_p(key: PRNGKey, params: Params, x: Array) -> Any:
        key_z, key_run = jax.random.split(key)
        z = posterior.sample(key_z, params, posterior.encode(params, x))
        return estimate(key_run, params, x, z)

    return log_p


def _density(config: Config, generative: Generative, num_latents: int) -> Method:
    def build(num_samples: int) -> Estimate:
        return hmc_density.hmc_density(
            generative,
            num_latents=num_latents,
            num_samples=num_samples,
            num_warmup=num_samples,
            num_leapfrog=NUM_LEAPFROG,
        )

    budgets = tuple(k for k in config.samples if num_latents < k <= 1000)
    return Method(build, budgets, lambda k: 3 * k * 2 * (NUM_LEAPFROG + 1))
