"""elasticmoe: train Mixture-of-Experts models on machines that come and go.

>>> import elasticmoe
>>> summary = elasticmoe.train("job.toml")  # doctest: +SKIP
"""

from typing import TYPE_CHECKING, Any

from elasticmoe.version import VERSION as __version__

if TYPE_CHECKING:
    from elasticmoe.trainer import ElasticMoETrainer, train

__all__ = ["ElasticMoETrainer", "__version__", "train"]


def __getattr__(name: str) -> Any:
    """Load the trainer only when asked for: it brings torch and Ray, which take seconds."""
    if name in ("ElasticMoETrainer", "train"):
        from elasticmoe import trainer

        return getattr(trainer, name)
    raise AttributeError(f"module 'elasticmoe' has no attribute {name!r}")
