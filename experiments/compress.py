r"""Compresses rows without loss with a trained model, by bits-back coding.

    python -m experiments.compress --workdir=runs/digits
    python -m experiments.compress --workdir=runs/digits \
        --verify=runs/digits/compressed.bits
    python -m experiments.compress --workdir=runs/digits \
        --decompress=runs/digits/compressed.bits --output=rows.npz

Townsend et al. 2019 (arXiv:1901.04866). The rows of a split, or of --input, become a
file that this model alone decodes, bit for bit; they are decoded once before it is
written. The table says what the file costs in bits per dimension: whole, its header,
the random bits that it starts from, which come back, and what is left without these;
what the bound says at the same bins of z; importance sampling's log p(x), which exact
inference would cost; and what generic compressors make of the same rows, and codecs of
images of each. It is written to the workdir too (compressed*.json, .txt, .csv and
.png). Of counts, all above the largest of the rows is one more symbol, so that their
tables end. Of codes, whose q is a point mass, no bits have to come back, and the bound
is all that is known of log p(x).

Decoding computes the same probabilities to the last bit, so it needs the same
parameters, versions, device and batch size: the file says which.
"""

import bz2
import dataclasses
import gzip
import hashlib
import lzma
import os
import pathlib
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import scipy

from experiments.command import cli, report
from experiments.measures import evidence, measure, stored_values
from experiments.runs import trained_runs
from experiments.runs.trained_runs import Trained
from vae_jax import writing
from vae_jax.coding import bits_back, files, models, rans, tables
from vae_jax.data import codecs
from vae_jax.plots import files as plots
from vae_jax.plots import sizes
from vae_jax.training import journal

GENERIC: dict[str, Callable[[bytes], bytes]] = {
    "gzip": gzip.compress,
    "bz2": bz2.compress,
    "lzma": lzma.compress,
}
IMAGES = {"png": "PNG, a file of each", "webp": "WebP without loss, a file of each"}
WHOLE, NET = "the file, all that it holds", "without its header and first bits"
HEADER = "its header"
FIRST_BITS = {  # whether bits are popped
    True: "its first bits, which come back",
    False: "its first bits, which hold nothing",
}
PARTS = (HEADER, *FIRST_BITS.values())
BOUND = "minus the bound, at the same bins of z"
SHORTER = 0.01  # by more than that share than minus the bound is worth a line
MAX_ROWS = 10**7  # of a file: more is a header believed
MAX_VALUES = 2**16  # of an entry: the numbers of a word, or as many counts
TABLE_SIZE = 2**27  # entries of tables that are made at a time
MAX_LATENT_BITS = 20
COLUMNS = (
    report.Column("", lambda row: row["name"], width=44),
    report.Column("bits / dim", lambda row: row["bits_per_dimension"], ".4f", 12),
    report.Column("bytes", lambda row: row["bytes"], ",.0f", 14),
)


@dataclasses.dataclass(frozen=True)
class Config(trained_runs.SplitFlags):
    """One file; every field is a flag."""

    output: str = cli.flag(
        "", "File to write, if not compressed*.bits in the workdir, or FILE.npz."
    )
    decompress: str = cli.flag("", "Instead: a file of bits to read the rows of.")
    verify: str = cli.flag("", "Instead: a file of bits to decode and compare.")
    num_images: int = cli.flag(
        0, "Rows of the split, at equal distances; 0 for all.", least=0
    )
    batch_size: int = cli.flag(
        0,
        "Rows coded side by side, which cost 8 bytes each and save time; 0: one in a "
        "hundred, at most 100 and what memory holds.",
        least=0,
    )
    latent_bits: int = cli.flag(
        12,
        "log2 of the bins of a real latent, of equal mass under p(z).",
        least=1,
        most=MAX_LATENT_BITS,
    )
    importance_samples: int = cli.flag(
        500, "Samples per row of log p(x); 0 leaves it out.", least=0
    )
    seed: int = cli.flag(0, "Seed of the bits that a file starts from.", least=0)

    def refuse(self) -> None:
        """Refuses more than one thing to do, and none."""
        super().refuse()
        measure.check_importance_samples(self.importance_samples)
        if self.decompress and self.verify:
            raise ValueError("--decompress and --verify: give one of the two")
        if self.verify and self.output:
            raise ValueError(f"--output={self.output}: --verify writes nothing")
        if self.decompress and self.output and not self.output.endswith(".npz"):
            raise ValueError(f"--output={self.output}: rows are written as .npz")
        of_model = [f.name for f in dataclasses.fields(trained_runs.WorkdirFlags)]
        for flag in ("verify", "decompress"):
            if getattr(self, flag):
                self.refuse_others(flag, (*of_model, "output"))


def compress(config: Config, trained: Trained, path: pathlib.Path) -> dict[str, Any]:
    """Writes the file, and measures it.

    Raises:
        ValueError: for a model or rows without a code.
    """
    raw = trained_runs.spread_rows(
        trained, split=config.measured_split(trained), num_images=config.num_images
    )
    rows = stored_values.symbols(trained, raw)
    num_values = stored_values.num_values(trained) or 1 + int(rows.max())
    if num_values > MAX_VALUES:
        raise ValueError(
            f"a count of {num_values - 1} is beyond {MAX_VALUES - 1}: its tables of "
            "every lower count are too large"
        )
    quantization = models.Quantization(latent_bits=config.latent_bits)
    header = {
        **_decoder(trained),
        "shape": list(trained.data.x_shape),
        "num_rows": len(rows),
        "num_values": num_values,
        "batch_size": min(
            config.batch_size or _batch_size(rows, num_values), len(rows)
        ),
        "quantization": quantization._asdict(),
        "rows_sha256": _digest(rows),
        "seed": config.seed,
    }
    if not _is_sound(header):
        raise ValueError(f"{len(rows)} rows are more than the {MAX_ROWS} of a file")
    codec = _coder(trained, header)
    started = time.monotonic()
    start, end, bits = _encoded(codec, rows, header)
    encoded = time.monotonic()
    _decoded(codec, end, header)
    decoded = time.monotonic()
    size = files.write(
        path,
        {**header, "start_words": len(rans.to_words(start))},
        rans.to_words(end),
    )
    table = [
        *_of_file(size, start, end, pops=not trained.has_point_mass),
        (BOUND, float(bits.sum())),
        *_evidence(config, trained, raw),
        *_generic(
            rows.reshape(-1, *trained.data.x_shape),
            num_values,
            is_image=trained.is_image,
        ),
    ]
    return {
        "table": [
            {
                "name": name,
                "bits_per_dimension": of_file / rows.size,
                "bytes": of_file / 8.0,
            }
            for name, of_file in table
        ],
        "num_rows": len(rows),
        "encode_seconds": encoded - started,
        "decode_seconds": decoded - encoded,
        "header": header,
        "protocol": trained.stamp(),
    }


def decompress(path: str, trained: Trained) -> np.ndarray:
    """The rows of a file, as integers 0..K-1 in the shape of x.

    Raises:
        ValueError: for a damaged or foreign file, or one that another model, version or
            device wrote.
        OSError: the file cannot be read.
    """
    if pathlib.Path(path).is_dir():
        raise ValueError(f"{path} is a folder: name a file of bits")
    header, words = files.read(path)
    mine = {**_decoder(trained), "shape": list(trained.data.x_shape)}
    number = stored_values.num_values(trained)
    if number is not None:
        mine["num_values"] = number
    for name, value in mine.items():
        if header.get(name) != value:
            raise ValueError(
                f"{path} was written with another {name.replace('_', ' ')} "
                f"({header.get(name)!r:.300}, and this is {value!r}): its bits mean "
                "nothing here"
            )
    if not _is_sound(header):
        raise ValueError(
            f"{path} has a header with numbers of rows, values or bits that none is "
            "written with: it was made by something else"
        )
    header |= mine
    try:
        stack = rans.from_words(words, num_lanes=header["batch_size"])
        rows = _decoded(_coder(trained, header), stack, header)
    except ValueError as error:
        raise ValueError(f"{path} has not the words of its rows: {error}") from error
    kind = np.uint8 if header["num_values"] <= 256 else np.uint16
    return rows.reshape(-1, *header["shape"]).astype(kind)


def _is_sound(header: files.Header) -> bool:
    """Whether the numbers are such as `compress` writes: whole, and not beyond it."""
    lanes, number = header.get("batch_size", 0), header.get("num_rows", 0)
    values = header.get("num_values", 0)
    bits = header.get("quantization")
    if not isinstance(bits, dict) or {*bits} != {*models.Quantization._fields}:
        return False
    if not isinstance(header.get("rows_sha256"), str):
        return False
    if any(type(n) is not int for n in (lanes, number, values, *bits.values())):
        return False
    return (
        1 <= lanes <= number <= MAX_ROWS
        and 1 <= values <= MAX_VALUES
        and 1 <= bits["latent_bits"] <= MAX_LATENT_BITS
        and all(1 <= n <= rans.MAX_PRECISION for n in bits.values())
    )


def _batch_size(rows: np.ndarray, num_values: int) -> int:
    """Of so many rows at a time the tables of all entries fit into memory."""
    fitting = max(1, TABLE_SIZE // (rows.shape[1] * num_values))
    return min(1 + len(rows) // 100, 100, fitting)


def _coder(trained: Trained, header: dict[str, Any]) -> tables.Codec:
    return models.coder(
        trained.model,
        trained.params,
        x_shape=tuple(header["shape"]),
        values=stored_values.values(trained, header["num_values"]),
        has_more_values=stored_values.are_counts(trained),
        num_lanes=header["batch_size"],
        quantization=models.Quantization(**header["quantization"]),
    )


def _encoded(
    codec: tables.Codec, rows: np.ndarray, header: dict[str, Any]
) -> tuple[rans.Stack, rans.Stack, np.ndarray]:
    """The stack before and after, and the bits of each row by the bound.

    It starts from few words beside those of the lanes: ever more are tried.
    """
    num_lanes, more = header["batch_size"], 0
    while True:
        random = np.random.default_rng(header["seed"])
        words = random.integers(0, 2**32, 2 * num_lanes + more, dtype=np.uint32)
        start = rans.start(words, num_lanes=num_lanes)
        try:
            end, bits = bits_back.encode(codec, start, rows, watch=_bar("encoded"))
        except rans.Exhausted:
            more += 1 + more // 4
            continue
        return start, end, bits


def _decoded(
    codec: tables.Codec, stack: rans.Stack, header: dict[str, Any]
) -> np.ndarray:
    """The rows of a stack, which are those that it was made of.

    Raises:
        ValueError: if they are not.
    """
    number = header["num_rows"]
    rows, _ = bits_back.decode(codec, stack, num_rows=number, watch=_bar("decoded"))
    if _digest(rows) != header["rows_sha256"]:
        raise ValueError(
            "the decoded rows are not those that were encoded: this device does not "
            "compute the same probabilities twice"
        )
    return rows


def _bar(unit: str) -> bits_back.Watch:
    def watch(batches: Sequence[slice]) -> Any:
        total = sum(at.stop - at.start for at in batches)
        progress, done = journal.progress(total, unit=f"rows {unit}"), 0
        for at in batches:
            yield at
            done += at.stop - at.start
            progress.update(done)
        progress.close()

    return watch


def _decoder(trained: Trained) -> dict[str, Any]:
    """What has to be the same where a file is read."""
    sha256 = hashlib.sha256()
    for path, leaf in jax.tree.leaves_with_path(trained.params):
        sha256.update(
            f"{jax.tree_util.keystr(path)} {leaf.dtype} {leaf.shape}".encode()
        )
        sha256.update(np.asarray(leaf).tobytes())
    packages = report.environment()["packages"] | {"scipy": scipy.__version__}
    wanted = ("jax", "jaxlib", "numpy", "scipy", "vae_jax")
    device = jax.devices()[0]
    return {
        "model": sha256.hexdigest(),
        "versions": {name: packages[name] for name in wanted},
        "device": f"{device.platform}: {device.device_kind}, {os.cpu_count()} cores",
    }


def _digest(rows: np.ndarray) -> str:
    return hashlib.sha256(rows.astype("<i8").tobytes()).hexdigest()


def _of_file(
    size: int, start: rans.Stack, end: rans.Stack, *, pops: bool
) -> list[tuple[str, float]]:
    """What the file costs, and the three parts of that; first bits in whole words.

    Where q is a point mass nothing is popped, and the first bits stand for nothing.
    """
    net = rans.num_bits(end) - rans.num_bits(start)
    stack = 32.0 * len(rans.to_words(end))
    return [
        (WHOLE, 8.0 * size),
        (HEADER, 8.0 * size - stack),
        (FIRST_BITS[pops], stack - net),
        (NET, net),
    ]


def _evidence(config: Config, trained: Trained, raw: Any) -> list[tuple[str, float]]:
    if not config.importance_samples or trained.has_point_mass:
        return []  # of a point mass it is the bound
    key, number = jax.random.key(config.seed), config.importance_samples
    log_p = evidence.importance_sampling(
        key, trained, jnp.asarray(raw), num_samples=number
    ).figures["log_p"]
    name = f"minus log2 p(x), {number} importance samples"
    return [(name, -log_p * len(raw) / np.log(2.0))]


def _of_floor(result: dict[str, Any]) -> list[str]:
    """Why a file is much shorter than minus the bound, where it is."""
    bytes_of = {row["name"]: row["bytes"] for row in result["table"]}
    net, bound = bytes_of[NET], bytes_of[BOUND]
    if net > (1.0 - SHORTER) * bound:
        return []
    precision = result["header"]["quantization"]["precision"]
    return [
        "the file is shorter than minus the bound: every value has at least "
        f"2^-{precision} in it, and some have far less by p(x | z)"
    ]


def _generic(
    rows: np.ndarray, num_values: int, *, is_image: bool
) -> list[tuple[str, float]]:
    """What codecs that know no model make of the rows.

    Compressors see all rows at once, bits packed into bytes. Images are files of their
    own, headers and all.
    """
    stored = rows.astype(np.uint8 if num_values <= 256 else np.uint16)
    plain = (np.packbits(stored) if num_values == 2 else stored).tobytes()
    sizes = [(name, len(pack(plain))) for name, pack in GENERIC.items()]
    if num_values <= 256 and is_image:
        is_bilevel = num_values == 2 and rows.ndim == 3
        images = stored.astype(bool) if is_bilevel else stored
        for name, said in IMAGES.items():
            sizes.append((said, int(codecs.sizes(images, name).sum())))
    return [(name, 8.0 * size) for name, size in sizes]


def main(config: Config) -> int:
    """Compresses, decompresses or verifies."""
    trained = config.load()
    if config.verify:
        with cli.user_errors():
            rows = decompress(config.verify, trained)
        print(f"{config.verify} holds {len(rows)} rows, which decode as written")
        return 0
    if config.decompress:
        output = pathlib.Path(config.output or f"{config.decompress}.npz").expanduser()
        with cli.user_errors():
            rows = decompress(config.decompress, trained)
            with writing.atomically(output) as file:
                np.savez_compressed(file, allow_pickle=False, test=rows)
        print(f"{len(rows)} rows of {config.decompress} written to {output}")
        return 0
    with cli.user_errors():
        parts = config.other_split, config.rows_part(trained, "num_images")
        path = config.result_path(trained, "compressed", *parts)
        output = pathlib.Path(config.output or f"{path}.bits").expanduser()
        result = compress(config, trained, output)
    text = "\n".join(
        [
            report.table(COLUMNS, result["table"]),
            *_of_floor(result),
            f"{result['num_rows']} rows encoded in {result['encode_seconds']:.1f} s, "
            f"decoded and compared in {result['decode_seconds']:.1f} s",
        ]
    )
    print(text)
    ways = [row for row in result["table"] if row["name"] not in PARTS]
    sizes_of = {row["name"]: row["bits_per_dimension"] for row in ways}
    figure = sizes.dots(sizes_of, marked=(WHOLE, NET), x_label="bits per dimension")
    with cli.user_errors():
        report.write_text(path.with_suffix(".csv"), report.csv_text(result["table"]))
        plots.save(figure, path.with_suffix(".png"))
    report.write_both(path, config, result, text, ".csv", ".png", str(output))
    return 0


if __name__ == "__main__":
    cli.run(Config, main)
