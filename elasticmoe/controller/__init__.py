"""The brain: a pure state machine, the loop around it, and the protocols it needs."""
