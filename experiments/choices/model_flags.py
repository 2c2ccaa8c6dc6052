"""The flags of the model that a training run fits, and of its networks."""

import dataclasses

from experiments.choices import ladders
from experiments.choices.coders import ACTIVATIONS, INITIALIZERS, NETWORKS, PRODUCTS
from experiments.choices.densities import LIKELIHOODS, POSTERIORS, PRIORS
from experiments.command import cli
from vae_jax import counts


@dataclasses.dataclass(frozen=True)
class ModelFlags(cli.Flags):
    """p and q: densities, latents and networks."""

    model: str = cli.flag(
        "",
        "MODULE:FUNCTION that builds a model of one's own: (config, x_shape) -> "
        "vae_jax.types.Model. The flags of this section and the next two are then its "
        "to read.",
        section="Model",
    )
    likelihood: str = cli.flag(
        "auto",
        "p(x | z). auto: bernoulli, but columns for a table.",
        choices=("auto", *LIKELIHOODS),
    )
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
        "q(z | x); bernoulli has binary latents with a learned prior, finite_scalar "
        "and vector_quantized codes, rounded numbers or rows of a codebook, with a "
        "uniform one (standard_normal) or --prior=autoregressive, power_spherical a "
        "unit vector with a uniform one.",
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
    num_levels: int = cli.flag(
        5,
        "Values that each latent of --posterior=finite_scalar has.",
        least=2,
        section="Codes",
    )
    codebook_rows: int = cli.flag(
        64, "Rows of each codebook of --posterior=vector_quantized.", least=2
    )
    code_width: int = cli.flag(
        8, "Entries of a row, of which --num_latents is a multiple.", least=1
    )
    residual_levels: int = cli.flag(
        1, "Codebooks, each of what the ones before leave of a vector.", least=1
    )
    rotate: bool = cli.flag(
        False, "Rotate the gradient at a code, and not pass it straight through."
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
    latent_maps: bool = cli.flag(
        False,
        "z is laid out on the networks' smallest maps, a vector a pixel: --num_latents "
        "is a multiple of their pixels, such as 7x7 of images of 28x28 (conv, resnet).",
    )
    remat: bool = cli.flag(
        False,
        "Compute each block anew in the backward pass: less memory, more time (conv, "
        "resnet).",
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
