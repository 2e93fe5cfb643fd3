"""The words between brain and muscle: events and commands, as frozen data."""
