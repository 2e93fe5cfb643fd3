"""Jobs, inventories and gangs for the tests of plans, made without a model."""

from collections.abc import Mapping
from dataclasses import dataclass

from hypothesis import strategies as st

from elasticmoe.plan.make import make_plan
from elasticmoe.plan.types import ALIGN, Block, Inventory, Member, Parameter, Plan, Unit
from elasticmoe.spec.job import JobSpec
from elasticmoe.spec.load import parse_data

SMALL_MODEL = (
    "model.moe.num_experts=4",
    "model.moe.top_k=2",
    "model.moe.num_groups=1",
    "model.moe.top_groups=1",
    "model.moe.group_score_width=1",
)


SIZES = {"quickstart": {"num_layers": 4, "moe": {"expert_hidden_size": 128}}}
"""Of these tests; the preset itself may be tuned."""


def build_job(*overrides: str, preset: str = "quickstart") -> JobSpec:
    data = {
        "version": 1,
        "name": "test",
        "model": {"preset": preset, **SIZES.get(preset, {})},
        "data": {"sources": [{"path": "data/text"}], "seq_len": 64},
        "batch": {"global_samples": 16, "num_waves": 2},
        "optimizer": {"learning_rate": 1e-3},
        "schedule": {"steps": 10},
        "parallel": {"stages": 2},
        "workers": {"replicas": 4, "min": 1, "max": 512},
        "storage": {"dir": "runs/test"},
    }
    return parse_data(data, overrides)


def build_members(num_nodes: int, per_node: int, num_domains: int) -> tuple[Member, ...]:
    return tuple(
        Member(worker=n * per_node + w, node=f"node-{n}", domain=f"domain-{n % num_domains}")
        for n in range(num_nodes)
        for w in range(per_node)
    )


def build_inventory(job: JobSpec, piece: int = 4096) -> Inventory:
    """What a model of the job's sizes would list; parameters are coarse, sizes are right."""
    model, moe = job.model, job.model.moe
    hidden = model.hidden_size
    attention = 4 * hidden * hidden
    shared = 3 * hidden * moe.expert_hidden_size * moe.num_shared_experts
    expert = 3 * hidden * moe.expert_hidden_size
    sizes: list[tuple[str, int, int, int]] = [("embedding", 0, model.vocab_size * hidden, 0)]
    for layer in range(model.num_layers):
        is_dense = layer < model.first_dense_layers
        wide = 3 * hidden * model.dense_hidden_size if is_dense else shared
        sizes.append((f"layer.{layer}", layer, attention + wide, 0))
        if not is_dense:
            sizes.append((f"layer.{layer}.experts", layer, expert, moe.num_experts))
    sizes.append(("head", -1, model.vocab_size * hidden, 0))
    for depth in range(model.mtp_depth):
        sizes.append((f"mtp.{depth}", -1, attention + shared + 2 * hidden * hidden, 0))
        sizes.append((f"mtp.{depth}.experts", -1, expert, moe.num_experts))
    blocks: list[Block] = []
    units: list[Unit] = []
    for name, layer, numel, num_experts in sizes:
        numel += -numel % ALIGN
        index = len(blocks)
        blocks.append(
            Block(
                index=index,
                name=name,
                layer=-1 if name == "embedding" else layer,
                parameters=(Parameter("weight", (numel,), decay=True, offset=0),),
                decay_numel=numel,
                numel=numel,
                num_experts=num_experts,
                flops_per_token=_flops(job, name, numel),
                activation_bytes_per_token=16.0 * hidden,
            )
        )
        if num_experts:
            units += [Unit(len(units) + e, index, e, 0, numel, numel) for e in range(num_experts)]
        else:
            for offset in range(0, numel, piece):
                size = min(piece, numel - offset)
                units.append(Unit(len(units), index, -1, offset, size, size))
    return Inventory(tuple(blocks), tuple(units))


def _flops(job: JobSpec, name: str, numel: int) -> float:
    head = 2.0 * job.model.vocab_size * job.model.hidden_size
    is_mtp = name.startswith("mtp.") and not name.endswith(".experts")
    return 0.0 if name == "embedding" else 2.0 * numel + (head if is_mtp else 0.0)


@dataclass(frozen=True, slots=True)
class Loss:
    """A gang before and after it lost some of its workers; they may be none."""

    job: JobSpec
    inventory: Inventory
    before: Plan
    survivors: tuple[Member, ...]
    present: Mapping[int, tuple[int, ...]]
    """Unit -> positions of survivors that have a copy; at least one each."""


def lose(job: JobSpec, inventory: Inventory, before: Plan, lost: set[int]) -> Loss:
    """What is left without the workers at these positions; units without a copy are left out."""
    kept = [position for position in range(len(before.members)) if position not in lost]
    place = {old: new for new, old in enumerate(kept)}
    present = {
        unit: tuple(place[home] for home in homes if home in place)
        for unit, homes in enumerate(before.homes)
    }
    return Loss(
        job,
        inventory,
        before,
        tuple(before.members[position] for position in kept),
        {unit: positions for unit, positions in present.items() if positions},
    )


@st.composite
def gangs(draw: st.DrawFn) -> tuple[Member, ...]:
    """Nodes of unequal sizes in domains of unequal sizes."""
    sizes = draw(st.lists(st.integers(1, 4), min_size=1, max_size=8))
    domains = draw(st.lists(st.integers(0, 3), min_size=len(sizes), max_size=len(sizes)))
    nodes = [n for n, size in enumerate(sizes) for _ in range(size)]
    return tuple(Member(w, f"node-{n}", f"domain-{domains[n]}") for w, n in enumerate(nodes))


@st.composite
def losses(draw: st.DrawFn, max_lost: int = 3) -> Loss:
    """Any gang, layout and redundancy; some workers are lost, and every unit keeps a copy."""
    job = build_job(
        f"parallel.stages={draw(st.integers(1, 3))}",
        f"parallel.expert_replicas={draw(st.sampled_from(['all', 'one']))}",
        f"protection.redundancy={draw(st.integers(1, 3))}",
        f"model.mtp_depth={draw(st.integers(0, 1))}",
        *SMALL_MODEL,
    )
    inventory = build_inventory(job, piece=2**14)
    before = make_plan(job, inventory, draw(gangs()))
    lost: set[int] = set()
    for position in draw(st.permutations(range(len(before.members))))[:max_lost]:
        if all(set(homes) - lost - {position} for homes in before.homes):
            lost.add(position)
    return lose(job, inventory, before, lost)
