"""What the user asked for: frozen pydantic models that TOML, JSON, Python and CRDs share."""
