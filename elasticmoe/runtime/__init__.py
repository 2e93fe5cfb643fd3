"""The muscle: groups, dispatch, pipeline, exchange, step. Knows torch; decides nothing."""
