r"""Carries a trained model elsewhere: as parameters with a card, or as functions.

    python -m experiments.export --workdir=runs/digits
    python -m experiments.export --workdir=runs/digits --what=encoder
    python -m experiments.export --check=runs/digits/encoder.stablehlo

--what=model writes model.safetensors: the parameters, and a card that says what x is,
the data's protocol, the flags, the results and the versions. `cards.load_model(path)`
makes the model and its parameters of it again.

The others write NAME.stablehlo, with the same card in NAME.stablehlo.json: encoder (x
-> mean and standard deviation of q(z | x)), decoder (z -> mean of x), sampler (key data
-> x) and log_weight (key data, x -> log p(x, z) - log q(z | x) in nats). They take
arrays [B, ...] of any B, and run on CPU, CUDA and TPU where jax, numpy and flatbuffers
alone are installed:

    import jax.export
    import numpy as np
    encoder = jax.export.deserialize(open("encoder.stablehlo", "rb").read())
    mean, std = jax.jit(encoder.call)(np.zeros((3, 8, 8), np.float32))
    print(encoder.in_avals, encoder.out_avals, mean.shape)

Key data are pairs of uint32, a pair for each row, that do not repeat.
"""

import dataclasses
import json
import os
import pathlib
from collections.abc import Callable
from typing import Any, NamedTuple

import jax

from experiments.choices.algorithms import ALGORITHMS
from experiments.command import cli
from experiments.export import cards
from experiments.runs import trained_runs
from vae_jax import artifacts

WHAT = ("model", "encoder", "decoder", "sampler", "log_weight")


@dataclasses.dataclass(frozen=True)
class Config(trained_runs.WorkdirFlags):
    """One export; every field is a flag."""

    what: str = cli.flag("model", "What is written.", choices=WHAT)
    out: str = cli.flag(
        "", "File to write; WHAT.safetensors or WHAT.stablehlo in the workdir if empty."
    )
    check: str = cli.flag(
        "", "Instead of an export: a file written before, to check and to describe."
    )

    def refuse(self) -> None:
        """Refuses flags beside --check, which reads its file alone."""
        super().refuse()
        if self.check:
            self.refuse_others("check")


class Exported(NamedTuple):
    """A function of one example, its inputs by name, and what it returns in words."""

    function: Callable[..., Any]
    inputs: dict[str, jax.ShapeDtypeStruct]
    returns: str


def encoder(trained: trained_runs.Trained) -> Exported:
    """x -> mean and standard deviation of q(z | x), or h where those are not known.

    Raises:
        ValueError: for an algorithm that trains no encoder.
    """
    config, params = trained.config, trained.params
    encode, moments = (
        trained.model.recognition.encode,
        trained.model.recognition.moments,
    )
    if not ALGORITHMS[config.algorithm].has_encoder:
        raise ValueError(
            f"--algorithm={config.algorithm} trains no encoder: its q is searched for "
            "each x; --what=log_weight exports that search"
        )
    inputs = {"x": cards.rows(trained)}
    if moments is None:
        return Exported(
            lambda x: encode(params, x),
            inputs,
            "h, from which q(z | x), of the family "
            f"{trained.model.recognition.family.name}, is made: its mean has no closed "
            "form",
        )
    return Exported(
        lambda x: moments(params, encode(params, x)),
        inputs,
        "mean and standard deviation of each latent under q(z | x)",
    )


def decoder(trained: trained_runs.Trained) -> Exported:
    """z -> E[x | z]."""
    mean, params = trained.model.generative.mean_observation, trained.params
    inputs = {"z": trained.model.generative.latents(trained.params)}
    return Exported(lambda z: mean(params, z), inputs, "the mean of x under p(x | z)")


def sampler(trained: trained_runs.Trained) -> Exported:
    """Key data -> x ~ p(x)."""
    return Exported(
        artifacts.sampler(trained.model.generative, trained.params),
        {"key_data": artifacts.KEY_DATA},
        "x drawn from p(x): z from the prior, then x from p(x | z)",
    )


def log_weight(trained: trained_runs.Trained) -> Exported:
    """Key data and x -> the log weight of one importance sample.

    Raises:
        ValueError: where p(x | z) is no likelihood of these data.
    """
    if trained.data.quantity == "cross-entropy":
        raise ValueError(
            "--what=log_weight: targets are not binary, so the model has no log p(x) "
            "to weigh; train with --binarization=static or dynamic"
        )
    return Exported(
        artifacts.log_weight(trained.model, trained.params),
        {"key_data": artifacts.KEY_DATA, "x": cards.rows(trained)},
        "log w = log p(x, z) - log q(z | x) in nats for one z ~ q(z | x); the log of "
        "the mean of w over many keys estimates log p(x), from below on average",
    )


FUNCTIONS = {f.__name__: f for f in (encoder, decoder, sampler, log_weight)}


def export(config: Config) -> str:
    """Writes what is asked for and says in words what was written.

    Raises:
        UsageError: for a run, a choice or a path with which that cannot be done.
    """
    path = pathlib.Path(config.out).expanduser()
    if config.out:
        with cli.user_errors():
            _check_writable(path)
    trained = config.load()
    if not config.out:
        suffix = ".safetensors" if config.what == "model" else ".stablehlo"
        path = config.result_path(trained, config.what).with_suffix(suffix)
    with cli.user_errors():
        card = cards.of_trained(trained)
        if config.what == "model":
            artifacts.save_model(path, trained.params, card)
            return f"written to {path} ({trained.moment})"
        function, inputs, returns = FUNCTIONS[config.what](trained)
    card |= {"function": config.what, "returns": returns}
    try:
        artifacts.save_function(path, function, inputs, card)
    except OSError as error:
        raise cli.UsageError(str(error)) from error
    return f"written to {path} and {path.name}.json ({trained.moment})"


def described(path: str) -> str:
    """The card of a file that was written before, which it is checked to be.

    Raises:
        UsageError: if it is damaged, or of another version.
    """
    with cli.user_errors():
        if pathlib.Path(path).is_dir():
            raise ValueError(f"--check={path} is a folder: name a file")
        if path.endswith(".stablehlo") or pathlib.Path(f"{path}.json").is_file():
            return json.dumps(artifacts.load_function(path).card, indent=2)
        cards.load_model(path)
        return json.dumps(artifacts.read_model(path)[1], indent=2)


def main(config: Config) -> int:
    """Exports, or checks."""
    print(described(config.check) if config.check else export(config))
    return 0


def _check_writable(path: pathlib.Path) -> None:
    """Refuses a path before the work that would be lost at it.

    Raises:
        ValueError: a folder in its place, or none to hold it.
        PermissionError: a folder that cannot be written.
    """
    if path.is_dir():
        raise ValueError(f"--out={path} is a folder: name a file")
    if not path.parent.is_dir():
        raise ValueError(f"--out={path}: there is no folder {path.parent}")
    if not os.access(path.parent, os.W_OK | os.X_OK):
        raise PermissionError(f"no permission to write in {path.parent}")
