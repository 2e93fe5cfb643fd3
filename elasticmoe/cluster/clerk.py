"""Work that needs torch, done in a process forked for it: look at a job's storage, seal, delete.

The controller's process stays small and starts fast because it never imports torch; a clerk is
forked from an agent's warm parent, answers one request and ends.
"""

import json
import os
import socket
from collections.abc import Callable, Mapping
from dataclasses import asdict
from typing import Any, Final

import torch

from elasticmoe.checkpoint.manifest import Manifest, check_resumable, digest_inventory, file_row
from elasticmoe.checkpoint.read import find_checkpoints, newest_valid
from elasticmoe.checkpoint.store import Store, open_store
from elasticmoe.checkpoint.write import delete_checkpoint, seal, step_directory
from elasticmoe.errors import ElasticMoEError, PlanError
from elasticmoe.model.inventory import build_inventory
from elasticmoe.plan.make import make_plan
from elasticmoe.plan.memory import find_overfull, host_bytes, plan_memory
from elasticmoe.plan.types import Inventory, Member
from elasticmoe.runtime.data import SampleReader
from elasticmoe.spec.job import JobSpec

STATE_BYTES_PER_PARAMETER: Final = 12
"""Master weight and two moments in fp32."""


def serve_one_request(sock: socket.socket, arguments: dict[str, Any]) -> None:
    """Read one request line, send one answer line: `{"result": ...}` or `{"error": ...}`.

    Args:
        sock: connection to the agent.
        arguments: `job`, the spec as JSON text.
    """
    job = JobSpec.model_validate_json(arguments["job"])
    with sock.makefile("rwb") as stream:
        request = json.loads(stream.readline())
        task = request.pop("task")
        try:
            answer = {"result": TASKS[task](job, **request)}
        except ElasticMoEError as error:
            answer = {"error": {"code": error.code, "message": str(error)}}
        stream.write(json.dumps(answer).encode() + b"\n")


def checkpoint_store(job: JobSpec) -> Store:
    """Where a job's checkpoints are."""
    return open_store(job.storage.checkpoints or os.path.join(job.storage.dir, "checkpoints"))


def inspect_job(job: JobSpec, nodes: list[dict[str, Any]]) -> dict[str, Any]:
    """Check a job against its data, memory and storage, and find what it can start from.

    Args:
        job: what to train.
        nodes: `NodeUp` of the nodes that are there so far, as plain data.

    Returns:
        `inventory`, `checkpoints` ({step, uri}, oldest first; the newest one verified) and
        `skipped` ({step, reason}: newer ones that do not verify).

    Raises:
        DataError: the data cannot be read.
        StorageError: the storage cannot be used, or has no room for a checkpoint.
        CheckpointError: the newest checkpoint is of another model, other data or another batch.
        PlanError: the model does not fit the nodes' memory.
    """
    inventory = build_inventory(job.model, job.data.seq_len)
    reader = _open_data(job)
    check_memory(job, inventory, nodes)
    store = checkpoint_store(job)
    store.check_usable(inventory.num_parameters * STATE_BYTES_PER_PARAMETER)
    newest, skipped = newest_valid(store)
    steps: list[int] = []
    if newest is not None:
        check_resumable(newest.manifest, job, reader.digest, digest_inventory(inventory))
        steps = [step for step in find_checkpoints(store) if step <= newest.manifest.step]
    return {
        "inventory": asdict(inventory),
        "checkpoints": [{"step": s, "uri": store.uri_of(step_directory(s))} for s in steps],
        "skipped": [asdict(one) for one in skipped],
    }


def check_memory(job: JobSpec, inventory: Inventory, nodes: list[dict[str, Any]]) -> None:
    """Make sure that a node's memory holds what a full gang's plan puts there.

    Nothing is known yet if the nodes that are there have no room for the workers wanted.

    Raises:
        PlanError: with the bytes needed and those that are there.
    """
    members: list[Member] = []
    for position in range(job.workers.replicas):
        for node in nodes:
            if position < node["capacity"] and len(members) < job.workers.replicas:
                members.append(Member(len(members), node["node"], node["domain"]))
    if len(members) < job.workers.replicas:
        return
    on_cpu = job.workers.device == "cpu" or not torch.cuda.is_available()
    plan = make_plan(job, inventory, tuple(members))
    use = plan_memory(job, inventory, plan)
    needed = host_bytes(plan, use, homes_on_host=on_cpu, device_is_host=on_cpu)
    overfull = find_overfull(needed, {node["node"]: node["memory_bytes"] for node in nodes})
    if overfull:
        worst = overfull[0]
        raise PlanError(
            f"node {worst.node} has {worst.there_bytes:,} bytes of memory left, the plan for "
            f"{len(members)} workers puts {worst.needed_bytes:,} there. Add nodes, lower "
            "batch.global_samples or protection.redundancy, or choose a smaller model."
        )


def seal_checkpoint(
    job: JobSpec,
    step: int,
    generation: int,
    files: list[dict[str, Any]],
    state: dict[str, Any],
) -> dict[str, Any]:
    """Write the manifest of a checkpoint whose files are all durable; return `uri` and `bytes`.

    Raises:
        CheckpointError: a file is missing or short.
        StorageError: the manifest cannot be written.
    """
    inventory: Inventory = build_inventory(job.model, job.data.seq_len)
    store = checkpoint_store(job)
    manifest = Manifest(
        job=job.name,
        step=step,
        timeline=state.get("timeline", 0),
        generation=generation,
        model=job.model.model_dump(mode="json"),
        inventory=digest_inventory(inventory),
        data=_open_data(job).digest,
        global_samples=job.batch.global_samples,
        seed=job.data.seed,
        files=tuple(file_row(row) for row in files),
        state=state,
    )
    seal(store, manifest)
    return {"uri": store.uri_of(step_directory(step)), "bytes": manifest.num_bytes}


def remove_checkpoint(job: JobSpec, step: int) -> None:
    """Delete a checkpoint; an absent one is fine."""
    delete_checkpoint(checkpoint_store(job), step)


def _open_data(job: JobSpec) -> SampleReader:
    return SampleReader(job.data, job.model.vocab_size, job.sample_tokens)


TASKS: Final[Mapping[str, Callable[..., Any]]] = {
    "inspect": inspect_job,
    "seal": seal_checkpoint,
    "remove": remove_checkpoint,
}
