"""Combinations of flags that no training run can have."""

from typing import Any

from experiments.choices import estimators, ladders, rows
from experiments.choices.algorithms import ALGORITHMS, OPTIMIZERS, SCHEDULES
from experiments.choices.coders import NETWORKS
from experiments.choices.densities import LIKELIHOODS, POSTERIORS, PRIORS
from experiments.choices.estimators import ESTIMATORS

OF_ONE_LAYER = ("encoder_hidden", "posterior_std", "latent_maps", "num_latents")
OF_LADDERS = ("posterior_form", "num_hidden")
OF_FRESH = ("init", "init_bias", "posterior_std")  # flags of fresh parameters
WITH_CONTEXT = ("aevb", "rws")  # which neither dream of x nor search for a q of it
CODED = ("diag_normal", "full_normal")  # posteriors with moments of real z


def check(config: Any) -> None:
    """Refuses what no run can be made of.

    Raises:
        ValueError: naming the flags, their values and the fix.
    """
    for refuse in (
        _missing,
        _table,
        _condition,
        _ladder,
        _prior,
        _choices,
        _readers,
        _estimator,
        _stream,
        _early_stopping,
        _start,
    ):
        refuse(config)


def _missing(config: Any) -> None:
    missing = "nan" if config.is_table else config.missing
    config.refuse_unread("missing", (missing,), {"missing_rate": ("nan",)})
    if missing == "nan" and config.algorithm == "wake_sleep":
        raise ValueError(
            "--missing=nan does not go with --algorithm=wake_sleep, whose q is fitted "
            "to whole dreams alone"
        )


def _table(config: Any) -> None:
    """Refuses columns without a table, and what does not see what q sees of x."""
    if config.columns and not config.is_table:
        raise ValueError(
            "--columns are of --dataset=csv:PATH or npz:PATH: leave them out"
        )
    if config.likelihood == "columns" and not config.is_table:
        raise ValueError(
            "--likelihood=columns is of --dataset=csv:PATH, or of npz:PATH with "
            f"--columns, not of {config.dataset}"
        )
    if config.observed == "columns" and config.binarization not in ("auto", "none"):
        raise ValueError(
            f"--binarization={config.binarization} is of values of one kind: columns "
            "are read as they are, each by its family"
        )
    read = config.is_table or LIKELIHOODS[config.observed].reading is not None
    if read and not config.model and (config.layers or config.prior == "vamp"):
        chosen = ladders.written(config.ladder) if config.layers else "--prior=vamp"
        raise ValueError(
            f"{chosen} is of x as it is, and q sees counts and columns on other "
            "scales: take one layer of --num_latents, and another prior"
        )


def _condition(config: Any) -> None:
    """Refuses what is not built of two networks that may read a context beside x."""
    families = {text.partition(":")[0]: text.split(":")[1:2] for text in config.columns}
    for name, family in families.items():
        if family == ["context"] and config.condition != "context":
            raise ValueError(f"--columns={name}:context is read by --condition=context")
    if config.size_factor:
        _size_factor(config)
    if not config.condition:
        return
    named = f"--condition={config.condition}"
    if config.model:
        raise ValueError(f"{named} is of the flags' own models, not of --model")
    if config.layers:
        raise ValueError(
            f"{named} does not go with {ladders.written(config.ladder)}: take one "
            "layer of --num_latents"
        )
    if config.latent_maps or POSTERIORS[config.posterior].traits.codebook:
        raise ValueError(
            f"{named} stands beside a vector z: leave out --latent_maps and "
            "--posterior=vector_quantized"
        )
    if config.prior in ("vamp", "exemplar"):
        raise ValueError(
            f"{named} does not go with --prior={config.prior}, which is made of codes "
            "of x without it: take another"
        )
    if config.algorithm not in WITH_CONTEXT:
        raise ValueError(
            f"{named} does not go with --algorithm={config.algorithm}; what fits: "
            f"{', '.join(WITH_CONTEXT)}"
        )


def _size_factor(config: Any) -> None:
    """Refuses the size of what is not counted, or that no context holds."""
    sized = {name for name, row in LIKELIHOODS.items() if row.is_sized}
    if config.condition != "context":
        raise ValueError(
            f"--size_factor={config.size_factor} is an entry of --condition=context"
        )
    if config.observed not in sized:
        raise ValueError(
            f"--size_factor={config.size_factor} multiplies means of counts, which "
            f"--likelihood={config.observed} does not have: take one of "
            f"{', '.join(sorted(sized))}"
        )


def _ladder(config: Any) -> None:
    """Refuses what is no ladder, and flags that one does not read, or it alone."""
    shapes, written = ladders.shapes(config.ladder), ladders.written(config.ladder)
    if config.model:
        return  # whose function may read any
    changed = {
        name
        for name in (*OF_ONE_LAYER, *OF_LADDERS)
        if getattr(config, name) != config.default(name)
    }
    if shapes and "num_latents" in changed:
        raise ValueError(
            f"--num_latents={config.num_latents} has no effect with {written}, whose "
            "numbers stand in its place"
        )
    if len(shapes) < 2:
        for name in OF_LADDERS:
            if name in changed:
                raise ValueError(f"--{name} is read by --ladder of two layers or more")
        return
    for name in OF_ONE_LAYER:
        if name in changed:
            raise ValueError(
                f"--{name} has no effect with {written}: it is of one layer"
            )
    kind = ladders.kind(shapes)
    fitting = ladders.NETWORKS[kind]
    if config.network not in fitting:
        raise ValueError(
            f"--network={config.network} does not go with {written}: {kind} have "
            f"--network={' or '.join(fitting)}"
        )
    if kind == "maps" and "num_hidden" in changed:
        raise ValueError(
            f"--num_hidden has no effect with {written}: maps have --num_blocks"
        )
    if kind == "vectors" and len(config.hidden) not in (1, len(shapes)):
        raise ValueError(
            f"--hidden={','.join(map(str, config.hidden))} must be one number, or one "
            f"for each of the {len(shapes)} layers of {written}"
        )
    if not config.has_encoder:
        raise ValueError(
            f"{written} needs the encoder that --algorithm={config.algorithm} does "
            "not have"
        )
    if config.prior in ("vamp", "exemplar"):
        raise ValueError(
            f"--prior={config.prior} is made of codes of x, which the top of {written} "
            "does not see: take another"
        )
    q = POSTERIORS[config.posterior].traits
    if q.rounded or q.spherical:
        raise ValueError(
            f"--posterior={config.posterior} is of one layer, not of {written}"
        )
    if not q.continuous and ladders.FORMS[config.posterior_form].of_bits is None:
        raise ValueError(
            f"--posterior_form={config.posterior_form} is of real latents, not of "
            f"--posterior={config.posterior}: take plain or residual"
        )


def _prior(config: Any) -> None:
    if config.prior == "standard_normal" or config.model:
        return
    fitting = POSTERIORS[config.posterior].priors
    if fitting and config.prior not in fitting:
        others = [name for name in fitting if name != "standard_normal"]
        instead = f"; what fits: {', '.join(others)}" if others else ""
        raise ValueError(
            f"--prior={config.prior} is of any real vector, and --posterior="
            f"{config.posterior} has its own prior{instead}"
        )
    if fitting:
        return
    if config.prior in ("vamp", "exemplar") and not config.has_encoder:
        raise ValueError(
            f"--prior={config.prior} is made of the encoder, which --algorithm="
            f"{config.algorithm} does not have"
        )
    if config.prior == "exemplar":
        _exemplars(config)


def _exemplars(config: Any) -> None:
    """Refuses what has no use for exemplars, or does not know which row is which."""
    if config.posterior not in CODED:
        raise ValueError(
            "--prior=exemplar is made of the means of q, which --posterior="
            f"{config.posterior} does not have in closed form; what fits: "
            f"{', '.join(CODED)}"
        )
    if config.algorithm == "full_vb":
        raise ValueError(
            "--prior=exemplar has to leave out each row's own exemplar, which "
            "--algorithm=full_vb does not: take aevb, wake_sleep or rws"
        )
    if config.stream_steps:
        raise ValueError(
            "--prior=exemplar does not go with --stream_steps, whose rows have lost "
            "their numbers, so that a row's own exemplar cannot be left out"
        )


def _choices(config: Any) -> None:
    """Refuses an algorithm or an estimator that is not of the q or the prior."""
    algorithm, q = ALGORITHMS[config.algorithm], POSTERIORS[config.posterior].traits
    of_layers = ""
    if config.layers:
        q = q._replace(closed_kl=False, factorizes=False, layered=True)
        of_layers = f" {ladders.written(config.ladder)}"
    if config.model and config.has_encoder:
        return  # its own q says what fits, once it is built
    if not algorithm.fits(q):
        fitting = [n for n, row in POSTERIORS.items() if algorithm.fits(row.traits)]
        raise ValueError(
            f"--algorithm={config.algorithm} does not fit --posterior="
            f"{config.posterior}; what fits: {', '.join(fitting)}"
        )
    if not config.has_encoder:
        return
    if config.gradient not in (fitting := estimators.fitting(q)):
        raise ValueError(
            f"--estimator={config.gradient} does not fit --posterior="
            f"{config.posterior}{of_layers}; what fits: {', '.join(fitting)}"
        )
    if config.prior != "standard_normal" and not config.layers:
        q = q._replace(closed_kl=False, factorizes=False)
    if config.gradient not in (fitting := estimators.fitting(q)):
        raise ValueError(
            f"--estimator={config.gradient} needs the closed-form KL of a normal to "
            f"N(0, I), which --prior={config.prior} does not have; what fits: "
            f"{', '.join(fitting)}"
        )


def _readers(config: Any) -> None:
    """Refuses a flag that is not at its default and that nothing reads."""
    chosen = {
        "algorithm": (config.algorithm, ALGORITHMS),
        "estimator": (config.gradient, ESTIMATORS),
        "optimizer": (config.optimizer, OPTIMIZERS),
        "schedule": (config.schedule, SCHEDULES),
    }
    if not config.model:  # whose function may read any
        chosen |= {
            "posterior": (config.posterior, POSTERIORS),
            "prior": (
                config.prior,
                PRIORS | dict(POSTERIORS[config.posterior].priors),
            ),
            "likelihood": (config.observed, LIKELIHOODS),
            "network": (config.network, NETWORKS),
        }
    for chooser, (name, table) in chosen.items():
        if chooser == "estimator" and not config.has_encoder:
            chooser, name = "algorithm", config.algorithm  # it ascends none of them
        config.refuse_unread(chooser, (name,), rows.readers(table))


def _estimator(config: Any) -> None:
    if config.kl_balancing and not (
        config.kl_warmup and (config.layers or config.model)
    ):
        raise ValueError(
            "--kl_balancing weighs the layers of a ladder while its KL warms up: give "
            "--ladder of two layers or more, and --kl_warmup above 0"
        )
    if config.estimator == "ciwae" and not config.beta < 1.0:
        raise ValueError(
            f"--estimator=ciwae mixes bounds at a --beta below 1 (at 1 it is the "
            f"ELBO alone), got {config.beta}"
        )
    if config.estimator == "mmd" and config.penalty < 1.0 - config.info_alpha:
        raise ValueError(
            f"--penalty={config.penalty} must be at least 1 - info_alpha = "
            f"{1.0 - config.info_alpha:g}, where the MMD has no weight (mmd)"
        )
    if config.estimator == "mmd" and config.batch_size < 2:
        raise ValueError(
            "--estimator=mmd compares the rows of a batch with each other: give a "
            f"--batch_size of 2 or more, got {config.batch_size}"
        )
    sees_batch = ESTIMATORS[config.gradient].sees_batch
    if sees_batch and config.weight_decay and config.algorithm != "full_vb":
        raise ValueError(
            f"--weight_decay does not go with --estimator={config.gradient}, which is "
            "no sum over examples: take --optimizer=adamw with --decoupled_decay"
        )
    if config.estimator == "sumo" and config.prior in ("vamp", "exemplar"):
        raise ValueError(
            f"--estimator=sumo lowers the variance of log p(x) in phi, which "
            f"--prior={config.prior} is made of: choose another prior, or iwae"
        )
    decays = "decoupled_decay" in rows.read_by(OPTIMIZERS[config.optimizer])
    if config.algorithm == "full_vb" and decays:
        raise ValueError(
            f"--optimizer={config.optimizer} takes parameters of q(theta) away, whose "
            "prior under --algorithm=full_vb is that of --weight_decay: choose another"
        )
    if config.algorithm == "full_vb" and not config.weight_decay:
        raise ValueError(
            "--algorithm=full_vb needs a --weight_decay above 0: the precision of "
            "its prior on theta"
        )


def _stream(config: Any) -> None:
    if not config.stream_steps:
        return
    if not config.has_encoder:
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


def _early_stopping(config: Any) -> None:
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


def _start(config: Any) -> None:
    for name in OF_FRESH if config.start_from else ():
        if getattr(config, name) != (usual := config.default(name)):
            raise ValueError(
                f"--{name}={getattr(config, name)} is of fresh parameters, and those "
                f"of --start_from={config.start_from} are trained: give "
                f"--{name}={usual}"
            )
