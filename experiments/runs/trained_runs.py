"""A trained model from a workdir, and the rows that it is measured on."""

import dataclasses
import pathlib
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array

from experiments.choices import coders, densities
from experiments.choices.config import Config
from experiments.command import cli
from experiments.runs import contexts, new_rows, protocol, runs
from vae_jax import compilation, conditional
from vae_jax.data import batches, csv_tables, sources
from vae_jax.types import Model, Params

INPUT = "input"  # stands for the name of a split where rows of a file are measured


class Trained(NamedTuple):
    """A model with the parameters of one checkpoint.

    Attributes:
        config: flags of its run.
        data: of its run.
        model: the records.
        params: theta and phi.
        step: of the checkpoint.
        mesh: devices that share the rows that are evaluated.
        member: which of the runs that trained together; None of a run alone.
        input: rows of --input, called the split "input".
        weights: "average" or "raw", as `runs.Saved.weights` calls them.
        at_context: of --condition, c -> the model of x given it; `model` is of rows.
    """

    config: Config
    data: protocol.Dataset
    model: Model
    params: Params
    step: int
    mesh: Mesh | None = None
    member: int | None = None
    input: new_rows.NewRows | None = None
    weights: str = "raw"
    at_context: conditional.ConditionalModel | None = None

    def of_row(self, row: Array) -> tuple[Array, Model]:
        """x of one row as the model reads it, and the model given the row's context."""
        if self.at_context is None:
            return row, self.model
        x, c = conditional.parted(row, self.data.x_shape)
        return x, self.at_context(c)

    def number_of(self, label: str) -> int:
        """Of a label, which may be given by its number or by the name of its class.

        By the name alone where names are numbers themselves.

        Raises:
            UsageError: for one that no training row has.
        """
        names, classes = self.data.context, self.data.source.classes
        name = str(classes.index(label)) if label in classes else label
        is_confused = bool(classes) and all(name.isdecimal() for name in classes)
        if name not in names or (is_confused and label not in classes):
            texts = contexts.label_texts(self.data.source, names)
            raise cli.UsageError(
                f"--label={label} is none of {csv_tables.listed(texts)}"
            )
        return int(name)

    def at_label(self, label: str) -> "Trained":
        """The same of x given a label, for what reads no rows.

        Raises:
            UsageError: as `number_of`, and for a run without.
        """
        if self.at_context is None or self.config.condition != "labels":
            raise cli.UsageError(
                f"--label={label}: the run in {self.config.workdir} is not of x given "
                "labels: train it with --condition=labels"
            )
        of_label = np.asarray(self.data.context) == str(self.number_of(label))
        c = jnp.asarray(of_label, jnp.float32)
        return self._replace(model=self.at_context(c), at_context=None)

    @property
    def is_image(self) -> bool:
        """Whether an observation can be drawn: [H, W] or [H, W, 3]."""
        shape = self.data.x_shape
        return len(shape) == 2 or (len(shape) == 3 and shape[2] == 3)

    def stored(self, split: str) -> np.ndarray:
        """All rows of a split as it is stored."""
        if split == INPUT and self.input is not None:
            return self.input.rows
        return getattr(self.data.prepared, split)

    def size(self, split: str) -> int:
        """How many rows it holds.

        Raises:
            ValueError: if there is none.
        """
        size = len(self.stored(split))
        if not size:
            others = ", ".join(s for s in sources.SPLITS if len(self.stored(s)))
            raise ValueError(
                f"{self.config.dataset} has no rows in its {split} split: {others} may "
                "be chosen"
            )
        return size

    def place(self, split: str) -> str:
        """Where its rows come from, in a sentence."""
        if split == INPUT and self.input is not None:
            return f"--input={self.input.path}"
        return f"the {split} split of {self.config.dataset}"

    def labels(self, split: str) -> np.ndarray | None:
        """The labels of its rows, if it has any."""
        if split == INPUT and self.input is not None:
            return self.input.labels
        return self.data.prepared.labels.get(split)

    def stamp(self) -> dict[str, Any]:
        """The protocol behind a result, which weights, and the file of other rows."""
        of_file = {INPUT: self.input.stamp()} if self.input is not None else {}
        stamp = protocol.stamp(self.config, self.data)
        computed = {"weights": self.weights, "precision": self.config.precision}
        return stamp | computed | of_file

    @property
    def moment(self) -> str:
        """Of the training: the step, and which weights where there are two kinds."""
        return _moment(self.step, self.weights)

    @property
    def has_real_latents(self) -> bool:
        """Whether z is any real vector: else bits, of categories or on a sphere."""
        return densities.traits(self.model).unconstrained

    @property
    def has_point_mass(self) -> bool:
        """Whether q(z | x) is one, whose draws no log p(x) can be estimated by."""
        return densities.traits(self.model).rounded

    @property
    def num_latents(self) -> int:
        """Entries of z, of all its layers."""
        return sum(self.layer_sizes)

    @property
    def layer_sizes(self) -> tuple[int, ...]:
        """Entries of each layer of z, from x upward."""
        return self.model.layer_sizes(self.params)

    def layer(self, number: int) -> slice:
        """Where a layer lies in z, from 1 for that next to x; all of z for 0.

        Raises:
            UsageError: if there is no such layer.
        """
        sizes = self.layer_sizes
        if not 0 <= number <= len(sizes):
            raise cli.UsageError(
                f"--layer={number} is none of the {len(sizes)} layers of latents, 1 to "
                f"{len(sizes)} from x upward"
            )
        if not number:
            return slice(None)
        return slice(sum(sizes[: number - 1]), sum(sizes[:number]))


@dataclasses.dataclass(frozen=True)
class WorkdirFlags(cli.Flags):
    """The flags of a command that takes a trained model from a workdir.

    Attributes:
        TAKES_CONTEXT: whether it serves runs of x given something else (--condition).
    """

    TAKES_CONTEXT: ClassVar = False
    workdir: str = cli.flag("runs/digits", "Folder of a training run.")
    checkpoint: str = cli.flag(
        "auto",
        "best by validation bound, or last; auto: best if the run stops early.",
        choices=("auto", "best", "last"),
    )
    weights: str = cli.flag(
        "auto",
        "average, the moving average of a run with --average_decay, or raw, what the "
        "optimizer has; auto: the average where there is one.",
        choices=("auto", "average", "raw"),
    )
    precision: str = cli.flag(
        "float32",
        "Of the operands of the networks' matrix products, whatever the run trained "
        "with.",
        choices=coders.PRODUCTS,
    )
    data_dir: str = cli.flag("", "Data folder, if not the run's own.")
    member: int = cli.flag(
        0, "Which of the runs that trained together (--num_seeds, --sweep), from 0."
    )
    num_devices: int = cli.flag(
        1, "Devices that share the rows; 0 for all there are.", display=True, least=0
    )

    def load(self, workdir: str | pathlib.Path = "") -> Trained:
        """The model of --member in this workdir, or in another by the same flags.

        Raises:
            UsageError: as `load`; if there is no such member.
        """
        together = self.load_all(workdir)
        if not 0 <= self.member < len(together):
            raise cli.UsageError(
                f"--member={self.member}: {workdir or self.workdir} holds "
                f"{len(together)} runs, from 0 on"
            )
        return together[self.member]

    def load_asked(self, workdir: str | pathlib.Path = "") -> list[Trained]:
        """The model of --member alone, or of every run where it is negative.

        Raises:
            UsageError: as `load`.
        """
        return [self.load(workdir)] if self.member >= 0 else self.load_all(workdir)

    def load_all(self, workdir: str | pathlib.Path = "") -> list[Trained]:
        """The model of every run that trained together in the workdir.

        Raises:
            UsageError: as `load`; for a run of x given something else that the command
                does not serve.
        """
        trained = load(
            workdir or self.workdir,
            checkpoint=self.checkpoint,
            weights=self.weights,
            precision=self.precision,
            data_dir=self.data_dir,
            num_devices=self.num_devices,
        )
        condition = trained[0].config.condition
        if condition and not self.TAKES_CONTEXT:
            raise cli.UsageError(
                f"--workdir={workdir or self.workdir} is a run of --condition="
                f"{condition}, which evaluate, reconstruct, completion and generate "
                "serve: train one without"
            )
        return trained

    def result_path(self, trained: Trained, *parts: str) -> pathlib.Path:
        """The path of a result in the workdir, without an ending.

        What is of another checkpoint or other weights than by default, or of one run
        among several, has that in its name, so that it is not written over the others.

        Args:
            trained: the model.
            parts: of the name; what is empty is left out.
        """
        names = [*filter(None, parts)]
        if self.checkpoint not in ("auto", runs.usual_checkpoint(trained.config)):
            names.append(self.checkpoint)
        if trained.config.average_decay and trained.weights == "raw":
            names.append("raw")
        names.extend(filter(None, [self.part("precision")]))
        if self.member >= 0 and trained.member is not None:
            names.append(f"member_{self.member}")
        return trained.config.directory() / "_".join(names).replace(".", "_")

    def part(self, flag: str) -> str:
        """What a result's name says of a flag: nothing at its default."""
        value = getattr(self, flag)
        return "" if value == self.default(flag) else f"{flag}_{value}"


@dataclasses.dataclass(frozen=True)
class InputFlags(WorkdirFlags):
    """The flags of a command that measures rows of the run, or of a file.

    Attributes:
        OF_IMAGES: the flag that takes images instead of --input, up to their path.
    """

    OF_IMAGES: ClassVar = ""
    input: str = cli.flag(
        "",
        "A file of other rows, instead, held against the run's protocol: .npz, its "
        "array test or its only one, read as --dataset=npz:PATH is; of a run on a "
        "table .csv too, whose columns are found by name.",
    )

    def load_all(self, workdir: str | pathlib.Path = "") -> list[Trained]:
        """As of any workdir, with the rows of --input.

        Raises:
            UsageError: as `load`, or as `new_rows.read`.
        """
        trained = super().load_all(workdir)
        if not self.input:
            return trained
        of_run = trained[0].config, trained[0].data
        rows = new_rows.read(self.input, *of_run, of_images=self.OF_IMAGES)
        return [one._replace(input=rows) for one in trained]

    def measured_split(self, trained: Trained) -> str:
        """The name of the rows that are measured."""
        return INPUT if self.input else test_split(trained)

    def num_rows(self, trained: Trained, flag: str, *, split: str = "") -> int:
        """How many rows a flag asks for: 0 all, its default no more than there are.

        Of those that are measured, or of a split.

        Raises:
            ValueError: if the split is empty, or holds fewer than were asked for.
        """
        split, asked = split or self.measured_split(trained), getattr(self, flag)
        size = trained.size(split)
        if asked == self.default(flag):
            return min(asked or size, size)
        return _num_rows(trained, split, asked, flag)

    def rows_part(self, trained: Trained, flag: str) -> str:
        """What a result's name says of its rows; nothing where they are the usual ones.

        Those of a file have its name and sha256, and another number than the flag's
        default is named.
        """
        label = trained.input.label if trained.input is not None else ""
        size = trained.size(self.measured_split(trained))
        num, usual = self.num_rows(trained, flag), self.default(flag)
        other = f"{num}_images" if num != min(usual or size, size) else ""
        return "_".join(filter(None, (label, other)))


@dataclasses.dataclass(frozen=True)
class SplitFlags(InputFlags):
    """The same where the split of the run is chosen."""

    split: str = cli.flag("test", "Split of the run's data.", choices=sources.SPLITS)

    def refuse(self) -> None:
        """Refuses a split of a file of rows."""
        if self.input and self.split != "test":
            raise ValueError(
                f"--split={self.split} is of the run's data, and --input has other rows"
            )

    def measured_split(self, trained: Trained) -> str:
        """The name of the rows that are measured."""
        del trained
        return INPUT if self.input else self.split

    @property
    def other_split(self) -> str:
        """The split, in the names of files, where it is not the default one."""
        return "" if self.split == "test" else self.split


def load(
    workdir: str | pathlib.Path,
    *,
    checkpoint: str,
    weights: str = "auto",
    precision: str = "float32",
    data_dir: str = "",
    num_devices: int = 1,
) -> list[Trained]:
    """The model of a workdir, or of each of the runs that trained together there.

    Args:
        workdir: the folder of a training run.
        checkpoint: as in `runs.choose`.
        weights: as in `runs.choose`.
        precision: of the operands of the networks' products.
        data_dir: overrides the run's own, for a workdir carried elsewhere.
        num_devices: devices that share the rows that are evaluated, all for 0.

    Raises:
        UsageError: if there is no run, no checkpoint or no data; as `of_run`.
    """
    run, saved = runs.opened(
        workdir, data_dir=data_dir, num_devices=num_devices, precision=precision
    )
    return of_runs(run, saved, checkpoint=checkpoint, weights=weights)


def of_runs(
    run: runs.Run, saved: runs.Saved, *, checkpoint: str, weights: str = "auto"
) -> list[Trained]:
    """`of_run` of each run.

    Raises:
        UsageError: as `of_run`.
    """
    which = {"checkpoint": checkpoint, "weights": weights}
    if not run.config.trains_many:
        return [of_run(run, saved, **which)]
    together = []
    for i, config in enumerate(run.configs):
        parts = runs.of_flags(config, run.data)  # some draw by --seed
        alone = run._replace(config=config, parts=parts)
        one = of_run(alone, runs.one_of(saved, i), **which)
        together.append(one._replace(member=i))
    return together


def of_run(
    run: runs.Run, saved: runs.Saved, *, checkpoint: str, weights: str = "auto"
) -> Trained:
    """The parameters of a run that `runs.choose` takes, with their model.

    Raises:
        UsageError: as `runs.choose`.
    """
    taken = runs.choose(run.config, saved, checkpoint=checkpoint, weights=weights)
    model, params, exemplars = run.model, taken.params, run.parts.of_exemplars
    if exemplars is not None:  # their codes are all that a trained model reads of them
        model, params = exemplars.fixed, compilation.program(exemplars.fix)(params)
    trained = Trained(run.config, run.data, model, params, int(taken.step), run.mesh)
    return trained._replace(weights=taken.weights, at_context=run.parts.at_context)


def rows(trained: Trained, *, split: str, num_images: int = 0) -> Array:
    """Rows of a split on the device, the first num_images of them if not 0.

    The training rows of a data set that is drawn at each visit are raw, on another
    scale: they are drawn once here, from a fixed key.

    Raises:
        ValueError: if the split is empty or holds fewer rows.
    """
    num = _num_rows(trained, split, num_images)
    array = jnp.asarray(trained.stored(split)[:num])
    if split == "train" and trained.config.binarization in batches.REDRAWN:
        key = jax.random.key(trained.config.data_seed)
        return trained.data.prepared.take(key, array, jnp.arange(len(array))).x
    return array


def spread_rows(trained: Trained, *, split: str, num_images: int = 0) -> Array:
    """Rows at equal distances in a split, num_images of them if not 0.

    Some splits are sorted: the first hundreds of the test rows of `binarized_mnist`
    are of one class.

    Raises:
        ValueError: as `rows`.
    """
    num = _num_rows(trained, split, num_images)
    whole = rows(trained, split=split)
    return whole[batches.at_equal_distances(len(whole), num)]


def _num_rows(trained: Trained, split: str, num: int, flag: str = "num_images") -> int:
    """That number of rows of a split, or all of them for 0, if it holds as many.

    Raises:
        ValueError: naming the flag that says the number.
    """
    size = trained.size(split)
    if num > size:
        raise ValueError(
            f"--{flag}={num} is more than the {size} rows of {trained.place(split)}: "
            "give as many or fewer"
        )
    return num or size


def test_split(trained: Trained) -> str:
    """The split that results are reported on: train where there is no test."""
    return "test" if len(trained.data.prepared.test) else "train"


def heading(result: dict[str, Any]) -> list[str]:
    """The protocol of a result, its split, num_images and step, as lines of text."""
    stamp = result["protocol"]
    sizes = "/".join(str(size) for size in stamp["split_sizes"].values())
    place = f"{result['split']} split"
    if result["split"] == INPUT:
        place = f"{stamp[INPUT]['file']} (sha256 {stamp[INPUT]['sha256'][:8]})"
    holes = ""
    if stamp["missing"] != "refuse":
        holes = f", missing={stamp['missing']} rate {stamp['missing_rate']:g}"
    beside = f" given {stamp['condition']}" if stamp["condition"] else ""
    return [
        f"{stamp['dataset']} ({stamp['origin']})",
        f"train/valid/test {sizes}, binarization {stamp['binarization']}, data seed "
        f"{stamp['data_seed']}{holes}, likelihood {stamp['likelihood']}{beside}",
        f"{place}, {result['num_images']} images, "
        f"{_moment(result['step'], stamp['weights'])}; {stamp['quantity']}, "
        f"{stamp['units']}, computed in {stamp['precision']}",
    ]


def _moment(step: int, weights: str) -> str:
    return f"step {step}, weights={weights}"
