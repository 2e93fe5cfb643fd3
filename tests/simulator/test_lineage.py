"""Versions tell equal contents from those that only have the same step number."""

from elasticmoe.simulator.lineage import INITIAL, Gradient, Lineage
from elasticmoe.simulator.vaults import Vault


def test_equal_updates_of_equal_versions_are_equal_and_others_are_not() -> None:
    lineage = Lineage()

    first = lineage.after(INITIAL, Gradient(1, 1))

    assert lineage.after(INITIAL, Gradient(1, 1)) == first
    assert lineage.after(INITIAL, Gradient(2, 1)) != first
    assert lineage.step(first) == 1


def test_a_version_holds_what_it_came_from_and_nothing_else() -> None:
    lineage = Lineage()
    first = lineage.after(INITIAL, Gradient(1, 1))
    second, other = lineage.after(first, Gradient(1, 2)), lineage.after(INITIAL, Gradient(2, 1))

    assert lineage.holds(second, first)
    assert lineage.holds(second, second)
    assert not lineage.holds(second, other)
    assert not lineage.holds(first, second)


def test_a_unit_whose_gradient_was_never_prepared_is_spoiled_by_rolling_it_forward() -> None:
    lineage = Lineage()
    vault = Vault("a", units={INITIAL: (0, 1, 2)}, progress=INITIAL)
    vault.prepared, vault.prepared_step, vault.covered = Gradient(1, 1), 1, (0, 1)

    vault.roll_forward(1, lineage)

    versions = vault.version_of()
    assert versions[0] == versions[1] == lineage.after(INITIAL, Gradient(1, 1))
    assert versions[2] != versions[0]
    assert lineage.step(versions[2]) == 1
