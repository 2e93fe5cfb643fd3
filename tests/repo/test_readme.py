"""What the README promises is there."""

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
import typer
from click import Group

from elasticmoe.cli.app import app

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()
PAGES = sorted([ROOT / "README.md", *(ROOT / "docs").glob("*.md"), *ROOT.glob("*/*/README.md")])


def _commands(group: Group, before: str = "") -> Iterator[str]:
    for name, command in group.commands.items():
        if hasattr(command, "commands"):
            yield from _commands(command, f"{before}{name} ")
        else:
            yield f"{before}{name}"


def test_every_command_is_in_the_readme_and_every_one_there_exists() -> None:
    group = typer.main.get_command(app)
    known = set(_commands(group))  # type: ignore[arg-type]

    # `checkpoint list|verify` stands for two
    named = README.replace("list\\|verify", "list` `elasticmoe checkpoint verify")
    shown = {
        " ".join(words[: 2 if words[0] in ("checkpoint", "data") else 1])
        for words in (found.split() for found in re.findall(r"`elasticmoe ([a-z][a-z ]*)", named))
    }

    assert known - {"version"} <= shown
    assert shown <= known


def test_every_make_target_in_the_readme_exists() -> None:
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))

    shown = set(re.findall(r"(?:^|`)make ([a-z]+)", README, re.MULTILINE))

    assert shown >= {"train", "test"}
    assert shown <= targets


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_link_leads_somewhere_and_nothing_is_left_to_fill_in(page: Path) -> None:
    text = page.read_text()

    links = re.findall(r"\]\(([^)#\s]+)[^)]*\)", text)

    missing = [link for link in links if "://" not in link and not (page.parent / link).exists()]
    assert missing == []
    assert "@@" not in text
