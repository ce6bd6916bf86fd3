"""Which stage nodes a configuration asks for, and in which order; a mask policy is a branch of its own."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import product
from typing import Any

from manifests.errors import UsageError
from pipeline.config import RunConfig
from stages.base import Settings
from stages.embeddings.settings import EmbeddingsSettings
from stages.finetune.settings import Attention, FinetuneSettings, LoraSettings, Schedule, SlcaSettings
from stages.methods import FOCUS, PictureView, sees_masks, variant_of, views_of
from stages.models.card import TIMM, Interpolation, seen_px, side_px
from stages.models.registry import entry
from stages.pictures.settings import GridsSettings, PicturesSettings

MAP_STAGES = ("proposals", "masks", "tokens", "embeddings", "pictures", "grids")
CELL_STAGES = ("texts", "fusion", "probes", "baselines", "finetune", "slca", "lora")
SCORED_STAGES = ("probes", "baselines", "finetune", "slca", "lora")
"""Their cells have scores."""
MODEL_STAGES = ("proposals", "tokens", "embeddings", "grids", "baselines", "finetune", "slca", "lora")
"""Their units take images through a model or train one: on a GPU, if there is one."""
RANKING = "clip-rank"
"""The mask policy that has a model."""
STAGE_CHOICES = (*MAP_STAGES, *CELL_STAGES, "one", "two", "all")
MISSING = {
    "tokens": "Set embeddings.tokens = true.",
    "pictures": 'Name backbones: finetune.models = ["lite0"].',
    "finetune": 'Name backbones: finetune.models = ["lite0"].',
    "grids": 'Name backbones: slca.models = ["lite0"].',
    "slca": 'Name backbones: slca.models = ["lite0"].',
    "lora": 'Name views: lora.views = ["original"].',
}
"""What makes a configuration have a stage."""
GROUPS = {"one": ("proposals", "masks"), "two": ("embeddings", "texts", "fusion", "probes"), "all": ("probes", "masks")}


@dataclass(frozen=True, slots=True)
class Node:
    """One stage with one settings table: one branch of what the run computes."""

    key: str
    """Name in this graph, such as `proposals` or `masks[union]`."""
    stage: str
    settings: Settings
    inputs: Mapping[str, str]
    """Key of each input node by stage name."""
    policy: str = ""
    """Mask policy of this branch; empty before the masks stage."""
    backbone: str = ""
    """Vision backbone of this branch; empty for the study's own model."""

    @property
    def is_map(self) -> bool:
        """Whether units are chunks (else cells)."""
        return self.stage in MAP_STAGES

    @property
    def has_model(self) -> bool:
        """Whether units run or train a model, which a GPU makes faster."""
        return self.stage in MODEL_STAGES or getattr(self.settings, "policy", "") == RANKING


def build_graph(config: RunConfig) -> tuple[Node, ...]:
    """All nodes of a configuration, inputs before what needs them."""
    variants = config.masks.variants()
    nodes: list[Node] = []
    if any(policy not in ("none", "supplied") for policy in variants):
        nodes.append(Node("proposals", "proposals", config.proposals, {}))
    if config.embeddings.tokens:
        nodes.append(Node("tokens", "tokens", config.embeddings.of_tokens(), {}))
    for position, (policy, masks) in enumerate(variants.items()):
        nodes.extend(_branch(config, policy, masks, first=position == 0))
    first = next(iter(variants))
    inputs = {"embeddings": f"embeddings[{first}]", "texts": "texts"}
    nodes.append(Node("baselines", "baselines", config.baselines, inputs, first))
    for backbone in config.baselines.backbones:
        nodes.extend(_backbone(config, first, backbone))
    return (*nodes, *{node.key: node for node in _trained(config, first)}.values())


def _trained(config: RunConfig, policy: str) -> Iterator[Node]:
    """What is trained on pictures, after what it is shown; what several are shown comes several times.

    Raises
    ------
    WeightsError
        If a backbone does not take squares of the side that is asked for.
    """
    resize, canvas_px = config.embeddings.resize, config.embeddings.canvas_px
    schedule = {name: getattr(config.finetune, name) for name in Schedule.model_fields}
    attention = {name: getattr(config.slca, name) for name in Attention.model_fields}
    for model, view in product(config.finetune.models, config.finetune.views):
        pictures = _pictures(config, policy, view, model)
        yield pictures
        plain = FinetuneSettings(model=model, view=view, **schedule)
        yield Node(f"finetune[{model}, {view}]", "finetune", plain, {"pictures": pictures.key}, policy, model)
    for model, view in product(config.slca.models, config.slca.views):
        pictures = _pictures(config, policy, view, model)
        grids = GridsSettings(model=config.slca.encoder, grid=config.slca.grid, resize=resize, canvas_px=canvas_px)
        yield from (pictures, Node("grids", "grids", grids, {}))
        attended, inputs = SlcaSettings(model=model, view=view, **schedule, **attention), {"pictures": pictures.key}
        yield Node(f"slca[{model}, {view}]", "slca", attended, {**inputs, "grids": "grids"}, policy, model)
    for view in config.lora.views:
        pictures = _pictures(config, policy, view, config.embeddings.model)
        yield pictures
        lora = LoraSettings(model=config.embeddings.model, view=view, **config.lora.model_dump(exclude={"views"}))
        yield Node(f"lora[{view}]", "lora", lora, {"pictures": pictures.key}, policy)


def _pictures(config: RunConfig, policy: str, view: PictureView, model: str) -> Node:
    """One view as a model sees it."""
    of_backbone = entry(model).kind == "timm"
    px: int = seen_px(model)
    interpolation: Interpolation = "bicubic"
    if of_backbone:
        px, interpolation = side_px(model, config.finetune.image_px), TIMM[entry(model).architecture][2]
    settings = PicturesSettings(
        view=view,
        image_px=px,
        interpolation=interpolation,
        resize=config.embeddings.resize,
        compositing=config.masks.compositing,
        canvas_px=config.embeddings.canvas_px,
    )
    key = f"pictures[{view}, {px} px, {interpolation}]"
    return Node(key, "pictures", settings, {"masks": f"masks[{policy}]"}, policy)


def _backbone(config: RunConfig, policy: str, backbone: str) -> list[Node]:
    """A vision backbone in place of CLIP: its vectors of the original and the masked image, fusion, and probes."""
    view = config.masks.compositing
    embeddings = EmbeddingsSettings(
        model=backbone,
        views=("original", view),
        compositing=view,
        resize=config.embeddings.resize,
        canvas_px=config.embeddings.canvas_px,
        precision=config.embeddings.precision,
    )
    probes = config.probes.model_copy(update={"methods": (FOCUS, "original", view)})
    fusion = config.fusion.model_copy(update={"methods": (FOCUS,), "view": view})
    keys = {stage: f"{stage}[{backbone}]" for stage in ("embeddings", "fusion", "probes")}
    inputs = {"embeddings": keys["embeddings"], "texts": "texts"}
    return [
        Node(keys["embeddings"], "embeddings", embeddings, {"masks": f"masks[{policy}]"}, policy, backbone),
        Node(keys["fusion"], "fusion", fusion, inputs, policy, backbone),
        Node(keys["probes"], "probes", probes, {**inputs, "fusion": keys["fusion"]}, policy, backbone),
    ]


def _branch(config: RunConfig, policy: str, masks: Settings, *, first: bool) -> list[Node]:
    """Nodes of one mask policy; what does not depend on masks is computed in the first branch alone."""

    def key(stage: str) -> str:
        return f"{stage}[{policy}]"

    from_proposals = {} if policy in ("none", "supplied") else {"proposals": "proposals"}
    embeddings: Settings = config.embeddings
    probes = config.probes
    if not first:
        methods = tuple(m for m in config.probes.methods if sees_masks(m))
        probes = config.probes.model_copy(update={"methods": methods})
        read = {config.fusion.view, *(view for method in methods for view in views_of(method))}
        views = tuple(v for v in config.embeddings.views if v != "original" or v in read)
        embeddings = config.embeddings.model_copy(update={"views": views})
    fusion = config.fusion.model_copy(update={"methods": tuple(m for m in probes.methods if variant_of(m))})
    tokens = {"tokens": "tokens"} if config.embeddings.tokens else {}
    fusion_inputs = {"embeddings": key("embeddings"), "texts": "texts", **tokens}
    texts = [Node("texts", "texts", config.texts, {})] if first else []
    return [
        Node(key("masks"), "masks", masks, from_proposals, policy),
        Node(key("embeddings"), "embeddings", embeddings, {"masks": key("masks"), **tokens}, policy),
        *texts,
        Node(key("fusion"), "fusion", fusion, fusion_inputs, policy),
        Node(key("probes"), "probes", probes, {**fusion_inputs, "fusion": key("fusion")}, policy),
    ]


def select(nodes: tuple[Node, ...], stage: str) -> tuple[Node, ...]:
    """The nodes that `--stage` names, by stage or by the key of one node, and everything they need, in order.

    Raises
    ------
    UsageError
        If no node of the graph serves that stage.
    """
    wanted = {n.key for n in nodes if n.key == stage}
    if stage not in STAGE_CHOICES and not wanted:
        raise UsageError(f"There is no stage {stage!r}.", f"Stages: {', '.join(STAGE_CHOICES)}.")
    served = GROUPS.get(stage, (stage,))
    wanted |= {n.key for n in nodes if served_by(n) in served}
    if not wanted:
        why = MISSING.get(stage, "Its mask policies need no proposals.")
        raise UsageError(f"This configuration has no stage {stage!r}.", why)
    for node in reversed(nodes):
        if node.key in wanted:
            wanted.update(node.inputs.values())
    return tuple(n for n in nodes if n.key in wanted)


def served_by(node: Node) -> str:
    """Stage whose name runs a node: frozen backbones belong to the baselines."""
    return "baselines" if node.backbone and node.stage in ("embeddings", "fusion", "probes") else node.stage


def settings_of(node: Node) -> dict[str, Any]:
    """Settings as JSON values, for events and the run record."""
    return node.settings.model_dump(mode="json")


def has_model(config: RunConfig, stage: str) -> bool:
    """Whether units of a stage, or of a group of stages, run or train a model; what they need first is not counted."""
    stages = GROUPS.get(stage, (stage,))
    return stage == "all" or any(node.has_model for node in build_graph(config) if served_by(node) in stages)
