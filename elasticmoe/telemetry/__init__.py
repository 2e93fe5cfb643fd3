"""What we measure: one table of metrics, and a log of named events."""
