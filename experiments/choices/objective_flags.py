"""The flags of what a training run ascends, and by which algorithm."""

import dataclasses
import math

from experiments.choices.algorithms import ALGORITHMS
from experiments.choices.estimators import ESTIMATORS, KERNELS
from experiments.command import cli
from vae_jax.estimators import aggregate_density


@dataclasses.dataclass(frozen=True)
class ObjectiveFlags(cli.Flags):
    """An objective with its numbers, and what fits the model to it."""

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
        "Weight of the KL (sgvb_a, sgvb_b, free_bits), or of the total correlation "
        "(beta_tc); the ELBO's share of the bound (ciwae).",
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
        0.0,
        "Share of the limit of many weights; biased above 0 (ovis).",
        least=0,
        most=1,
    )
    jackknife_order: int = cli.flag(
        1, "Order of the jackknife bound: 0, 1 or 2.", least=0, most=2
    )
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
        0.0, "Share of the sleep phase in phi's gradient (rws).", least=0, most=1
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
    penalty: float = cli.flag(
        10.0,
        "Weight of what is added of a batch's codes: gamma (factor), lambda of the "
        "covariances (dip_i, dip_ii), lambda (mmd, of which 1 - info_alpha is none).",
        least=0,
        section="Objectives of a batch's codes",
    )
    dip_diagonal: float = cli.flag(
        10.0, "The same of the variances (dip_i, dip_ii).", least=0
    )
    commitment: float = cli.flag(
        0.25,
        "Nats by squared distance that hold the encoder to the rows of a codebook "
        "(codebook_...).",
        least=0,
    )
    codebook_decay: float = cli.flag(
        0.99,
        "Share of the past that a step keeps of a row's mean (codebook_averages).",
        least=0,
        below=1,
    )
    min_code_uses: float = cli.flag(
        0.1,
        "Moving average of a row's uses a batch below which it starts again at a "
        "vector of the batch; 0: never (codebook_averages).",
        least=0,
        below=1,
    )
    sampling: str = cli.flag(
        "stratified",
        "Estimator of log q(z) from a batch (beta_tc).",
        choices=aggregate_density.SAMPLING,
    )
    info_alpha: float = cli.flag(
        0.0, "1 less the KL's weight; 1 is WAE-MMD (mmd).", least=0, most=1
    )
    kernel: str = cli.flag(
        "imq", "Inverse quadratic, or Gaussian (mmd).", choices=KERNELS
    )
    kernel_scales: tuple[float, ...] = cli.flag(
        (1.0,),
        "Scales of the kernel, 1 that of the prior; the mean over them (mmd).",
        above=0,
        empty=False,
    )
    discriminator_hidden: tuple[int, ...] = cli.flag(
        (200, 200), "Units of the discriminator's hidden layers (factor).", least=1
    )
    discriminator_rate: float = cli.flag(
        1e-4, "Step size of its Adam (factor).", above=0
    )
