"""Models whose log p(x) is known or trained, and the estimators that are put to it."""

import math
from collections.abc import Callable, Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from experiments import train
from experiments.choices.config import Config as TrainConfig
from experiments.command import flags as cli
from experiments.measures import measure
from experiments.runs import protocol
from vae_jax import posteriors
from vae_jax.estimators import enumerated
from vae_jax.evaluation import annealed, annealing, hmc_density, marginal
from vae_jax.latent_models import ppca, ppca_bounds
from vae_jax.types import Generative, Params, PRNGKey, Recognition, Scalar

CHUNK = 500
NUM_CHAINS, NUM_LEAPFROG = 10, 4
BOX = 4.5  # half a side of the box that uniform draws of real z come from

Estimate = Callable[[PRNGKey, Params, Array], Scalar]


class Method(NamedTuple):
    """An estimator of log p(x) at each of its budgets."""

    build: Callable[[int], Estimate]  # budget -> (key, params, x) -> log p-hat
    budgets: tuple[int, ...]
    decodings: Callable[[int], int]  # budget -> z decoded, a gradient counted as two


class Case(NamedTuple):
    """A model, images, and what is put to them."""

    params: Params
    data: Array  # [N, *X]; an estimate is the mean over them
    methods: Mapping[str, Method]
    exact: float | None  # log p(x) in nats, mean over data


def linear_case(samples: tuple[int, ...], temperatures: tuple[int, ...]) -> Case:
    """Ten latents, twenty features, W_ij ~ N(0, 1/10), noise of std 1; one drawn x."""
    num_latents, num_features = 10, 20
    generative = ppca.generative(num_latents, (num_features,))
    rng = np.random.default_rng(0)
    kernel = rng.normal(size=(num_latents, num_features)) / math.sqrt(num_latents)
    z = rng.normal(size=num_latents)
    x = jnp.asarray(z @ kernel + rng.normal(size=num_features), jnp.float32)
    decoder = {
        "kernel": jnp.asarray(kernel, jnp.float32),
        "bias": jnp.zeros(num_features),
    }
    params = Params(
        {
            "decoder": {"output": decoder},
            "prior": (),
            "likelihood": {"log_std": jnp.zeros(())},
        },
        (),
    )
    h = jnp.concatenate(jax.jit(ppca_bounds.best_diagonal)(params, x))
    methods = {
        **_sampling(generative, samples, limit=BOX),
        "importance, best diagonal q": _importance(generative, normal_at(h), samples),
        **_annealing(generative, temperatures),
        "reverse AIS": _reverse(
            generative, ppca.recognition(num_latents), temperatures
        ),
        "HMC density": _density(generative, num_latents, samples),
    }
    exact = jax.jit(ppca.log_evidence)(params, x)
    return Case(params, x[None], methods, float(exact))


def binary_case(
    workdir: str, *, num_bits: int, num_epochs: int, samples: tuple[int, ...]
) -> Case:
    """A digit under a trained belief net of that many bits, whose 2^D terms are summed.

    Decoder and encoder are affine and trained by VIMCO with ten samples.
    """
    trained = _trained(
        TrainConfig(
            workdir=workdir,
            posterior="bernoulli",
            estimator="vimco",
            num_samples=10,
            num_latents=num_bits,
            hidden=(),
            learning_rate=3e-3,
            num_epochs=num_epochs,
            eval_every=num_epochs,
            progress=False,
        )
    )
    generative, recognition = trained.model.pair
    data = trained.data.prepared.value(
        measure.rows(trained, split="test", num_images=1)
    )
    total = enumerated.log_evidence(
        generative, num_latents=num_bits, max_terms=2**num_bits
    )
    methods = {
        **_sampling(generative, samples, limit=None),
        "importance, q(z | x)": _importance(generative, recognition, samples),
    }
    exact = jax.jit(total)(trained.params, data[0])
    return Case(trained.params, data, methods, float(exact))


def trained_case(
    config: TrainConfig,
    *,
    samples: tuple[int, ...],
    temperatures: tuple[int, ...],
    num_images: int,
) -> Case:
    """A trained VAE with real latents on test images: no exact answer.

    Raises:
        UsageError: for flags or data that have none, before it is trained.
    """
    with cli.user_errors():
        data = protocol.load(config)
        protocol.check_likelihood(config, data)
        if config.posterior == "bernoulli" or config.trains_many:
            raise ValueError(
                "--digits_flagfile must be of one run with real latents: not "
                "--posterior=bernoulli, --num_seeds or --sweep"
            )
        if num_images > len(data.prepared.test):
            raise ValueError(
                f"--num_images={num_images} is more than the {len(data.prepared.test)} "
                f"test rows of {config.dataset}"
            )
    trained = _trained(config)
    generative, recognition = trained.model.pair
    data = measure.rows(trained, split="test", num_images=num_images)
    methods = {
        **_sampling(generative, samples, limit=BOX),
        "importance, q(z | x)": _importance(generative, recognition, samples),
        **_annealing(generative, temperatures),
        "HMC density": _density(generative, trained.config.num_latents, samples),
    }
    return Case(trained.params, trained.data.prepared.value(data), methods, None)


def normal_at(h: Float[Array, " H"]) -> Recognition:
    """The diagonal normal at one h = [mean, log_std], whatever x is."""
    density = posteriors.diag_normal(len(h) // 2)
    return Recognition(
        init=lambda key: (),
        encode=lambda params, x: h,
        sample=lambda key, params, h: density.sample(key, (), h),
        log_prob=lambda params, h, z: density.log_prob((), h, z),
    )


def _trained(config: TrainConfig) -> measure.Trained:
    """The run of a configuration, made where it is not there yet."""
    train.main(config)
    return measure.load_trained(
        config.workdir, checkpoint="auto", data_dir=config.data_dir
    )


def _sampling(
    generative: Generative, samples: tuple[int, ...], *, limit: float | None
) -> dict[str, Method]:
    """Draws that know nothing of x."""
    uniform = "uniform" if limit is None else f"uniform in the box of {2.0 * limit:g}"

    def build_uniform(k: int) -> Estimate:
        return _log_p(
            marginal.uniform_sampling(
                generative, limit=limit, num_samples=k, chunk_size=min(k, CHUNK)
            )
        )

    def build_prior(k: int) -> Estimate:
        return _log_p(
            marginal.prior_sampling(generative, num_samples=k, chunk_size=min(k, CHUNK))
        )

    return {
        uniform: Method(build_uniform, samples, lambda k: k),
        "prior": Method(build_prior, samples, lambda k: k),
    }


def _importance(
    generative: Generative, recognition: Recognition, samples: tuple[int, ...]
) -> Method:
    def build(k: int) -> Estimate:
        return _log_p(
            marginal.importance_sampling(
                generative, recognition, num_samples=k, chunk_size=min(k, CHUNK)
            )
        )

    return Method(build, samples, lambda k: k)


def _chains(num_temperatures: int) -> annealing.Chains:
    return annealing.chains(
        temperatures=annealing.linear(num_temperatures),
        num_chains=NUM_CHAINS,
        kernel=annealing.hmc_kernel(num_leapfrog=NUM_LEAPFROG),
        num_pilot=_pilot(num_temperatures),
    )


def _pilot(num_temperatures: int) -> int:
    return min(num_temperatures, 100)


def _annealing_cost(num_temperatures: int) -> int:
    transitions = num_temperatures + 2 * _pilot(num_temperatures)
    return NUM_CHAINS * transitions * 2 * (NUM_LEAPFROG + 1)


def _annealing(
    generative: Generative, temperatures: tuple[int, ...]
) -> dict[str, Method]:
    def build(num_temperatures: int) -> Estimate:
        return _log_p(annealed.ais(generative, _chains(num_temperatures)))

    return {"AIS": Method(build, temperatures, _annealing_cost)}


def _reverse(
    generative: Generative, posterior: Recognition, temperatures: tuple[int, ...]
) -> Method:
    """From draws of the posterior, one for each estimate."""

    def build(num_temperatures: int) -> Estimate:
        estimate = annealed.reverse_ais(generative, _chains(num_temperatures))

        def log_p(key: PRNGKey, params: Params, x: Array) -> Scalar:
            key_z, key_run = jax.random.split(key)
            z = posterior.sample(key_z, params, posterior.encode(params, x))
            return estimate(key_run, params, x, z).log_p

        return log_p

    return Method(build, temperatures, _annealing_cost)


def _density(
    generative: Generative, num_latents: int, samples: tuple[int, ...]
) -> Method:
    def build(num_samples: int) -> Estimate:
        return _log_p(
            hmc_density.hmc_density(
                generative,
                num_latents=num_latents,
                num_samples=num_samples,
                num_warmup=num_samples,
                num_leapfrog=NUM_LEAPFROG,
            )
        )

    budgets = tuple(k for k in samples if num_latents < k <= 1000)
    return Method(build, budgets, lambda k: 3 * k * 2 * (NUM_LEAPFROG + 1))


def _log_p(estimate: Callable) -> Estimate:
    return lambda key, params, x: estimate(key, params, x).log_p
