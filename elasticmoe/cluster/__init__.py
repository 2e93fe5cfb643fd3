"""The real world: Ray actors, node agents, forked workers, the journal on disk."""
