"""The estimators that flags can name, a row each, and the objective of one."""

import functools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array

from experiments.choices import rows
from experiments.choices.rows import NO_FLAGS, Traits
from vae_jax import networks, vae
from vae_jax.estimators import (
    arms,
    codebook,
    dip,
    disarm,
    factor,
    gdreg,
    importance,
    mmd,
    multiply_weighted,
    ovis,
    rebar,
    regularized,
    relax,
    relaxed,
    running_baseline,
    score_function,
    sgvb,
    sumo,
    thermodynamic,
    total_correlation,
    uha,
    wake_sleep,
)
from vae_jax.training import gradient
from vae_jax.types import (
    ExampleObjective,
    Model,
    Objective,
    Params,
    PRNGKey,
    per_example,
    per_row,
)

LEARNED_UNITS = 100  # of a network that an estimator learns


class Estimator(NamedTuple):
    """An estimator of the gradient of a bound.

    Attributes:
        build: model, num_samples, own numbers -> its function of one example; where it
            sees the batch, num_data too -> its objective.
        flags: keyword of `build` -> the flag that fills it.
        reads: further flags that mean something under this choice.
        fits: which q it is of.
        of_elbo: whether its value is an ELBO, so that bound + KL = reconstruction.
        remembers: whether it takes a running baseline and its scale.
        sees_batch: whether its objective is of a batch, and no sum of functions of one
            example.
        learns: flags, model, entries of x -> the model whose q also keeps what the
            estimator learns, and keyword arguments of `build` beside it; None where it
            learns nothing.
        decodings: decoder evaluations of each sample.
    """

    build: Callable[..., Any]
    flags: Mapping[str, str] = NO_FLAGS
    reads: tuple[str, ...] = ()
    fits: Callable[[Traits], bool] = lambda q: q.continuous
    of_elbo: bool = False
    remembers: bool = False
    sees_batch: bool = False
    learns: Callable[[Any, Model, int], tuple[Model, dict[str, Any]]] | None = None
    decodings: int = 1


def sampled(q: Traits) -> bool:
    """Whether q has draws of its own: all but a point mass."""
    return not q.rounded


def _with_closed_kl(q: Traits) -> bool:
    return q.continuous and (q.closed_kl or q.layered)


def _factorized(q: Traits) -> bool:
    return q.continuous and (q.factorizes or q.layered)


def _independent(q: Traits) -> bool:
    return q.continuous and q.factorizes and not q.layered


def _bits(q: Traits) -> bool:
    return not q.continuous and not q.layered and not q.rounded


def _baseline(
    config: Any, model: Model, num_entries: int
) -> tuple[Model, dict[str, Any]]:
    """A network of x."""
    del config
    network = networks.mlp(num_entries, (LEARNED_UNITS,), 1)
    return vae.with_baseline(model, network), {"network": network}


def _num_latents(model: Model) -> int:
    params = jax.eval_shape(model.init, jax.eval_shape(jax.random.key, 0))
    return model.generative.latents(params).size


def _control(
    config: Any, model: Model, num_entries: int
) -> tuple[Model, dict[str, Any]]:
    """A control variate of x and z."""
    size = num_entries + _num_latents(model)
    network = networks.mlp(size, (LEARNED_UNITS,), 1)
    temperature = config.temperature
    model = relax.with_control(model, network, temperature=temperature)
    return model, {"network": network}


def _path(config: Any, model: Model, num_entries: int) -> tuple[Model, dict[str, Any]]:
    """As many temperatures as terms."""
    del num_entries
    return uha.with_path(model, num_temperatures=config.num_terms), {}


def _discriminator(
    config: Any, model: Model, num_entries: int
) -> tuple[Model, dict[str, Any]]:
    """A network of z with an optimizer of its own, as Kim & Mnih 2018 set it."""
    del num_entries
    network = networks.mlp(
        _num_latents(model),
        config.discriminator_hidden,
        1,
        activation=jax.nn.leaky_relu,
    )
    return model, {
        "network": network,
        "optimizer": gradient.adam(config.discriminator_rate, b1=0.5, b2=0.9),
        "start": network.init(jax.random.key(config.seed)),
    }


def _of_codebook(
    build: Callable[..., Objective], flags: Mapping[str, str]
) -> Estimator:
    """Of a point mass, which one sample tells all of, and of any number of rows."""

    def of_flags(
        model: Model, *, num_samples: int, num_data: int, **numbers: Any
    ) -> Objective:
        del num_samples, num_data
        return build(model, **numbers)

    return Estimator(
        of_flags, flags, fits=lambda q: q.codebook, of_elbo=True, sees_batch=True
    )


KERNELS = {"imq": mmd.imq, "rbf": mmd.rbf}


def _mmd(
    model: Model, *, kernel: str, scales: tuple[float, ...], **numbers: Any
) -> Objective:
    return mmd.mmd(model, kernel=KERNELS[kernel](scales=scales), **numbers)


_of_batch = functools.partial(
    Estimator, fits=_independent, of_elbo=True, sees_batch=True
)
_DIP = {"off_diagonal": "penalty", "diagonal": "dip_diagonal"}
ESTIMATORS = {
    "sgvb_a": Estimator(
        sgvb.sgvb_a,
        {"beta": "beta"},
        ("kl_warmup",),
        fits=lambda q: q.continuous or (q.rounded and not q.codebook),
        of_elbo=True,
    ),
    "sgvb_b": Estimator(
        sgvb.sgvb_b,
        {"beta": "beta"},
        ("kl_warmup", "kl_balancing"),
        fits=_with_closed_kl,
        of_elbo=True,
    ),
    "free_bits": Estimator(
        regularized.free_bits,
        {"min_nats": "free_nats", "beta": "beta"},
        ("kl_warmup", "kl_balancing"),
        fits=_factorized,
        of_elbo=True,
    ),
    "capacity": Estimator(
        regularized.capacity,
        {"nats": "capacity", "strength": "capacity_strength"},
        fits=_with_closed_kl,
        of_elbo=True,
    ),
    "beta_tc": _of_batch(
        total_correlation.beta_tc, {"beta": "beta", "sampling": "sampling"}
    ),
    "factor": _of_batch(
        factor.factor,
        {"gamma": "penalty"},
        ("discriminator_hidden", "discriminator_rate"),
        learns=_discriminator,
    ),
    "dip_i": _of_batch(functools.partial(dip.dip, of_samples=False), _DIP),
    "dip_ii": _of_batch(functools.partial(dip.dip, of_samples=True), _DIP),
    "mmd": _of_batch(
        _mmd,
        {
            "alpha": "info_alpha",
            "strength": "penalty",
            "kernel": "kernel",
            "scales": "kernel_scales",
        },
    ),
    "codebook_gradient": _of_codebook(
        codebook.by_gradient, {"commitment": "commitment"}
    ),
    "codebook_averages": _of_codebook(
        codebook.by_averages,
        {
            "commitment": "commitment",
            "decay": "codebook_decay",
            "min_uses": "min_code_uses",
        },
    ),
    "iwae": Estimator(importance.iwae),
    "stick_the_landing": Estimator(importance.stick_the_landing),
    "dreg": Estimator(importance.dreg),
    "gdreg": Estimator(gdreg.gdreg, fits=lambda q: q.unconstrained),
    "ciwae": Estimator(importance.ciwae, {"beta": "beta"}),
    "renyi": Estimator(importance.renyi, {"alpha": "alpha"}),
    "jackknife": Estimator(importance.jackknife, {"order": "jackknife_order"}),
    "miwae": Estimator(multiply_weighted.miwae, {"num_outer": "num_outer"}),
    "piwae": Estimator(multiply_weighted.piwae, {"num_outer": "num_outer"}),
    "score_function": Estimator(
        score_function.score_function, fits=sampled, of_elbo=True
    ),
    "running_baseline": Estimator(
        score_function.score_function, fits=sampled, of_elbo=True, remembers=True
    ),
    "leave_one_out": Estimator(
        score_function.leave_one_out, fits=sampled, of_elbo=True
    ),
    "nvil": Estimator(
        score_function.nvil,
        fits=sampled,
        of_elbo=True,
        remembers=True,
        learns=_baseline,
    ),
    "thermodynamic": Estimator(
        thermodynamic.thermodynamic,
        {"num_terms": "num_terms", "first_beta": "first_beta"},
        fits=sampled,
    ),
    "uha": Estimator(
        uha.uha, reads=("num_terms",), fits=lambda q: q.unconstrained, learns=_path
    ),
    "sumo": Estimator(sumo.sumo, remembers=True),
    "vimco": Estimator(score_function.vimco, fits=sampled),
    "ovis": Estimator(ovis.ovis, {"gamma": "ovis_gamma"}, fits=sampled),
    "ovis_monte_carlo": Estimator(ovis.ovis_monte_carlo, fits=sampled, decodings=2),
    "wake_sleep": Estimator(
        wake_sleep.wake_sleep, fits=sampled, of_elbo=True, decodings=2
    ),
    "reweighted_wake_sleep": Estimator(
        wake_sleep.reweighted_wake_sleep, {"sleep_share": "sleep_share"}, fits=sampled
    ),
    "straight_through": Estimator(relaxed.straight_through, fits=_bits, of_elbo=True),
    "binary_concrete": Estimator(
        relaxed.binary_concrete,
        {"temperature": "temperature"},
        fits=_bits,
        of_elbo=True,
        decodings=2,
    ),
    "disarm": Estimator(disarm.disarm, fits=_bits, of_elbo=True),
    "rebar": Estimator(
        rebar.rebar,
        {"temperature": "temperature"},
        fits=_bits,
        of_elbo=True,
        decodings=3,
    ),
    "relax": Estimator(
        relax.relax,
        reads=("temperature",),
        fits=_bits,
        of_elbo=True,
        learns=_control,
        decodings=3,
    ),
    "arms": Estimator(arms.arms, fits=_bits, of_elbo=True),
}


def fitting(q: Traits) -> list[str]:
    """The estimators of such a q."""
    return [name for name, row in ESTIMATORS.items() if row.fits(q)]


def objective(
    config: Any,
    model: Model,
    *,
    num_data: int,
    weight_decay: float = 0.0,
    warmup_steps: int | Array = 0,
    learned: Mapping[str, Any] = NO_FLAGS,
    traced: Mapping[str, Any] = NO_FLAGS,
    without: Callable[[Array], Model] | None = None,
) -> Objective:
    """The objective that the flags ask for, with the memory that some of them keep.

    Args:
        config: the flags.
        model: p and q.
        num_data: rows of the training split, for the prior on theta.
        weight_decay: the precision of that prior; none at 0.
        warmup_steps: over which beta rises to its value.
        learned: the keyword arguments of `with_learned`.
        traced: numbers that take the place of flags of the same names.
        without: row -> the model that an example of this row is trained on, in the
            place of `model`.

    Raises:
        ValueError: where a number does not fit the estimator.
    """
    row = ESTIMATORS[config.gradient]
    settings = rows.numbers(row, config, traced) | dict(learned)
    if row.sees_batch:
        return _built(config, model, num_data=num_data, **settings)

    def of_model(model: Model, **changed: Any) -> ExampleObjective:
        return sgvb.with_normal_prior_on_theta(
            _built(config, model, **settings | changed),
            num_data=num_data,
            weight_decay=weight_decay,
        )

    def build(**changed: Any) -> Objective:
        if (model_of := without) is None:
            return per_example(of_model(model, **changed))

        def of_row(key: PRNGKey, params: Params, x: Array, row: Array) -> Array:
            return of_model(model_of(row), **changed)(key, params, x)

        return per_row(of_row)

    # So that what does not fit is said before anything runs.
    of_model(model, **({"balance": 1.0} if config.kl_balancing else {}))
    if row.remembers:
        return running_baseline.running_baseline(
            lambda baseline, scale: build(baseline=baseline, scale=scale)
        )
    if isinstance(warmup_steps, int) and not warmup_steps:
        return build()

    def at_step(step: Array) -> gradient.Settings:
        # A traced warm-up of no steps is over at the first.
        share = jnp.minimum(1.0, (step + 1.0) / jnp.maximum(warmup_steps, 1))
        rises = {"beta": settings["beta"] * share}
        if config.kl_balancing:  # as long as it rises
            rises["balance"] = jnp.where(share < 1.0, 1.0, 0.0)
        return rises

    return gradient.scheduled(lambda s: build(**s), at_step)


def _built(config: Any, model: Model, **settings: Any) -> Any:
    """What `Estimator.build` of the flags makes; its errors name the flags."""
    name, num_samples = config.gradient, config.num_samples
    try:
        return ESTIMATORS[name].build(model, num_samples=num_samples, **settings)
    except ValueError as error:
        raise ValueError(f"{name} of --num_samples={num_samples}: {error}") from error


def elbo_terms(
    model: Model, *, num_samples: int
) -> Callable[[PRNGKey, Params, Array], dict[str, Array]]:
    """(key, params, x) -> reconstruction and KL, and that of each layer of a ladder.

    By their names in reports, layers from x upward.
    """
    terms = sgvb.grouped_terms(model, num_samples=num_samples)

    def by_name(key: PRNGKey, params: Params, x: Array) -> dict[str, Array]:
        reconstruction, kl = terms(key, params, x)
        depth = len(model.lower) + 1
        of_layers = {f"kl_z{i + 1}": kl[i] for i in range(depth)} if depth > 1 else {}
        return {"reconstruction": reconstruction, "kl": kl.sum(), **of_layers}

    return by_name


def with_learned(
    config: Any, model: Model, *, num_entries: int
) -> tuple[Model, Mapping[str, Any]]:
    """The model whose q also keeps what the estimator learns beside it.

    Args:
        config: the flags.
        model: p and q.
        num_entries: of one x.

    Returns:
        The model, and the keyword arguments by which `objective` knows what is learned.
    """
    learns = ESTIMATORS[config.gradient].learns
    return (model, NO_FLAGS) if learns is None else learns(config, model, num_entries)
