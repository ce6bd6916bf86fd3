from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from manifests.errors import InventoryError, WeightsError
from manifests.types import Cell
from stages.base import StageContext
from stages.texts import stage as module
from stages.texts.settings import TextsSettings
from stages.texts.stage import Texts, average, class_prompts, readable

BANK = Cell("bank", 1.0, 0)


class FakeWeights:
    """Digests without files."""

    def digests(self, name: str) -> dict[str, str]:
        return {name: "0" * 64}


def encode(texts: Sequence[str], _features: str) -> NDArray[np.float32]:
    """Unit vector in the direction of the number of letters and the number of words."""
    vectors = np.array([[len(t), len(t.split())] for t in texts], np.float32)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


@pytest.fixture(autouse=True)
def fake_model(monkeypatch: pytest.MonkeyPatch) -> None:
    clip = ModuleType("stages.models.clip")
    clip.load_clip = lambda *_: SimpleNamespace(encode_text=encode)  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "stages.models.clip", clip)
    monkeypatch.setattr(module, "WeightsFolder", FakeWeights)
    monkeypatch.setattr(module, "model_card", lambda name, _precision, features: {"name": name, "features": features})


def stage(classes: Sequence[str] = ("Covid", "viral_pneumonia"), **settings: Any) -> Texts:
    return Texts(TextsSettings(**settings), StageContext(classes=tuple(classes)))


def fit(texts: Texts, out: Path) -> Any:
    return texts.fit(BANK, None, out)  # type: ignore[arg-type]


def test_bank_is_the_unit_mean_over_templates(tmp_path: Path) -> None:
    counts = fit(stage(templates=("{}", "a photo of a {}.")), tmp_path)
    bank = np.load(tmp_path / "bank.npy")
    mean = encode(["viral pneumonia", "a photo of a viral pneumonia."], "trunk").mean(axis=0)
    assert (counts, bank.dtype) == ({"classes": 2, "prompts": 4}, np.float32)
    np.testing.assert_allclose(bank[1], mean / np.linalg.norm(mean), rtol=1e-6)


def test_prompts_and_card_stand_beside_the_bank(tmp_path: Path) -> None:
    fit(stage(), tmp_path)
    prompts = json.loads((tmp_path / "prompts.json").read_text())
    assert list(prompts.items()) == [
        ("Covid", ["This is a photo of Covid."]),
        ("viral_pneumonia", ["This is a photo of viral pneumonia."]),
    ]
    assert json.loads((tmp_path / "card.json").read_text()) == {"name": "lite0-minilm", "features": "trunk"}


@pytest.mark.parametrize(
    ("name", "text"), [("viral_pneumonia", "viral pneumonia"), ("COVID-19", "COVID 19"), ("NoTumor", "NoTumor")]
)
def test_class_name_is_readable(name: str, text: str) -> None:
    assert readable(name) == text


def test_braces_in_a_class_name_are_left_alone() -> None:
    assert class_prompts(("T{x}", "b"), ("a {}",)) == {"T{x}": ["a T{x}"], "b": ["a b"]}


@pytest.mark.parametrize(("classes", "word"), [((), "no class"), (("a_b", "a-b"), "read the same")])
def test_classes_without_a_text_of_their_own_are_refused(classes: tuple[str, ...], word: str) -> None:
    with pytest.raises(InventoryError, match=word):
        class_prompts(classes, ("{}",))


@pytest.mark.parametrize("bad", [[[np.nan, 0.0]], [[1.0, 0.0], [-1.0, 0.0]]])
def test_class_without_direction_is_refused(bad: list[list[float]]) -> None:
    with pytest.raises(WeightsError, match="no length"):
        average(np.array([bad], np.float32))


def test_class_order_and_templates_are_in_the_fingerprint() -> None:
    plain = stage().identity().fingerprint
    assert stage(("viral_pneumonia", "Covid")).identity().fingerprint != plain
    assert stage(templates=("{}",)).identity().fingerprint != plain
    assert stage().identity().fingerprint == plain


def test_there_is_one_bank_and_it_needs_nothing() -> None:
    texts = stage()
    assert (texts.inputs, texts.cells(), texts.needs(BANK)) == ((), (BANK,), {})
