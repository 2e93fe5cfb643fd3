"""How much memory this node has left for a job, and how seldom a process looks for garbage."""

import gc
from pathlib import Path
from typing import Final

_CGROUP: Final = Path("/sys/fs/cgroup")
_MEMINFO: Final = Path("/proc/meminfo")


def available_bytes(meminfo: Path = _MEMINFO, cgroup: Path = _CGROUP) -> int:
    """Memory that can be used without swapping: what is free here, within the container's limit.

    Args:
        meminfo: the kernel's view of the machine.
        cgroup: this process's control group, version 2.
    """
    lines = meminfo.read_text().splitlines()
    fields = dict(line.split(":", 1) for line in lines)
    available = int(fields["MemAvailable"].split()[0]) * 1024
    limit_file, used_file = cgroup / "memory.max", cgroup / "memory.current"
    if limit_file.exists() and used_file.exists():
        limit = limit_file.read_text().strip()
        if limit != "max":
            available = min(available, int(limit) - int(used_file.read_text()))
    return max(available, 0)


def collect_rarely() -> None:
    """Have Python look for cyclic garbage after 100,000 new objects, not after 700.

    A decision about a large gang makes as many small objects as it has units, several times over,
    and none of them are cycles; each full collection walks through all that is known of the gang.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(100_000, 20, 20)
