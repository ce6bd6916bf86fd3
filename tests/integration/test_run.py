"""Whole runs on real models: what is computed, what is not computed again, and what people see."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from PIL import Image

from tests.conftest import Cli, Finished
from tests.integration.pipelines import QUICK, add_row, committed, copy_source, digests, stores, with_proposals

pytestmark = pytest.mark.slow


@dataclass(frozen=True)
class Study:
    """A finished quick study that a test may go on with."""

    cli: Cli
    work: Path
    source: Path

    @property
    def dataset(self) -> Path:
        return self.work / "phantoms"

    def ingest(self, *more: object) -> Finished:
        labels = self.source / "labels.csv"
        return self.cli(
            "ingest", self.source, "--dataset", "phantoms", "--labels", labels, "--workdir", self.work, *more
        )

    def run(self, *more: object, settings: tuple[str, ...] = QUICK) -> Finished:
        return self.cli("run", "--workdir", self.work, "--cluster", "inline", *settings, *more)

    def copied(self, work: Path) -> Study:
        """A copy with the same source."""
        shutil.copytree(self.work, work)
        return Study(self.cli, work, self.source)

    def undisturbed(self, *more: object) -> dict[str, dict[str, str]]:
        """Digests of a copy beside it after a run to which nothing happened."""
        copy = self.copied(self.work.with_name("undisturbed"))
        done = copy.run(*more)
        assert done.code == 0, done.err
        return digests(copy.dataset)


@pytest.fixture(scope="module")
def finished(cli: Cli, phantom_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Study:
    """One quick study, run to its end once for all tests of this module."""
    root = tmp_path_factory.mktemp("study")
    study = Study(cli, root / "work", copy_source(phantom_folder, root / "source"))
    assert study.ingest("--chunk-items", 4).code == 0
    done = study.run()
    assert done.code == 0, done.err
    return study


@pytest.fixture
def study(finished: Study, tmp_path: Path) -> Iterator[Study]:
    """A copy of the finished study, with its source in the old place."""
    shutil.copytree(finished.work, tmp_path / "work")
    backup = copy_source(finished.source, tmp_path / "backup")
    yield Study(finished.cli, tmp_path / "work", finished.source)
    shutil.rmtree(finished.source)
    shutil.copytree(backup, finished.source)


def test_every_unit_is_committed_and_verifies(finished: Study) -> None:
    units = {path.split("/")[0]: len(names) for path, names in stores(finished.dataset).items()}
    assert units == {"masks": 5, "embeddings": 5, "texts": 1, "fusion": 4, "probes": 16}
    verified = finished.cli("verify", "--workdir", finished.work)
    assert verified.code == 0
    assert "0 damaged" in verified.out


def test_second_run_does_nothing(study: Study) -> None:
    before = digests(study.dataset)
    done = study.run("--json")
    assert done.code == 0
    assert done.json["committed"] == {}
    assert study.run().out.startswith("Nothing to do: everything is committed.")
    assert digests(study.dataset) == before


def test_one_new_image_gives_a_drop_whose_one_chunk_alone_is_computed(study: Study) -> None:
    old = study.source / "images" / "train" / "round" / "000.png"
    new = old.with_name("new.png")
    Image.open(old).transpose(Image.Transpose.FLIP_LEFT_RIGHT).save(new)
    add_row(study.source, new, "round", "train", "")
    assert "drop-002: 1 images in 1 chunks" in study.ingest().out
    assert study.run().code == 0
    chunks = [unit for unit in committed(study.dataset) if "drop-" in unit]
    assert sorted(chunks) == ["embeddings[supplied]/drop-002/000000", "masks[supplied]/drop-002/000000"]
    cells = [unit for unit in committed(study.dataset) if "drop-" not in unit]
    assert len(cells) == 4 + 16


def test_renamed_and_touched_files_recompute_nothing(study: Study) -> None:
    old = study.source / "images" / "train" / "round" / "000.png"
    old.rename(old.with_name("renamed.png"))
    os.utime(study.source / "images" / "train" / "round" / "001.png", (1, 1))
    labels = study.source / "labels.csv"
    labels.write_text(labels.read_text().replace("images/train/round/000.png", "images/train/round/renamed.png"))
    ingested = study.ingest("--json").json
    assert (ingested["drop"], ingested["renamed"]) == (None, 1)
    assert study.run("--json").json["committed"] == {}


def test_renamed_file_is_found_when_a_later_stage_needs_it(study: Study) -> None:
    old = study.source / "images" / "train" / "round" / "000.png"
    old.rename(old.with_name("renamed.png"))
    labels = study.source / "labels.csv"
    labels.write_text(labels.read_text().replace("images/train/round/000.png", "images/train/round/renamed.png"))
    study.ingest()
    done = study.run("--stage", "embeddings", "--json", "--set", "masks.policy=none")
    assert done.code == 0
    assert done.json["failed_images"] == {}


def test_changed_mask_policy_recomputes_no_proposal(study: Study) -> None:
    assert study.run("--stage", "masks", settings=with_proposals()).code == 0
    done = study.run("--stage", "masks", "--json", settings=with_proposals("masks.policy=top1")).json
    assert done["committed"] == {"masks[top1]": 5}


def test_changed_seeds_fit_only_the_new_cells(study: Study) -> None:
    done = study.run("--stage", "fusion", "--json", "--set", "study.seeds=[0, 1, 2]").json
    assert done["committed"] == {"fusion[supplied]": 2}


def test_baselines_and_more_methods_add_cells_and_rows_to_the_report(study: Study) -> None:
    more = ("--set", 'probes.methods=["medfocus", "original+masked", "shape"]')
    baselines = ("--set", 'baselines.methods=["zero-shot", "tip-adapter"]')
    assert "Done: 8 of" in study.run("--stage", "probes", *more).out
    assert "Done: 8 of" in study.run("--stage", "baselines", *baselines).out
    shown = study.cli("report", "--dataset", "phantoms", "--workdir", study.work, *QUICK, *more, *baselines)
    assert shown.code == 0, shown.err
    for method in ("medfocus", "original+masked", "shape", "zero-shot", "tip-adapter"):
        assert f"{method} " in shown.out


def test_backbones_are_branches_of_the_baselines(study: Study) -> None:
    chosen = ("--set", 'baselines.methods=["zero-shot"]', "--set", 'baselines.backbones=["resnet50-untrained"]')
    assert study.run(*chosen).out.count("Nothing to do") == 1  # the main study is complete without them
    done = study.run("--stage", "baselines", "--json", *chosen).json
    assert done["committed"].keys() == {
        "baselines",
        "embeddings[resnet50-untrained]",
        "probes[resnet50-untrained]",
        "fusion[resnet50-untrained]",
    }
    assert done["committed"]["probes[resnet50-untrained]"] == 3 * 4
    shown = study.cli("report", "--dataset", "phantoms", "--workdir", study.work, *QUICK, *chosen)
    assert shown.code == 0, shown.err
    assert "resnet50 (untrained) original" in shown.out
    assert "resnet50 (untrained) medfocus" in shown.out
    page = Path(shown.out.rpartition("Report: ")[2].strip()).read_text("utf-8")
    assert "resnet50-untrained is untrained" in page


def test_trained_classifiers_are_stages_of_their_own(study: Study) -> None:
    chosen = tuple(
        part
        for setting in (
            *('finetune.models=["lite0"]', 'finetune.views=["original", "masked"]', 'slca.models=["lite0"]'),
            *('lora.views=["original"]', "finetune.image_px=32", "finetune.epochs=2", "finetune.min_steps=2"),
            *("lora.steps_per_shot=2", "slca.encoder=sam2-tiny-untrained"),
        )
        for part in ("--set", setting)
    )
    assert study.run(*chosen).out.count("Nothing to do") == 1  # the main study is complete without them
    done = study.run("--stage", "finetune", "--json", *chosen).json["committed"]
    assert done == {
        "pictures[original, 32 px, bicubic]": 5,
        "finetune[lite0, original]": 4,
        "pictures[masked, 32 px, bicubic]": 5,
        "finetune[lite0, masked]": 4,
    }
    done = study.run("--stage", "slca", "--json", *chosen).json["committed"]
    assert done == {"grids": 5, "slca[lite0, original]": 4}  # the pictures are there
    done = study.run("--stage", "lora", "--json", *chosen).json["committed"]
    assert done == {"pictures[original, 224 px, bicubic]": 5, "lora[original]": 4}
    shown = study.cli("report", "--dataset", "phantoms", "--workdir", study.work, *QUICK, *chosen)
    assert shown.code == 0, shown.err
    for method in ("lite0 finetune ", "lite0 finetune@masked ", "lite0 slca ", "clip-lora "):
        assert method in shown.out
    page = Path(shown.out.rpartition("Report: ")[2].strip()).read_text("utf-8")
    assert "trained end to end on the masked image" in page
    again = study.run("--stage", "slca", *chosen, "--set", "slca.reduction=4", "--json")
    assert again.json["committed"] == {"slca[lite0, original]": 4}


def test_stage_without_models_says_what_to_set(study: Study) -> None:
    refused = study.run("--stage", "slca")
    assert refused.code == 2
    assert 'slca.models = ["lite0"]' in refused.err


def test_shots_and_forms_of_the_fusion_are_cells_of_their_own(study: Study) -> None:
    more = ("--set", "study.shots=[1, 2]", "--set", "embeddings.tokens=true")
    methods = ("--set", 'probes.methods=["medfocus", "medfocus-hadamard@original", "medfocus-logits@tokens"]')
    done = study.run("--stage", "probes", "--json", *more, *methods).json
    assert done["committed"]["fusion[supplied]"] == done["committed"]["probes[supplied]"] == 3 * 4 * 2
    shown = study.cli("report", "--dataset", "phantoms", "--workdir", study.work, *QUICK, *more, *methods)
    assert shown.code == 0, shown.err
    assert "2-shot" in shown.out
    assert "medfocus-logits@tokens" in shown.out


def test_array_parts_together_equal_one_run(study: Study, tmp_path: Path) -> None:
    parts = Study(study.cli, tmp_path / "parts", study.source)
    parts.ingest("--chunk-items", 4)
    for part in ("2/2", "1/2"):
        assert parts.run("--stage", "one", "--part", part).code == 0
    whole = {k: v for k, v in digests(study.dataset).items() if k.startswith("masks/")}
    assert digests(parts.dataset) == whole


def test_limited_run_leaves_cells_waiting(study: Study, tmp_path: Path) -> None:
    limited = Study(study.cli, tmp_path / "limited", study.source)
    limited.ingest("--chunk-items", 4)
    done = limited.run("--limit", 1)
    assert done.code == 0
    assert "fusion[supplied] waits for" in done.out


def test_two_workers_give_the_same_digests_as_one_process(study: Study, tmp_path: Path) -> None:
    local = Study(study.cli, tmp_path / "local", study.source)
    local.ingest("--chunk-items", 4)
    done = local.cli("run", "--workdir", local.work, "--cluster", "local", "--workers", 2, *QUICK)
    assert done.code == 0, done.err
    assert digests(local.dataset) == digests(study.dataset)


def test_run_record_and_events_hold_no_path(study: Study) -> None:
    kept = [f for f in study.dataset.rglob("*") if f.is_file() and "drops" not in f.parts]
    for file in kept:
        data = file.read_bytes()
        assert str(study.source).encode() not in data, file
        assert str(study.work).encode() not in data, file


def test_report_is_one_page_that_names_every_number(finished: Study) -> None:
    page = next((finished.dataset / "reports").rglob("index.html"))
    text = page.read_text()
    scores = (page.parent / "scores.csv").read_text().splitlines()
    assert len(scores) == 1 + 16
    assert "http://" not in text.replace("http://www.w3.org", "")
    assert "constant" in text


def test_plan_and_status_say_what_is_and_what_would_be(study: Study) -> None:
    done = study.cli("status", "--workdir", study.work, "--json", *QUICK)
    by_stage = {row["stage"]: row for row in json.loads(done.out)}
    assert by_stage["masks[supplied]"]["images"] == {"ok": 18}
    planned = study.cli("plan", "--workdir", study.work, "--json", *QUICK, "--set", "masks.compositing=crop")
    rows = {row["stage"]: (row["units"], row["why"]) for row in json.loads(planned.out)}
    assert rows["masks[supplied]"] == (5, 'settings changed: compositing was "masked", is "crop"')
    assert rows["texts"] == (0, "")
    assert rows["fusion[supplied]"][0] is None


def test_source_that_is_not_mounted_is_refused_before_any_image_fails(study: Study, tmp_path: Path) -> None:
    moved = study.source.rename(tmp_path / "moved")
    try:
        refused = study.run("--set", "masks.policy=none")
        assert refused.code == 4
        assert "--source FOLDER" in refused.err
        done = study.run("--stage", "masks", "--set", "masks.policy=none", "--source", moved, "--json")
        assert done.json["failed_images"] == {}
    finally:
        moved.rename(study.source)


def test_altered_text_bank_fails_its_cells_and_says_so(study: Study) -> None:
    bank = next((study.dataset / "stages" / "texts").rglob("bank.npy"))
    bank.write_bytes(bank.read_bytes()[:-1] + b"x")
    done = study.run("--set", "study.seeds=[5]", "--json")
    assert done.code == 3
    assert all("not what was committed" in cause for cause in done.json["failed_units"].values())


def test_drop_that_does_not_exist_is_named(study: Study) -> None:
    done = study.run("--drop", "drop-009")
    assert done.code == 4
    assert "drop-001" in done.err
