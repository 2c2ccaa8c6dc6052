"""Flags of a run that do not go together, whatever its model is."""

from typing import Any


def check(config: Any) -> None:
    """Refuses combinations that no run can have.

    Raises:
        ValueError: naming the flags, their values and the fix.
    """
    for refuse in (_missing, _estimator, _stream, _early_stopping):
        refuse(config)


def _missing(config: Any) -> None:
    if config.missing_rate and config.missing != "nan":
        raise ValueError(
            f"--missing_rate says nothing to --missing={config.missing}: it is read by "
            "nan"
        )
    if config.missing == "nan" and config.algorithm == "wake_sleep":
        raise ValueError(
            "--missing=nan does not go with --algorithm=wake_sleep, whose q is fitted "
            "to whole dreams alone"
        )


def _estimator(config: Any) -> None:
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
