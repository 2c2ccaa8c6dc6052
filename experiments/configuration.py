"""The flags of a training run."""

import dataclasses
import pathlib

from experiments import cli
from vae_jax.data import sources

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
)
NOT_NEGATIVE = (
    *("weight_decay", "kl_warmup", "clip_norm", "early_stopping"),
    *("beta", "free_nats", "capacity", "capacity_strength", "sleep_share"),
    *("seed", "data_seed", "checkpoint_seconds", "num_train", "top_latents"),
    "missing_rate",
)


@dataclasses.dataclass(frozen=True)
class Config:
    """One training run: a function of these flags and of nothing else."""

    workdir: str = cli.flag("", "Where the run is written; runs/DATASET if empty.")
    # Data.
    dataset: str = cli.flag(
        "digits",
        "digits, mnist, fashion_mnist, binarized_mnist, frey_face, npz:PATH or "
        "tfds:NAME.",
    )
    data_dir: str = cli.flag("", "Folder that holds the original data files.")
    data_seed: int = cli.flag(0, "Seed of binarization and splits, apart from --seed.")
    valid_size: int = cli.flag(
        -1, "Training rows kept for validation; -1 is the data set's custom."
    )
    num_train: int = cli.flag(
        0, "Training rows that are used, from the start; 0 for all of them."
    )
    binarization: str = cli.flag(
        "threshold",
        "How pixels become zeros and ones.",
        choices=("none", "threshold", "static", "dynamic"),
    )
    missing: str = cli.flag(
        "refuse",
        "What NaN in the data is: an error, or a missing entry, of which the model "
        "then takes no notice.",
        choices=sources.MISSING,
    )
    missing_rate: float = cli.flag(
        0.0, "Share of train and valid made missing at random, once (missing=nan)."
    )
    # Model.
    likelihood: str = cli.flag("bernoulli", "p(x | z).", choices=LIKELIHOODS)
    std: float = cli.flag(0.1, "Fixed (or initial) std of the normal likelihoods.")
    min_std: float = cli.flag(0.01, "Lower bound of a learned std.")
    squash_mean: bool = cli.flag(
        False, "Normal likelihoods: means through a sigmoid, for data in [0, 1]."
    )
    posterior: str = cli.flag(
        "diag_normal",
        "q(z | x); bernoulli has binary latents with a learned prior.",
        choices=POSTERIORS,
    )
    flow_layers: int = cli.flag(4, "Flows of --posterior=planar, coupling or iaf.")
    prior: str = cli.flag(
        "standard_normal",
        "p(z) of continuous latents: fixed, a learned mixture of normals, or that of q "
        "at learned pseudo-inputs.",
        choices=PRIORS,
    )
    num_components: int = cli.flag(50, "Components of --prior=normal_mixture and vamp.")
    top_latents: int = cli.flag(
        0, "Latents of a second stochastic layer above --num_latents; 0: none."
    )
    num_latents: int = cli.flag(16, "Latent dimensions, N_z.")
    hidden: tuple[int, ...] = cli.flag(
        (200,), "Units of the encoder's hidden layers; the decoder mirrors them."
    )
    encoder_hidden: tuple[int, ...] = cli.flag(
        (), "Units of the encoder's hidden layers, if not those of --hidden."
    )
    activation: str = cli.flag(
        "tanh",
        "Hidden units of encoder and decoder.",
        choices=("tanh", "relu", "softplus", "gelu", "elu"),
    )
    init: str = cli.flag(
        "glorot",
        "Initial weights of encoder and decoder: Glorot's uniform, or a normal of std "
        "0.01 or 0.1.",
        choices=("glorot", "normal_0.01", "normal_0.1"),
    )
    # Objective.
    algorithm: str = cli.flag(
        "aevb",
        "What fits the model: aevb ascends --estimator; wake_sleep and rws "
        "(reweighted) fit q to the posterior; mcem (Monte Carlo EM) and vem "
        "(variational EM) have no encoder; full_vb has a q over theta too.",
        choices=ALGORITHMS,
    )
    estimator: str = cli.flag("sgvb_b", "Gradient estimator.", choices=ESTIMATORS)
    num_samples: int = cli.flag(1, "Samples of z per example: L of SGVB, K of IWAE.")
    num_outer: int = cli.flag(1, "Outer samples of miwae and piwae, M.")
    beta: float = cli.flag(
        1.0, "Weight of the KL (sgvb_b); the ELBO's share of the bound (ciwae)."
    )
    alpha: float = cli.flag(0.5, "Order of the Renyi bound.")
    jackknife_order: int = cli.flag(1, "Order of the jackknife bound: 0, 1 or 2.")
    free_nats: float = cli.flag(0.1, "KL that each latent has for free (free_bits).")
    capacity: float = cli.flag(20.0, "Nats that the KL is pulled to (capacity).")
    capacity_strength: float = cli.flag(10.0, "How strongly (capacity).")
    temperature: float = cli.flag(0.5, "Of the relaxed bits (binary_concrete).")
    sleep_share: float = cli.flag(
        0.0, "Share of the sleep phase in phi's gradient (rws)."
    )
    num_leapfrog: int = cli.flag(10, "Leapfrog steps of each E-step (mcem).")
    target_acceptance: float = cli.flag(
        0.9, "Acceptance that HMC's step size is tuned to (mcem)."
    )
    num_updates: int = cli.flag(5, "Updates of theta after each E-step (mcem).")
    e_steps: int = cli.flag(20, "Steps of the search for each q (vem).")
    e_rate: float = cli.flag(0.1, "Step size of that search (vem).")
    theta_std: float = cli.flag(0.01, "Initial std of q(theta) (full_vb).")
    weight_decay: float = cli.flag(
        0.0,
        "Precision of the normal prior on theta (MAP, or full_vb's prior); 1 is the "
        "AEVB paper's.",
    )
    kl_warmup: int = cli.flag(
        0, "Epochs over which the KL's weight in the gradient rises to 1 (sgvb_b)."
    )
    # Optimization.
    optimizer: str = cli.flag(
        "adam", "Optimizer.", choices=("sgd", "adagrad", "adam", "adamax", "rmsprop")
    )
    adam_epsilon: float = cli.flag(1e-8, "Added to Adam's denominator (adam).")
    learning_rate: float = cli.flag(1e-3, "Step size, before the schedule.")
    schedule: str = cli.flag(
        "constant",
        "Step size over time; staircase holds 10^(-i/7) for 3^i epochs, i = 0, 1, ...",
        choices=("constant", "cosine", "staircase"),
    )
    clip_norm: float = cli.flag(0.0, "Greatest norm of the gradient; 0 for no limit.")
    batch_size: int = cli.flag(100, "Examples per step, M.")
    num_epochs: int = cli.flag(300, "Passes over the training split.")
    early_stopping: int = cli.flag(
        0, "Stop after that many epochs without a better validation bound; 0: never."
    )
    watch: str = cli.flag(
        "elbo",
        "Validation bound that early stopping and the best weights go by: the ELBO, "
        "or the bound of --valid_samples importance samples.",
        choices=("elbo", "importance"),
    )
    seed: int = cli.flag(0, "Seed of weights, order and noise.")
    # Watching.
    eval_every: int = cli.flag(1, "Epochs between validation bounds.")
    valid_samples: int = cli.flag(10, "Samples per image of the validation bound.")
    eval_samples: int = cli.flag(100, "Samples per image of the final test bound.")
    checkpoint_seconds: float = cli.flag(
        30.0, "Least seconds between checkpoints.", display=True
    )
    resume: bool = cli.flag(True, "Continue the run found in --workdir.", display=True)
    progress: bool = cli.flag(True, "Show the bound while training.", display=True)

    def __post_init__(self) -> None:
        """Refuses numbers that no run can have.

        Raises:
            ValueError: naming the flag, its value and the fix.
        """
        for name in POSITIVE:
            if not getattr(self, name) > 0:
                value = getattr(self, name)
                raise ValueError(f"--{name} must be positive, got {value}")
        for name in NOT_NEGATIVE:
            if not getattr(self, name) >= 0:
                value = getattr(self, name)
                raise ValueError(f"--{name} must not be negative, got {value}")
        for name in ("hidden", "encoder_hidden"):
            if min(getattr(self, name), default=1) < 1:
                value = getattr(self, name)
                raise ValueError(f"--{name} must hold positive sizes, got {value}")
        if self.valid_size < -1:
            raise ValueError(f"--valid_size must be -1 or more, got {self.valid_size}")
        self._check_missing()
        self._check_prior()
        self._check_choices()
        self._check_readers()
        if self.estimator == "ciwae" and not self.beta < 1.0:
            raise ValueError(
                f"--estimator=ciwae mixes bounds at a --beta below 1 (at 1 it is the "
                f"ELBO alone), got {self.beta}"
            )
        if self.algorithm == "full_vb" and not self.weight_decay:
            raise ValueError(
                "--algorithm=full_vb needs a --weight_decay above 0: the precision of "
                "its prior on theta"
            )
        if not 0.0 < self.target_acceptance < 1.0:
            raise ValueError(
                f"--target_acceptance must lie between 0 and 1, got "
                f"{self.target_acceptance}"
            )
        if self.early_stopping and self.algorithm == "mcem":
            raise ValueError(
                "--early_stopping needs a validation bound, and mcem has no q to take "
                "one with while it trains"
            )
        if self.early_stopping and self.early_stopping < self.eval_every:
            raise ValueError(
                f"--early_stopping={self.early_stopping} is below --eval_every="
                f"{self.eval_every}: the validation bound would never be seen twice"
            )

    @property
    def gradient(self) -> str:
        """The estimator that is ascended: that of --algorithm, or --estimator."""
        return NAMED_ESTIMATORS.get(self.algorithm, self.estimator)

    @property
    def has_standard_prior(self) -> bool:
        """Whether p(z) is N(0, I) over all of z."""
        return self.prior == "standard_normal" and not self.top_latents

    def _check_missing(self) -> None:
        if not self.missing_rate < 1.0:
            raise ValueError(f"--missing_rate must be below 1, got {self.missing_rate}")
        blind = {"algorithm": ("wake_sleep",), "estimator": ("nvil",)}
        for name, values in blind.items():
            if self.missing == "nan" and getattr(self, name) in values:
                raise ValueError(
                    f"--missing=nan does not go with --{name}={getattr(self, name)}: "
                    "wake_sleep's q is fitted to whole dreams alone, and nvil's "
                    "baseline reads all of x"
                )

    def _check_prior(self) -> None:
        if self.has_standard_prior:
            return
        if self.posterior == "bernoulli":
            raise ValueError(
                "--prior and --top_latents are of continuous latents, "
                "--posterior=bernoulli has its own prior"
            )
        if self.prior == "vamp" and self.algorithm in WITHOUT_ENCODER:
            raise ValueError(
                f"--prior=vamp is made of the encoder, which --algorithm="
                f"{self.algorithm} has not"
            )
        if self.top_latents and (
            self.prior != "standard_normal"
            or self.posterior != "diag_normal"
            or self.algorithm in WITHOUT_ENCODER
        ):
            raise ValueError(
                "--top_latents goes with an encoder, --prior=standard_normal and "
                "--posterior=diag_normal, which hold for each of its layers"
            )

    def _check_choices(self) -> None:
        if self.algorithm not in ALGORITHMS:
            raise ValueError(
                f"--algorithm={self.algorithm} is unknown; known: "
                f"{', '.join(ALGORITHMS)}"
            )
        if self.estimator not in ESTIMATORS:
            raise ValueError(
                f"--estimator={self.estimator} is unknown; known: "
                f"{', '.join(ESTIMATORS)}"
            )
        fitting = {"vem": FREE_POSTERIORS, "full_vb": CONTINUOUS}.get(self.algorithm)
        if fitting and self.posterior not in fitting:
            raise ValueError(
                f"--algorithm={self.algorithm} does not fit --posterior="
                f"{self.posterior}; what fits: {', '.join(fitting)}"
            )
        if self.algorithm in WITHOUT_ENCODER:
            return
        fitting = [e for e in ESTIMATORS if self.posterior in FITTING_POSTERIORS[e]]
        if self.gradient not in fitting:
            raise ValueError(
                f"--estimator={self.gradient} does not fit --posterior="
                f"{self.posterior}; what fits: {', '.join(fitting)}"
            )
        if self.has_standard_prior or self.posterior == "bernoulli":
            return
        fitting = [e for e in fitting if FITTING_POSTERIORS[e] != ("diag_normal",)]
        if self.gradient not in fitting:
            raise ValueError(
                f"--estimator={self.gradient} needs the closed-form KL of a diagonal "
                f"normal to N(0, I), which --prior={self.prior} --top_latents="
                f"{self.top_latents} have not; what fits: {', '.join(fitting)}"
            )

    def _check_readers(self) -> None:
        """Refuses a flag that was given and that nothing reads."""
        for name, pairs in READ_BY.items():
            if getattr(self, name) == type(self).__dataclass_fields__[name].default:
                continue
            for chooser, readers in pairs:
                chosen = getattr(self, chooser)
                if chosen not in readers:
                    raise ValueError(
                        f"--{name} says nothing to --{FLAG_OF.get(chooser, chooser)}="
                        f"{chosen}: it is read by {' and '.join(readers)}"
                    )

    def directory(self) -> pathlib.Path:
        """The run's workdir, runs/DATASET where none is given."""
        name = self.dataset.removeprefix("npz:").removeprefix("tfds:")
        stem = pathlib.Path(name).stem
        return pathlib.Path(self.workdir or f"runs/{stem}").expanduser()
