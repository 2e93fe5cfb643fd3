"""The Ray-style face: a trainer with Ray's configurations, `fit()` and Ray's result."""

from dataclasses import asdict
from pathlib import Path
from typing import Any

import pandas as pd
import ray
import ray.train

from elasticmoe.api import Watch, as_spec, client_of, finish, follow
from elasticmoe.cluster.jobs import submit
from elasticmoe.errors import JobFailedError, SpecError
from elasticmoe.report.history import read_history
from elasticmoe.report.job_dir import read_outcome
from elasticmoe.spec.job import JobSpec
from elasticmoe.spec.load import parse_data, to_data


class ElasticMoETrainer:
    """Trains a job on Ray.

    >>> trainer = ElasticMoETrainer(  # doctest: +SKIP
    ...     "job.toml",
    ...     scaling_config=ray.train.ScalingConfig(num_workers=8, use_gpu=True),
    ...     run_config=ray.train.RunConfig(name="first", storage_path="/mnt/runs"),
    ... )
    >>> result = trainer.fit()  # doctest: +SKIP
    """

    def __init__(
        self,
        job: JobSpec | dict[str, Any] | str | Path,
        *,
        scaling_config: ray.train.ScalingConfig | None = None,
        run_config: ray.train.RunConfig | None = None,
        address: str | None = None,
        watch: Watch | None = None,
    ) -> None:
        """
        Args:
            job: a spec, the same as plain data, or the path of a TOML or JSON file.
            scaling_config: `num_workers`, also as (least, most), and `use_gpu`; replace what
                the job says.
            run_config: `name` and `storage_path`; replace what the job says.
            address: of a Ray cluster; none: the one this process is connected to, else a Ray of
                the job's own on this machine.
            watch: told every event of the job.

        Raises:
            SpecError: the job is wrong, or a configuration asks for what a job cannot have.
        """
        plain = to_data(as_spec(job))
        if scaling_config is not None:
            _scale(plain, scaling_config)
        if run_config is not None:
            _place(plain, run_config)
        self.job = parse_data(plain)
        self._address, self._watch = address, watch

    def fit(self) -> ray.train.Result:
        """Train to the end.

        Returns:
            `metrics` is the summary, `checkpoint` the newest checkpoint, `path` the job's
            directory, `error` why the job ended without finishing, else none.

        Raises:
            ElasticMoEError: the job could not begin.
        """
        address = self._address or ("auto" if ray.is_initialized() else None)
        handle = submit(self.job, address)
        outcome = follow(client_of(handle), handle.directory, self._watch)
        error: JobFailedError | None = None
        try:
            metrics = asdict(finish(self.job, outcome))
        except JobFailedError as failure:
            metrics, error = dict(read_outcome(handle.directory) or outcome), failure
        uri = outcome["newest_checkpoint"]
        checkpoint = ray.train.Checkpoint(uri) if uri else None
        return ray.train.Result(
            metrics=metrics,
            checkpoint=checkpoint,
            error=error,
            path=str(handle.directory),
            metrics_dataframe=_frame(handle.directory),
            best_checkpoints=[(checkpoint, metrics)] if checkpoint else [],
        )


def _scale(plain: dict[str, Any], scaling: ray.train.ScalingConfig) -> None:
    refused = {
        name: value
        for name in ("resources_per_worker", "trainer_resources", "label_selector", "topology")
        if (value := getattr(scaling, name, None))
    }
    if refused:
        raise SpecError(
            tuple(
                f"scaling_config.{name} = {value!r}: a worker takes workers.threads CPUs, and a "
                "GPU with use_gpu; set those instead"
                for name, value in refused.items()
            )
        )
    workers = plain["workers"]
    wanted = scaling.num_workers
    if isinstance(wanted, tuple):
        workers["min"], workers["max"] = wanted
        workers["replicas"] = wanted[1]
    else:
        workers["replicas"] = wanted
        workers["min"] = min(workers["min"], wanted)
        workers["max"] = max(workers["max"], wanted)
    workers["device"] = "cuda" if scaling.use_gpu else "cpu"


def _place(plain: dict[str, Any], run: ray.train.RunConfig) -> None:
    if run.name is not None:
        plain["name"] = run.name
    if run.storage_path is not None:
        plain["storage"]["dir"] = str(Path(run.storage_path) / plain["name"])


def _frame(job_dir: Path) -> pd.DataFrame:
    """One row per committed step."""
    records = read_history(job_dir).steps.values()
    return pd.DataFrame(
        [(record.step, record.at_s, record.loss) for record in records],
        columns=["step", "timestamp", "loss"],
    )
