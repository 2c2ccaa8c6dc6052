"""One program on many devices and processes: the batch axis is sharded over them.

JAX's own runtime is the engine. States lie whole on every device, the rows of a batch
are shared out, and the compiler puts the sums over devices where they belong: what
runs is the program of one device, up to the order of those sums.
"""

import os
import re
import sys
from typing import NoReturn

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array

from vae_jax import compilation
from vae_jax.types import PyTree

AXIS = "data"  # the mesh's only axis
AUTOMATIC = "auto"  # the coordinator's address where the cluster tells it
HEARTBEAT = 20  # seconds of silence, also of a starved machine: then a process is gone
_STATUS = re.compile(r"(UNKNOWN|INTERNAL|UNAVAILABLE|ABORTED|DEADLINE_EXCEEDED): ")


def initialize(
    coordinator_address: str, *, num_processes: int, process_id: int
) -> None:
    """Joins the processes of one run; to be called before anything else of JAX.

    Args:
        coordinator_address: host:port of process 0; "auto" where the cluster tells
            (Slurm, Open MPI, Kubernetes, TPU pods); nothing is done if empty.
        num_processes: how many there are.
        process_id: which this is, from 0.

    Raises:
        ValueError: for an id that is not below the number of processes.
        RuntimeError: if JAX was used before, or the others do not come.
    """
    if not coordinator_address:
        return
    if coordinator_address == AUTOMATIC:
        jax.distributed.initialize(heartbeat_timeout_seconds=HEARTBEAT)
        return
    if not 0 <= process_id < num_processes:
        raise ValueError(
            f"process_id={process_id} is not below num_processes={num_processes}"
        )
    jax.distributed.initialize(
        coordinator_address,
        num_processes,
        process_id,
        heartbeat_timeout_seconds=HEARTBEAT,
    )


def is_writer() -> bool:
    """Whether this is the process that writes files and talks."""
    return jax.process_index() == 0


def any_process(flag: bool) -> bool:
    """Whether the flag is set in any process; all of them must ask."""
    if jax.process_count() == 1:
        return flag
    return bool(np.any(multihost_utils.process_allgather(np.asarray(flag))))


def is_lost_process(error: Exception) -> bool:
    """Whether an error is one that the loss of another process leaves in this one.

    The runtime's error for a transfer that failed; some of its statuses (UNKNOWN, by
    which a closed connection is reported) arrive as a plain ValueError.
    """
    if jax.process_count() == 1:
        return False
    if isinstance(error, jax.errors.JaxRuntimeError):
        return True
    return isinstance(error, ValueError) and bool(_STATUS.match(str(error)))


def leave(message: str) -> NoReturn:
    """Says why and ends this process at once, with status 1.

    The ordinary way out waits for the other processes, and one of them is gone.
    """
    print(f"error: {' '.join(message.split())}", file=sys.stderr, flush=True)
    os._exit(1)


def data_mesh(num_devices: int) -> Mesh | None:
    """A mesh of that many devices, all for 0; None for a single one.

    Several processes take part with all their devices.

    Raises:
        ValueError: if there are fewer, or several processes are to use some only.
    """
    num_available = jax.device_count()
    if jax.process_count() > 1 and num_devices in (0, 1):
        num_devices = num_available
    wanted = num_devices or num_available
    if wanted > num_available or (jax.process_count() > 1 and wanted < num_available):
        raise ValueError(
            f"num_devices={num_devices}, and JAX has {num_available} "
            f"{jax.default_backend()} devices (JAX_NUM_CPU_DEVICES makes more of a CPU)"
        )
    if wanted == 1:
        return None
    devices = jax.devices()[:wanted]
    return jax.make_mesh((wanted,), (AXIS,), (AxisType.Auto,), devices=devices)


def whole(mesh: Mesh | None) -> NamedSharding | None:
    """The layout of what lies whole on every device; None without a mesh."""
    return None if mesh is None else NamedSharding(mesh, PartitionSpec())


def split(mesh: Mesh | None, *, axis: int) -> NamedSharding | None:
    """The layout of an array that is cut along an axis; None without a mesh."""
    if mesh is None:
        return None
    return NamedSharding(mesh, PartitionSpec(*[None] * axis, AXIS))


def replicate(mesh: Mesh | None, tree: PyTree) -> PyTree:
    """A tree with every array whole on every device; as it is without a mesh."""
    if mesh is None:
        return tree
    return compilation.program(lambda tree: tree, layout=whole(mesh))(tree)


def place_rows(mesh: Mesh | None, rows: np.ndarray, *, sharded: bool) -> Array:
    """Host rows [N, *X] on the devices: whole on each, or shared out among them.

    Shared out, they are filled up with zeros to a multiple of the devices: rows that no
    order names. A batch is then gathered from wherever its rows lie.
    """
    if mesh is None:
        return jax.numpy.asarray(rows)
    spec = PartitionSpec()
    if sharded:
        missing = -len(rows) % mesh.size
        rows = np.concatenate([rows, np.zeros((missing, *rows.shape[1:]), rows.dtype)])
        spec = PartitionSpec(AXIS)
    layout = NamedSharding(mesh, spec)
    return jax.make_array_from_callback(rows.shape, layout, lambda index: rows[index])


def local(tree: PyTree) -> PyTree:
    """What this process holds of arrays that lie whole on every device."""
    return jax.tree.map(lambda leaf: leaf.addressable_data(0), tree)
