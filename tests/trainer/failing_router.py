"""A user's router with a bug that only training finds."""

from torch import Tensor

from elasticmoe.model.router import LinearRouter


class FailingRouter(LinearRouter):
    """Raises on its first token."""

    def forward(self, tokens_TD: Tensor) -> Tensor:
        raise RuntimeError("this router always fails")
