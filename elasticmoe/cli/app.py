"""All commands, and the one place where an error becomes a sentence and an exit code."""

import sys
from collections.abc import Sequence

import typer

from elasticmoe.cli.data import data_app
from elasticmoe.cli.models import export_model, generate_text, import_model
from elasticmoe.cli.rehearse import rehearse_job
from elasticmoe.cli.saying import say_error
from elasticmoe.cli.show import checkpoint_app, show_plan, show_story, show_version
from elasticmoe.cli.simulate import simulate_job
from elasticmoe.cli.train import attach_to_job, stop_job, train_job
from elasticmoe.errors import ElasticMoEError, SpecError

app = typer.Typer(
    name="elasticmoe",
    help="Train Mixture-of-Experts models on machines that come and go.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
app.command("train")(train_job)
app.command("attach")(attach_to_job)
app.command("stop")(stop_job)
app.command("story")(show_story)
app.command("plan")(show_plan)
app.command("simulate")(simulate_job)
app.command("rehearse")(rehearse_job)
app.command("generate")(generate_text)
app.command("export")(export_model)
app.command("import")(import_model)
app.command("version")(show_version)
app.add_typer(checkpoint_app, name="checkpoint")
app.add_typer(data_app, name="data")


def main(arguments: Sequence[str] | None = None) -> None:
    """Run a command and leave: 0 is well, 1 is not, 2 is a mistake in what was asked for."""
    try:
        app(args=None if arguments is None else list(arguments))
    except ElasticMoEError as error:
        say_error(error)
        sys.exit(2 if isinstance(error, SpecError) else 1)
