"""What a person sees while a job runs: a live panel on a terminal, plain lines elsewhere."""

import sys
import time
from collections.abc import Sequence
from types import TracebackType
from typing import Final, Protocol, Self

from rich.console import Group, RenderableType
from rich.live import Live
from rich.panel import Panel
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from elasticmoe.cli.progress import Progress
from elasticmoe.cli.saying import console, format_duration
from elasticmoe.client import JobEvent

BLOCKS: Final = "▁▂▃▄▅▆▇█"
MAX_BARS: Final = 64
"""Experts beyond this number share a bar, which shows the fullest of them."""
EVEN_BLOCK: Final = 4
"""Height of an expert with even load, of 8; twice the load is a full block."""
MAX_LAYERS: Final = 12
"""Of more MoE layers than this, the least even are shown."""
PLAIN_INTERVAL_S: Final = 10.0


class View(Protocol):
    """Shows a run."""

    progress: Progress

    def take(self, event: JobEvent) -> None:
        """Show an event."""
        ...

    def say(self, text: str) -> None:
        """Show a line that is no event."""
        ...

    def __enter__(self) -> Self: ...

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None: ...


def open_view(progress: Progress, *, plain: bool, local: bool) -> View:
    """The view that fits: plain lines if asked for, or if nobody sits at a terminal.

    Args:
        local: workers are processes of this machine, so that one may be killed by hand.
    """
    if plain or not sys.stdout.isatty():
        return PlainView(progress, local=local)
    return LiveView(progress, local=local)


class PlainView:
    """One line per sentence of the story, and per `PLAIN_INTERVAL_S` of steps."""

    def __init__(self, progress: Progress, *, local: bool) -> None:
        self.progress = progress
        self._local, self._invited = local, False
        self._told_s = 0.0

    def take(self, event: JobEvent) -> None:
        """See `View`."""
        progress = self.progress
        progress.take(event)
        if event.kind == "story":
            self.say(story_line(progress, event))
        elif event.kind == "step":
            now_s = time.monotonic()
            if now_s - self._told_s >= PLAIN_INTERVAL_S or progress.step == progress.total_steps:
                self._told_s = now_s
                self.say(step_line(progress))
            if not self._invited and (text := invitation(progress, local=self._local)):
                self._invited = True
                self.say(text)

    def say(self, text: str) -> None:
        """See `View`."""
        print(text, flush=True)  # noqa: T201  (rich would cut lines at the terminal's width)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        return


class LiveView:
    """A panel that stays in place, with the story scrolling above it."""

    def __init__(self, progress: Progress, *, local: bool) -> None:
        self.progress = progress
        self._local = local
        self._live = Live(
            get_renderable=lambda: render(self.progress, local=self._local),
            console=console(),
            refresh_per_second=4,
        )

    def take(self, event: JobEvent) -> None:
        """See `View`."""
        self.progress.take(event)
        if event.kind == "story":
            self.say(story_line(self.progress, event))

    def say(self, text: str) -> None:
        """See `View`."""
        self._live.console.print(Text(text), soft_wrap=False)

    def __enter__(self) -> Self:
        self._live.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._live.stop()


def story_line(progress: Progress, event: JobEvent) -> str:
    """A sentence with its time in the run."""
    return f"{progress.since_begin_s(event.at_s):7.1f} s  {event.fields['text']}"


def step_line(progress: Progress) -> str:
    """Progress in one line."""
    parts = [f"step {progress.step}/{progress.total_steps}"]
    if progress.loss is not None:
        parts.append(f"loss {progress.loss:.4f}")
    if progress.tokens_per_s:
        parts.append(f"{progress.tokens_per_s:,.0f} tokens/s")
    if progress.layers:
        worst = max(layer["max_violation"] for layer in progress.layers)
        parts.append(f"MaxVio {worst:.2f}")
    if progress.eta_s is not None:
        parts.append(f"ETA {format_duration(progress.eta_s)}")
    return "           " + ", ".join(parts)


def invitation(progress: Progress, *, local: bool) -> str | None:
    """A worker's pid and what to do with it; none: no worker trains on this machine."""
    if not (local and progress.workers and progress.step):
        return None
    worker = progress.workers[-1]
    return f"Try it, in another terminal: kill -9 {worker['pid']}   (worker {worker['worker']})"


def load_bar(load_E: Sequence[int]) -> str:
    """Expert load as blocks, one per expert; even load is half a block high.

    Args:
        load_E: tokens of each expert, in percent of even load.

    >>> load_bar([100, 0, 50, 200, 400])
    '▄▁▂██'
    """
    share = -(-len(load_E) // MAX_BARS)
    fullest = [max(load_E[start : start + share]) for start in range(0, len(load_E), share)]
    return "".join(BLOCKS[_height(load)] for load in fullest)


def _height(load: int) -> int:
    return min(max(round(load * EVEN_BLOCK / 100) - 1, 0), len(BLOCKS) - 1)


def render(progress: Progress, *, local: bool) -> RenderableType:
    """The panel of the live display."""
    parts: list[RenderableType] = [_headline(progress)]
    if progress.layers:
        parts += ["", _layers(progress)]
    if text := invitation(progress, local=local):
        parts += ["", Text(text, style="bold yellow")]
    return Panel(Group(*parts), title=Text(progress.name), title_align="left", border_style="blue")


def _headline(progress: Progress) -> Table:
    table = Table.grid(padding=(0, 2), expand=True)
    table.add_column(no_wrap=True)
    table.add_column(ratio=1, min_width=8)
    for _ in range(4):
        table.add_column(no_wrap=True)
    eta_s = progress.eta_s
    workers = len(progress.workers)
    table.add_row(
        f"step {progress.step}/{progress.total_steps}",
        ProgressBar(total=progress.total_steps, completed=progress.step),
        f"loss {progress.loss:.3f}" if progress.loss is not None else "starting",
        f"{progress.tokens_per_s:,.0f} tokens/s",
        f"ETA {format_duration(eta_s)}" if eta_s is not None and workers else "",
        f"{workers} worker{'' if workers == 1 else 's'}" if workers else "",
    )
    return table


def _layers(progress: Progress) -> Table:
    table = Table.grid(padding=(0, 2))
    shown = range(len(progress.layers))
    if len(shown) > MAX_LAYERS:
        by_violation = sorted(shown, key=lambda row: -progress.layers[row]["max_violation"])
        shown_rows = sorted(by_violation[:MAX_LAYERS])
    else:
        shown_rows = list(shown)
    for row in shown_rows:
        layer = progress.layers[row]
        dead = layer["dead_experts"]
        table.add_row(
            Text(layer["layer"], style="cyan"),
            Text(load_bar(layer["load"]), style="green"),
            f"MaxVio {layer['max_violation']:.2f}",
            f"{dead} idle" if dead else "",
        )
    return table
