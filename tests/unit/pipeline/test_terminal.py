"""Tables on the terminal: text as it is, whole words, no wrapping in a pipe."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from pipeline.commands import say
from pipeline.terminal import print_table, visible

HEADER = ("stage", "units", "5 %")
ROWS = [("masks[supplied]", 5, "63.9 ± 11.8 (23/36)"), ("embeddings[bold]", None, ":x: [red]")]


def printed(width: int) -> list[str]:
    out = io.StringIO()
    print_table(HEADER, ROWS, Console(file=out, width=width, force_terminal=True, color_system=None))
    return [line.rstrip() for line in out.getvalue().splitlines()]


def test_brackets_and_colons_are_shown_as_they_are(capsys: pytest.CaptureFixture[str]) -> None:
    print_table(HEADER, ROWS)
    out = capsys.readouterr().out
    assert "masks[supplied]" in out
    assert "embeddings[bold]" in out
    assert ":x: [red]" in out


def test_pipe_wraps_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    print_table(("a",), [("word " * 200,)])
    assert len(capsys.readouterr().out.splitlines()) == 2


def test_narrow_terminal_wraps_between_words() -> None:
    lines = printed(40)
    assert max(map(len, lines)) <= 40
    assert any(line.startswith("masks[supplied]") for line in lines)
    assert any(line.strip() == "(23/36)" for line in lines)


def test_terminal_too_narrow_for_the_words_loses_none_of_their_letters() -> None:
    lines = printed(20)
    assert max(map(len, lines)) <= 20
    assert sum(line.count("[") for line in lines) == 3


def test_wide_terminal_gives_a_line_a_row() -> None:
    assert len(printed(100)) == 1 + len(ROWS)


def test_control_characters_are_written_out(capsys: pytest.CaptureFixture[str]) -> None:
    name = "\x1b[31mred\x1b[0m\r\n\x07é€日"
    assert visible(name) == r"\x1b[31mred\x1b[0m\r\n\x07é€日"
    print_table(("class",), [(name,)])
    say([name])
    assert "\x1b" not in capsys.readouterr().out
