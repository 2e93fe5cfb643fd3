"""How the command line speaks: one console for results, one for errors."""

from rich.console import Console
from rich.text import Text

from elasticmoe.errors import ElasticMoEError


def console() -> Console:
    """Where results go. Lines are not wrapped unless a person is reading."""
    return Console(highlight=False, soft_wrap=True)


def say(text: str) -> None:
    """Print a line as it is."""
    console().print(Text(text))


def say_error(error: ElasticMoEError) -> None:
    """Say what happened, one line per problem, on standard error."""
    err = Console(stderr=True, highlight=False, soft_wrap=True)
    for line in str(error).splitlines() or [type(error).__name__]:
        err.print(Text.assemble(("error: ", "bold red"), line))


def format_duration(seconds: float) -> str:
    """Write a time as people read a clock.

    >>> format_duration(3.24), format_duration(192), format_duration(7384)
    ('3.2 s', '3 min 12 s', '2 h 3 min')
    """
    if seconds < 59.95:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest} s"
    return f"{minutes // 60} h {minutes % 60} min"


def printable(text: str) -> str:
    r"""Replace what would move the cursor or ring the bell; line ends and tabs stay.

    >>> printable("a\x1b[2Jb\n")
    'a�[2Jb\n'
    """
    return "".join(c if c.isprintable() or c in "\n\t" else "\ufffd" for c in text)
