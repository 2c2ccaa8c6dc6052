"""What the flags of a training run can be, and what goes with what."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from experiments.choices.config import Config

CONTINUOUS = ("diag_normal", "full_normal", "planar", "coupling", "iaf")
POSTERIORS = (*CONTINUOUS, "bernoulli")
FITTING_POSTERIORS = {  # what each estimator can be asked of
    "sgvb_a": CONTINUOUS,
    "sgvb_b": ("diag_normal",),
    "free_bits": ("diag_normal",),
    "capacity": ("diag_normal",),
    "iwae": CONTINUOUS,
    "stick_the_landing": CONTINUOUS,
    "dreg": CONTINUOUS,
    "ciwae": CONTINUOUS,
    "renyi": CONTINUOUS,
    "jackknife": CONTINUOUS,
    "miwae": CONTINUOUS,
    "piwae": CONTINUOUS,
    "score_function": POSTERIORS,
    "running_baseline": POSTERIORS,
    "leave_one_out": POSTERIORS,
    "nvil": POSTERIORS,
    "vimco": POSTERIORS,
    "wake_sleep": POSTERIORS,
    "reweighted_wake_sleep": POSTERIORS,
    "straight_through": ("bernoulli",),
    "binary_concrete": ("bernoulli",),
    "disarm": ("bernoulli",),
}
ESTIMATORS = tuple(FITTING_POSTERIORS)
# Those whose value is an ELBO, so that bound + KL = reconstruction.
OF_THE_ELBO = (
    *("sgvb_a", "sgvb_b", "free_bits", "capacity", "score_function"),
    *("running_baseline", "leave_one_out", "nvil", "straight_through"),
    *("binary_concrete", "disarm", "wake_sleep"),
)
ALGORITHMS = ("aevb", "wake_sleep", "rws", "mcem", "vem", "full_vb")
NAMED_ESTIMATORS = {"wake_sleep": "wake_sleep", "rws": "reweighted_wake_sleep"}
FLAG_OF = {"gradient": "estimator"}  # a property and the flag that a user knows
FREE_POSTERIORS = ("diag_normal", "full_normal")  # without parameters of their own
WITHOUT_ENCODER = ("mcem", "vem")  # no phi: q is found for each x when it is wanted
WITH_ENCODER = tuple(name for name in ALGORITHMS if name not in WITHOUT_ENCODER)
READ_BY: dict[str, tuple[tuple[str, tuple[str, ...]], ...]] = {
    # flag: what chooses whether it is read, and the choices that read it
    "missing_rate": (("missing", ("nan",)),),
    "estimator": (("algorithm", ("aevb", "full_vb")),),
    "num_outer": (("estimator", ("miwae", "piwae")),),
    "beta": (("algorithm", ("aevb",)), ("estimator", ("sgvb_b", "ciwae"))),
    "alpha": (("estimator", ("renyi",)),),
    "jackknife_order": (("estimator", ("jackknife",)),),
    "free_nats": (("estimator", ("free_bits",)),),
    "capacity": (("estimator", ("capacity",)),),
    "capacity_strength": (("estimator", ("capacity",)),),
    "temperature": (("estimator", ("binary_concrete",)),),
    "sleep_share": (("gradient", ("reweighted_wake_sleep",)),),
    "kl_warmup": (("algorithm", ("aevb",)), ("estimator", ("sgvb_b",))),
    "num_samples": (("algorithm", ("aevb", "wake_sleep", "rws", "vem", "full_vb")),),
    "num_leapfrog": (("algorithm", ("mcem",)),),
    "target_acceptance": (("algorithm", ("mcem",)),),
    "num_updates": (("algorithm", ("mcem",)),),
    "e_steps": (("algorithm", ("vem",)),),
    "e_rate": (("algorithm", ("vem",)),),
    "theta_std": (("algorithm", ("full_vb",)),),
    "posterior": (("algorithm", ("aevb", "wake_sleep", "rws", "vem", "full_vb")),),
    "num_components": (("prior", ("normal_mixture", "vamp")),),
    "flow_layers": (("posterior", ("planar", "coupling", "iaf")),),
    "adam_epsilon": (("optimizer", ("adam",)),),
    "encoder_hidden": (("algorithm", WITH_ENCODER),),
    "std": (("likelihood", ("normal", "normal_learned_std")),),
    "min_std": (("likelihood", ("normal_learned_std", "normal_per_pixel_std")),),
    "squash_mean": (
        (
            "likelihood",
            ("normal", "normal_learned_std", "normal_per_pixel_std"),
        ),
    ),
}
PRIORS = ("standard_normal", "normal_mixture", "vamp")
LIKELIHOODS = ("bernoulli", "normal", "normal_learned_std", "normal_per_pixel_std")

POSITIVE = (
    *("num_latents", "num_samples", "num_outer", "std", "min_std", "learning_rate"),
    *("temperature", "flow_layers", "adam_epsilon", "num_leapfrog", "num_updates"),
    *("e_steps", "e_rate", "theta_std", "num_components"),
    *("batch_size", "num_epochs", "eval_every", "valid_samples", "eval_samples"),
    *("num_seeds", "num_processes"),
)
NOT_NEGATIVE = (
    *("weight_decay", "kl_warmup", "clip_norm", "early_stopping"),
    *("beta", "free_nats", "capacity", "capacity_strength", "sleep_share"),
    *("seed", "data_seed", "checkpoint_seconds", "num_train", "top_latents"),
    *("missing_rate", "num_devices", "stream_steps", "process_id"),
)


def check(config: Config) -> None:
    """Refuses numbers and combinations that no run can have.

    Raises:
        ValueError: naming the flag, its value and the fix.
    """
    _check_numbers(config)
    _check_missing(config)
    _check_prior(config)
    _check_choices(config)
    _check_readers(config)
    _check_estimator(config)
    _check_stream(config)
    _check_early_stopping(config)


def _check_numbers(config: Config) -> None:
    for name in POSITIVE:
        if not getattr(config, name) > 0:
            value = getattr(config, name)
            raise ValueError(f"--{name} must be positive, got {value}")
    for name in NOT_NEGATIVE:
        if not getattr(config, name) >= 0:
            value = getattr(config, name)
            raise ValueError(f"--{name} must not be negative, got {value}")
    for name in ("hidden", "encoder_hidden"):
        if min(getattr(config, name), default=1) < 1:
            value = getattr(config, name)
            raise ValueError(f"--{name} must hold positive sizes, got {value}")
    if config.valid_size < -1:
        raise ValueError(f"--valid_size must be -1 or more, got {config.valid_size}")
    if not 0.0 < config.target_acceptance < 1.0:
        raise ValueError(
            f"--target_acceptance must lie between 0 and 1, got "
            f"{config.target_acceptance}"
        )


def _check_stream(config: Config) -> None:
    if not config.stream_steps:
        return
    if config.algorithm in WITHOUT_ENCODER:
        raise ValueError(
            f"--stream_steps does not go with --algorithm={config.algorithm}, which "
            "keeps a state for each row of the data set"
        )
    if config.trains_many:
        raise ValueError(
            "--stream_steps does not go with --num_seeds and --sweep: each run has an "
            "order of its own, and would be sent rows of its own"
        )
    if config.shard_data:
        raise ValueError("--shard_data and --stream_steps are two ways: choose one")


def _check_estimator(config: Config) -> None:
    if config.estimator == "ciwae" and not config.beta < 1.0:
        raise ValueError(
            f"--estimator=ciwae mixes bounds at a --beta below 1 (at 1 it is the "
            f"ELBO alone), got {config.beta}"
        )
    if config.algorithm == "full_vb" and not config.weight_decay:
        raise ValueError(
            "--algorithm=full_vb needs a --weight_decay above 0: the precision of "
            "its prior on theta"
        )


def _check_early_stopping(config: Config) -> None:
    if config.early_stopping and config.trains_many:
        raise ValueError(
            "--early_stopping ends one run at its own time: leave it out where runs "
            "train together (--num_seeds, --sweep); the best weights of each are kept"
        )
    if config.early_stopping and config.algorithm == "mcem":
        raise ValueError(
            "--early_stopping needs a validation bound, and mcem has no q to take "
            "one with while it trains"
        )
    if config.early_stopping and config.early_stopping < config.eval_every:
        raise ValueError(
            f"--early_stopping={config.early_stopping} is below --eval_every="
            f"{config.eval_every}: the validation bound would never be seen twice"
        )


def _check_missing(config: Config) -> None:
    if not config.missing_rate < 1.0:
        raise ValueError(f"--missing_rate must be below 1, got {config.missing_rate}")
    if config.missing == "nan" and config.algorithm == "wake_sleep":
        raise ValueError(
            "--missing=nan does not go with --algorithm=wake_sleep, whose q is fitted "
            "to whole dreams alone"
        )


def _check_prior(config: Config) -> None:
    if config.has_standard_prior:
        return
    if config.posterior == "bernoulli":
        raise ValueError(
            "--prior and --top_latents are of continuous latents, "
            "--posterior=bernoulli has its own prior"
        )
    if config.prior == "vamp" and config.algorithm in WITHOUT_ENCODER:
        raise ValueError(
            f"--prior=vamp is made of the encoder, which --algorithm="
            f"{config.algorithm} has not"
        )
    if config.top_latents and (
        config.prior != "standard_normal"
        or config.posterior != "diag_normal"
        or config.algorithm in WITHOUT_ENCODER
    ):
        raise ValueError(
            "--top_latents goes with an encoder, --prior=standard_normal and "
            "--posterior=diag_normal, which hold for each of its layers"
        )


def _check_choices(config: Config) -> None:
    if config.algorithm not in ALGORITHMS:
        raise ValueError(
            f"--algorithm={config.algorithm} is unknown; known: {', '.join(ALGORITHMS)}"
        )
    if config.estimator not in ESTIMATORS:
        raise ValueError(
            f"--estimator={config.estimator} is unknown; known: {', '.join(ESTIMATORS)}"
        )
    fitting = {"vem": FREE_POSTERIORS, "full_vb": CONTINUOUS}.get(config.algorithm)
    if fitting and config.posterior not in fitting:
        raise ValueError(
            f"--algorithm={config.algorithm} does not fit --posterior="
            f"{config.posterior}; what fits: {', '.join(fitting)}"
        )
    if config.algorithm in WITHOUT_ENCODER:
        return
    fitting = [e for e in ESTIMATORS if config.posterior in FITTING_POSTERIORS[e]]
    if config.gradient not in fitting:
        raise ValueError(
            f"--estimator={config.gradient} does not fit --posterior="
            f"{config.posterior}; what fits: {', '.join(fitting)}"
        )
    if config.has_standard_prior or config.posterior == "bernoulli":
        return
    fitting = [e for e in fitting if FITTING_POSTERIORS[e] != ("diag_normal",)]
    if config.gradient not in fitting:
        raise ValueError(
            f"--estimator={config.gradient} needs the closed-form KL of a diagonal "
            f"normal to N(0, I), which --prior={config.prior} --top_latents="
            f"{config.top_latents} have not; what fits: {', '.join(fitting)}"
        )


def _check_readers(config: Config) -> None:
    """Refuses a flag that was given and that nothing reads."""
    for name, pairs in READ_BY.items():
        if getattr(config, name) == type(config).__dataclass_fields__[name].default:
            continue
        for chooser, readers in pairs:
            chosen = getattr(config, chooser)
            if chosen not in readers:
                raise ValueError(
                    f"--{name} says nothing to --{FLAG_OF.get(chooser, chooser)}="
                    f"{chosen}: it is read by {' and '.join(readers)}"
                )
