"""One run's configuration: a preset, then a TOML file, then `--set` overrides; unknown keys are refused."""

from __future__ import annotations

import difflib
import re
import tomllib
from collections.abc import Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any, Literal

from pydantic import ValidationError, model_validator

from manifests.errors import ConfigError
from manifests.reading import Reading
from pipeline.cluster_config import ClusterConfig
from stages.base import Settings, StudySettings
from stages.baselines.settings import BaselinesSettings
from stages.embeddings.settings import EmbeddingsSettings
from stages.finetune.settings import FinetuneConfig, LoraConfig, SlcaConfig
from stages.fusion.settings import FusionSettings
from stages.masks.settings import MasksSettings, Policy
from stages.methods import FORMS, TOKENS, variant_of, views_of
from stages.models.registry import is_adapted
from stages.probes.settings import ProbesSettings
from stages.proposals.settings import ProposalsSettings
from stages.texts.settings import TextsSettings

PRESETS = ("embedded", "paper")
UNSHOWN = re.compile(r"cluster(\.(jobs|cpu_jobs|tls|scheduler|scheduler_file)(\..*)?)?")
"""Keys whose values may hold secrets: errors name them alone."""


class MasksConfig(MasksSettings):
    """Mask settings, and further policies to run beside the first."""

    compare: tuple[Policy, ...] = ()
    """Each becomes further rows of the score table."""

    def variants(self) -> dict[str, MasksSettings]:
        """Settings of every policy in order: the main one first, none twice."""
        common = self.model_dump(exclude={"compare", "policy"})
        return {policy: MasksSettings(policy=policy, **common) for policy in (self.policy, *self.compare)}


class RunConfig(Settings):
    """Everything that a run is told; `[section]` tables are the stages' own settings."""

    preset: Literal["embedded", "paper"] = "embedded"
    reading: Reading = Reading()
    proposals: ProposalsSettings = ProposalsSettings()
    masks: MasksConfig = MasksConfig()
    embeddings: EmbeddingsSettings = EmbeddingsSettings()
    texts: TextsSettings = TextsSettings()
    fusion: FusionSettings = FusionSettings()
    probes: ProbesSettings = ProbesSettings()
    baselines: BaselinesSettings = BaselinesSettings()
    finetune: FinetuneConfig = FinetuneConfig()
    slca: SlcaConfig = SlcaConfig()
    lora: LoraConfig = LoraConfig()
    study: StudySettings = StudySettings()
    cluster: ClusterConfig = ClusterConfig()

    @model_validator(mode="after")
    def _sections_agree(self) -> RunConfig:
        sides = {self.proposals.canvas_px, self.masks.canvas_px, self.embeddings.canvas_px}
        if len(sides) > 1:
            raise ValueError(f"canvas_px differs between sections: {sorted(sides)}; set it once, at the top")
        if (self.texts.model, self.texts.features) != (self.embeddings.model, self.embeddings.features):
            raise ValueError("texts and embeddings must name the same model and features")
        if (self.baselines.model, self.baselines.features) != (self.embeddings.model, self.embeddings.features):
            raise ValueError("baselines and embeddings must name the same model and features")
        if self.baselines.view not in self.embeddings.views:
            raise ValueError(
                f"baselines.view {self.baselines.view!r} is not among embeddings.views {list(self.embeddings.views)}"
            )
        if self.fusion.view not in self.embeddings.views:
            raise ValueError(
                f"fusion.view {self.fusion.view!r} is not among embeddings.views {list(self.embeddings.views)}"
            )
        views = self.embeddings.views
        for method in self.probes.methods:
            if variant_of(method) and views_of(method) == (TOKENS,):
                if not self.embeddings.tokens:
                    raise ValueError(f"probes.methods has {method!r}, which needs embeddings.tokens = true")
            elif lacking := [view for view in views_of(method) if view not in views]:
                raise ValueError(
                    f"probes.methods has {method!r}, but embeddings.views {list(views)} lacks {', '.join(lacking)}; a "
                    f"method is {FORMS}"
                )
        return self


def load_config(file: Path | None = None, overrides: Sequence[str] = (), preset: str | None = None) -> RunConfig:
    """Read the configuration of one run.

    Parameters
    ----------
    file : Path, optional
        TOML file; wins over the preset.
    overrides : Sequence[str]
        `section.key=value` in TOML's notation (a bare word is a string); wins over the file.
    preset : str, optional
        `embedded` or `paper`; wins over the file's own `preset`.

    Raises
    ------
    ConfigError
        If the file cannot be read, or a key or value is wrong; names the key, the value and the nearest valid key.
    """
    layer = _read_toml(file) if file else {}
    for text in overrides:
        layer = _merge(layer, _parse_override(text))
    chosen = preset or layer.get("preset", "embedded")
    if chosen not in PRESETS:
        raise ConfigError(f"There is no preset {chosen!r}.", f"Presets: {', '.join(PRESETS)}.")
    raw = tomllib.loads((files("pipeline") / "presets" / f"{chosen}.toml").read_text("utf-8"))
    raw = _share(_merge(_merge(raw, layer), {"preset": chosen}))
    try:
        return RunConfig.model_validate(raw)
    except ValidationError as error:
        raise _as_config_error(error) from None


def _read_toml(file: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(file.read_text("utf-8"))
    except OSError as error:
        raise ConfigError(f"The configuration {file} cannot be read: {error.strerror}.", "Check --config.") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"The configuration {file} is not valid TOML: {error}.", "Correct the line named.") from None


def _parse_override(text: str) -> dict[str, Any]:
    key, sign, value = text.partition("=")
    if not sign or not key.strip():
        raise ConfigError(f"--set {text!r} is not of the form section.key=value.", "Example: --set masks.policy=union")
    try:
        parsed = tomllib.loads(f"value = {value}")["value"]
    except tomllib.TOMLDecodeError:
        parsed = value.strip()
    for part in reversed(key.strip().split(".")):
        parsed = {part: parsed}
    return dict(parsed)


def _merge(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    merged = dict(below)
    for key, value in above.items():
        both = isinstance(value, Mapping) and isinstance(merged.get(key), Mapping)
        merged[key] = _merge(merged[key], value) if both else value
    return merged


def _share(raw: Mapping[str, Any]) -> dict[str, Any]:
    """Hand values that several sections need to those that do not set them."""
    out = {k: dict(v) if isinstance(v, Mapping) else v for k, v in raw.items()}
    sections = ("proposals", "masks", "embeddings", "texts", "fusion", "probes", "baselines")
    if any(not isinstance(out.setdefault(name, {}), dict) for name in sections):
        return out  # a scalar where a table belongs: validation names it
    canvas_px = out.pop("canvas_px", None)
    if canvas_px is not None:
        for name in ("proposals", "masks", "embeddings"):
            out[name].setdefault("canvas_px", canvas_px)
    for key in ("model", "features"):
        if key in out["embeddings"]:
            for name in ("texts", "baselines"):
                out[name].setdefault(key, out["embeddings"][key])
    if is_adapted(str(out["proposals"].get("model", ""))):
        out["proposals"].setdefault("prompting", "unprompted")
    view = out["masks"].get("compositing", "masked")
    out["embeddings"].setdefault("views", ["original", view])
    out["embeddings"].setdefault("compositing", view)
    views = out["embeddings"]["views"]
    if isinstance(views, list | tuple) and views and "original" not in views:
        out["baselines"].setdefault("view", views[0])
    chosen = out["fusion"].setdefault("view", view)
    out["probes"].setdefault("methods", list(dict.fromkeys(("medfocus", chosen, "original", "constant"))))
    return out


def _as_config_error(error: ValidationError) -> ConfigError:
    first = error.errors()[0]
    location = [str(part) for part in first["loc"]]
    dotted = ".".join(location)
    if first["type"] == "extra_forbidden":
        near = difflib.get_close_matches(location[-1], _known_keys(location[:-1]), n=1)
        fix = f"Did you mean {near[0]!r}?" if near else f"Known here: {', '.join(_known_keys(location[:-1]))}."
        return ConfigError(f"The configuration has an unknown key: {dotted}.", fix)
    message = first["msg"].removeprefix("Value error, ")
    where = f"{_shown(dotted, first['input'])}: " if location else ""
    return ConfigError(f"The configuration is wrong: {where}{message}.", "docs/configuration.md lists keys and ranges.")


def _shown(dotted: str, value: object) -> str:
    """A key with its wrong value, or alone where that may hold a secret, as whole tables and lists may."""
    if UNSHOWN.fullmatch(dotted) or not isinstance(value, str | int | float):
        return dotted
    return f"{dotted} = {value!r}"


def _known_keys(location: Sequence[str]) -> list[str]:
    model: Any = RunConfig
    for part in location:
        field = getattr(model, "model_fields", {}).get(part)
        model = field.annotation if field else None
    keys = list(getattr(model, "model_fields", {}))
    return [*keys, "canvas_px"] if model is RunConfig else keys
