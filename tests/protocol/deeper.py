"""A search that takes minutes to hours: `PYTHONPATH=. python tests/protocol/deeper.py --help`."""

import sys
from argparse import ArgumentParser
from time import monotonic

from protocol_search import Search
from protocol_vault import Bug, Case


def main() -> int:
    """Search one gang; returns 1 if a promise was broken."""
    parser = ArgumentParser(description=main.__doc__)
    parser.add_argument("--workers", type=int, default=4)
    parser.add_argument("--redundancy", type=int, default=2)
    parser.add_argument("--steps", type=int, default=2)
    parser.add_argument("--faults", type=int, default=3)
    parser.add_argument("--units-per-worker", type=int, default=1)
    parser.add_argument("--nodes", type=int, nargs="*", default=(), help="node of each worker")
    parser.add_argument("--skipped", type=int, nargs="*", default=(), help="no-op steps")
    parser.add_argument("--decide-again", action="store_true")
    parser.add_argument("--leave-mirrors", action="store_true")
    parser.add_argument("--mortal", action="store_true")
    parser.add_argument("--bug", choices=[bug.name.lower() for bug in Bug])
    options = parser.parse_args()
    case = Case(
        workers=options.workers,
        redundancy=options.redundancy,
        steps=options.steps,
        nodes=tuple(options.nodes),
        units_per_worker=options.units_per_worker,
        skipped=frozenset(options.skipped),
        decide_once=not options.decide_again,
        leave_mirrors=options.leave_mirrors,
        is_mortal=options.mortal,
        bugs=frozenset({Bug[options.bug.upper()]} if options.bug else ()),
    )
    began = monotonic()
    found = Search(case, options.faults).run()
    sys.stdout.write(
        f"{found.broken} broken worlds, {found.trained} gangs that trained, "
        f"{found.unrecoverable} rightly given up, {monotonic() - began:.0f} s\n{found.violation}\n"
    )
    return bool(found.violation)


if __name__ == "__main__":
    sys.exit(main())
