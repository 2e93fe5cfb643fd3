"""Where everything goes: pure functions from numbers to plans."""
