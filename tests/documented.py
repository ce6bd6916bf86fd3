"""The commands and configurations that docs/cluster.md shows, for tests that run them as they stand there."""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping

from tests.conftest import ROOT

PAGE = ROOT / "docs" / "cluster.md"
FENCE = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def blocks(language: str) -> list[str]:
    """Fenced code of the page in one language."""
    return [code for fenced, code in FENCE.findall(PAGE.read_text("utf-8")) if fenced == language]


def command(beginning: str, having: str, replaced: Mapping[str, object]) -> list[str]:
    """The words after the beginning of the one command that begins so and has some text, each replaced word another."""
    lines = [line for block in blocks("sh") for line in block.splitlines()]
    (line,) = [line for line in lines if line.startswith(f"{beginning} ") and having in line]
    words = shlex.split(line.removeprefix(beginning))
    assert replaced.keys() <= set(words), f"{sorted(replaced.keys() - set(words))} are not in: {line}"
    return [str(replaced.get(word, word)) for word in words]


def configuration(having: str, replaced: Mapping[str, str]) -> str:
    """The one configuration that has some text, with other texts in place of those that are replaced."""
    (code,) = [block for block in blocks("toml") if having in block]
    for old, new in replaced.items():
        assert old in code, f"{old!r} is not in:\n{code}"
        code = code.replace(old, new)
    return code
