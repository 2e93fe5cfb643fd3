"""`generate`, `export` and `import`: what can be done with a model."""

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from elasticmoe.cli.saying import printable, say
from elasticmoe.cli.train import JobDir, Overrides

Step = Annotated[
    int | None, typer.Option(help="The checkpoint of this step; else the newest valid one.")
]


class Dtype(StrEnum):
    """Data type of exported weights."""

    FLOAT32 = "float32"
    BFLOAT16 = "bfloat16"


def generate_text(
    job_dir: JobDir,
    prompt: Annotated[str, typer.Option(help="Text to continue.")] = "",
    tokens: Annotated[int, typer.Option(min=1, help="Tokens to add.")] = 200,
    temperature: Annotated[float, typer.Option(min=0.0, help="0 takes the likeliest token.")] = 0.7,
    seed: Annotated[int, typer.Option(help="Of the random choices.")] = 0,
    step: Step = None,
) -> None:
    """Let a trained model write."""
    from elasticmoe.checkpoint.read import open_verified
    from elasticmoe.report.evaluate import sample_text
    from elasticmoe.report.job_dir import checkpoint_store, read_spec
    from elasticmoe.report.whole_model import WholeModel
    from elasticmoe.runtime.tokenizer import read_tokenizer

    spec = read_spec(job_dir)
    tokenizer = read_tokenizer(spec.data.sources[0].path)
    checkpoint = open_verified(checkpoint_store(spec, job_dir), step)
    model = WholeModel(checkpoint, seq_len=spec.data.seq_len)
    text = sample_text(
        model, tokenizer, prompt, num_tokens=tokens, temperature=temperature, seed=seed
    )
    say(printable(text))


def export_model(
    job_dir: JobDir,
    out: Annotated[Path, typer.Argument(help="Directory for the Hugging Face files.")],
    dtype: Annotated[Dtype, typer.Option(help="Of the weights.")] = Dtype.FLOAT32,
    step: Step = None,
) -> None:
    """Write a model as Hugging Face safetensors and configuration."""
    from elasticmoe.report.exchange import export_checkpoint
    from elasticmoe.report.job_dir import read_spec

    spec = read_spec(job_dir)
    exported, files = export_checkpoint(spec, job_dir, out, dtype=dtype.value, step=step)
    names = ", ".join(file.name for file in files)
    say(f"{out}: the model of step {exported} as {names}")


def import_model(
    source: Annotated[Path, typer.Argument(help="A Hugging Face checkpoint.", metavar="HF_DIR")],
    job: Annotated[
        Path | None,
        typer.Argument(help="The job that is to start from it.", metavar="[JOB.toml]"),
    ] = None,
    overrides: Overrides = None,
) -> None:
    """Make Hugging Face weights a job's first checkpoint; without a job, print its [model]."""
    from elasticmoe.job_file import read_job
    from elasticmoe.report.exchange import import_checkpoint, model_table

    if job is None:
        say(model_table(source))
        return
    spec = read_job(job, overrides or [])
    uri = import_checkpoint(source, spec)
    say(f"{uri}: `elasticmoe train {job}` starts from it")
