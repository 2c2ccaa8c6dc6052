"""Variational autoencoders as pure functions in JAX.

Ten places to start at, in the order of their use; `help` has an example of each:

    data.sources.load         a data set by name: digits, mnist, npz:PATH, ...
    networks.mlp              a network of one example, as a pair of functions
    vae.decoder_model         p(x, z) from a decoder, a prior and a likelihood
    vae.encoder_model         q(z | x) from an encoder and an approximate posterior
    vae.model                 the pair, with one fused draw and the KL in closed form
    estimators.sgvb           the ELBO: sgvb_b, and sgvb_a, which needs no closed form
    estimators.importance     the K-sample bound: iwae, dreg, stick_the_landing, ...
    training.gradient.ascent  an objective and an optax optimizer as an algorithm
    training.loop.scan        epochs of any algorithm as one compiled program
    evaluation.marginal       log p(x) by importance sampling, with its doubts

Everything is of one example; `vmap` for more. Numbers are nats per example, summed over
the entries of x. The records that hold it together are in `types`.
"""

import importlib
import pkgutil
from typing import Any

__version__ = "0.1.0"


def __dir__() -> list[str]:
    special = {name for name in globals() if name.startswith("__")}
    return sorted(special | {module.name for module in pkgutil.iter_modules(__path__)})


def __getattr__(name: str) -> Any:
    """A module of the package, imported when it is first asked for."""
    if not name.startswith("_") and name in __dir__():
        return importlib.import_module(f"{__name__}.{name}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
