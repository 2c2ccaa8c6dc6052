"""Peak resident memory of this process and of children."""

import pathlib
import resource

MIB = 2**20


def peak_bytes() -> int:
    """Peak resident set of this program, in bytes.

    Linux hands ru_maxrss on from the process that started this one; VmHWM is its own.
    """
    status = pathlib.Path("/proc/self/status")
    if status.is_file():
        (line,) = (line for line in status.read_text().split("\n") if "VmHWM" in line)
        return 1024 * int(line.split()[1])
    return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
