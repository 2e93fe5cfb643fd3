"""`data pack`: from text to token shards."""

from pathlib import Path
from typing import Annotated

import typer

from elasticmoe.cli.saying import say
from elasticmoe.errors import SpecError

data_app = typer.Typer(help="Prepare training data.", no_args_is_help=True)


@data_app.callback()
def data() -> None:
    """Prepare training data."""


@data_app.command("pack")
def pack_data(
    out: Annotated[Path, typer.Option(help="Directory for the shards.")],
    inputs: Annotated[
        list[str] | None,
        typer.Argument(help="Text, .jsonl or .parquet files, patterns, or directories."),
    ] = None,
    stdlib: Annotated[
        bool, typer.Option("--stdlib", help="Add the sources of Python's standard library.")
    ] = False,
    tokenizer: Annotated[str, typer.Option(help="bytes, or a tokenizers JSON file.")] = "bytes",
    text_column: Annotated[str, typer.Option(help="Of .jsonl and .parquet files.")] = "text",
    holdout: Annotated[
        float, typer.Option(min=0.0, max=0.5, help="Share of documents kept for evaluation.")
    ] = 0.02,
) -> None:
    """Pack text into memory-mapped token shards."""
    from elasticmoe.runtime.pack import pack, stdlib_sources

    sources: list[str | Path] = [*(inputs or [])]
    if stdlib:
        sources.append(stdlib_sources())
    if not sources:
        raise SpecError(("nothing to pack: name files or directories, or give --stdlib",))
    packed = pack(sources, out, tokenizer=tokenizer, text_column=text_column, holdout=holdout)
    say(
        f"{packed.directory}: {packed.documents:,} documents, {packed.train_tokens:,} tokens to "
        f"train on, {packed.heldout_tokens:,} held out, vocabulary {packed.vocab_size:,}"
    )
