"""Other ways to live with failures, as small models of goodput on a trace. See docs/rivals.md."""
