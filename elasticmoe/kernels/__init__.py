"""The hot loops beside their plain references; one dispatch point per operation."""
