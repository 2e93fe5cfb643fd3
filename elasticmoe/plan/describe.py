"""A plan in words: what `elasticmoe plan` prints."""

from collections.abc import Iterable, Sequence

import numpy as np

from elasticmoe.plan.cost import (
    active_parameters,
    expected_bubble,
    plan_traffic,
    step_flops,
)
from elasticmoe.plan.experts import step_tokens
from elasticmoe.plan.holders import BoolArray, IntArray, home_matrix, unit_sizes
from elasticmoe.plan.memory import (
    MemoryUse,
    chosen_option,
    plan_memory,
    protection_options,
)
from elasticmoe.plan.schedule import Durations, bubble_share
from elasticmoe.plan.survival import plan_survival
from elasticmoe.plan.types import Inventory, Plan
from elasticmoe.spec.job import JobSpec


def describe_plan(
    job: JobSpec, inventory: Inventory, plan: Plan, *, max_workers: int = 32
) -> tuple[str, ...]:
    """Lines of text: layout, holders and homes, memory, traffic, bubble, survival, protection.

    Args:
        max_workers: of more workers than this, only the first are listed one by one.
    """
    memory = plan_memory(job, inventory, plan)
    return (
        *_summary(job, inventory, plan),
        "",
        *_stages(job, inventory, plan),
        "",
        *_workers(inventory, plan, max_workers),
        "",
        *_memory(plan, memory),
        "",
        *_traffic(job, inventory, plan),
        "",
        *_pipeline(job, inventory, plan),
        "",
        *_survival(plan),
        "",
        *_protection(job, inventory, plan),
    )


def format_ranges(numbers: Iterable[int]) -> str:
    """Write ascending numbers as ranges.

    >>> format_ranges([0, 1, 2, 5, 7, 8])
    '0-2, 5, 7-8'
    """
    ranges: list[list[int]] = []
    for number in numbers:
        if ranges and ranges[-1][1] == number - 1:
            ranges[-1][1] = number
        else:
            ranges.append([number, number])
    return ", ".join(f"{a}" if a == b else f"{a}-{b}" for a, b in ranges) or "none"


def format_amount(amount: float, unit: str = "B") -> str:
    """Write an amount with a decimal prefix and three digits.

    >>> format_amount(1_234_567)
    '1.23 MB'
    """
    for prefix in ("", "k", "M", "G", "T", "P", "E"):
        if abs(amount) < 999.5 or prefix == "E":
            break
        amount /= 1000
    digits = 0 if prefix == "" or abs(amount) >= 99.95 else 1 if abs(amount) >= 9.995 else 2
    return f"{amount:.{digits}f} {prefix}{unit}".rstrip()


def format_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> tuple[str, ...]:
    """Align cells in columns, the first line being the header."""
    table = [tuple(header), *(tuple(row) for row in rows)]
    widths = [max(len(row[column]) for row in table) for column in range(len(header))]
    return tuple(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in table
    )


def _summary(job: JobSpec, inventory: Inventory, plan: Plan) -> tuple[str, ...]:
    nodes = {member.node for member in plan.members}
    domains = {member.domain for member in plan.members}
    return (
        f"{job.name}: model {job.model.preset}, "
        f"{format_amount(inventory.num_parameters, '')} parameters, "
        f"{format_amount(active_parameters(job, inventory), '')} active per token, "
        f"{len(inventory.units)} units",
        f"{_count(len(plan.members), 'worker')} on {_count(len(nodes), 'node')} in "
        f"{_count(len(domains), 'failure domain')}, {_count(len(plan.stages), 'stage')}",
        f"step: {job.batch.global_samples} samples of {job.data.seq_len} tokens in "
        f"{_count(plan.num_waves, 'wave')} of {plan.wave_samples}, "
        f"{format_amount(step_tokens(job), '')} tokens, "
        f"{format_amount(step_flops(job, inventory), 'FLOP')}",
    )


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"


def _stages(job: JobSpec, inventory: Inventory, plan: Plan) -> tuple[str, ...]:
    rows = []
    for number, stage in enumerate(plan.stages):
        samples = [end - start for start, end in stage.samples]
        others = [
            inventory.blocks[block].name
            for block in stage.blocks
            if inventory.blocks[block].layer < 0 and not inventory.blocks[block].is_experts
        ]
        layers = format_ranges(range(stage.first_layer, stage.end_layer))
        rows.append(
            (
                str(number),
                ", ".join([layers, *others]),
                format_ranges(sorted(plan.members[member].worker for member in stage.members)),
                _span(np.array(samples)),
                _experts_held(inventory, plan, number),
            )
        )
    header = ("stage", "layers", "workers", "samples per wave", "experts per layer and worker")
    return format_table(header, rows)


def _experts_held(inventory: Inventory, plan: Plan, stage: int) -> str:
    blocks = [block for block in plan.stages[stage].blocks if inventory.blocks[block].is_experts]
    if not blocks:
        return "none"
    held = np.array([len(experts) for block in blocks for experts in plan.slots[block]])
    total = inventory.blocks[blocks[0]].num_experts
    return f"all {total}" if (held == total).all() else f"{_span(held)} of {total}"


def _span(numbers: IntArray) -> str:
    low, high = int(numbers.min()), int(numbers.max())
    return str(low) if low == high else f"{low}-{high}"


def _workers(inventory: Inventory, plan: Plan, max_workers: int) -> tuple[str, ...]:
    numel_U = unit_sizes(inventory)
    homes_UM = home_matrix(plan.homes, len(plan.members))
    primary_U = np.array([homes[0] for homes in plan.homes])
    rows = []
    for position, member in enumerate(plan.members[:max_workers]):
        primary = primary_U == position
        mirrored = homes_UM[:, position] & ~primary
        served = sorted({plan.members[home].worker for home in np.unique(primary_U[mirrored])})
        mirrors = f"{_homed(numel_U, mirrored)} of workers {format_ranges(served)}"
        rows.append(
            (
                str(member.worker),
                member.node,
                member.domain,
                str(plan.stage_of_member[position]),
                _slots_of(inventory, plan, position),
                _homed(numel_U, primary),
                mirrors if mirrored.any() else "none",
            )
        )
    header = ("worker", "node", "domain", "stage", "experts", "primary home of", "mirrors")
    left = len(plan.members) - len(rows)
    more = (f"... and {left} more workers",) if left else ()
    return (*format_table(header, rows), *more)


def _homed(numel_U: IntArray, homed_U: BoolArray) -> str:
    numel = format_amount(int(numel_U[homed_U].sum()), "")
    return f"{int(homed_U.sum())} units ({numel} parameters)"


def _slots_of(inventory: Inventory, plan: Plan, position: int) -> str:
    stage = plan.stages[plan.stage_of_member[position]]
    worker = stage.members.index(position)
    held = {
        plan.slots[block][worker] for block in stage.blocks if inventory.blocks[block].is_experts
    }
    return "; ".join(format_ranges(experts) for experts in sorted(held)) or "none"


def _memory(plan: Plan, use: MemoryUse) -> tuple[str, ...]:
    parts = (
        use.weights_M, use.gradients_M, use.homes_M, use.prepared_M,
        use.buffers_M, use.activations_M, use.snapshots_M, use.checkpoint_M, use.total_M,
    )  # fmt: skip
    rows = []
    for number, stage in enumerate(plan.stages):
        members = list(stage.members)
        largest = members[int(use.total_M[members].argmax())]
        rows.append((str(number), *(format_amount(int(part_M[largest])) for part_M in parts)))
    header = (
        "stage",
        "weights",
        "gradients",
        "homes",
        "prepared",
        "buffers",
        "activations",
        "snapshots",
        "checkpoint",
        "total",
    )
    return ("memory of the fullest worker of each stage", *format_table(header, rows))


def _traffic(job: JobSpec, inventory: Inventory, plan: Plan) -> tuple[str, ...]:
    traffic = plan_traffic(job, inventory, plan)
    rows = [
        (name, format_amount(float(sent_M.mean())), format_amount(int(sent_M.max())))
        for name, sent_M in (
            ("gradients to primary homes", traffic.gradients_M),
            ("reduced gradients to mirrors", traffic.forwards_M),
            ("weights to holders", traffic.weights_M),
            ("tokens to experts and back", traffic.tokens_M),
            ("hidden states between stages", traffic.hidden_M),
            ("total", traffic.total_M),
        )
    ]
    return format_table(("sent per worker and step", "mean", "most"), rows)


def _pipeline(job: JobSpec, inventory: Inventory, plan: Plan) -> tuple[str, ...]:
    stages, waves = len(plan.stages), plan.num_waves
    bubble = expected_bubble(job, inventory, plan)
    line = f"bubble: {bubble:.1%} of the workers' time with {job.parallel.schedule}"
    if stages == 1:
        return (line,)
    even = Durations()
    others = ", ".join(
        f"{name} {bubble_share(name, stages, waves, even):.1%}"
        for name in ("1f1b", "zb1p", "dualpipe")
        if name != "dualpipe" or (stages % 2 == 0 and waves % 2 == 0 and waves >= 2 * stages)
    )
    return (line, f"with equal stages it would be: {others}")


def _survival(plan: Plan) -> tuple[str, ...]:
    survival = plan_survival(plan)
    one, two, three = (f"{100 * share:.4g} %" for share in survival.lose_nodes)
    lines = [
        f"every unit keeps a home if random nodes are lost: one {one}, two {two}, three {three}"
    ]
    fatal = sorted(domain for domain, kept in survival.lose_domain.items() if not kept)
    if not fatal:
        lines.append("every unit keeps a home if any one failure domain is lost")
    else:
        lines.append(f"AT RISK: units are lost with failure domain {', '.join(fatal)}")
    if survival.single_node_units:
        lines.append(
            f"AT RISK: {survival.single_node_units} of {len(plan.homes)} units have all their "
            "homes on one node; only a snapshot or checkpoint brings them back"
        )
    return tuple(lines)


def _protection(job: JobSpec, inventory: Inventory, plan: Plan) -> tuple[str, ...]:
    chosen = chosen_option(job, plan)
    rows = [
        (
            f"{option.name}{' (this job)' if option.name == chosen else ''}",
            format_amount(option.homes_bytes),
            format_amount(option.prepared_bytes),
            format_amount(option.further_bytes),
            format_amount(option.step_bytes),
            format_amount(option.snapshot_bytes),
        )
        for option in protection_options(job, inventory, plan)
    ]
    sent = ("sent per step", "per snapshot")
    header = ("protection, mean per worker", "homes", "prepared", "further copies", *sent)
    return format_table(header, rows)
