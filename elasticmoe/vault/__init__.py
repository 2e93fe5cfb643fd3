"""Memory that outlives the process that works in it."""
