"""The documentation says what the code does: commands parse, keys and codes are complete, links lead somewhere."""

from __future__ import annotations

import ast
import re
import shlex
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from functools import cache
from operator import attrgetter
from pathlib import Path
from typing import Any

import pytest
import typer

from manifests.readers import REASONS
from pipeline.cli import app
from pipeline.config import RunConfig, load_config
from pipeline.graph import STAGE_CHOICES
from stages import stage_class
from stages.base import StageContext
from tests.conftest import ROOT

PAGES = (ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md")))
PACKAGES = ("manifests", "stages", "pipeline")
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
COMMAND = re.compile(r"(?:^|[\s;&|(])(?:\.venv/bin/)?pipeline\s+(?P<arguments>[^#\n&|;`]*)")
REASON = re.compile(r"(?:file|format|decode|mask|placement|embedding|grid|upstream)\.[a-z_]+")
OUTSIDE_FINGERPRINTS = {
    ("masks", "compare"),
    ("fusion", "methods"),
    ("probes", "methods"),
    ("baselines", "methods"),
    ("baselines", "backbones"),
    ("finetune", "models"),
    ("finetune", "views"),
    ("slca", "models"),
    ("slca", "views"),
    ("lora", "views"),
}
SECTIONS_OUTSIDE = ("study", "cluster", "reading")


def name_of(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


@cache
def text_of(page: Path) -> str:
    return page.read_text("utf-8")


def blocks(page: Path, *languages: str) -> list[str]:
    """Fenced code of a page in any of the languages."""
    return [code for language, code in FENCE.findall(text_of(page)) if language in languages]


def commands(page: Path) -> Iterator[tuple[str, bool]]:
    """Arguments of every `pipeline` command of a page, and whether it stands in a block, where it must be complete."""
    for block in blocks(page, "sh"):
        lines = [line.split("#")[0] for line in block.replace("\\\n", " ").splitlines()]
        yield from ((found["arguments"].strip(), True) for line in lines for found in COMMAND.finditer(line))
    for inline in re.findall(r"`([^`\n]+)`", FENCE.sub("", text_of(page))):
        if inline.startswith(("pipeline ", ".venv/bin/pipeline ")):
            yield inline.split("pipeline ", 1)[1].strip(), False


def parse(arguments: list[str], *, complete: bool) -> dict[str, Any]:
    """Parameters that the real command line reads; runs nothing."""
    command: Any = typer.main.get_command(app)
    context = command.make_context("pipeline", list(arguments), resilient_parsing=True)
    while hasattr(command, "commands"):
        name = arguments.pop(0)
        assert name in command.commands, f"there is no command {name!r}"
        command = command.commands[name]
    try:
        context = command.make_context(command.name, arguments, parent=context)
    except Exception as error:
        if complete or type(error).__name__ != "MissingParameter":
            raise AssertionError(f"{command.name}: {error}") from error
        return {}
    return dict(context.params)


ALL_COMMANDS = [
    pytest.param(arguments, complete, id=f"{name_of(page)}:{arguments}"[:90])
    for page in PAGES
    for arguments, complete in dict.fromkeys(commands(page))
]


@pytest.mark.parametrize(("arguments", "complete"), ALL_COMMANDS)
def test_documented_command_is_one_that_the_command_line_takes(arguments: str, complete: bool) -> None:
    found = parse(shlex.split(arguments), complete=complete)
    assert (found.get("stage") or "all") in STAGE_CHOICES
    load_config(overrides=found.get("set_") or (), preset=found.get("preset"))


def test_every_command_is_documented() -> None:
    documented = {arguments.split()[0] for page in PAGES for arguments, _ in commands(page)}
    assert documented >= set(typer.main.get_command(app).commands)  # type: ignore[attr-defined]


def test_finder_of_commands_and_parser_see_what_is_wrong() -> None:
    assert COMMAND.search("CUDA_VISIBLE_DEVICES=0 .venv/bin/pipeline run --nonsense &")
    with pytest.raises(AssertionError, match="nonsense"):
        parse(["run", "--nonsense"], complete=True)
    with pytest.raises(AssertionError, match="frobnicate"):
        parse(["frobnicate"], complete=False)


def table_rows(text: str) -> list[list[str]]:
    """Cells of every line of a page that is a table's, without headers' rulers."""
    lines = [line for line in text.splitlines() if line.startswith("|") and not set(line) <= set("|-: ")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


def documented_keys() -> dict[str, dict[str, list[str]]]:
    """Rows of docs/configuration.md by section and key: type, default, range, in the fingerprint, meaning."""
    parts = re.split(r"^## ", text_of(ROOT / "docs" / "configuration.md"), flags=re.MULTILINE)
    sections = {part.splitlines()[0].strip("[] "): table_rows(part) for part in parts[1:]}
    return {name: {row[0].strip("`"): row[1:] for row in rows[1:]} for name, rows in sections.items()}


def tables_of(model: Any, prefix: str = "") -> dict[str, Any]:
    """Every settings table below a model, by its dotted name; an optional one that is like another is not listed."""
    found: dict[str, Any] = {}
    for name, field in model.model_fields.items():
        if hasattr(field.annotation, "model_fields"):
            found |= {prefix + name: field.annotation, **tables_of(field.annotation, f"{prefix}{name}.")}
    return found


SECTIONS = tables_of(RunConfig)
NESTED = {*SECTIONS, "cluster.cpu_jobs"}
KEYS = [(s, key) for s, model in SECTIONS.items() for key in model.model_fields if f"{s}.{key}" not in NESTED]


@pytest.mark.parametrize(("section", "key"), KEYS)
def test_configuration_key_is_documented_with_its_default(section: str, key: str) -> None:
    _, default, *_ = documented_keys()[section][key]
    actual = attrgetter(f"{section}.{key}")(RunConfig())
    if actual is None:
        assert default == "not set"
        return
    value = tomllib.loads(f"value = {default.strip('`')}")["value"]
    assert value == (list(actual) if isinstance(actual, tuple) else actual)


def test_no_key_is_documented_that_does_not_exist() -> None:
    documented = documented_keys()
    assert {(s, k) for s in SECTIONS for k in documented[s]} == set(KEYS)
    assert set(documented["Top level"]) == {"canvas_px", *(set(RunConfig.model_fields) - set(SECTIONS))}


@pytest.mark.parametrize(("section", "key"), KEYS)
def test_documented_range_is_the_checked_one(section: str, key: str) -> None:
    model: Any = SECTIONS[section]
    text = documented_keys()[section][key][2]
    words = re.findall(r"Literal\[([^\]]*)\]", str(model.model_fields[key].annotation))
    if words and not text.startswith(("as ", "these ")):
        assert set(re.findall(r"'([^']+)'", words[-1])) <= {*re.split(r"[,;] (?:or )?", text)}
    for bound in model.model_fields[key].metadata:
        for kind in ("ge", "le", "gt", "multiple_of"):
            assert str(getattr(bound, kind, "")) in text


@pytest.mark.parametrize("section", ["proposals", "masks", "embeddings", "texts"])
def test_keys_said_to_be_in_the_fingerprint_are_in_it(section: str) -> None:
    config = load_config()
    ranked = config.masks.variants()["union"].model_copy(update={"policy": "clip-rank"})
    settings = ranked if section == "masks" else getattr(config, section)
    if section == "proposals":
        settings = settings.model_copy(update={"model": "clipseg"})
        inside = set(settings.content())
        assert {key for key, row in documented_keys()[section].items() if row[3] == "yes"} == inside
        return
    stage: Any = stage_class(section)
    context = StageContext(dict.fromkeys(("proposals", "masks"), "0" * 64), ("a", "b"))
    inside = set(stage(settings, context).identity().settings)
    said = {key for key, row in documented_keys()[section].items() if row[3] == "yes"}
    assert said == inside - {"classes"}


def test_what_is_outside_every_fingerprint_is_said_to_be() -> None:
    for section, key in KEYS:
        outside = (section, key) in OUTSIDE_FINGERPRINTS or section.partition(".")[0] in SECTIONS_OUTSIDE
        assert documented_keys()[section][key][3] == ("no" if outside else "yes"), f"{section}.{key}"


@pytest.mark.parametrize("preset", ["embedded", "paper"])
def test_preset_is_documented_value_by_value(preset: str) -> None:
    raw = tomllib.loads((ROOT / "pipeline" / "presets" / f"{preset}.toml").read_text("utf-8"))
    values = {k: v for k, v in raw.items() if not isinstance(v, dict)}
    values |= {f"{s}.{k}": v for s, table in raw.items() if isinstance(table, dict) for k, v in table.items()}
    column = ("embedded", "paper").index(preset)
    rows = documented_keys()["The presets"]
    cells = {key: row[column].strip("`") for key, row in rows.items() if row[column]}
    assert {key: tomllib.loads(f"v = {cell}")["v"] for key, cell in cells.items()} == values


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_documented_configuration_files_are_valid(page: Path, tmp_path: Path) -> None:
    for number, block in enumerate(blocks(page, "toml")):
        file = tmp_path / f"{number}.toml"
        file.write_text(block, "utf-8")
        load_config(file)


@cache
def code_strings() -> frozenset[str]:
    """Every string of the packages; what an f-string fills in reads `…`."""
    found = set()
    for file in (f for package in PACKAGES for f in sorted((ROOT / package).rglob("*.py"))):
        for node in ast.walk(ast.parse(file.read_text("utf-8"))):
            if isinstance(node, ast.JoinedStr):
                found.add("".join(str(v.value) if isinstance(v, ast.Constant) else "…" for v in node.values))
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                found.add(node.value)
    return frozenset(found)


def test_every_reason_code_is_documented_and_no_other() -> None:
    rows = {row[0].strip("`"): row for row in table_rows(text_of(ROOT / "docs" / "troubleshooting.md"))}
    documented = {code for code in rows if code in REASONS or REASON.fullmatch(code)}
    raised = {text for text in code_strings() if REASON.fullmatch(text)}
    assert documented == raised | set(REASONS)
    assert all(rows[code][2] == meaning for code, meaning in REASONS.items())


def test_documented_message_is_one_of_the_code() -> None:
    rows = [row for row in table_rows(text_of(ROOT / "docs" / "troubleshooting.md")) if "…" in row[0]]
    quoted = [message for row in rows for message in re.findall(r"`([^`]+)`", row[0])]
    strings = code_strings()
    unknown = [m for m in quoted if not any(m.strip("… ") in text for text in strings)]
    assert len(quoted) > 50
    assert unknown == []


def anchors(page: Path) -> set[str]:
    titles = re.findall(r"^#+ (.+)$", FENCE.sub("", text_of(page)), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_relative_links_lead_to_files_and_headings(page: Path) -> None:
    for target in re.findall(r"\]\(([^)]+)\)", FENCE.sub("", text_of(page))):
        if "://" not in target:
            path, _, anchor = target.partition("#")
            file = (page.parent / path).resolve() if path else page
            assert file.exists(), target
            assert file.is_relative_to(ROOT), target
            assert not anchor or anchor in anchors(file), target


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_page_holds_no_placeholder_and_no_path_of_a_machine(page: Path) -> None:
    assert not re.search(r"\b(TODO|TBD|FIXME|XXX|lorem)\b", text_of(page), re.IGNORECASE)
    assert not re.search(r"(?<![\w.~}])/(home|work|root|Users|tmp)/", text_of(page))


def test_every_page_is_reached_from_the_readme() -> None:
    linked = {(ROOT / t.partition("#")[0]).resolve() for t in re.findall(r"\]\(([^)]+)\)", text_of(ROOT / "README.md"))}
    assert {page for page in PAGES if page.name != "README.md"} - linked == set()


def test_exit_codes_of_the_readme_are_the_program_s() -> None:
    from manifests.errors import ExitCode

    rows = table_rows(text_of(ROOT / "README.md"))
    assert {int(row[0]) for row in rows if row[0].isdigit()} == {int(code) for code in ExitCode}


def test_scores_of_the_readme_are_those_of_the_results() -> None:
    spread = re.compile(r"\d+\.\d ± \d+\.\d")
    known = [spread.findall(line) for line in text_of(ROOT / "docs" / "results.md").splitlines()]
    shown = [found for line in text_of(ROOT / "README.md").splitlines() if (found := spread.findall(line))]
    assert len(shown) >= 8
    assert [values for values in shown if not any(values == row[: len(values)] for row in known)] == []


def test_example_stage_runs_as_the_page_shows_it(tmp_path: Path) -> None:
    program = "\n".join(blocks(ROOT / "docs" / "adding-a-stage.md", "python"))
    (tmp_path / "example.py").write_text(program, "utf-8")
    run = f"import sys; sys.path.insert(0, {str(ROOT)!r}); import runpy; runpy.run_path('example.py')"
    command = [sys.executable, "-c", f"{run}; assert 'torch' not in sys.modules"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_every_test_that_the_table_of_faults_names_exists() -> None:
    rows = [row for row in table_rows(text_of(ROOT / "docs" / "reliability.md")) if row[0].isdigit()]
    assert [int(row[0]) for row in rows] == list(range(1, 57))
    named = [name.split("::") for row in rows for name in re.findall(r"`([^`]+::[^`]+)`", row[2])]
    assert len(named) > 150
    sources = {file: (ROOT / "tests" / file).read_text("utf-8") for file, _ in named}
    assert not [f"{file}::{name}" for file, name in named if f"def {name}(" not in sources[file]]
