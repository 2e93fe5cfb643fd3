"""What must hold for every rival, and the table beside each other."""

import os
from dataclasses import fields, replace
from pathlib import Path

import numpy as np
import pytest

from elasticmoe.simulator.rivals.checkpoint_restart import CheckpointRestart
from elasticmoe.simulator.rivals.compare import compare, rate_goodput, standard_models
from elasticmoe.simulator.rivals.elasticmoe import ElasticMoE, fatal_share
from elasticmoe.simulator.rivals.job import Job
from elasticmoe.simulator.rivals.lazarus import Lazarus
from elasticmoe.simulator.rivals.ledger import Ledger
from elasticmoe.simulator.rivals.moevement import MoEvement
from elasticmoe.simulator.rivals.replay import Model
from elasticmoe.simulator.rivals.torchft import Torchft
from elasticmoe.simulator.traces import (
    SpotProfile,
    Trace,
    generate_trace,
    measure_trace,
    read_trace,
)

JOB = Job()
MODELS = standard_models()
NAMES = [model.name for model in MODELS]
DOCUMENT = Path(__file__).parents[2] / "docs" / "rivals.md"


def _trace(nodes: int, *events: tuple[float, str, str], end_s: float = 10000.0) -> Trace:
    """Nodes n0, n1 ... from the start, then events (seconds, op, names), then an end."""
    rows = [f"0,add,n{number}" for number in range(nodes)]
    for at_s, op, names in events:
        rows += [f"{round(at_s * 1000)},{op},{name}" for name in names.split()]
    return read_trace([*rows, f"{round(end_s * 1000)},add,end"])


@pytest.mark.parametrize("model", MODELS, ids=NAMES)
@pytest.mark.parametrize("seed", range(8))
def test_every_node_second_is_booked_once(model: Model, seed: int) -> None:
    trace = generate_trace(np.random.default_rng(seed))

    run = model.run(trace, JOB)

    seen = measure_trace(trace)
    assert sum(run.node_s.values()) == pytest.approx(seen.mean_nodes * seen.hours * 3600)
    assert min(run.node_s.values()) >= -1e-6
    assert 0 < run.goodput < 1
    assert run.samples == pytest.approx(run.node_s["useful"] * JOB.node_samples_per_s)
    assert sum(run.recoveries.values()) > 40, "the faults must have fired"


@pytest.mark.parametrize("model", MODELS, ids=NAMES)
def test_the_series_moves_forward_and_ends_with_the_useful_work(model: Model) -> None:
    trace = generate_trace(np.random.default_rng(11))

    run = model.run(trace, JOB)

    times = [point.at_s for point in run.series]
    assert times == sorted(times)
    assert times[-1] == trace.end_s
    assert run.series[-1].useful_node_s == pytest.approx(run.node_s["useful"])
    assert all(0 <= point.training <= point.alive <= 32 for point in run.series)
    assert any(point.training == 0 for point in run.series)


@pytest.mark.parametrize("model", MODELS, ids=NAMES)
def test_a_run_without_losses_only_pays_for_protection(model: Model) -> None:
    run = model.run(_trace(24), JOB)

    assert run.recoveries == {}
    assert run.share("redone") == run.share("recovering") == run.share("waiting") == 0
    assert run.goodput == pytest.approx(1 - run.share("protecting"))
    assert run.goodput > 0.93


def _sure(model: Model, trace: Trace) -> dict[str, int]:
    return dict(model.run(trace, JOB).recoveries)


def test_checkpoint_restart_redoes_exactly_what_came_after_the_last_save() -> None:
    model = CheckpointRestart(save_s=10, interval_s=100, restart_s=50)

    run = model.run(_trace(4, (395, "remove", "n0"), (395, "add", "x"), end_s=1000), JOB)

    # Saves end at 110, 220 and 330; 65 s of four nodes are redone.
    assert run.recoveries == {"rollback": 1}
    assert run.node_s["redone"] == pytest.approx(4 * 65)
    assert run.node_s["recovering"] == pytest.approx(4 * 50, abs=1)


def test_a_node_lost_while_a_checkpoint_is_written_makes_it_worthless() -> None:
    model = CheckpointRestart(save_s=10, interval_s=100, restart_s=50)

    run = model.run(_trace(4, (105, "remove", "n0"), (105, "add", "x"), end_s=200), JOB)

    assert run.node_s["redone"] == pytest.approx(4 * 100)


def test_a_loss_during_a_restart_starts_the_restart_again() -> None:
    model = CheckpointRestart(save_s=0, interval_s=1e9, restart_s=50)

    trace = _trace(6, (100, "remove", "n0"), (120, "remove", "n1"), end_s=1000)
    run = model.run(trace, JOB)

    assert run.recoveries == {"rollback": 2}
    assert run.node_s["recovering"] == pytest.approx(5 * 20 + 4 * 50)


@pytest.mark.parametrize("model", MODELS, ids=NAMES)
def test_too_few_nodes_wait_and_go_on_when_more_come(model: Model) -> None:
    trace = _trace(
        24,
        (1000, "remove", " ".join(f"n{number}" for number in range(21))),
        (2000, "add", " ".join(f"m{number}" for number in range(21))),
    )

    run = model.run(trace, JOB)

    assert run.node_s["waiting"] == pytest.approx(3 * 1000, abs=200)  # torchft's groups start first
    assert any(point.training > 0 for point in run.series if point.at_s > 3000)


def test_a_torchft_group_dies_whole_and_its_survivors_start_another() -> None:
    model = Torchft(nodes_per_group=4, join_stall_s=0)

    run = model.run(_trace(12, (1000, "remove", "n0"), (3000, "add", "x")), JOB)

    assert run.recoveries == {"group lost": 1, "join": 1}
    training = {point.training for point in run.series if 1100 < point.at_s <= 3000}
    assert training == {8}


def test_torchft_without_a_group_left_goes_back_to_its_checkpoint() -> None:
    model = Torchft(nodes_per_group=4, checkpoint_every_s=1800)

    run = model.run(_trace(10, (3000, "remove", "n0 n5")), JOB)

    assert run.recoveries == {"group lost": 1, "rollback": 1}
    assert run.node_s["redone"] == pytest.approx(8 * 1200, rel=0.02)


def test_lazarus_reconfigures_as_long_as_every_expert_lives() -> None:
    model = Lazarus(num_experts=8, slots_per_node=4, skew=0.0)

    # Eight experts over six nodes of four slots: three replicas each, nodes 0 to 2 and 3 to 5.
    assert _sure(model, _trace(6, (1000, "remove", "n0 n1"))) == {"reconfigure": 1}
    assert _sure(model, _trace(6, (1000, "remove", "n0 n3"))) == {"reconfigure": 1}
    lost = _trace(6, (1000, "remove", "n0 n1 n2"), (1001, "add", "x"))
    assert _sure(model, lost)["rollback"] == 1


def test_moevement_replays_on_a_spare_and_rolls_back_when_all_copies_are_lost() -> None:
    model = MoEvement(gang_nodes=8)

    assert _sure(model, _trace(12, (1000, "remove", "n1 n2"))) == {"replay": 1}
    assert _sure(model, _trace(12, (1000, "remove", "n1 n2 n3"))) == {"rollback": 1}
    assert _sure(model, _trace(12, (1000, "remove", "n0 n6 n7"))) == {"rollback": 1}
    assert _sure(model, _trace(12, (1000, "remove", "n8 n9"))) == {}


def test_moevement_without_a_spare_waits_for_one() -> None:
    run = MoEvement(gang_nodes=8).run(
        _trace(8, (1000, "remove", "n1"), (2000, "add", "x"), end_s=5000), JOB
    )

    assert run.node_s["waiting"] == pytest.approx(7 * 1000)


def test_elasticmoe_fails_over_unless_a_whole_copyset_is_lost() -> None:
    pairs, triples = ElasticMoE(), ElasticMoE(redundancy=3)

    # Copysets are n0 n1, n2 n3 ... with two homes; n0 n1 n2, n3 n4 n5 ... with three.
    assert _sure(pairs, _trace(24, (1000, "remove", "n1 n2"))) == {"failover": 1}
    assert _sure(pairs, _trace(24, (1000, "remove", "n0 n1"))) == {"rollback": 1}
    assert _sure(triples, _trace(24, (1000, "remove", "n0 n1"))) == {"failover": 1}
    assert _sure(triples, _trace(24, (1000, "remove", "n0 n1 n2"))) == {"rollback": 1}


def test_elasticmoe_is_vulnerable_until_lost_homes_are_made_again() -> None:
    model = ElasticMoE()

    soon = _trace(24, (1000, "remove", "n0"), (1010, "remove", "n1"))
    later = _trace(24, (1000, "remove", "n0"), (2000, "remove", "n1"))

    assert _sure(model, soon) == {"failover": 1, "rollback": 1}
    assert _sure(model, later) == {"failover": 2}


def test_elasticmoe_keeps_only_as_many_homes_as_there_is_memory_for() -> None:
    # Eleven nodes hold two copies of the model, not three.
    trace = _trace(11, (1000, "remove", "n0 n1"))

    assert _sure(ElasticMoE(redundancy=3), trace) == {"rollback": 1}


def test_the_fatal_share_of_pairs_is_exact() -> None:
    assert fatal_share(24, 2, [0, 1]) == pytest.approx(1 / 23)
    assert fatal_share(24, 2, [1, 1]) == pytest.approx(1 / 46)
    assert fatal_share(24, 3, [5, 5]) == 0
    assert fatal_share(4, 2, [0, 0, 1]) == 1


def test_a_ledger_never_runs_backwards() -> None:
    ledger = Ledger()
    ledger.book(5.0, "waiting")

    with pytest.raises(AssertionError, match="time runs backwards"):
        ledger.book(4.0, "waiting")


# ---------------------------------------------------------------- beside each other


def test_a_comparison_has_a_row_and_a_series_for_every_model_in_order() -> None:
    trace = generate_trace(np.random.default_rng(0), SpotProfile(hours=3))

    found = compare(trace, MODELS, JOB)

    assert [row.model for row in found.rows] == NAMES
    assert list(found.series) == NAMES
    for row in found.rows:
        spent = row.redone + row.protecting + row.recovering + row.unused + row.waiting
        assert row.goodput + spent == pytest.approx(1)
        assert row.rollbacks == row.recoveries.get("rollback", 0)


def test_a_comparison_lists_every_assumption() -> None:
    found = compare(_trace(24), MODELS, JOB)

    listed = {(name, field) for name, field, _ in found.assumptions}
    for name, thing in [("job", JOB), *zip(NAMES, MODELS, strict=True)]:
        for field in fields(thing):  # type: ignore[arg-type]
            assert field.name == "name" or (name, field.name) in listed


def test_the_document_lists_every_assumption() -> None:
    text = DOCUMENT.read_text()

    for thing in (JOB, *MODELS):
        for field in fields(thing):  # type: ignore[arg-type]
            assert field.name == "name" or f"`{field.name}`" in text, field.name


def test_two_models_of_one_name_are_refused() -> None:
    with pytest.raises(ValueError, match="share a name"):
        compare(_trace(24), (Torchft(), Torchft()), JOB)


def test_goodput_of_another_run_is_rated_on_the_same_scale() -> None:
    trace = generate_trace(np.random.default_rng(2))
    run = Lazarus().run(trace, JOB)

    assert rate_goodput(run.samples, trace, JOB) == pytest.approx(run.goodput)


def test_cheaper_recoveries_never_lower_goodput() -> None:
    trace = generate_trace(np.random.default_rng(9))
    for cheap, dear in (
        (replace(ElasticMoE(), failover_s=0.1), replace(ElasticMoE(), failover_s=10.0)),
        (CheckpointRestart(restart_s=10.0), CheckpointRestart(restart_s=100.0)),
        (Lazarus(reconfigure_s=20.0), Lazarus(reconfigure_s=40.0)),
        (Torchft(group_restart_s=1.0), Torchft(group_restart_s=60.0)),
        (MoEvement(gang_nodes=14), MoEvement(gang_nodes=14, replace_s=100.0)),
    ):
        assert cheap.run(trace, JOB).goodput > dear.run(trace, JOB).goodput


def test_the_p3_trace_gives_the_documented_goodput() -> None:
    folder = os.environ.get("ELASTICMOE_TRACES")
    if not folder:
        pytest.skip("ELASTICMOE_TRACES is not set: the folder with bamboo/ and oobleck/")
    with (Path(folder) / "bamboo" / "p3-trace.csv").open() as lines:
        trace = read_trace(lines)

    found = compare(trace, MODELS, JOB)

    goodput = {row.model: row.goodput for row in found.rows}
    documented = (0.920, 0.953, 0.867, 0.514, 0.811, 0.594)
    for model, value in zip(NAMES, documented, strict=True):
        assert goodput[model] == pytest.approx(value, abs=0.0006), model
        assert f"| {value:.3f} |" in DOCUMENT.read_text(), model
