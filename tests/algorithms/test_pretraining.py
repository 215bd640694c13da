"""Pretrainings and cosine heads against loops, formulas and torch's own optimisers."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.parametrizations import weight_norm

from medbench.api import ContractError, Support
from medbench_algorithms.common.cosine_pretrain import (
    CosineClassifier,
    CosinePretraining,
    margin_loss,
)
from medbench_algorithms.common.distillation import SelfDistillation, distillation_loss
from medbench_algorithms.common.manifold_mixup import ManifoldMixup, mixed_features, mixed_loss
from medbench_algorithms.common.pretrain import Supervised
from medbench_algorithms.common.rotation import quarter_turns
from medbench_algorithms.common.stages import after_stage, stages
from medbench_algorithms.fine_tuning.baseline_plus_plus import BaselinePlusPlus
from medbench_algorithms.fine_tuning.negative_margin import NegativeMargin
from medbench_algorithms.fine_tuning.rfs import RFS
from medbench_algorithms.fine_tuning.s2m2 import S2M2
from medbench_backbones.conv4 import Conv4
from medbench_backbones.resnet12 import ResNet12

from .conftest import FakeRun, SmallConv, StripesSource, feature_episodes, one_of, ready

TRAINERS: dict[str, tuple[type[Any], dict[str, Any], type[Any]]] = {
    "baseline-plus-plus": (CosinePretraining, {"scale": 10.0}, BaselinePlusPlus),
    "negative-margin": (
        CosinePretraining,
        {"scale": 30.0, "margin": -0.02, "class_norms": False},
        NegativeMargin,
    ),
    "rfs": (SelfDistillation, {}, RFS),
    "s2m2": (ManifoldMixup, {"rotation_share": 0.5, "scale": 10.0}, S2M2),
}
N_STEPS, BATCH = 60, 32


def train(
    name: str, n_steps: int = N_STEPS, **params: Any
) -> tuple[dict[str, Tensor], FakeRun, SmallConv]:
    make, own, _ = TRAINERS[name]
    torch.manual_seed(5)
    run = FakeRun(StripesSource(), n_steps, images=n_steps * BATCH)
    backbone = SmallConv()
    trainer = make(**{"lr": 3e-3, "batch_size": BATCH, **own, **params})
    return trainer.meta_train(backbone, run.source, run), run, backbone


# --- training ------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", TRAINERS)
def test_what_is_learned_serves_the_method_well_above_chance(name: str) -> None:
    learned, run, backbone = train(name)
    assert run.accuracies[-1] > 0.65  # chance is a third
    assert run.images_per_step == BATCH
    assert all(k.startswith(("backbone.", "mean", "base_")) for k in learned)
    method = TRAINERS[name][2]()
    method.prepare(backbone.eval(), learned)
    tasks = [run.source.task("test", i) for i in range(20)]
    with torch.no_grad():
        support = torch.stack([backbone(t.support.inputs) for t in tasks])
        query = torch.stack([backbone(t.query) for t in tasks])
    labels = torch.stack([t.support.labels for t in tasks])
    scores = method.adapt(Support(support, labels, 3, tuple(range(20)))).predict(query)
    asked = torch.stack([t.query_labels for t in tasks])
    assert (scores.argmax(-1) == asked).float().mean() > 0.6


@pytest.mark.parametrize("name", TRAINERS)
def test_training_twice_gives_the_same(name: str) -> None:
    first, run, _ = train(name, 4)
    again, rerun, _ = train(name, 4)
    assert run.losses == rerun.losses
    assert all(torch.equal(first[k], again[k]) for k in first)


class Resumable(FakeRun):
    """Stops after some steps as a killed run would, or goes on from such a state."""

    def __init__(self, n_steps: int, stop: int, saved: dict[str, Any] | None = None) -> None:
        super().__init__(StripesSource(), n_steps, images=n_steps * BATCH)
        self.stop, self.saved = stop, saved
        self.first = self.stop if saved else 0

    def steps(
        self,
        state: Mapping[str, Any],
        *,
        images_per_step: int,
        validate: Callable[[Support, Tensor], Tensor] | None = None,
    ) -> Iterator[int]:
        self.state = state
        if self.saved:
            for name, part in state.items():
                part.load_state_dict(self.saved[name])
        for step in range(self.first, self.n_steps if self.saved else self.stop):
            torch.manual_seed(1000 + step)
            yield step
        self.left = {k: copy.deepcopy(v.state_dict()) for k, v in state.items()}


@pytest.mark.parametrize("name", ["rfs", "s2m2"])
@pytest.mark.parametrize("stop", [3, 4, 5])  # the second phase begins at step 4
def test_a_resumed_training_equals_an_undisturbed_one(name: str, stop: int) -> None:
    def go(run: Resumable) -> Resumable:
        torch.manual_seed(5)
        make, own, _ = TRAINERS[name]
        backbone = SmallConv()
        make(lr=3e-3, batch_size=BATCH, **own).meta_train(backbone, run.source, run)
        return run

    whole = go(Resumable(8, 8))
    part = go(Resumable(8, stop))
    rest = go(Resumable(8, stop, part.left))
    assert part.losses + rest.losses == whole.losses
    for name_, tensors in whole.left.items():
        if name_ != "optimiser":
            assert all(torch.equal(rest.left[name_][k], v) for k, v in tensors.items())


# --- cosine classifiers --------------------------------------------------------------------------


def test_cosine_classifier_is_the_linear_layer_that_torch_weight_normalises() -> None:
    torch.manual_seed(3)
    ours = CosineClassifier(7, 4, class_norms=True)
    linear = nn.Linear(7, 4, bias=False)
    with torch.no_grad():
        linear.weight.copy_(ours.weight)
    theirs = weight_norm(linear)
    x = torch.randn(5, 7)
    torch.testing.assert_close(ours(x), theirs(F.normalize(x, dim=-1)))
    plain = CosineClassifier(7, 4, class_norms=False)
    expected = torch.tensor(
        [[float(torch.cosine_similarity(a, b, dim=0)) for b in plain.weight.detach()] for a in x]
    )
    torch.testing.assert_close(plain(x), expected)


@pytest.mark.parametrize("margin", [0.0, -0.3, 0.2])
def test_margin_loss_against_a_loop(margin: float) -> None:
    cosines, labels = torch.rand(6, 4) * 2 - 1, torch.tensor([0, 3, 1, 1, 2, 0])
    total = 0.0
    for row, y in zip(cosines.double().tolist(), labels.tolist(), strict=True):
        logits = [30 * (c - margin) if k == y else 30 * c for k, c in enumerate(row)]
        total -= logits[y] - np.logaddexp.reduce(logits)
    found = margin_loss(cosines.double(), labels, 30.0, margin)
    assert float(found) == pytest.approx(total / 6, rel=1e-6)


@pytest.mark.parametrize("class_norms", [True, False])
@pytest.mark.parametrize(("kind", "scale"), [(BaselinePlusPlus, 2.0), (NegativeMargin, 30.0)])
def test_cosine_head_equals_a_loop_of_torch_sgd(
    kind: type[BaselinePlusPlus], scale: float, class_norms: bool
) -> None:
    support, query = feature_episodes(n_episodes=3, d=9)
    support.inputs.mul_(7)
    method = kind(class_norms=class_norms, head_scale=scale, head_epochs=25)
    scores = method.adapt(support).predict(query)
    for e in range(3):
        one = one_of(support, e)
        # The draws are the method's own; the descent is torch's, by its automatic gradients.
        start, orders = method.head.draw(one)
        v = nn.Parameter(start[0].double())
        g = nn.Parameter(v.detach().norm(dim=1))
        sgd = torch.optim.SGD(
            [v, g] if class_norms else [v],
            lr=0.01,
            momentum=0.9,
            dampening=0.9,
            weight_decay=0.001,
        )

        def logits(x: Tensor, v: Tensor = v, g: Tensor = g) -> Tensor:
            cosines = F.linear(F.normalize(x, dim=-1), F.normalize(v, dim=-1))
            return scale * cosines * (g if class_norms else 1.0)

        for order in orders[:, 0]:
            for batch in order.split(4):
                sgd.zero_grad()
                found = logits(one.inputs[batch].double())
                F.cross_entropy(found, one.labels[batch]).backward()
                sgd.step()
        expected = logits(query[e].double()).detach().float()
        torch.testing.assert_close(scores[e], expected, rtol=1e-5, atol=1e-5)
        # The descent went somewhere.
        assert (expected - logits(query[e].double(), start[0].double())).abs().max() > 0.01


def test_cosine_head_draws_as_torch_linear_does_and_counts_its_parameters() -> None:
    support = Support(torch.randn(1, 10, 400), torch.zeros(1, 10, dtype=torch.int64), 5, (3,))
    start, orders = BaselinePlusPlus(head_epochs=7).head.draw(support)
    assert start.abs().max() <= 0.05
    assert start.std().item() == pytest.approx(0.05 / 3**0.5, rel=0.05)
    assert torch.equal(orders.sort(-1).values, torch.arange(10).expand(7, 1, 10))
    assert not torch.equal(orders[0], orders[1])
    support, _ = feature_episodes()
    assert BaselinePlusPlus(head_epochs=1).adapt(support).n_adapted == 4 * 7 + 4
    assert NegativeMargin(head_epochs=1).adapt(support).n_adapted == 4 * 7


def test_cosine_head_takes_null_features() -> None:
    support = Support(torch.zeros(4, 5), torch.tensor([0, 1, 0, 1]), 2, (0,))
    scores = BaselinePlusPlus().adapt(support).predict(torch.zeros(2, 5))
    assert torch.equal(scores, torch.zeros(2, 2))


# --- RFS -----------------------------------------------------------------------------------------


def test_distillation_loss_is_its_formula() -> None:
    student, teacher = torch.randn(5, 3).double(), torch.randn(5, 3).double()
    total = 0.0
    for s, t in zip(student.numpy(), teacher.numpy(), strict=True):
        p, q = (np.exp(x / 4) / np.exp(x / 4).sum() for x in (t, s))
        total += 16 * float((p * np.log(p / q)).sum())
    assert float(distillation_loss(student, teacher, 4.0)) == pytest.approx(total / 5)
    assert float(distillation_loss(student, student, 4.0)) == pytest.approx(0, abs=1e-12)


class Noting(FakeRun):
    """Keeps a copy of all modules before every step and after the last."""

    def steps(self, state: Mapping[str, Any], **rest: Any) -> Iterator[int]:
        self.seen: list[dict[str, dict[str, Tensor]]] = []

        def note() -> None:
            modules = {k: v for k, v in state.items() if isinstance(v, nn.Module)}
            self.seen.append({k: copy.deepcopy(m.state_dict()) for k, m in modules.items()})

        for step in super().steps(state, **rest):
            note()
            yield step
        note()


def same(a: Mapping[str, Tensor], b: Mapping[str, Tensor]) -> bool:
    return all(torch.equal(a[k], b[k]) for k in b)


def test_each_generation_starts_anew_with_the_last_state_as_teacher() -> None:
    torch.manual_seed(5)
    source = StripesSource()
    run = Noting(source, 9, images=9 * BATCH)
    SelfDistillation(generations=2, batch_size=BATCH).meta_train(SmallConv(), source, run)

    def student(step: int) -> dict[str, Tensor]:
        parts = run.seen[step]
        named = {f"0.{k}": v for k, v in parts["backbone"].items()}
        return named | {f"1.{k}": v for k, v in parts["classifier"].items()}

    # Generations begin at steps 0, 3 and 6; what step 3 begins with is what it sets up, so the
    # teacher shows from step 4 on.
    for step in (4, 5, 6):
        assert same(run.seen[step]["teacher"], student(3))
    for step in (7, 8, 9):
        assert same(run.seen[step]["teacher"], student(6))
    # The first step of the second generation moves Adam's 1e-3 away from the first weights.
    moved = (student(4)["0.net.0.weight"] - student(0)["0.net.0.weight"]).abs().max()
    assert 5e-4 < moved < 1.01e-3
    again = Noting(source, 3, images=3 * BATCH)
    torch.manual_seed(5)
    Supervised(batch_size=BATCH).meta_train(SmallConv(), source, again)
    assert run.losses[:3] == again.losses


def test_the_loss_of_a_second_generation_mixes_labels_and_teacher() -> None:
    torch.manual_seed(5)
    source = StripesSource()
    run = Noting(source, 2, images=2 * BATCH)
    SelfDistillation(alpha=0.3, temperature=2.0, batch_size=BATCH).meta_train(
        SmallConv(), source, run
    )
    images, labels = source.batch(1, BATCH)

    def logits(backbone: Mapping[str, Tensor], head: Mapping[str, Tensor], train: bool) -> Tensor:
        net = SmallConv()
        net.load_state_dict(backbone)
        return F.linear(net.train(train)(images), head["weight"], head["bias"])

    start, end = run.seen[0], run.seen[1]
    ours = logits(start["backbone"], start["classifier"], True)
    taught = logits(end["backbone"], end["classifier"], False)
    expected = 0.7 * F.cross_entropy(ours, labels) + 0.3 * distillation_loss(ours, taught, 2.0)
    assert run.losses[1] == pytest.approx(expected.item(), rel=1e-5)


def test_no_generations_are_supervised_training() -> None:
    torch.manual_seed(5)
    runs = [FakeRun(StripesSource(), 5, images=5 * BATCH) for _ in range(2)]
    learned = []
    for make, run in zip((Supervised, lambda **p: SelfDistillation(generations=0, **p)), runs):  # noqa: B905
        torch.manual_seed(5)
        learned.append(make(batch_size=BATCH).meta_train(SmallConv(), run.source, run))
    assert runs[0].losses == runs[1].losses
    assert all(torch.equal(learned[0][k], learned[1][k]) for k in learned[0])


def test_rfs_head_equals_scikit_learn_on_unit_features() -> None:
    support, query = feature_episodes()
    scores = RFS().adapt(support).predict(query)
    for e in range(6):
        x, q = (F.normalize(t[e].double(), dim=-1).numpy() for t in (support.inputs, query))
        judge = LogisticRegression(C=1.0, tol=1e-10, max_iter=10_000)
        judge.fit(x, support.labels[e].numpy())
        np.testing.assert_allclose(scores[e].softmax(-1), judge.predict_proba(q), atol=1e-5)


# --- S2M2 ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("layer", range(5))
def test_mixing_after_a_layer_is_mixing_by_hand(layer: int) -> None:
    net = SmallConv().train()
    parts = list(net.net)  # conv, norm, relu, pool, conv, norm, relu, pool
    assert stages(net) == [parts[i] for i in (0, 1, 4, 5)]
    images, partners = torch.randn(6, 1, 16, 16), torch.tensor([2, 0, 1, 5, 3, 4])
    after = {0: 0, 1: 1, 2: 2, 3: 5, 4: 6}[layer]  # how many parts come before the mixing
    expected = images
    for i, part in enumerate([*parts, nn.Identity()]):
        if i == after:
            expected = 0.3 * expected + 0.7 * expected[partners]
        expected = part(expected)
    found = mixed_features(net, images, layer, 0.3, partners)
    torch.testing.assert_close(found, expected.flatten(1))
    assert not any(m._forward_hooks for m in net.modules())
    assert (found - net(images)).abs().max() > 1e-2


def test_mixed_loss_is_the_cross_entropy_of_mixed_labels() -> None:
    logits, labels = torch.randn(5, 3), torch.tensor([0, 1, 2, 1, 0])
    partners = torch.tensor([4, 2, 0, 1, 3])
    rows = F.one_hot(labels, 3).float()
    targets = 0.3 * rows + 0.7 * rows[partners]
    found = mixed_loss(logits, labels, 0.3, partners)
    torch.testing.assert_close(found, F.cross_entropy(logits, targets))


def test_quarter_turns_by_hand() -> None:
    image = torch.tensor([[[[1.0, 2.0], [3.0, 4.0]]]])
    turned, turns = quarter_turns(torch.cat([image, image + 10]))
    assert turns.tolist() == [0, 0, 1, 1, 2, 2, 3, 3]
    assert turned[2].tolist() == [[[2.0, 4.0], [1.0, 3.0]]]
    assert turned[5].tolist() == [[[14.0, 13.0], [12.0, 11.0]]]
    assert turned[6].tolist() == [[[3.0, 1.0], [4.0, 2.0]]]


def test_stages_of_the_bundled_networks_are_their_blocks() -> None:
    for net in (Conv4(image_size=16, channels=1, width=4), ResNet12(image_size=16, channels=1)):
        assert stages(net) == list(net.blocks)
    lone = nn.Linear(3, 3)
    assert stages(lone) == [lone]


def test_a_stage_that_gives_no_tensor_is_refused() -> None:
    with pytest.raises(ContractError, match="gave no tensor"):
        with after_stage(nn.Linear(2, 2), lambda x: x):
            pass


def test_s2m2_turns_first_and_mixes_later() -> None:
    torch.manual_seed(5)
    source = StripesSource()
    run = Noting(source, 4, images=4 * BATCH)
    trainer = ManifoldMixup(rotation_share=0.5, batch_size=BATCH)
    trainer.meta_train(SmallConv(), source, run)
    for step, eighths in ((0, 2), (2, 4)):
        parts = run.seen[step]
        net = SmallConv().train()
        net.load_state_dict(parts["backbone"])
        heads = parts["heads"]
        images, labels = source.batch(step, eighths * BATCH // 8)

        def classes(x: Tensor, heads: Mapping[str, Tensor] = heads) -> Tensor:
            w = F.normalize(heads["classes.weight"], dim=-1)
            return 2.0 * heads["classes.norms"] * (F.normalize(x, dim=-1) @ w.T)

        expected = torch.zeros(())
        if step == 2:
            torch.manual_seed(int(_seed_of(2)))
            layer = int(torch.randint(5, ()))
            share = float(torch.distributions.Beta(2.0, 2.0).sample())
            partners = torch.randperm(len(images))
            features = mixed_features(net, images, layer, share, partners)
            expected = mixed_loss(classes(features), labels, share, partners)
            images, labels = images[: BATCH // 8], labels[: BATCH // 8]
        turned = torch.cat([torch.rot90(images, k, (2, 3)) for k in range(4)])
        features = net(turned)
        turns = F.linear(features, heads["turns.weight"], heads["turns.bias"])
        expected = expected + 0.5 * F.cross_entropy(classes(features), labels.repeat(4))
        wanted = torch.arange(4).repeat_interleave(len(images))
        expected = expected + 0.5 * F.cross_entropy(turns, wanted)
        assert run.losses[step] == pytest.approx(expected.item(), rel=1e-5)


def _seed_of(step: int) -> int:
    from medbench.api import derive_seed

    return derive_seed("step", step)


def test_methods_are_ready_without_learned_tensors() -> None:
    support, query = feature_episodes()
    for method in (BaselinePlusPlus(head_epochs=2), NegativeMargin(head_epochs=2), RFS(), S2M2()):
        assert ready(method).adapt(support).predict(query).shape == (6, 9, 4)
