"""What all parts of a job specification share."""

from pydantic import BaseModel, ConfigDict


class Spec(BaseModel):
    """A frozen, strict piece of a job specification; docstrings become descriptions."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", strict=True, use_attribute_docstrings=True, validate_default=True
    )
