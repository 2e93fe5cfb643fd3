"""What all parts of a job specification share."""

from pydantic import BaseModel, ConfigDict


class Spec(BaseModel):
    """A frozen, strict piece of a job specification; docstrings become descriptions."""

    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        strict=True,
        allow_inf_nan=False,
        use_attribute_docstrings=True,
        validate_default=True,
    )
