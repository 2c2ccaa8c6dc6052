"""The file of a stack: a header that says what decodes it, its words, and a digest.

A line that names the format, the sha256 of all that follows, the header's length in
bytes, the header as JSON, then 32-bit words, low bytes first.
"""

import hashlib
import json
import os
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np

from vae_jax import writing
from vae_jax.coding import rans

Header: TypeAlias = dict[str, Any]
"""What JSON holds: text, numbers, lists and dictionaries."""

_MAGIC = b"vae_jax bits-back 2\n"
_DIGEST = hashlib.sha256().digest_size


def write(path: str | os.PathLike[str], header: Header, words: rans.Words) -> int:
    """Writes a file whole or not at all, and says how many bytes it has.

    Raises:
        OSError: the path cannot be written.
    """
    text = json.dumps(header, sort_keys=True).encode()
    body = len(text).to_bytes(4, "little") + text + words.astype("<u4").tobytes()
    content = _MAGIC + hashlib.sha256(body).digest() + body
    with writing.atomically(path) as file:
        file.write(content)
    return len(content)


def read(path: str | os.PathLike[str]) -> tuple[Header, rans.Words]:
    """What `write` wrote.

    Raises:
        ValueError: a file of another format or version, one that is cut or changed in
            any bit, or one that another writer made of something else.
        OSError: the file cannot be read.
    """
    content = Path(path).read_bytes()
    if not content.startswith(_MAGIC):
        kind = _MAGIC.rpartition(b" ")[0]
        word = "of another version" if content.startswith(kind) else "no such file"
        raise ValueError(f"{path} was not written by this coder: it is {word}")
    rest = content[len(_MAGIC) :]
    digest, body = rest[:_DIGEST], rest[_DIGEST:]
    if hashlib.sha256(body).digest() != digest:
        raise ValueError(f"{path} is damaged: it is not what was written")
    start = 4 + int.from_bytes(body[:4], "little")
    try:
        header = json.loads(body[4:start])
        words = np.frombuffer(body[start:], "<u4").astype(np.uint32)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} holds no header and words: {error}") from error
    if not isinstance(header, dict):
        raise ValueError(f"{path} has a {type(header).__name__} for a header")
    return header, words
