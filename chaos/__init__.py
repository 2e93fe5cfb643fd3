"""Faults on purpose: nemeses, scenarios, and checkers that believe the journal alone."""
