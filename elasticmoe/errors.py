"""Every error this project raises.

ElasticMoEError
├── SpecError            the job file is wrong: names the field, the value and the remedy
├── PlanError            the job cannot be laid out on what is there
├── DataError            a shard or a sample is bad: names file and row
├── CheckpointError      a checkpoint is missing, damaged, or of another model
├── StorageError         the job's directory cannot be used
├── ClusterError         Ray cannot be reached or does not fit
├── GangBrokenError      a collective failed because the generation is over (retryable)
└── JobFailedError       the job ended without finishing

The user's mistakes raise; our own mistakes `assert`; the world's mistakes are events.
"""


class ElasticMoEError(Exception):
    """Base of all errors: a stable `code`, and whether trying again can help."""

    code = "error"
    retryable = False


class SpecError(ElasticMoEError):
    """The job file is wrong in one or several places."""

    code = "bad_spec"

    def __init__(self, problems: tuple[str, ...]) -> None:
        super().__init__(problems)
        self.problems = problems

    def __str__(self) -> str:
        return "\n".join(self.problems)


class PlanError(ElasticMoEError):
    """The job cannot be laid out on the workers that are there."""

    code = "no_plan"


class DataError(ElasticMoEError):
    """A token shard or a sample is bad."""

    code = "bad_data"


class CheckpointError(ElasticMoEError):
    """A checkpoint is missing, damaged, or belongs to another model."""

    code = "bad_checkpoint"


class StorageError(ElasticMoEError):
    """The job's directory cannot be used: taken, read-only, full."""

    code = "bad_storage"


class ClusterError(ElasticMoEError):
    """Ray cannot be reached, or does not fit what this version needs."""

    code = "bad_cluster"


class GangBrokenError(ElasticMoEError):
    """A collective failed: the generation is over. The step is redone by the next one."""

    code = "gang_broken"
    retryable = True


class JobFailedError(ElasticMoEError):
    """The job ended without finishing; carries the first cause and where the logs are."""

    code = "job_failed"
