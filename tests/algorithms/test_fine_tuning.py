"""Tuned networks against copies tuned by hand, caches and probes against other people's code."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV, PredefinedSplit
from sklearn.preprocessing import StandardScaler
from torch import Tensor, nn
from torch.nn import functional as F

from medbench.api import Backbone, ContractError, Support, Task
from medbench_algorithms.common.logistic import solve
from medbench_algorithms.fine_tuning import tuning
from medbench_algorithms.fine_tuning.adapters import Adapters
from medbench_algorithms.fine_tuning.lora import LoRA
from medbench_algorithms.fine_tuning.network import (
    BiasTuning,
    FullFineTuning,
    LastBlockFineTuning,
    NormTuning,
    PartTuning,
)
from medbench_algorithms.fine_tuning.parts import last_block_parameters
from medbench_algorithms.fine_tuning.swept_probe import SweptProbe
from medbench_algorithms.fine_tuning.tip_adapter import TipAdapter, TipAdapterF
from medbench_algorithms.fine_tuning.tsa import TaskSpecificAdapters
from medbench_algorithms.fine_tuning.tuning import Tuning
from medbench_backbones.conv4 import Conv4
from medbench_backbones.resnet12 import ResNet12
from medbench_backbones.timm_family import create

from .conftest import (
    SmallConv,
    StripesSource,
    feature_episodes,
    one_of,
    small_vit,
    stripes,
)

DEPTH, WIDTH = 2, 12  # of small_vit


def small_conv() -> SmallConv:
    """Running statistics and affine parameters away from where they start."""
    torch.manual_seed(3)
    backbone = SmallConv()
    with torch.no_grad():
        for _ in range(20):
            backbone.train()(stripes(torch.arange(8), torch.Generator().manual_seed(1)))
        for p in backbone.parameters():
            if p.ndim == 1:
                p.add_(0.1 * torch.randn(p.shape))
    return backbone.eval()


NETWORKS: dict[str, Callable[[], Backbone]] = {"conv": small_conv, "vit": small_vit}
PARTS: dict[str, type[PartTuning]] = {
    "all": FullFineTuning,
    "last": LastBlockFineTuning,
    "norm": NormTuning,
    "bias": BiasTuning,
}


def tuned_names(part: str, network: str, backbone: Backbone) -> list[str]:
    """What each part should be, written down for these two networks."""
    names = [name for name, _ in backbone.named_parameters()]
    if part == "all":
        return names
    if part == "bias":
        return [n for n in names if n.endswith(".bias")]
    if network == "conv":
        starts = {"last": ("net.4.", "net.5."), "norm": ("net.1.", "net.5.")}[part]
        return [n for n in names if n.startswith(starts)]
    if part == "last":
        return [n for n in names if n.startswith((f"model.blocks.{DEPTH - 1}.", "model.norm."))]
    return [n for n in names if "norm" in n]


@pytest.fixture
def task() -> Task:
    return StripesSource(way=3, shot=3).task("test")


def by_hand(
    backbone: Backbone,
    names: list[str],
    task: Task,
    optimiser: Callable[..., torch.optim.Optimizer],
    batches: list[Tensor],
    extra: list[nn.Parameter] | None = None,
    **settings: Any,
) -> tuple[Tensor, Backbone]:
    """Query scores of a deep copy with a `torch.nn.Linear`, tuned as anybody would."""
    model = copy.deepcopy(backbone).eval()
    tuned = [p for n, p in model.named_parameters() if n in names]
    head = nn.Linear(model.n_features, 3)
    with torch.no_grad():
        features = model(task.support.inputs)
        means = torch.stack([features[task.support.labels == c].mean(0) for c in range(3)])
        head.weight.copy_(means / means.norm(dim=1, keepdim=True))
        head.bias.zero_()
    groups = [
        {"params": [*tuned, *(extra or [])], "lr": settings.pop("lr")},
        {"params": head.parameters(), "lr": settings.pop("head_lr")},
    ]
    descent = optimiser(groups, **settings)
    for batch in batches:
        descent.zero_grad()
        logits = head(F.normalize(model(task.support.inputs[batch])))
        F.cross_entropy(logits, task.support.labels[batch]).backward()
        descent.step()
    with torch.no_grad():
        return head(F.normalize(model(task.query))), model


# --- fine-tuning of parts ------------------------------------------------------------------------


@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize("part", PARTS)
@pytest.mark.parametrize("kind", ["adam", "sgd"])
def test_fine_tuning_equals_a_tuned_deep_copy(
    network: str, part: str, kind: Any, task: Task
) -> None:
    backbone = NETWORKS[network]()
    lr, head_lr = (2e-3, 1e-3) if kind == "adam" else (0.1, 0.05)
    settings: dict[str, Any] = {"weight_decay": 0.01}
    if kind == "sgd":
        settings["momentum"] = 0.9
    method = PARTS[part](optimiser=kind, tune_lr=lr, head_lr=head_lr, tune_epochs=6, **settings)
    method.prepare(backbone, {})
    predictor = method.adapt(task.support)
    names = tuned_names(part, network, backbone)
    torch_kind = {"adam": torch.optim.Adam, "sgd": torch.optim.SGD}[kind]
    whole = [torch.arange(9)] * 6
    expected, model = by_hand(
        backbone, names, task, torch_kind, whole, lr=lr, head_lr=head_lr, **settings
    )
    torch.testing.assert_close(predictor.predict(task.query), expected, rtol=1e-4, atol=1e-5)
    assert sorted(predictor.tuned) == sorted(names)
    before = dict(backbone.named_parameters())
    for name, p in model.named_parameters():
        if name in names:
            torch.testing.assert_close(predictor.tuned[name], p.data, rtol=1e-3, atol=1e-5)
            if not name.endswith("attn.qkv.bias"):  # keys' biases have no gradient
                assert not torch.equal(predictor.tuned[name], before[name])
    start = PARTS[part](tune_epochs=0)
    start.prepare(backbone, {})
    unmoved = start.adapt(task.support).predict(task.query)
    assert (unmoved - expected).abs().max() > 1e-3  # the steps matter


def test_batches_are_drawn_from_the_episodes_generator(task: Task) -> None:
    backbone = small_conv()
    method = FullFineTuning(tune_epochs=3, tune_batch_size=4, tune_lr=1e-3, head_lr=1e-3)
    method.prepare(backbone, {})
    generator = task.support.generator()
    batches = [b for _ in range(3) for b in torch.randperm(9, generator=generator).split(4)]
    names = tuned_names("all", "conv", backbone)
    expected, _ = by_hand(backbone, names, task, torch.optim.Adam, batches, lr=1e-3, head_lr=1e-3)
    found = method.adapt(task.support).predict(task.query)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def test_gradients_added_up_in_pieces_are_those_of_the_whole_batch(
    task: Task, monkeypatch: pytest.MonkeyPatch
) -> None:
    method = FullFineTuning(optimiser="sgd", tune_lr=0.1, head_lr=0.1)
    method.prepare(small_conv(), {})
    expected = method.adapt(task.support).predict(task.query)
    monkeypatch.setattr(tuning, "_AT_ONCE", 2)
    found = method.adapt(task.support).predict(task.query)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("part", "count"),
    [
        ("all", (9 * 8 + 8) + 16 + (8 * 9 * 8 + 8) + 16),
        ("last", (8 * 9 * 8 + 8) + 16),
        ("norm", 16 + 16),
        ("bias", 8 + 8 + 8 + 8),
    ],
)
def test_adapted_parameters_of_a_small_network_are_counted(
    part: str, count: int, task: Task
) -> None:
    method = PARTS[part](tune_epochs=1)
    method.prepare(small_conv(), {})
    assert method.adapt(task.support).n_adapted == count + 3 * 128 + 3


def test_the_last_block_of_known_networks() -> None:
    expected: list[tuple[Backbone, tuple[str, ...]]] = [
        (Conv4(image_size=28, channels=1, width=4), ("blocks.3.",)),
        (ResNet12(image_size=32, channels=1, width_factor=0.05), ("blocks.3.",)),
        (create(argument="resnet18", image_size=32, channels=1), ("model.layer4.",)),
        (
            create(argument="vit_tiny_patch16_224", image_size=32, channels=1),
            ("model.blocks.11.", "model.norm."),
        ),
        (
            create(argument="convnext_atto", image_size=32, channels=1),
            ("model.stages.3.", "model.head.norm."),
        ),
        (small_conv(), ("net.4.", "net.5.")),
        (small_vit(), ("model.blocks.1.", "model.norm.")),
    ]
    for backbone, starts in expected:
        names = [n for n, _ in backbone.named_parameters()]
        assert last_block_parameters(backbone) == [n for n in names if n.startswith(starts)]
        assert 0 < len(last_block_parameters(backbone)) < len(names)


@pytest.mark.parametrize("part", PARTS)
@pytest.mark.parametrize("name", ["resnet18", "vit_tiny_patch16_224"])
def test_timm_networks_can_be_tuned(part: str, name: str) -> None:
    backbone = create(argument=name, image_size=32, channels=1)
    labels = torch.tensor([0, 1, 1, 0])
    images = torch.randn(4, 1, 32, 32)
    method = PARTS[part](tune_epochs=2, tune_lr=1e-4)
    method.prepare(backbone, {})
    predictor = method.adapt(Support(images, labels, 2, (0,)))
    own = dict(backbone.named_parameters())
    n_inside = sum(own[n].numel() for n in predictor.tuned)
    assert predictor.n_adapted == n_inside + 2 * backbone.n_features + 2
    norms = [m for m in backbone.modules() if isinstance(m, nn.BatchNorm2d | nn.LayerNorm)]
    if part == "norm":
        assert n_inside == sum(p.numel() for m in norms for p in m.parameters())
    if part == "all":
        assert n_inside == sum(p.numel() for p in own.values())
    with torch.no_grad():
        before = predictor.head(backbone(images))
    assert (predictor.predict(images) - before).abs().max() > 0
    assert torch.isfinite(predictor.predict(images)).all()


def test_networks_without_the_part_are_refused() -> None:
    with pytest.raises(ContractError, match="no normalisation layers"):
        NormTuning().prepare(SmallConv(norm=False), {})
    with pytest.raises(ContractError, match="before prepare"):
        NormTuning().adapt(StripesSource().task("x").support)


def test_fine_tuning_takes_double_precision(task: Task) -> None:
    for method, backbone in ((FullFineTuning(), small_conv()), (LoRA(), small_vit())):
        method.prepare(backbone.double(), {})
        wide = Support(task.support.inputs.double(), task.support.labels, 3, (7,))
        scores = method.adapt(wide).predict(task.query.double())
        assert scores.dtype == torch.float64


def test_fine_tuning_lowers_the_loss_of_the_support_set(task: Task) -> None:
    losses = {}
    for epochs in (0, 60):
        method = FullFineTuning(tune_epochs=epochs, tune_lr=1e-3, head_lr=1e-2)
        method.prepare(small_conv(), {})
        scores = method.adapt(task.support).predict(task.support.inputs)
        losses[epochs] = F.cross_entropy(scores, task.support.labels).item()
    assert losses[60] < 0.5 * losses[0]


# --- heads ---------------------------------------------------------------------------------------


def test_heads_start_from_class_means(task: Task) -> None:
    backbone = small_conv()
    with torch.no_grad():
        features, asked = backbone(task.support.inputs), backbone(task.query)
    means = torch.stack([features[task.support.labels == c].mean(0) for c in range(3)])
    found = {}
    for kind in ("normalised", "prototype", "random"):
        method = FullFineTuning(head=kind, tune_epochs=0)  # type: ignore[arg-type]
        method.prepare(backbone, {})
        found[kind] = method.adapt(task.support)
    cosines = F.cosine_similarity(asked[:, None], means[None], dim=-1)
    torch.testing.assert_close(found["normalised"].predict(task.query), cosines)
    distances = -(asked[:, None] - means[None]).square().sum(-1)
    shifted = distances + asked.square().sum(-1, keepdim=True)
    torch.testing.assert_close(
        found["prototype"].predict(task.query), shifted, rtol=1e-4, atol=1e-4
    )
    weight = found["random"].head.weight
    assert weight.abs().max() <= 1 / math.sqrt(128)
    assert weight.std().item() == pytest.approx(1 / math.sqrt(3 * 128), rel=0.1)


# --- LoRA ----------------------------------------------------------------------------------------


class LowRankLinear(nn.Module):
    """A fused qkv layer whose q and v have a low-rank path beside them."""

    def __init__(self, layer: nn.Linear, q: tuple[Tensor, Tensor], v: tuple[Tensor, Tensor]):
        super().__init__()
        self.layer = layer
        (self.qa, self.qb), (self.va, self.vb) = (
            (nn.Parameter(a.clone()), nn.Parameter(b.clone())) for a, b in (q, v)
        )

    def forward(self, x: Tensor) -> Tensor:
        q, v = (x @ a.T @ b.T for a, b in ((self.qa, self.qb), (self.va, self.vb)))
        return self.layer(x) + 2.0 * torch.cat([q, torch.zeros_like(q), v], -1)


def with_low_rank(backbone: Backbone, values: dict[str, Tensor]) -> Backbone:
    model = copy.deepcopy(backbone)
    for i, block in enumerate(model.model.blocks):
        key = f"model.blocks.{i}.attn"
        q, v = ((values[f"{key}.{c}.A"], values[f"{key}.{c}.B"]) for c in "qv")
        block.attn.qkv = LowRankLinear(block.attn.qkv, q, v)
    return model


def prepared(method: Tuning, backbone: Backbone) -> Tuning:
    method.prepare(backbone, {})
    return method


def test_lora_starts_as_the_frozen_network_and_draws_gaussians(task: Task) -> None:
    backbone = small_vit()
    method = prepared(LoRA(rank=64, tune_epochs=0), backbone)
    predictor = method.adapt(task.support)
    with torch.no_grad():
        frozen = predictor.head(backbone(task.query))
    torch.testing.assert_close(predictor.predict(task.query), frozen)
    drawn = torch.cat([v.flatten() for k, v in predictor.tuned.items() if k.endswith(".A")])
    assert drawn.std().item() == pytest.approx(1 / math.sqrt(3 * WIDTH), rel=0.05)
    assert drawn.abs().max() > 3 / math.sqrt(3 * WIDTH)  # no uniform draw gets there
    assert all((v == 0).all() for k, v in predictor.tuned.items() if k.endswith(".B"))


def test_lora_merged_equals_low_rank_paths(task: Task) -> None:
    backbone = small_vit()
    predictor = prepared(LoRA(rank=3, alpha=6.0, tune_lr=0.05), backbone).adapt(task.support)
    beside = with_low_rank(backbone, predictor.tuned)
    with torch.no_grad():
        expected = predictor.head(beside(task.query))
        frozen = predictor.head(backbone(task.query))
    torch.testing.assert_close(predictor.predict(task.query), expected, rtol=1e-4, atol=1e-5)
    assert (expected - frozen).abs().max() > 1e-2
    assert predictor.n_adapted == DEPTH * 2 * (3 * WIDTH + 3 * WIDTH) + 3 * WIDTH + 3


def test_lora_tunes_as_adamw_on_low_rank_paths_would(task: Task) -> None:
    backbone = small_vit()
    start = prepared(LoRA(rank=3, alpha=6.0, tune_epochs=0), backbone).adapt(task.support)
    beside = with_low_rank(backbone, start.tuned)
    names = [n for n, _ in beside.named_parameters() if n[-2:] in ("qa", "qb", "va", "vb")]
    expected, _ = by_hand(
        beside,
        names,
        task,
        torch.optim.AdamW,
        [torch.arange(9)] * 5,
        lr=0.01,
        head_lr=0.02,
        weight_decay=0.1,
    )
    method = LoRA(rank=3, alpha=6.0, tune_lr=0.01, head_lr=0.02, tune_epochs=5, weight_decay=0.1)
    found = prepared(method, backbone).adapt(task.support).predict(task.query)
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("target", ["qv", "qkvo"])
def test_lora_changes_the_rows_of_its_projections_alone(target: Any, task: Task) -> None:
    backbone = small_vit()
    predictor = prepared(LoRA(target=target, tune_lr=0.05), backbone).adapt(task.support)
    weights = predictor.change.weights(predictor.tuned)  # type: ignore[attr-defined]
    changed = {n for n, p in backbone.named_parameters() if not torch.equal(p, weights[n])}
    attention = [f"model.blocks.{i}.attn" for i in range(DEPTH)]
    out = {f"{a}.proj.weight" for a in attention} if target == "qkvo" else set()
    assert changed == {f"{a}.qkv.weight" for a in attention} | out
    own = dict(backbone.named_parameters())
    for a in attention:
        move = (weights[f"{a}.qkv.weight"] - own[f"{a}.qkv.weight"]).detach()
        q, k, v = move.split(WIDTH)
        assert torch.linalg.matrix_rank(q) == 4
        assert torch.linalg.matrix_rank(v) == 4
        assert (k == 0).all() == (target == "qv")
    n_projections = 2 if target == "qv" else 4
    assert predictor.n_adapted == DEPTH * n_projections * 8 * WIDTH + 3 * WIDTH + 3


@pytest.mark.parametrize("method", [LoRA(), Adapters(), Adapters(kind="adaptformer")])
def test_transformer_methods_refuse_convolutional_networks(method: Tuning) -> None:
    with pytest.raises(ContractError, match=r"attention blocks.*SmallConv has none"):
        method.prepare(SmallConv(), {})


# --- adapters ------------------------------------------------------------------------------------


class After(nn.Module):
    """A layer with a Houlsby adapter behind it."""

    def __init__(self, layer: nn.Module, values: dict[str, Tensor], key: str) -> None:
        super().__init__()
        self.layer = layer
        m, d = values[f"{key}:down.weight"].shape
        self.down, self.up = nn.Linear(d, m), nn.Linear(m, d)
        for name in ("down", "up"):
            for kind in ("weight", "bias"):
                getattr(getattr(self, name), kind).data.copy_(values[f"{key}:{name}.{kind}"])

    def forward(self, x: Tensor, **_: Any) -> Tensor:
        h = self.layer(x)
        return h + self.up(F.gelu(self.down(h)))


class BlockWithParallel(nn.Module):
    """A pre-norm transformer block, written out, with AdaptFormer's branch."""

    def __init__(self, block: nn.Module, values: dict[str, Tensor], key: str) -> None:
        super().__init__()
        self.block = block
        self.branch = After(nn.Identity(), values, key)

    def forward(self, x: Tensor, **_: Any) -> Tensor:
        b = self.block
        x = x + b.attn(b.norm1(x))
        side = self.branch.up(F.relu(self.branch.down(x)))
        return x + b.mlp(b.norm2(x)) + 0.1 * side


def with_adapters(backbone: Backbone, values: dict[str, Tensor], kind: str) -> Backbone:
    model = copy.deepcopy(backbone)
    for i, block in enumerate(model.model.blocks):
        key = f"model.blocks.{i}"
        if kind == "houlsby":
            block.attn = After(block.attn, values, f"{key}.attn")
            block.mlp = After(block.mlp, values, f"{key}.mlp")
        else:
            model.model.blocks[i] = BlockWithParallel(block, values, f"{key}.mlp")
    return model


@pytest.mark.parametrize("kind", ["houlsby", "adaptformer"])
def test_adapters_tune_as_modules_put_into_the_network_would(kind: Any, task: Task) -> None:
    backbone = small_vit()
    start = prepared(Adapters(kind=kind, bottleneck=5, tune_epochs=0), backbone)
    inserted = with_adapters(backbone, start.adapt(task.support).tuned, kind)
    ours = (".down.", ".up.") if kind == "adaptformer" else (".down.", ".up.", "norm")
    names = [n for n, _ in inserted.named_parameters() if any(part in n for part in ours)]
    expected, _ = by_hand(
        inserted, names, task, torch.optim.Adam, [torch.arange(9)] * 5, lr=0.01, head_lr=0.02
    )
    method = Adapters(kind=kind, bottleneck=5, tune_lr=0.01, head_lr=0.02, tune_epochs=5)
    predictor = prepared(method, backbone).adapt(task.support)
    torch.testing.assert_close(predictor.predict(task.query), expected, rtol=1e-3, atol=1e-5)
    with torch.no_grad():
        frozen = predictor.head(backbone(task.query))
    assert (expected - frozen).abs().max() > 3e-3
    one = 2 * 5 * WIDTH + WIDTH + 5
    inside = DEPTH * one if kind == "adaptformer" else 2 * DEPTH * one + (2 * DEPTH + 1) * 2 * WIDTH
    assert predictor.n_adapted == inside + 3 * WIDTH + 3


@pytest.mark.parametrize("kind", ["houlsby", "adaptformer"])
def test_adapters_start_close_to_the_frozen_network(kind: Any, task: Task) -> None:
    backbone = small_vit()
    predictor = prepared(Adapters(kind=kind, tune_epochs=0), backbone).adapt(task.support)
    change, tuned = predictor.change, predictor.tuned
    with torch.no_grad():
        gap = (change.features(tuned, task.query) - backbone(task.query)).abs().max()
    # Nothing is added yet; the images' other memory layout rounds in another way.
    assert gap < 1e-5 if kind == "adaptformer" else 1e-4 < gap < 0.05
    down = torch.cat([v.flatten() for k, v in tuned.items() if k.endswith("down.weight")])
    if kind == "houlsby":
        assert down.abs().max() <= 0.02
        assert down.std().item() == pytest.approx(0.88e-2, rel=0.05)  # cut at two deviations
    else:
        assert down.std().item() == pytest.approx(1 / math.sqrt(3 * WIDTH), rel=0.05)


def test_hooks_are_gone_after_a_failure() -> None:
    backbone = small_vit()
    method = prepared(Adapters(), backbone)
    with pytest.raises(Exception):  # noqa: B017 - whatever the network says to such images
        method.adapt(Support(torch.randn(2, 3, 5, 5), torch.tensor([0, 1]), 2, (0,)))
    assert not any(m._forward_hooks for m in backbone.modules())


# --- task-specific adapters ----------------------------------------------------------------------


class ConvBeside(nn.Module):
    """A convolution with a 1x1 convolution beside it."""

    def __init__(self, conv: nn.Conv2d) -> None:
        super().__init__()
        self.conv = conv
        self.alpha = nn.Parameter(1e-4 * torch.eye(*conv.weight.shape[:2])[..., None, None])

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x) + F.conv2d(x, self.alpha, stride=self.conv.stride)


def with_companions(backbone: Backbone, names: list[str]) -> Backbone:
    model = copy.deepcopy(backbone)
    for name in names:
        parent, _, child = name.rpartition(".")
        setattr(model.get_submodule(parent), child, ConvBeside(model.get_submodule(name)))
    return model


def tsa_by_hand(model: Backbone, task: Task, steps: int) -> Tensor:
    beta = nn.Parameter(torch.eye(model.n_features))
    alphas = [p for n, p in model.named_parameters() if n.endswith("alpha")]
    optimiser = torch.optim.Adadelta([{"params": alphas}, {"params": [beta], "lr": 1.0}], lr=0.5)
    labels = task.support.labels

    def logits(images: Tensor) -> Tensor:
        features = model(task.support.inputs) @ beta.T
        means = torch.stack([features[labels == c].mean(0) for c in range(3)])
        asked = model(images) @ beta.T
        return 10 * F.cosine_similarity(asked[:, None], means[None], dim=-1)

    for _ in range(steps):
        optimiser.zero_grad()
        F.cross_entropy(logits(task.support.inputs), labels).backward()
        optimiser.step()
    return logits(task.query).detach()


def test_tsa_equals_companion_convolutions_tuned_by_hand(task: Task) -> None:
    backbone = small_conv()
    expected = tsa_by_hand(with_companions(backbone, ["net.4"]), task, 40)
    method = TaskSpecificAdapters()
    method.prepare(backbone, {})
    predictor = method.adapt(task.support)
    torch.testing.assert_close(predictor.predict(task.query), expected, rtol=1e-3, atol=1e-3)
    assert predictor.n_adapted == 8 * 8 + 128 * 128
    still = TaskSpecificAdapters(steps=0)
    still.prepare(backbone, {})
    assert (still.adapt(task.support).predict(task.query) - expected).abs().max() > 0.1


def test_tsa_stands_at_the_convolutions_of_residual_blocks() -> None:
    backbone = create(argument="resnet18", image_size=32, channels=1)
    method = TaskSpecificAdapters(steps=2)
    method.prepare(backbone, {})
    change = method._change
    assert change is not None
    own = dict(backbone.named_modules())
    expected = [n for n, m in own.items() if isinstance(m, nn.Conv2d) and m.kernel_size == (3, 3)]
    assert list(change.convolutions) == expected
    assert len(expected) == 16  # two in each of eight blocks; neither the stem nor shortcuts
    images = torch.randn(3, 1, 32, 32)
    values = {n: 0.05 * torch.randn(own[n].weight.shape[:2]) for n in expected}  # type: ignore[union-attr,index]
    beside = with_companions(backbone, expected).eval()
    for name, value in values.items():
        beside.get_submodule(name).alpha.data = value[..., None, None]
    with torch.no_grad():
        torch.testing.assert_close(
            change.features(values, images), beside(images), rtol=1e-3, atol=1e-4
        )
    with pytest.raises(ContractError, match="3x3"):
        TaskSpecificAdapters().prepare(small_vit(), {})


# --- Tip-Adapter ---------------------------------------------------------------------------------


def tip_logits(f: Tensor, keys: Tensor, y: Tensor, unit: Tensor) -> Tensor:
    """Scores of unit features `f`, as the paper writes them, with centroids for texts."""
    values = F.one_hot(y, 4).double()
    W = torch.stack([unit[y == c].mean(0) for c in range(4)])
    W = W / W.norm(dim=1, keepdim=True)
    A = torch.exp(-5.5 * (1 - f @ keys.T))
    return 1.5 * A @ values + 10.0 * f @ W.T


def test_tip_adapter_against_loops() -> None:
    support, query = feature_episodes()
    predictor = TipAdapter(alpha=1.5).adapt(support)
    assert predictor.n_adapted == 0
    scores = predictor.predict(query)
    for e in range(6):
        x, q, y = support.inputs[e].double(), query[e].double(), support.labels[e]
        x, q = x / x.norm(dim=1, keepdim=True), q / q.norm(dim=1, keepdim=True)
        torch.testing.assert_close(scores[e], tip_logits(q, x, y, x).float())


def test_tip_adapter_f_equals_adamw_of_torch() -> None:
    support, query = feature_episodes()
    predictor = TipAdapterF(alpha=1.5, tune_lr=0.05).adapt(support)
    assert predictor.n_adapted == 11 * 7
    scores = predictor.predict(query)
    for e in range(6):
        x, q, y = support.inputs[e].double(), query[e].double(), support.labels[e]
        x, q = x / x.norm(dim=1, keepdim=True), q / q.norm(dim=1, keepdim=True)
        keys = nn.Parameter(x.clone())
        optimiser = torch.optim.AdamW([keys], lr=0.05, eps=1e-4)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, 20)
        for _ in range(20):
            optimiser.zero_grad()
            F.cross_entropy(tip_logits(x, keys, y, x), y).backward()
            optimiser.step()
            schedule.step()
        with torch.no_grad():
            torch.testing.assert_close(predictor.keys[e], keys.data, rtol=1e-6, atol=1e-8)
            torch.testing.assert_close(scores[e], tip_logits(q, keys, y, x).float())
        assert (keys - x).abs().max() > 0.1


# --- balanced, swept probe -----------------------------------------------------------------------


def test_weights_count_examples_many_times_or_not_at_all() -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(7, 4, generator=generator, dtype=torch.float64)
    y = F.one_hot(torch.tensor([0, 1, 2, 0, 1, 2, 1]), 3).double()
    weights = torch.tensor([1.0, 2.0, 1.0, 0.0, 1.0, 3.0, 0.0], dtype=torch.float64)
    rows = torch.tensor([0, 1, 1, 2, 4, 5, 5, 5])
    dual, bias = solve(x @ x.T, y, 0.7, weights)
    again, expected_bias = solve(x[rows] @ x[rows].T, y[rows], 0.7)
    torch.testing.assert_close(dual.T @ x, again.T @ x[rows], rtol=1e-9, atol=1e-10)
    torch.testing.assert_close(bias, expected_bias, rtol=1e-9, atol=1e-10)
    assert (dual[weights == 0] == 0).all()
    even, plain = solve(x @ x.T, y, 0.7, torch.ones(7).double()), solve(x @ x.T, y, 0.7)
    torch.testing.assert_close(even[0], plain[0], rtol=1e-12, atol=1e-14)


def episode(shots: list[int], d: int, seed: int, noise: float = 1.5) -> tuple[Support, np.ndarray]:
    rng = np.random.default_rng(seed)
    y = rng.permutation(np.repeat(np.arange(len(shots)), shots))
    means = rng.normal(size=(len(shots), d))
    x = (means[y] + noise * rng.normal(size=(len(y), d))) * np.linspace(0.2, 5, d) + 3
    query = noise * rng.normal(size=(25, d)) * np.linspace(0.2, 5, d) + 3
    return Support(torch.tensor(x), torch.tensor(y), len(shots), (0,)), query


def judge(C: float) -> LogisticRegression:
    return LogisticRegression(
        C=C, class_weight="balanced", solver="newton-cholesky", tol=1e-13, max_iter=10_000
    )


@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
@pytest.mark.parametrize("C", [0.01, 1.0, 100.0])
@pytest.mark.parametrize("shots", [[3, 9], [1, 1], [4, 1, 7], [5, 5, 5, 5, 5]])
@pytest.mark.parametrize("normalize", ["standard", "l2", "none"])
def test_balanced_probe_equals_scikit_learn(normalize: Any, shots: list[int], C: float) -> None:
    support, query = episode(shots, 12, sum(shots))
    method = SweptProbe(normalize=normalize, C_min=C, C_max=C, n_C=1, C_one_shot=C)
    found = method.adapt(support).predict(torch.tensor(query)).softmax(-1)
    x = support.inputs.numpy()
    if normalize == "standard":
        scaler = StandardScaler().fit(x)
        x, query = scaler.transform(x), scaler.transform(query)
    elif normalize == "l2":
        x, query = (v / np.linalg.norm(v, axis=1, keepdims=True) for v in (x, query))
    # The intercept is free, so centring changes nothing but the judge's own precision.
    model = judge(C).fit(x - x.mean(0), support.labels.numpy())
    np.testing.assert_allclose(found, model.predict_proba(query - x.mean(0)), atol=1e-6)


@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
@pytest.mark.parametrize(
    ("select_by", "scoring"), [("log_loss", "neg_log_loss"), ("accuracy",) * 2]
)
@pytest.mark.parametrize("seed", range(4))
def test_the_sweep_chooses_as_grid_search_does(select_by: Any, scoring: str, seed: int) -> None:
    support, _ = episode([7, 7, 7], 10, seed, noise=1.0 + seed)
    method = SweptProbe(select_by=select_by)
    labels = support.labels.numpy()
    folds = np.array([np.sum(labels[:i] == labels[i]) % 5 for i in range(21)])
    x = StandardScaler().fit_transform(support.inputs.numpy())
    grid = GridSearchCV(
        judge(1.0), {"C": np.logspace(-4, 4, 9)}, cv=PredefinedSplit(folds), scoring=scoring
    ).fit(x, labels)
    chosen = method._choose(*_problem(torch.tensor(x), support)).item()
    # Folds of 6 and of 3 images weigh the same in scikit-learn, images in ours.
    sizes = np.bincount(folds)
    per_fold = np.stack([grid.cv_results_[f"split{k}_test_score"] for k in range(5)])
    pooled = (per_fold * sizes[:, None]).sum(0) / sizes.sum()
    best = np.flatnonzero(pooled >= pooled.max() - 1e-9)[0]
    assert chosen == pytest.approx(np.logspace(-4, 4, 9)[best])


def _problem(x: Tensor, support: Support) -> tuple[Tensor, Tensor, Tensor]:
    targets = F.one_hot(support.labels, support.n_way).double()
    x = x - x.mean(0)
    return x @ x.T, targets, targets.T.contiguous()


def test_sweeps_choose_differently_for_different_tasks() -> None:
    chosen = set()
    for noise in (0.2, 1.0, 4.0):
        support, _ = episode([5, 5, 5], 10, 3, noise=noise)
        x = torch.tensor(StandardScaler().fit_transform(support.inputs.numpy()))
        chosen.add(SweptProbe()._choose(*_problem(x, support)).item())
    assert len(chosen) > 1


@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
def test_the_sweep_counts_every_class_the_same() -> None:
    support, _ = episode([2, 6, 4], 6, 1, noise=2.0)
    labels, x = support.labels.numpy(), StandardScaler().fit_transform(support.inputs.numpy())
    folds = np.array([np.sum(labels[:i] == labels[i]) % 2 for i in range(12)])
    grid = np.logspace(-4, 4, 9)
    losses = []
    for C in grid:
        loss = 0.0
        for fold in range(2):
            model = judge(C).fit(x[folds != fold], labels[folds != fold])
            held = np.flatnonzero(folds == fold)
            for p, c in zip(model.predict_proba(x[held]), labels[held], strict=True):
                loss -= math.log(p[c]) / np.sum(labels == c)
        losses.append(loss)
    chosen = SweptProbe()._choose(*_problem(torch.tensor(x), support)).item()
    assert chosen == pytest.approx(grid[np.argmin(losses)])


def test_a_batch_may_mix_episodes_of_different_folds() -> None:
    parts = [episode(shots, 6, 5)[0] for shots in ([5, 5], [2, 8], [1, 9], [3, 7])]
    batch = Support(
        torch.stack([p.inputs for p in parts]), torch.stack([p.labels for p in parts]), 2, (0,) * 4
    )
    together = SweptProbe().adapt(batch)
    for i in range(4):
        alone = SweptProbe().adapt(one_of(batch, i))
        torch.testing.assert_close(together.weight[i], alone.weight, rtol=1e-7, atol=1e-9)
    fixed = SweptProbe(C_min=1.0, C_max=1.0, n_C=1).adapt(one_of(batch, 2))
    torch.testing.assert_close(together.weight[2], fixed.weight)  # one image in a class


def test_constant_features_are_left_at_nothing() -> None:
    support, query = episode([4, 4], 5, 0)
    for constant in (0.1, 1e6):
        x = torch.cat([support.inputs, torch.full((8, 1), constant)], 1).float()
        q = torch.cat([torch.tensor(query), torch.full((25, 1), constant)], 1).float()
        widened = SweptProbe().adapt(Support(x, support.labels, 2, (0,))).predict(q)
        plain = SweptProbe().adapt(Support(x[:, :5], support.labels, 2, (0,))).predict(q[:, :5])
        torch.testing.assert_close(widened, plain, rtol=1e-4, atol=1e-4)


def test_a_sweep_from_large_to_small_is_refused() -> None:
    with pytest.raises(ContractError, match="C_min"):
        SweptProbe(C_min=10.0, C_max=1.0)
