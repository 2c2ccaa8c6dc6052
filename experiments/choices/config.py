"""The flags of a training run."""

import dataclasses
import math
import pathlib
from typing import Any, ClassVar

from experiments.choices import ladders, refusals, rows
from experiments.choices.algorithms import ALGORITHMS, OPTIMIZERS, SCHEDULES
from experiments.choices.data_flags import DataFlags
from experiments.choices.densities import (
    ACTIVATIONS,
    INITIALIZERS,
    LIKELIHOODS,
    NETWORKS,
    POSTERIORS,
    PRIORS,
    PRODUCTS,
)
from experiments.choices.estimators import ESTIMATORS
from experiments.command import cli
from vae_jax import counts
from vae_jax.data import sources


@dataclasses.dataclass(frozen=True)
class Config(DataFlags):
    """One training run: a function of these flags and of nothing else."""

    GONE: ClassVar = {
        "top_latents": cli.Gone(
            "0",
            "a second layer of N latents is --ladder=NUM_LATENTS,N, with one pass from "
            "the top down",
        )
    }
    model: str = cli.flag(
        "",
        "MODULE:FUNCTION that builds a model of one's own: (config, x_shape) -> "
        "vae_jax.types.Model. The flags of this section and the next are then its to "
        "read.",
        section="Model",
    )
    likelihood: str = cli.flag("bernoulli", "p(x | z).", choices=LIKELIHOODS)
    std: float = cli.flag(
        0.1, "Fixed (or initial) std of the normal likelihoods.", above=0
    )
    min_std: float = cli.flag(0.01, "Lower bound of a learned std.", above=0)
    squash_mean: bool = cli.flag(
        False, "Normal likelihoods: means through a sigmoid, for data in [0, 1]."
    )
    degrees: float = cli.flag(4.0, "Of freedom, of --likelihood=student_t.", above=1)
    num_values: int = cli.flag(
        256,
        "Values that an entry may have, 0, 1/(K-1), ..., 1, of the likelihoods of "
        "stored values (categorical, discretized_...).",
        least=2,
    )
    dispersion: str = cli.flag(
        "column",
        "Of negative binomials, r in the variance m + m^2 / r: one number, one of each "
        "entry, or the decoder's.",
        choices=counts.DISPERSIONS,
    )
    num_trials: int = cli.flag(1, "Most of a count (beta_binomial).", least=1)
    num_logistics: int = cli.flag(
        10, "Components of --likelihood=discretized_logistic_mixture.", least=1
    )
    posterior: str = cli.flag(
        "diag_normal",
        "q(z | x); bernoulli has binary latents with a learned prior.",
        choices=POSTERIORS,
    )
    flow_layers: int = cli.flag(
        4, "Flows of --posterior=planar, coupling or iaf.", least=1
    )
    prior: str = cli.flag(
        "standard_normal",
        "p(z) of continuous latents: fixed, a learned mixture of normals, that of q at "
        "learned pseudo-inputs, one around the codes of training rows, or N(0, I) "
        "through learned flows.",
        choices=PRIORS,
    )
    num_components: int = cli.flag(
        50, "Components of --prior=normal_mixture and vamp.", least=1
    )
    num_exemplars: int = cli.flag(
        500,
        "Training rows that --prior=exemplar is made of, drawn once by --data_seed; "
        "each step encodes them all.",
        least=2,
    )
    prior_layers: int = cli.flag(
        8, "Flows of --prior=flow and autoregressive.", least=1
    )
    prior_units: int = cli.flag(
        128, "Units of both hidden layers of each of them.", least=1
    )
    num_latents: int = cli.flag(16, "Latent dimensions, N_z.", least=1)
    ladder: tuple[str, ...] = cli.flag(
        (),
        "Several layers of latents, in the place of --num_latents: their sizes from x "
        "upward, such as 64,32,16 (mlp), or maps below a vector, such as "
        "14x14x8,7x7x16,32 (conv, resnet). --prior and --posterior are of the top one, "
        "but bits and normals of all.",
    )
    posterior_form: str = cli.flag(
        "plain",
        "q of a layer of a ladder below its top: from a network of its own, as what is "
        "added to the prior's (residual), or the prior times what x says (merged).",
        choices=ladders.FORMS,
    )
    network: str = cli.flag(
        "mlp",
        "Encoder and decoder: perceptrons, plain, gated or in residual blocks; or "
        "convolutions of images, plain or in residual blocks.",
        choices=NETWORKS,
        section="Networks of the model",
    )
    width: int = cli.flag(
        32,
        "Channels at half the resolution, twice as many at each further halving (conv, "
        "resnet); units of every layer (residual_mlp).",
        least=1,
    )
    num_blocks: int = cli.flag(
        1, "Blocks, at each resolution (conv, resnet) or in all.", least=1
    )
    hidden: tuple[int, ...] = cli.flag(
        (200,),
        "Units of the encoder's hidden layers; the decoder mirrors them. Of a ladder's "
        "networks: one number for each layer of latents, or for all.",
        least=1,
    )
    num_hidden: int = cli.flag(
        1, "Hidden layers of so many units, of each network of a ladder.", least=1
    )
    encoder_hidden: tuple[int, ...] = cli.flag(
        (), "Units of the encoder's hidden layers, if not those of --hidden.", least=1
    )
    activation: str = cli.flag(
        "tanh",
        "Hidden units of encoder and decoder.",
        choices=ACTIVATIONS,
    )
    init: str = cli.flag(
        "glorot",
        "Initial weights of encoder and decoder: Glorot's uniform, or a normal of std "
        "0.01 or 0.1.",
        choices=INITIALIZERS,
    )
    init_bias: str = cli.flag(
        "none",
        "data: the decoder's output starts around the mean of the training rows. q may "
        "then collapse at the start, of convolutions above all, unless it starts "
        "narrow (--posterior_std=0.14) or its KL is warmed up (--kl_warmup).",
        choices=("none", "data"),
    )
    posterior_std: float = cli.flag(
        1.0,
        "Std of q(z | x) that the encoder's output starts around; narrow below 1.",
        above=0,
    )
    precision: str = cli.flag(
        "float32",
        "Of the operands of the matrix products of encoder and decoder while training; "
        "sums, 3x3 convolutions, parameters and densities are float32. The end's test "
        "bound and other commands compute in float32, or as their own flag says.",
        choices=PRODUCTS,
    )
    algorithm: str = cli.flag(
        "aevb",
        "What fits the model: aevb ascends --estimator; wake_sleep and rws "
        "(reweighted) fit q to the posterior; mcem (Monte Carlo EM) and vem "
        "(variational EM) have no encoder; full_vb has a q over theta too.",
        choices=ALGORITHMS,
        section="Objective",
    )
    estimator: str = cli.flag("sgvb_b", "Gradient estimator.", choices=ESTIMATORS)
    num_samples: int = cli.flag(
        1, "Samples of z per example: L of SGVB, K of IWAE.", least=1
    )
    num_outer: int = cli.flag(1, "Outer samples of miwae and piwae, M.", least=1)
    beta: float = cli.flag(
        1.0,
        "Weight of the KL (sgvb_a, sgvb_b, free_bits); the ELBO's share of the bound "
        "(ciwae).",
        least=0,
    )
    alpha: float = cli.flag(
        0.5,
        "Order of the Renyi bound; -inf is the largest log weight.",
        below=math.inf,
        infinite=True,
    )
    num_terms: int = cli.flag(
        2, "Terms from the ELBO to log p(x) (thermodynamic, uha).", least=1
    )
    first_beta: float = cli.flag(
        0.03, "Power of the first of them after 0 (thermodynamic).", above=0, below=1
    )
    ovis_gamma: float = cli.flag(
        0.0, "Share of the limit of many weights; biased above 0 (ovis).", least=0
    )
    jackknife_order: int = cli.flag(1, "Order of the jackknife bound: 0, 1 or 2.")
    free_nats: float = cli.flag(
        0.1,
        "KL that each latent, or each layer of a ladder, has for free (free_bits).",
        least=0,
    )
    capacity: float = cli.flag(20.0, "Nats the KL is pulled to (capacity).", least=0)
    capacity_strength: float = cli.flag(10.0, "How strongly (capacity).", least=0)
    temperature: float = cli.flag(
        0.5, "Of relaxed bits (binary_concrete, rebar; relax starts there).", above=0
    )
    sleep_share: float = cli.flag(
        0.0, "Share of the sleep phase in phi's gradient (rws).", least=0
    )
    num_leapfrog: int = cli.flag(10, "Leapfrog steps of each E-step (mcem).", least=1)
    target_acceptance: float = cli.flag(
        0.9, "Acceptance that HMC's step size is tuned to (mcem).", above=0, below=1
    )
    num_updates: int = cli.flag(5, "Updates of theta an E-step (mcem).", least=1)
    e_steps: int = cli.flag(20, "Steps of the search for each q (vem).", least=1)
    e_rate: float = cli.flag(0.1, "Step size of that search (vem).", above=0)
    theta_std: float = cli.flag(0.01, "Initial std of q(theta) (full_vb).", above=0)
    weight_decay: float = cli.flag(
        0.0,
        "Precision of the normal prior on theta (MAP, or full_vb's prior); 1 is the "
        "AEVB paper's.",
        least=0,
    )
    kl_warmup: int = cli.flag(
        0,
        "Epochs over which the KL's weight in the gradient rises to 1 (sgvb_a, sgvb_b, "
        "free_bits).",
        least=0,
    )
    kl_balancing: bool = cli.flag(
        False,
        "Until then, weigh the KL of each layer of a ladder by its nats per latent, so "
        "that layers of little are not lost (sgvb_b, free_bits).",
    )
    optimizer: str = cli.flag(
        "adam",
        "Optimizer; adamw and adamaxw are adam and adamax with --decoupled_decay.",
        choices=OPTIMIZERS,
        section="Optimization",
    )
    adam_epsilon: float = cli.flag(1e-8, "Added to the root (adam, adamw).", above=0)
    decoupled_decay: float = cli.flag(
        0.01,
        "Times the step size, the share of every parameter of p and q, biases too, "
        "that a step takes away (adamw, adamaxw); no prior on theta, as --weight_decay "
        "is.",
        least=0,
    )
    learning_rate: float = cli.flag(1e-3, "Step size, before the schedule.", above=0)
    schedule: str = cli.flag(
        "constant",
        "Step size over time; staircase holds 10^(-i/7) for 3^i epochs, i = 0, 1, ...",
        choices=SCHEDULES,
    )
    warmup_steps: int = cli.flag(
        0, "Steps over which the step size rises to the schedule's.", least=0
    )
    final_rate: float = cli.flag(
        0.0, "Share of the step size that is left at the end (cosine).", least=0
    )
    average_decay: float = cli.flag(
        0.0,
        "Decay of a moving average of the parameters, which is then what is validated, "
        "kept as best and evaluated, with the raw weights beside it; 0: none.",
        least=0,
        below=1,
    )
    clip_norm: float = cli.flag(
        0.0, "Greatest norm of the gradient; 0 for no limit.", least=0
    )
    skip_norm: float = cli.flag(
        0.0,
        "Skip, and count, steps whose bound or gradient is not finite, or whose "
        "gradient's norm is above this; inf: what is not finite alone; 0: none, and "
        "the run ends at a bound that is not finite.",
        least=0,
        infinite=True,
    )
    batch_size: int = cli.flag(100, "Examples per step, M.", least=1)
    num_epochs: int = cli.flag(300, "Passes over the training split.", least=1)
    early_stopping: int = cli.flag(
        0,
        "Stop after that many epochs without a better validation bound; 0: never.",
        least=0,
    )
    watch: str = cli.flag(
        "elbo",
        "Validation bound that early stopping and the best weights go by: the ELBO, "
        "or the bound of --valid_samples importance samples.",
        choices=("elbo", "importance"),
    )
    seed: int = cli.flag(0, "Seed of weights, order and noise.", least=0)
    num_seeds: int = cli.flag(
        1,
        "Runs that train together, from --seed on.",
        least=1,
        section="Several runs in one program",
    )
    sweep: str = cli.flag(
        "",
        "NAME=V1,V2,...: runs that differ in --learning_rate, --beta or --kl_warmup "
        "train together too.",
    )
    num_devices: int = cli.flag(
        1,
        "Devices that share each batch; 0 for all there are.",
        display=True,
        least=0,
        section="Where it runs: to rounding, none of these changes a number",
    )
    shard_data: bool = cli.flag(
        False, "Share the training rows out among the devices.", display=True
    )
    stream_steps: int = cli.flag(
        0,
        "Keep the training rows on the host and send those of so many steps at a time; "
        "0: all rows lie on the device.",
        display=True,
        least=0,
    )
    coordinator_address: str = cli.flag(
        "",
        "HOST:PORT of process 0, of a run of several processes; auto where the cluster "
        "tells it.",
        display=True,
    )
    num_processes: int = cli.flag(1, "Processes of the run.", display=True, least=1)
    process_id: int = cli.flag(0, "This process, from 0 on.", display=True, least=0)
    eval_every: int = cli.flag(
        1, "Epochs between validation bounds.", least=1, section="Watching"
    )
    valid_samples: int = cli.flag(
        0,
        "Samples per image of the validation bound; 0: ten, or as many fewer as make "
        "10,000 of all images where --watch=elbo.",
        least=0,
    )
    eval_samples: int = cli.flag(100, "Samples per image of the test bound.", least=1)
    checkpoint_seconds: float = cli.flag(
        30.0, "Least seconds between checkpoints.", display=True, least=0
    )
    resume: bool = cli.flag(True, "Continue the run found in --workdir.", display=True)
    progress: bool = cli.flag(True, "Show the bound while training.", display=True)

    def check(self) -> None:
        """Refuses combinations that no run can have.

        Raises:
            ValueError: naming the flags, their values and the fix.
        """
        refusals.check(self)

    @property
    def trains_many(self) -> bool:
        """Whether several runs train together, their states stacked on an axis R."""
        return self.num_seeds > 1 or bool(self.sweep)

    @property
    def gradient(self) -> str:
        """The estimator that is ascended: that of --algorithm, or --estimator."""
        return ALGORITHMS[self.algorithm].estimator or self.estimator

    @property
    def has_encoder(self) -> bool:
        """Whether q is of a phi: else it is found for each x when wanted."""
        return ALGORITHMS[self.algorithm].has_encoder

    @property
    def settled(self) -> "Config":
        """The same with what --binarization=auto stands for in its place.

        And one layer of --ladder as --num_latents. What a run is built of and writes to
        its workdir. Whether data are fit to be read so, `protocol.load` knows, which is
        given the flags as they are.
        """
        changes: dict[str, Any] = {}
        if self.binarization == "auto":
            changes["binarization"] = "threshold"
            if sources.keeps_values(self.dataset):
                changes["binarization"] = "none"
            elif self.is_of_stored_values:
                changes["binarization"] = "grid"
        if self.is_table:
            changes |= {"missing": "nan", "likelihood": self.observed}
        if len(self.ladder) == 1:
            changes |= {"num_latents": int(self.ladder[0]), "ladder": ()}
        return dataclasses.replace(self, **changes)

    @property
    def is_table(self) -> bool:
        """Whether x is a row of a table."""
        return self.dataset.startswith("csv:")

    @property
    def observed(self) -> str:
        """The row of p(x | z): of a table columns, where no other is named."""
        is_named = self.likelihood != self.default("likelihood")
        return "columns" if self.is_table and not is_named else self.likelihood

    @property
    def layers(self) -> ladders.Shapes:
        """Shapes of the layers of a ladder, from x upward; () of one layer alone."""
        return ladders.shapes(self.ladder) if len(self.ladder) > 1 else ()

    @property
    def is_of_stored_values(self) -> bool:
        """Whether p(x | z) is of --num_values values on a grid alone."""
        row = LIKELIHOODS[self.likelihood]
        return not self.model and "num_values" in rows.read_by(row)

    @property
    def observation(self) -> str:
        """The flag that p(x | z) comes from, with its value."""
        if self.model:
            return f"--model={self.model}"
        return f"--likelihood={self.likelihood}"

    @property
    def has_standard_prior(self) -> bool:
        """Whether p(z) is N(0, I) over all of z."""
        return self.prior == "standard_normal" and not self.layers

    def directory(self) -> pathlib.Path:
        """The run's workdir, runs/DATASET where none is given."""
        kind, _, rest = self.dataset.partition(":")
        stem = pathlib.Path(rest or kind).stem
        return pathlib.Path(self.workdir or f"runs/{stem}").expanduser()
