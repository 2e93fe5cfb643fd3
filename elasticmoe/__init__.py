"""elasticmoe: train Mixture-of-Experts models on machines that come and go.

>>> import elasticmoe
>>> summary = elasticmoe.train("job.toml")  # doctest: +SKIP
"""

from typing import TYPE_CHECKING, Any

from elasticmoe.version import VERSION as __version__

if TYPE_CHECKING:
    from elasticmoe.api import train
    from elasticmoe.trainer import ElasticMoETrainer

__all__ = ["ElasticMoETrainer", "__version__", "train"]


def __getattr__(name: str) -> Any:
    """Load torch and Ray only when asked for: they take seconds."""
    if name == "train":
        from elasticmoe.api import train

        return train
    if name == "ElasticMoETrainer":
        from elasticmoe.trainer import ElasticMoETrainer

        return ElasticMoETrainer
    raise AttributeError(f"module 'elasticmoe' has no attribute {name!r}")
