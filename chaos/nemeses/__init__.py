"""All nemeses by their names in scenarios."""

from typing import Final

from chaos.nemeses.base import Nemesis
from chaos.nemeses.clock import SkewClock
from chaos.nemeses.connection import DropConnection
from chaos.nemeses.link import CutLink, DelayLink, HalfOpenLink
from chaos.nemeses.memory import FlipBit
from chaos.nemeses.nodes import KillRayHead, KillRaylet, PreemptNode
from chaos.nemeses.processes import (
    KillAgent,
    KillController,
    KillWarmParent,
    KillWorker,
    StopWorker,
    TerminateWorker,
)
from chaos.nemeses.storage import CorruptCheckpoint, FillDisk

NEMESES: Final[dict[str, type[Nemesis]]] = {
    "kill_worker": KillWorker,
    "stop_worker": StopWorker,
    "terminate_worker": TerminateWorker,
    "kill_warm_parent": KillWarmParent,
    "kill_agent": KillAgent,
    "kill_controller": KillController,
    "kill_raylet": KillRaylet,
    "preempt_node": PreemptNode,
    "kill_ray_head": KillRayHead,
    "cut_link": CutLink,
    "half_open_link": HalfOpenLink,
    "delay_link": DelayLink,
    "drop_connection": DropConnection,
    "full_disk": FillDisk,
    "corrupt_checkpoint": CorruptCheckpoint,
    "flip_bit": FlipBit,
    "skew_clock": SkewClock,
}
