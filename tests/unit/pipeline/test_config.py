"""Configuration: presets, files, overrides, and errors that name the key and the way out."""

from __future__ import annotations

from pathlib import Path

import pytest

from manifests.errors import ConfigError
from pipeline.config import load_config


def test_without_a_file_the_embedded_preset_holds() -> None:
    config = load_config()
    assert config.preset == "embedded"
    assert config.proposals.model == "sam2-lite0"
    assert config.embeddings.model == config.texts.model == "lite0-minilm"


def test_paper_preset_is_what_the_paper_says() -> None:
    config = load_config(preset="paper")
    assert config.proposals.model == "sam2_hiera_large"
    assert (config.probes.C, config.probes.normalise) == (0.316, False)
    assert config.masks.canvas_px == 1024


def test_override_wins_over_file_and_file_over_preset(tmp_path: Path) -> None:
    file = tmp_path / "run.toml"
    file.write_text('[proposals]\npoints_per_side = 9\n[masks]\npolicy = "top1"\n')
    config = load_config(file, ["masks.policy=union"])
    assert config.proposals.points_per_side == 9
    assert config.masks.policy == "union"


def test_override_reads_toml_values() -> None:
    config = load_config(overrides=["study.seeds=[3, 4]", "proposals.min_stability=0.75", "embeddings.tokens=true"])
    assert config.study.seeds == (3, 4)
    assert config.proposals.min_stability == 0.75
    assert config.embeddings.tokens is True


def test_unknown_key_is_named_with_its_nearest_neighbour() -> None:
    with pytest.raises(ConfigError, match=r"unknown key: masks\.polcy.*Did you mean 'policy'"):
        load_config(overrides=["masks.polcy=union"])


def test_unknown_section_lists_the_known_ones() -> None:
    with pytest.raises(ConfigError, match=r"unknown key: gpu.*proposals"):
        load_config(overrides=["gpu.count=2"])


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("masks.policy=unoin", r"masks\.policy = 'unoin'"),
        ("proposals.points_per_side=0", r"proposals\.points_per_side = 0"),
        ("study.fractions=[0.5, 1.5]", r"study\.fractions.*not above 1"),
        ("study.seeds=[]", r"study\.seeds.*at least one seed"),
        ('texts.templates=["no place"]', r"texts\.templates.*exactly one"),
        ('embeddings.views=["masked", "masked"]', r"embeddings\.views.*none twice"),
        ("fusion.view=roi", r"fusion\.view 'roi' is not among"),
        ("masks.canvas_px=256", r"canvas_px differs between sections: \[256, 512\]"),
        ("texts.features=projected", r"same model and features"),
        ('slca.models=["vit-b-16-untrained"]', r"slca\.models.*vit-b-16-untrained: a plain vision transformer"),
        ('slca.models=["clip-vit-b-32"]', r"slca\.models.*no backbone clip-vit-b-32; there are lite0"),
        ('finetune.models=["lite0", "lite0"]', r"finetune\.models.*none twice"),
        ('finetune.views=["roi"]', r"finetune\.views"),
        ("proposals=3", r"proposals"),
    ],
)
def test_wrong_value_is_named(override: str, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        load_config(overrides=[override])


@pytest.mark.parametrize(
    "override",
    [
        'cluster.jobs.prologue="export TOKEN=s3cret"',
        'cluster.jobs.directives=["--comment=s3cret", 5]',
        "cluster.jobs.walltime=s3cret",
        "cluster.jobs.memory=s3cret",
        "cluster.jobs=s3cret",
        'cluster.cpu_jobs.prologue=[["s3cret"]]',
        "cluster.cpu_jobs=s3cret",
        'cluster.tls.key="s3cret"',
        "cluster.tls=s3cret",
        "cluster.scheduler=s3cret:8786",
        'cluster.scheduler_file=["s3cret"]',
        'cluster={jobs = {prologue = ["s3cret"], minimum = 9, maximum = 1}}',
        'cluster={kind = "slurm", scheduler = "tcp://s3cret:1"}',
        'cluster=["s3cret"]',
        'cluster="s3cret"',
    ],
)
def test_value_that_may_hold_a_secret_is_not_told(override: str) -> None:
    with pytest.raises(ConfigError, match=r"cluster") as refused:
        load_config(overrides=[override])
    assert "s3cret" not in str(refused.value)


def test_canvas_is_set_once_for_all_sections() -> None:
    config = load_config(overrides=["canvas_px=256"])
    assert {config.proposals.canvas_px, config.masks.canvas_px, config.embeddings.canvas_px} == {256}


def test_views_follow_the_compositing() -> None:
    config = load_config(overrides=["masks.compositing=crop"])
    assert config.embeddings.views == ("original", "crop")
    assert config.fusion.view == config.embeddings.compositing == "crop"
    assert config.probes.methods == ("medfocus", "crop", "original", "constant")


def test_method_whose_view_is_not_embedded_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"'original\+roi'.*lacks roi.*shape, constant, VIEWS"):
        load_config(overrides=['probes.methods=["original+roi"]'])


def test_method_on_tokens_needs_stored_tokens() -> None:
    method = 'probes.methods=["medfocus@tokens"]'
    with pytest.raises(ConfigError, match=r"needs embeddings.tokens = true"):
        load_config(overrides=[method])
    assert load_config(overrides=[method, "embeddings.tokens=true"]).probes.methods == ("medfocus@tokens",)


def test_method_that_is_no_form_of_medfocus_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"medfocus-attn.*is no method.*concat-mlp"):
        load_config(overrides=['probes.methods=["medfocus-attn"]'])


def test_each_policy_is_one_variant_and_none_comes_twice() -> None:
    config = load_config(overrides=['masks.compare=["supplied", "union"]'])
    assert list(config.masks.variants()) == ["union", "supplied"]


@pytest.mark.parametrize(("content", "words"), [("[masks\n", "not valid TOML"), (None, "cannot be read")])
def test_file_that_cannot_be_used_is_named(tmp_path: Path, content: str | None, words: str) -> None:
    file = tmp_path / "run.toml"
    if content is not None:
        file.write_text(content)
    with pytest.raises(ConfigError, match=rf"run\.toml.*{words}"):
        load_config(file)


@pytest.mark.parametrize("text", ["masks.policy", "=union"])
def test_override_without_key_or_value_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match=r"section\.key=value"):
        load_config(overrides=[text])


def test_unknown_preset_lists_the_presets() -> None:
    with pytest.raises(ConfigError, match=r"no preset 'papr'.*embedded, paper"):
        load_config(preset="papr")
