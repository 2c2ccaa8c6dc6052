"""The ways to complete images, over many images, and log p of what was hidden."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from experiments.choices import models
from experiments.choices.algorithms import ALGORITHMS
from experiments.completion.config import METHODS, Config
from experiments.measures import measure
from experiments.runs import trained_runs
from vae_jax import vae
from vae_jax.evaluation import completion, weights
from vae_jax.inference import mcem
from vae_jax.types import Model, Params, PRNGKey, PyTree

AT_ONCE = {"importance": 4}  # images; 25 of the other methods
INFLATION = 1.2  # a proposal with wider tails than the posterior's


class Completed(NamedTuple):
    """Completions of N images by one method, on the host: a leading axis N everywhere.

    Attributes:
        draws: `completion.Completions`.
        log_p_of_truth: log mean_s p(x_mis | z_s), nats.
    """

    draws: completion.Completions
    log_p_of_truth: Any


def has_weights(trained: trained_runs.Trained) -> bool:
    """Whether importance weights tell log p(x_mis | x_obs)."""
    return trained.data.quantity != "cross-entropy" and not trained.has_point_mass


def check(config: Config, trained: trained_runs.Trained) -> None:
    """Refuses methods for which the model has not what they need.

    Raises:
        ValueError: as `models.check_masked`; for weights of draws of a q that is a
            point mass, steps of a model without an encoder, a fitted normal of latents
            that are not real or of fewer draws than latents, or flags of weights where
            nothing reads them.
    """
    flags, by_chain = trained.config, config.proposal == "chain"
    if not has_weights(trained):
        config.refuse_unweighed()
    models.check_masked(flags, trained.data.x_shape)
    if trained.has_point_mass:
        if config.methods != ("pseudo_gibbs",):
            raise ValueError(
                f"--methods={','.join(config.methods)} weighs draws of q(z | x), a "
                f"point mass here ({trained.model.recognition.family.name}): give "
                "--methods=pseudo_gibbs"
            )
        return
    num_latents = trained.num_latents
    if not ALGORITHMS[flags.algorithm].has_encoder and (
        config.methods != ("importance",) or not by_chain
    ):
        raise ValueError(
            f"--algorithm={flags.algorithm} has no encoder to step with: give "
            "--methods=importance --proposal=chain"
        )
    if by_chain and not trained.has_real_latents:
        raise ValueError(
            "--proposal=chain fits a normal, and the latents of this model are not any "
            "real vector: give --proposal=encoder"
        )
    if by_chain and config.chain <= num_latents:
        raise ValueError(
            f"--chain={config.chain} must be above the {num_latents} latents, for a "
            "normal to be fitted"
        )


def complete(
    key: PRNGKey,
    config: Config,
    trained: trained_runs.Trained,
    partial: Array,
    truth: Array,
) -> dict[str, Completed]:
    """Completions of partial rows, images [N, *X] or those with a context behind them.

    Both chains take the same number of steps before and between their draws.
    """
    pairs, results = jnp.stack([partial, truth], axis=1), {}
    for name in config.methods:

        def of_image(
            key: PRNGKey, params: Params, pair: Array, name: str = name
        ) -> Completed:
            (x, model), (whole, _) = (_masked(trained, row) for row in pair)
            draws = _method(name, config, trained, model)(key, params, x)
            score = completion.log_likelihood_of_truth(model.generative)
            return Completed(draws, score(params, x, whole, draws.z))

        key_method = jax.random.fold_in(key, METHODS.index(name))
        completed = _over(key_method, trained, of_image, pairs, method=name)
        results[name] = jax.tree.map(np.asarray, completed)
    return results


def _over(
    key: PRNGKey,
    trained: trained_runs.Trained,
    estimate: Callable[[PRNGKey, Params, Array], PyTree],
    data: Array,
    *,
    method: str,
) -> Any:
    """What an estimate gives of each of the rows, which are values already."""
    return measure.of_rows(
        key,
        trained,
        estimate,
        data,
        num_decoded=1,
        at_once=AT_ONCE.get(method, 25),
        batches_a_block=4,
        value=lambda row: row,
    )


def _masked(trained: trained_runs.Trained, row: Array) -> tuple[Array, Model]:
    """x of a row, and the model of x with holes, given what the row has beside it."""
    x, model = trained.of_row(row)
    return x, models.masked(trained.config, model)


def _method(
    name: str, config: Config, trained: trained_runs.Trained, model: Model
) -> completion.Complete:
    if name == "importance":
        return completion.importance(
            _proposal(config, trained, model),
            num_samples=config.importance_samples,
            num_draws=config.num_draws,
            chunk_size=measure.IMPORTANCE_CHUNK,
        )
    warmup = config.num_warmup
    steps = {"num_draws": config.num_draws, "thin": config.thin}
    if name == "pseudo_gibbs":
        num_warmup = warmup + config.num_burn_in
        return completion.pseudo_gibbs(model, num_warmup=num_warmup, **steps)
    return completion.metropolis_within_gibbs(
        model, num_warmup=warmup, num_burn_in=config.num_burn_in, **steps
    )


def log_likelihood(
    key: PRNGKey,
    config: Config,
    trained: trained_runs.Trained,
    partial: Array,
    truth: Array,
    results: dict[str, Completed],
) -> completion.LogLikelihood:
    """log p(x_mis | x_obs) by importance estimates of both, with the same proposal."""

    def estimate(key: PRNGKey, params: Params, row: Array) -> weights.LogEvidence:
        x, model = _masked(trained, row)
        proposal = _proposal(config, trained, model)
        size = config.importance_samples
        return measure.log_evidence(proposal, num_samples=size)(key, params, x)

    def over(key: PRNGKey, rows: Array) -> Any:
        return _over(key, trained, estimate, rows, method="importance")

    key_whole, key_observed = jax.random.split(key)
    whole = over(key_whole, truth)
    observed: Any = None
    if "importance" in results:
        observed = results["importance"].draws.evidence
    if observed is None:
        observed = over(key_observed, partial)
    return completion.log_likelihood(whole, observed)


def _proposal(config: Config, trained: trained_runs.Trained, masked: Model) -> Model:
    """The joint of partial x, and the q that importance sampling draws from."""
    if config.proposal == "encoder":
        return masked
    flags = trained.config
    fitted = mcem.fitted_normal(
        jax.random.key(flags.seed),
        masked.generative,
        num_latents=trained.num_latents,
        num_samples=config.chain,
        num_warmup=config.chain,
        num_leapfrog=10,
        num_starts=1000,
        inflation=INFLATION,
    )
    return vae.model(masked.generative, fitted)
