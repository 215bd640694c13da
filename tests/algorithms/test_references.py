"""Methods that adapt to nothing: against plain computations, and against what they must not see."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from sklearn.neighbors import NearestCentroid
from torch import Tensor, nn

from medbench.api import Boxes, ContractError, Support, Task
from medbench_algorithms import medbench_algorithms
from medbench_algorithms.common.pretrain import Supervised
from medbench_algorithms.dense.fcos import PointNet, aims_of, point_loss
from medbench_algorithms.dense.unet import UNet, mask_loss
from medbench_algorithms.references.source_detector import SourceFCOS
from medbench_algorithms.references.source_only import SourceOnly
from medbench_algorithms.references.source_prototypes import SourceMaskedPrototypes
from medbench_algorithms.references.source_segmenter import SourceUNet
from medbench_algorithms.references.zero_adaptation import ZeroAdaptation

from .conftest import SIZE, FakeRun, SmallConv, StripesSource, stripes

N_STEPS = 40


class Shuffled(StripesSource):
    """Source images whose labels say nothing."""

    def batch(self, step: int, size: int) -> tuple[Tensor, Tensor]:
        images, labels = super().batch(step, size)
        generator = torch.Generator().manual_seed(1000 + step)
        return images, torch.randint(self.n_classes, labels.shape, generator=generator)

    def sweep(self, size: int = 256) -> Iterator[tuple[Tensor, Tensor]]:
        for i, (images, labels) in enumerate(super().sweep(size)):
            generator = torch.Generator().manual_seed(i)
            yield images, labels[torch.randperm(len(labels), generator=generator)]


def trained(
    method: Any, source: Any, n_steps: int = N_STEPS, *, norm: bool = True
) -> tuple[SmallConv, dict[str, Tensor]]:
    torch.manual_seed(0)
    backbone = SmallConv(norm)
    torch.manual_seed(7)
    learned = method.meta_train(backbone, source, FakeRun(source, n_steps))
    own = {k[9:]: v for k, v in learned.items() if k.startswith("backbone.")}
    backbone.load_state_dict(own)
    return backbone.eval(), {k: v for k, v in learned.items() if not k.startswith("backbone.")}


def asked(n: int = 40, way: int = 3) -> list[tuple[Support, Tensor, Tensor]]:
    """Episodes of images: support sets whose labels are wrong on purpose, queries, truth."""
    generator = torch.Generator().manual_seed(5)
    found = []
    for number in range(n):
        classes = torch.randperm(8, generator=generator)[:way]
        truth = torch.arange(9) % way
        query = stripes(classes[truth], generator)
        support = stripes(torch.randint(8, (way,), generator=generator), generator)
        found.append(
            (Support(support, torch.arange(way), way, (number,), classes=classes), query, truth)
        )
    return found


def of_features(backbone: nn.Module, support: Support) -> Support:
    with torch.no_grad():
        return replace(support, inputs=backbone(support.inputs))


def right(method: Any, backbone: nn.Module) -> float:
    hits = []
    for support, query, truth in asked():
        with torch.no_grad():
            scores = method.adapt(of_features(backbone, support)).predict(backbone(query))
        hits.append(scores.argmax(-1) == truth)
    return torch.cat(hits).double().mean().item()


def test_source_only_is_a_plainly_trained_classifier_asked_about_some_of_its_classes() -> None:
    source = StripesSource()
    method = SourceOnly(lr=1e-3, batch_size=16)
    # Before BatchNorm biases have no gradient but rounding, which Adam makes steps of.
    backbone, learned = trained(method, source, 12, norm=False)
    # The same training, written out.
    torch.manual_seed(0)
    plain = SmallConv(norm=False)
    torch.manual_seed(7)
    head = nn.Linear(plain.n_features, 8)
    adam = torch.optim.Adam([*plain.parameters(), *head.parameters()], lr=1e-3)
    plain.train()
    for step in range(12):
        images, labels = source.batch(step, 16)
        logits = head(plain(images))
        loss = (logits.logsumexp(-1) - logits[torch.arange(16), labels]).mean()
        adam.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        adam.step()
    plain.eval()
    torch.testing.assert_close(learned["head.weight"], head.weight.detach(), rtol=1e-4, atol=1e-6)
    method.prepare(backbone, learned)
    for support, query, _ in asked(5):
        assert support.classes is not None
        with torch.no_grad():
            features = plain(query).numpy()
            found = method.adapt(of_features(backbone, support)).predict(backbone(query))
        rows = support.classes.numpy()
        weight, bias = head.weight.detach().numpy(), head.bias.detach().numpy()
        expected = features @ weight[rows].T + bias[rows]
        np.testing.assert_allclose(found.numpy(), expected, rtol=1e-3, atol=1e-4)


# Some features are zero in every image, which it warns about.
@pytest.mark.filterwarnings("ignore:self.within_class_std_dev_")
def test_zero_adaptation_is_scikit_learns_nearest_centroid_of_the_source() -> None:
    source = StripesSource()
    backbone, learned = trained(Supervised(pretrain="supervised"), source, 10)
    method = ZeroAdaptation()
    method.prepare(backbone, learned)
    with torch.no_grad():
        seen = [(backbone(images).numpy(), labels.numpy()) for images, labels in source.sweep()]
    features, labels = (np.concatenate(side) for side in zip(*seen, strict=True))
    for support, query, _ in asked(12):
        assert support.classes is not None
        own = np.isin(labels, support.classes.numpy())
        judge = NearestCentroid().fit(features[own], labels[own])
        with torch.no_grad():
            found = method.adapt(of_features(backbone, support)).predict(backbone(query))
            expected = judge.predict(backbone(query).numpy())
        assert support.classes[found.argmax(-1)].tolist() == expected.tolist()


@pytest.mark.parametrize("name", ["source-only", "zero-adaptation"])
def test_with_shuffled_source_labels_nothing_is_known_of_any_class(name: str) -> None:
    found = {}
    for kind, source in (("true", StripesSource()), ("shuffled", Shuffled())):
        method: Any = SourceOnly() if name == "source-only" else ZeroAdaptation()
        trainer: Any = method if name == "source-only" else Supervised(pretrain="supervised")
        backbone, learned = trained(trainer, source)
        method.prepare(backbone, learned)
        found[kind] = right(method, backbone)
    # 40 tasks, whose three classes stand and fall together.
    assert found["true"] > 0.75
    assert abs(found["shuffled"] - 1 / 3) < 5 * np.sqrt(2 / 9 / (40 * 3))


def test_the_support_set_changes_nothing_and_batches_give_what_single_episodes_get() -> None:
    source = StripesSource()
    method = SourceOnly()
    backbone, learned = trained(method, source, 6)
    method.prepare(backbone, learned)
    episodes = [of_features(backbone, s) for s, _, _ in asked(4)]
    query = torch.stack([q for _, q, _ in asked(4)])
    with torch.no_grad():
        features = backbone(query.flatten(0, 1)).unflatten(0, (4, 9))
    batch = Support(
        torch.stack([s.inputs for s in episodes]),
        torch.stack([s.labels for s in episodes]),
        3,
        tuple(range(4)),
        classes=torch.stack([s.classes for s in episodes if s.classes is not None]),
    )
    together = method.adapt(batch).predict(features)
    for i, support in enumerate(episodes):
        blank = replace(support, inputs=torch.zeros_like(support.inputs))
        predictor = method.adapt(blank)
        assert predictor.n_adapted == 0
        torch.testing.assert_close(together[i], predictor.predict(features[i]))


def test_who_does_not_tell_the_classes_is_told_so() -> None:
    source = StripesSource()
    backbone, learned = trained(SourceOnly(), source, 2)
    method = SourceOnly()
    with pytest.raises(ContractError, match="before prepare"):
        method.adapt(asked(1)[0][0])
    with pytest.raises(ContractError, match=r"needs the head.*was given nothing"):
        method.prepare(backbone, {})
    method.prepare(backbone, learned)
    with pytest.raises(ContractError, match="trait knows_classes"):
        method.adapt(replace(asked(1)[0][0], classes=None))
    with pytest.raises(ContractError, match="mean features"):
        ZeroAdaptation().prepare(backbone, {"mean": torch.zeros(3)})


# --- masks and boxes -----------------------------------------------------------------------------


class Squares:
    """Two classes of squares, bright (0) and dark (1); a task marks one of them, by turns."""

    n_classes = 2
    ways = (1,)
    images_per_task = 6

    def task(self, *name: object) -> Task:
        number = int(name[-1])  # type: ignore[call-overload]
        return self.marked(number + (500 if name[0] == "val" else 0), number % 2)

    def tasks(self, step: int, count: int = 1, only: Any = None) -> list[Task]:
        numbers = range(count) if only is None else only
        return [self.marked(step * count + i, (step * count + i) % 2) for i in numbers]

    def marked(self, number: int, kind: int, n: int = 3) -> Task:
        generator = torch.Generator().manual_seed(number)
        images = 0.1 * torch.randn(2 * n, 1, SIZE, SIZE, generator=generator)
        masks = torch.zeros(2 * n, 1, SIZE, SIZE, dtype=torch.bool)
        boxes = []
        for i in range(2 * n):
            for k, low in enumerate((0, SIZE // 2)):
                x, y = (int(torch.randint(0, 3, (), generator=generator)) for _ in range(2))
                x += low
                images[i, 0, y : y + 5, x : x + 5] += 1.0 if k == 0 else -1.0
                if k == kind:
                    masks[i, 0, y : y + 5, x : x + 5] = True
                    corners = np.array([[x, y, x + 5, y + 5]], np.float64)
                    boxes.append(Boxes(corners, np.zeros(1, np.int64), np.zeros(1, bool)))
        shown = torch.ones(2 * n, 1, dtype=torch.int64)
        support = Support(
            images[:n], shown[:n], 1, (number,), (SIZE, SIZE), masks[:n], tuple(boxes[:n]),
            torch.tensor([kind]),
        )  # fmt: skip
        return Task(support, images[n:], shown[n:], masks[n:], tuple(boxes[n:]))


class Plain(FakeRun):
    """A run without validation, of which a source of another kind would be needed."""

    def steps(self, state: Any, *, images_per_step: int, validate: Any = None) -> Iterator[int]:
        return super().steps(state, images_per_step=images_per_step)


def fitted(method: Any, n_steps: int) -> Any:
    torch.manual_seed(3)
    source: Any = Squares()
    learned = method.meta_train(SmallConv(), source, Plain(source, n_steps, images=n_steps * 6))
    method.prepare(SmallConv(), learned)
    return learned


def test_a_source_unet_takes_of_a_task_the_outputs_of_its_classes() -> None:
    method = SourceUNet(width=4, lr=1e-2, meta_batch=1)
    learned = fitted(method, 3)
    # The same three steps, written out.
    torch.manual_seed(3)
    SmallConv()
    plain = UNet(1, 2, 4)
    adam = torch.optim.Adam(plain.parameters(), lr=1e-2)
    for step in range(3):
        (task,) = Squares().tasks(step)
        assert task.support.masks is not None
        assert task.query_masks is not None
        images = torch.cat([task.support.inputs, task.query])
        truth = torch.cat([task.support.masks, task.query_masks]).float()
        adam.zero_grad()
        loss = mask_loss(plain(images)[:, [step % 2]], truth)
        loss.backward()  # type: ignore[no-untyped-call]
        adam.step()
    for name, tensor in plain.state_dict().items():
        torch.testing.assert_close(learned[f"network.{name}"], tensor, rtol=1e-4, atol=1e-6)
    task = Squares().marked(900, 1)
    found = method.adapt(task.support).predict(task.query)
    with torch.no_grad():
        expected = torch.cat([plain(image[None]) for image in task.query])[:, [1]]
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-4)


def dice(method: Any) -> float:
    found = []
    for number in range(6):
        task = Squares().marked(2000 + number, number % 2)
        assert task.query_masks is not None
        with torch.no_grad():
            answer = method.adapt(task.support).predict(task.query) > 0
        both = (answer & task.query_masks).sum().item()
        found.append(2 * both / (answer.sum().item() + task.query_masks.sum().item()))
    return float(np.mean(found))


def test_a_source_unet_finds_the_class_it_is_asked_for_without_a_support_set() -> None:
    method = SourceUNet(width=8, lr=1e-2, meta_batch=2)
    fitted(method, 150)
    assert dice(method) > 0.85


def test_source_prototypes_are_the_masked_means_of_source_tasks() -> None:
    class Pixels(SmallConv):
        def feature_map(self, images: Tensor) -> Tensor:
            return torch.cat([images, images.square(), torch.ones_like(images)], dim=1)

    method = SourceMaskedPrototypes(tasks=6)
    source: Any = Squares()
    learned = method.meta_train(Pixels(), source, Plain(source, 1))
    for kind in (0, 1):
        inside, outside = [], []
        for step in range(kind, 6, 2):
            (task,) = source.tasks(step)
            images = torch.cat([task.support.inputs, task.query])
            masks = torch.cat([task.support.masks, task.query_masks])
            for image, mask in zip(images[:, 0], masks[:, 0], strict=True):
                inside.append(image[mask].mean())
                outside.append(image[~mask].mean())
        assert learned["prototypes"][kind, 0].item() == pytest.approx(np.mean(inside), abs=1e-5)
        assert learned["backgrounds"][kind, 0].item() == pytest.approx(np.mean(outside), abs=1e-5)
    method.prepare(Pixels(), learned)

    class OnMaps:
        def adapt(self, support: Support) -> Any:
            predictor = method.adapt(replace(support, inputs=Pixels().feature_map(support.inputs)))
            assert predictor.n_adapted == 0
            return type(
                "P", (), {"predict": lambda _, q: predictor.predict(Pixels().feature_map(q))}
            )()

    assert dice(OnMaps()) > 0.8
    with pytest.raises(ContractError, match="set tasks higher"):
        SourceMaskedPrototypes(tasks=1).meta_train(Pixels(), source, Plain(source, 1))


def test_a_source_detector_takes_of_a_task_the_outputs_of_its_classes() -> None:
    method = SourceFCOS(width=4, lr=1e-2, meta_batch=1)
    learned = fitted(method, 2)
    torch.manual_seed(3)
    SmallConv()
    plain = PointNet(1, 2, 4)
    before = copy.deepcopy(plain)
    adam = torch.optim.Adam(plain.parameters(), lr=1e-2)
    for step in range(2):
        (task,) = Squares().tasks(step)
        images = torch.cat([task.support.inputs, task.query])
        assert task.support.boxes is not None
        assert task.query_boxes is not None
        aims = aims_of((*task.support.boxes, *task.query_boxes), 1, (SIZE, SIZE), images)
        out = plain(images)
        adam.zero_grad()
        loss = point_loss(torch.cat([out[:, [step % 2]], out[:, 2:]], dim=1), aims)
        loss.backward()  # type: ignore[no-untyped-call]
        adam.step()
    for name, tensor in plain.state_dict().items():
        torch.testing.assert_close(learned[f"network.{name}"], tensor, rtol=1e-4, atol=1e-6)
    assert not torch.equal(before.classes.weight, plain.classes.weight)


def test_references_say_what_they_are() -> None:
    specs = [s for s in medbench_algorithms() if s.family == "reference"]
    assert {s.name for s in specs} == {
        "source-only", "zero-adaptation", "source-only-unet", "zero-adaptation-masks",
        "source-only-fcos",
    }  # fmt: skip
    for spec in specs:
        assert spec.traits.knows_classes
        assert not spec.traits.uses_support
        assert spec.traits.adapts == "nothing"
    others = [s for s in medbench_algorithms() if s.family != "reference"]
    assert all(s.traits.uses_support and not s.traits.knows_classes for s in others)


def test_cosines_serve_too() -> None:
    method = ZeroAdaptation(distance="cosine")
    means = torch.tensor([[1.0, 0.0], [0.0, 2.0], [-1.0, 0.0]])
    method.prepare(SmallConv(), {"base_means": means})
    support = Support(torch.zeros(2, 2), torch.arange(2), 2, (0,), classes=torch.tensor([2, 1]))
    query = torch.tensor([[-3.0, 0.0], [0.0, 0.1]])
    found = method.adapt(support).predict(query)
    expected = F.cosine_similarity(query[:, None], means[[2, 1]][None], dim=-1)
    torch.testing.assert_close(found, expected)
