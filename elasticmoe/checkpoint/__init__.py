"""Bytes that outlive us: a directory of packed units, and a manifest written last."""
