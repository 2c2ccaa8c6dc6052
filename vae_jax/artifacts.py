r"""A trained model as a file: its parameters with a card, its functions as StableHLO.

`save_model` writes one safetensors file: the arrays of `Params` under their paths
(`generative/decoder/output/kernel`) and, as text among its metadata, a JSON card and a
sha256 of all of it. Any reader of safetensors opens it; nothing is pickled.

`save_function` writes one function with its parameters as constants, exported by
`jax.export` for CPU, CUDA and TPU and any batch size B >= 1, and beside it a card
(`NAME.json`). A process that has jax and flatbuffers alone runs it:

    import jax.export
    import numpy as np
    encoder = jax.export.deserialize(open("encoder.stablehlo", "rb").read())
    mean, std = jax.jit(encoder.call)(np.zeros((3, 28, 28), np.float32))
    print(encoder.in_avals, encoder.out_avals, mean.shape)

Only plain arrays cross that border. A function that draws takes the data of its keys,
two uint32 a row: `jax.random.key_data(jax.random.split(jax.random.key(0), B))`, or any
pairs that do not repeat. JAX promises to run what it exported on a JAX up to six months
newer, or three weeks older.

Every file is written whole or not at all, and a reader here refuses, in one line, what
is cut, changed in any bit, or of another format.
"""

import hashlib
import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.export
import jax.numpy as jnp
import numpy as np
import safetensors
import safetensors.numpy
from jaxtyping import Array, UInt32

from vae_jax import writing
from vae_jax.estimators import importance
from vae_jax.types import Generative, Model, Params, PyTree, Scalar, sample_joint

PLATFORMS = ("cpu", "cuda", "tpu")
KEY_DATA = jax.ShapeDtypeStruct((2,), np.uint32)  # of one key, as functions take it
_KEYS = "threefry2x32"  # whatever jax_default_prng_impl says where a file is read
_MODEL = "vae_jax model"
_FUNCTION = "vae_jax function"
_FORMAT = 1

Card = dict[str, Any]
"""What JSON holds: text, numbers, lists and dictionaries."""


class Function(NamedTuple):
    """A function that was exported, and what its card says of it.

    Attributes:
        call: arrays [B, ...] -> arrays [B, ...].
        card: what the file says of itself.
    """

    call: Callable[..., PyTree]
    card: Card


def save_model(path: str | os.PathLike[str], params: Params, card: Card) -> None:
    """Writes parameters and what is to be known of them as one safetensors file.

    Args:
        path: of the file, which is replaced if it is there.
        params: a tree of arrays whose paths differ, of dtypes that safetensors has.
        card: whatever rebuilds the model and says what it is; finite numbers only.

    Raises:
        ValueError: a leaf that is no such array, or a card that is no JSON.
        OSError: the path cannot be written.
    """
    arrays = {name: _stored(name, leaf) for name, leaf in _named(params).items()}
    text = _as_text(card)
    metadata = {"format": _MODEL, "version": str(_FORMAT), "card": text}
    metadata["sha256"] = _digest(text, arrays)
    try:
        content = safetensors.numpy.save(arrays, metadata)
    except safetensors.SafetensorError as error:
        raise ValueError(f"safetensors cannot hold these arrays: {error}") from error
    _write(Path(path), content)


def load_model(
    path: str | os.PathLike[str],
    build: Callable[[Card], Model],
) -> tuple[Model, Params]:
    """The model that `save_model` wrote, its parameters bit for bit.

    Args:
        path: of the file.
        build: makes the model from the card; its `init` says which arrays there must
            be, and of which shapes.

    Raises:
        ValueError: as `read_model`; an array that is missing, unknown or of another
            shape; one whose dtype this process cannot hold (float64 without
            `jax.enable_x64`).
        OSError: the file cannot be read.
    """
    arrays, card = read_model(path)
    model = build(card)
    template = jax.eval_shape(lambda: model.init(jax.random.key(0)))
    wanted = _named(template)
    for name in sorted(arrays.keys() ^ wanted.keys()):
        word = "is missing" if name in wanted else "is unknown to the model of its card"
        raise ValueError(f"{path}: the array {name} {word}")
    for name, leaf in wanted.items():
        if arrays[name].shape != leaf.shape:
            raise ValueError(
                f"{path}: the array {name} has shape {arrays[name].shape}, and the "
                f"model of its card {leaf.shape}"
            )
    leaves = [_loaded(path, name, arrays[name]) for name in wanted]
    params = jax.tree.unflatten(jax.tree.structure(template), leaves)
    return model, params


def read_model(path: str | os.PathLike[str]) -> tuple[dict[str, np.ndarray], Card]:
    """The arrays of a model file by their names, and its card, both checked.

    Raises:
        ValueError: a file that is cut or changed in any bit, of another format, or not
            of `save_model` at all.
        OSError: the file cannot be read.
    """
    try:
        with safetensors.safe_open(path, framework="np") as file:
            metadata = file.metadata() or {}
            _check_format(path, metadata.get("format"), metadata.get("version"), _MODEL)
            arrays = file.get_tensors()
    except safetensors.SafetensorError as error:
        raise ValueError(f"{path} is damaged, or no safetensors: {error}") from error
    text = metadata.get("card", "")
    if _digest(text, arrays) != metadata.get("sha256"):
        raise ValueError(f"{path} is damaged: it is not what was saved")
    return arrays, json.loads(text)


def save_function(
    path: str | os.PathLike[str],
    function: Callable[..., PyTree],
    inputs: Mapping[str, jax.ShapeDtypeStruct],
    card: Card,
) -> None:
    """Exports a function of one example, batched, and writes its card beside it.

    The artifact takes arrays [B, ...] in the order of `inputs`; what the function
    closes over is baked in as constants. Its card is at `path` with `.json` appended,
    with the names, shapes and dtypes, the platforms and both sha256 added.

    Args:
        path: of the artifact, which is replaced if it is there.
        function: arrays of one example -> an array, or a tuple of them.
        inputs: what one example's arrays are called, and what they are.
        card: whatever else is to be known; finite numbers only.

    Raises:
        ValueError: a card that is no JSON.
        OSError: the path cannot be written.
    """
    path = Path(path)
    (batch,) = jax.export.symbolic_shape("B")
    batched = [
        jax.ShapeDtypeStruct((batch, *array.shape), array.dtype)
        for array in inputs.values()
    ]
    export = jax.export.export(jax.jit(jax.vmap(function)), platforms=PLATFORMS)
    # The checker cannot tell the halves of a split apart where B is a symbol.
    with jax.debug_key_reuse(False):
        exported = export(*batched)
    content = bytes(exported.serialize())
    named = zip(inputs, exported.in_avals, strict=True)
    card = card | {
        "inputs": [{"name": name} | _described(aval) for name, aval in named],
        "outputs": [_described(aval) for aval in exported.out_avals],
        "platforms": list(exported.platforms),
        "calling_convention": exported.calling_convention_version,
    }
    written = {
        "format": _FUNCTION,
        "version": _FORMAT,
        "sha256": hashlib.sha256(content).hexdigest(),
        "card_sha256": _digest(_as_text(card), {}),
        "card": card,
    }
    # A kill between the two leaves an artifact with another's digest: that is seen.
    _write(_card_path(path), (json.dumps(written, indent=2) + "\n").encode())
    _write(path, content)


def load_function(path: str | os.PathLike[str]) -> Function:
    """The function that `save_function` wrote, and its card, both checked.

    Raises:
        ValueError: an artifact or a card that is cut or changed in any bit, of another
            format, or exported in a way that this JAX does not read.
        OSError: one of the two cannot be read.
    """
    path = Path(path)
    content, beside = path.read_bytes(), _card_path(path)
    if not beside.is_file():
        raise FileNotFoundError(f"{path} has no card beside it, {beside.name}")
    try:
        written = json.loads(beside.read_text())
        kind, version = written["format"], written["version"]
        digests, card = (written["sha256"], written["card_sha256"]), written["card"]
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{beside} is damaged, or no card of a function") from error
    _check_format(beside, kind, version, _FUNCTION)
    if _digest(_as_text(card), {}) != digests[1]:
        raise ValueError(f"{beside} is damaged: it is not what was saved")
    if hashlib.sha256(content).hexdigest() != digests[0]:
        raise ValueError(
            f"{path} is damaged, or not the artifact of {beside.name}: its sha256 is "
            "another"
        )
    oldest = jax.export.minimum_supported_calling_convention_version
    newest = jax.export.maximum_supported_calling_convention_version
    if not oldest <= card["calling_convention"] <= newest:
        raise ValueError(
            f"{path} was exported in JAX's calling convention "
            f"{card['calling_convention']}, and JAX {jax.__version__} reads {oldest} "
            f"to {newest}"
        )
    return Function(jax.jit(jax.export.deserialize(bytearray(content)).call), card)


def sampler(generative: Generative, params: Params) -> Callable[[Array], Array]:
    """key data [2] -> x [*X] from p(x): z from the prior, then x from p(x | z)."""

    def draw(key_data: UInt32[Array, "2"]) -> Array:
        key = jax.random.wrap_key_data(key_data, impl=_KEYS)
        return sample_joint(key, generative, params)[1]

    return draw


def log_weight(model: Model, params: Params) -> Callable[[Array, Array], Scalar]:
    """(key data [2], x [*X]) -> log w = log p(x, z) - log q(z | x), one z ~ q, in nats.

    w is an unbiased draw of p(x); the log of the mean of K of them, for K keys, is a
    draw of the K-sample bound (arXiv:1509.00519, equation 8), which rises to log p(x).
    """
    draw = importance.log_weights(model, num_samples=1)

    def weigh(key_data: UInt32[Array, "2"], x: Array) -> Scalar:
        key = jax.random.wrap_key_data(key_data, impl=_KEYS)
        return draw(key, params, x, model.recognition.encode(params, x))[0]

    return weigh


def _named(tree: PyTree) -> dict[str, Any]:
    """The leaves of a tree by their paths, in the tree's order.

    Raises:
        ValueError: two leaves of one path.
    """
    leaves = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        if name in leaves:
            raise ValueError(f"two arrays have the path {name}")
        leaves[name] = leaf
    return leaves


def _stored(name: str, leaf: Any) -> np.ndarray:
    """One array as safetensors takes it, by its address: row after row.

    Raises:
        ValueError: a leaf that is no array of numbers.
    """
    dtype = getattr(leaf, "dtype", None)
    if dtype is None or not (jnp.issubdtype(dtype, jnp.number) or dtype == np.bool_):
        raise ValueError(f"{name} is no array of numbers: {leaf!r}")
    return np.asarray(leaf, order="C")


def _loaded(path: str | os.PathLike[str], name: str, array: np.ndarray) -> Array:
    """One array on the device, in the dtype that it was saved in.

    Raises:
        ValueError: if JAX would make it another.
    """
    if jax.dtypes.canonicalize_dtype(array.dtype) != array.dtype:
        raise ValueError(
            f"{path}: the array {name} is {array.dtype}: load it under jax.enable_x64"
        )
    return jnp.asarray(array)


def _digest(text: str, arrays: Mapping[str, np.ndarray]) -> str:
    """sha256 over a card, and the names, dtypes, shapes and bytes of arrays."""
    names = sorted(arrays)
    listed = [(name, str(arrays[name].dtype), arrays[name].shape) for name in names]
    digest = hashlib.sha256(json.dumps([_FORMAT, text, listed]).encode())
    for name in names:
        digest.update(arrays[name].reshape(-1).view(np.uint8).data)
    return digest.hexdigest()


def _as_text(card: Card) -> str:
    """A card as JSON that any language reads, the same again after it was read.

    Raises:
        ValueError: if it holds what JSON does not, such as NaN.
    """
    try:
        return json.dumps(card, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise ValueError(f"the card is no JSON: {error}") from error


def _check_format(
    path: str | os.PathLike[str], kind: Any, version: Any, wanted: str
) -> None:
    """Refuses another kind of file, and another version of this one.

    Raises:
        ValueError: saying what was found.
    """
    if kind != wanted:
        raise ValueError(f"{path} is no {wanted} file: its format is {kind!r}")
    if str(version) != str(_FORMAT):
        raise ValueError(
            f"{path} has version {version} of its format, and this vae_jax reads "
            f"version {_FORMAT}: read it with the vae_jax that wrote it"
        )


def _described(aval: Any) -> dict[str, Any]:
    """Shape and dtype for a card, the batch size by its name."""
    return {"shape": ["B", *aval.shape[1:]], "dtype": str(aval.dtype)}


def _card_path(path: Path) -> Path:
    return path.with_name(f"{path.name}.json")


def _write(path: Path, content: bytes) -> None:
    with writing.atomically(path) as file:
        file.write(content)
