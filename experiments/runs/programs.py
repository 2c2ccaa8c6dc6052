"""Compiled programs that are built more than once."""

import contextlib
import tempfile
from collections.abc import Iterator

import jax
from jax.experimental.compilation_cache import compilation_cache


@contextlib.contextmanager
def compiled_once() -> Iterator[None]:
    """Keeps compiled programs on disk meanwhile, unless they are kept already.

    Each run of several, or each point of a curve, builds its step and its evaluators
    anew. The programs are the same, and compiling them may take longer than running.
    """
    if jax.config.values["jax_compilation_cache_dir"]:
        yield
        return
    with tempfile.TemporaryDirectory(prefix="vae_jax_") as folder:
        _keep_compiled(folder)
        try:
            yield
        finally:
            _keep_compiled(None)


def _keep_compiled(folder: str | None) -> None:
    jax.config.update("jax_compilation_cache_dir", folder)
    compilation_cache.reset_cache()  # a cache once looked for is not looked for again
