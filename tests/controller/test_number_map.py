"""Frozen maps and the roster behave like dictionaries, and stay frozen."""

from hypothesis import given
from hypothesis import strategies as st

from elasticmoe.controller.number_map import NumberMap
from elasticmoe.controller.roster import LIVING, Roster, Worker, WorkerStatus

numbers = st.integers(0, 400)
changes = st.lists(
    st.one_of(
        st.tuples(st.just("put"), st.lists(st.tuples(numbers, st.integers()), max_size=5)),
        st.tuples(st.just("drop"), st.lists(numbers, max_size=5)),
    ),
    max_size=30,
)


@given(changes)
def test_a_number_map_does_what_a_dictionary_does(steps: list) -> None:
    plain: dict[int, int] = {}
    made: NumberMap[int] = NumberMap()
    for kind, values in steps:
        before, kept = dict(made.items()), made
        if kind == "put":
            plain.update(values)
            made = made.with_item(*values[0]) if len(values) == 1 else made.with_items(values)
        else:
            plain = {number: value for number, value in plain.items() if number not in values}
            made = made.without(values)
        assert dict(kept.items()) == before

    assert made == NumberMap(plain)
    assert made == plain
    assert list(made) == sorted(plain)
    assert len(made) == len(plain)
    assert all((number in made) == (number in plain) for number in range(401))


workers = st.builds(
    Worker,
    number=st.integers(0, 9),
    node=st.just(""),
    status=st.sampled_from(WorkerStatus),
    since_s=st.just(0.0),
)


@given(st.lists(st.one_of(st.lists(workers, max_size=4), st.sets(st.integers(0, 9)))))
def test_a_roster_counts_and_finds_what_is_in_it(steps: list) -> None:
    roster, plain = Roster(), {}
    for step in steps:
        if isinstance(step, set):
            roster = roster.without(step)
            plain = {number: one for number, one in plain.items() if number not in step}
            continue
        placed = {
            one.number: Worker(one.number, f"n{one.number % 3}", one.status, 0.0) for one in step
        }
        roster = roster.with_workers(placed.values())
        plain.update(placed)

    assert dict(roster) == plain
    for status in WorkerStatus:
        expected = [plain[n] for n in sorted(plain) if plain[n].status is status]
        assert list(roster.having(status)) == expected
        assert roster.count(status) == len(expected)
        assert roster.first(status) == (expected[0] if expected else None)
    assert roster.count(*LIVING) == len(roster.having(*LIVING))
    for node in ("n0", "n1", "n2"):
        assert list(roster.on_node(node)) == [n for n in sorted(plain) if plain[n].node == node]
