"""The flags of a training run."""

import dataclasses
import pathlib

from experiments import choices, cli
from experiments.choices import (
    ALGORITHMS,
    ESTIMATORS,
    LIKELIHOODS,
    NAMED_ESTIMATORS,
    POSTERIORS,
    PRIORS,
)
from vae_jax.data import sources


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
        "auto",
        "How pixels become zeros and ones. auto: threshold, but none for npz and tfds, "
        "which have to be zeros and ones already under --likelihood=bernoulli.",
        choices=("auto", "none", "threshold", "static", "dynamic"),
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
    # Several runs in one program.
    num_seeds: int = cli.flag(1, "Runs that train together, from --seed on.")
    sweep: str = cli.flag(
        "",
        "NAME=V1,V2,...: runs that differ in --learning_rate, --beta or --kl_warmup "
        "train together too.",
    )
    # Where it runs: to rounding, none of these changes a number.
    num_devices: int = cli.flag(
        1, "Devices that share each batch; 0 for all there are.", display=True
    )
    shard_data: bool = cli.flag(
        False, "Share the training rows out among the devices.", display=True
    )
    stream_steps: int = cli.flag(
        0,
        "Keep the training rows on the host and send those of so many steps at a time; "
        "0: all rows lie on the device.",
        display=True,
    )
    coordinator_address: str = cli.flag(
        "",
        "HOST:PORT of process 0, of a run of several processes; auto where the cluster "
        "tells it.",
        display=True,
    )
    num_processes: int = cli.flag(1, "Processes of the run.", display=True)
    process_id: int = cli.flag(0, "Which process this is, from 0.", display=True)
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
        """Refuses numbers and combinations that no run can have.

        Raises:
            ValueError: naming the flag, its value and the fix.
        """
        choices.check(self)

    @property
    def trains_many(self) -> bool:
        """Whether several runs train together, their states stacked on an axis R."""
        return self.num_seeds > 1 or bool(self.sweep)

    @property
    def gradient(self) -> str:
        """The estimator that is ascended: that of --algorithm, or --estimator."""
        return NAMED_ESTIMATORS.get(self.algorithm, self.estimator)

    @property
    def settled(self) -> "Config":
        """The same with what --binarization=auto stands for in its place.

        What a run is built of and writes to its workdir. Whether data are fit to be
        read so, `protocol.load` knows, which is given the flags as they are.
        """
        if self.binarization != "auto":
            return self
        chosen = "none" if sources.is_own(self.dataset) else "threshold"
        return dataclasses.replace(self, binarization=chosen)

    @property
    def has_standard_prior(self) -> bool:
        """Whether p(z) is N(0, I) over all of z."""
        return self.prior == "standard_normal" and not self.top_latents

    def directory(self) -> pathlib.Path:
        """The run's workdir, runs/DATASET where none is given."""
        name = self.dataset.removeprefix("npz:").removeprefix("tfds:")
        stem = pathlib.Path(name).stem
        return pathlib.Path(self.workdir or f"runs/{stem}").expanduser()
