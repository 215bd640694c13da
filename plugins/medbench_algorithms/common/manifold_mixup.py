"""Pretraining with rotation as a second task, then with manifold mixup."""

from __future__ import annotations

import math
from typing import final

import torch
from torch import Tensor, nn
from torch.distributions import Beta
from torch.nn import functional as F

from medbench.api import Backbone, Source, TrainingRun
from medbench_algorithms.common.cosine_pretrain import CosineClassifier
from medbench_algorithms.common.pretrain import nearest_unit_centroid, pretrained
from medbench_algorithms.common.rotation import quarter_turns
from medbench_algorithms.common.stages import after_stage, stages
from medbench_algorithms.common.training import descend


def mixed_features(
    backbone: Backbone, images: Tensor, layer: int, share: float, partners: Tensor
) -> Tensor:
    """Features ``(b, d)`` of images that are mixed with their partners on their way.

    At layer 0 the images themselves become ``share * x + (1 - share) * x[partners]``, at layer l
    what stage l of the network gives (Verma et al. 2019, section 2).
    """

    def mix(x: Tensor) -> Tensor:
        return share * x + (1 - share) * x[partners]

    features: Tensor
    if layer == 0:
        features = backbone(mix(images))
    else:
        with after_stage(stages(backbone)[layer - 1], mix):
            features = backbone(images)
    return features


def mixed_loss(logits: Tensor, labels: Tensor, share: float, partners: Tensor) -> Tensor:
    """The cross-entropies of both labels of a mixed example, weighted by their shares."""
    own, other = F.cross_entropy(logits, labels), F.cross_entropy(logits, labels[partners])
    return share * own + (1 - share) * other


@final
class ManifoldMixup:
    """Pretrains a backbone in the two phases of S2M2 with rotation (Mangla et al. 2020, section 3).

    For ``rotation_share`` of the budget every image is shown in its four quarter turns, and the
    loss is half the cross-entropy of its class and half that of its turn, which a linear
    classifier must tell. Then half of each batch is mixed, in pairs, with a share drawn
    from Beta(alpha, alpha) after a stage drawn at random (0: the images), and the loss of mixed
    labels is added to that of the first phase on the other half: a quarter of those images in
    four turns (weighted as the authors' code does). A step of either phase passes as
    many images through the network. Classes are told by the cosine classifier of Baseline++, and
    each phase has a fresh Adam. The share 0.8 is that of the passes in the authors' example run on
    CUB: 200 epochs of four turns, then 100 of mixed images and as many turned ones.
    """

    def __init__(
        self,
        *,
        rotation_share: float = 0.8,
        alpha: float = 2.0,
        scale: float = 2.0,
        class_norms: bool = True,
        lr: float = 1e-3,
        batch_size: int = 64,
    ) -> None:
        self.rotation_share = rotation_share
        self.alpha = alpha
        self.scale = scale
        self.class_norms = class_norms
        self.lr = lr
        self.batch_size = batch_size

    def meta_train(self, backbone: Backbone, source: Source, run: TrainingRun) -> dict[str, Tensor]:
        """Train both phases; keeps the best backbone, and `source_statistics` of it."""
        d = backbone.n_features
        classifier = CosineClassifier(d, source.n_classes, class_norms=self.class_norms)
        heads = nn.ModuleDict({"classes": classifier, "turns": nn.Linear(d, 4)}).to(run.device)
        optimiser = torch.optim.Adam([*backbone.parameters(), *heads.parameters()], lr=self.lr)
        eighth = max(1, self.batch_size // 8)
        n_steps = math.ceil(run.budget.images / (8 * eighth))
        n_turning = round(self.rotation_share * n_steps)
        state = {"backbone": backbone, "heads": heads, "optimiser": optimiser}
        validate = nearest_unit_centroid(backbone)
        for step in run.steps(state, images_per_step=8 * eighth, validate=validate):
            backbone.train()
            if step < n_turning:
                images, labels = source.batch(step, 2 * eighth)
                loss = self._turning_loss(backbone, heads, images, labels)
            else:
                if step == n_turning:
                    optimiser.state.clear()
                images, labels = source.batch(step, 4 * eighth)
                loss = self._mixing_loss(backbone, heads, images, labels)
                some = slice(eighth)
                loss = loss + self._turning_loss(backbone, heads, images[some], labels[some])
            descend(loss, optimiser, run)
        return pretrained(backbone, source, run)

    def _turning_loss(
        self, backbone: Backbone, heads: nn.ModuleDict, images: Tensor, labels: Tensor
    ) -> Tensor:
        turned, turns = quarter_turns(images)
        features = backbone(turned)
        of_class = F.cross_entropy(self.scale * heads["classes"](features), labels.repeat(4))
        return 0.5 * of_class + 0.5 * F.cross_entropy(heads["turns"](features), turns)

    def _mixing_loss(
        self, backbone: Backbone, heads: nn.ModuleDict, images: Tensor, labels: Tensor
    ) -> Tensor:
        # From torch's global state, which the run seeds anew for every step.
        layer = int(torch.randint(len(stages(backbone)) + 1, ()))
        share = float(Beta(self.alpha, self.alpha).sample())
        partners = torch.randperm(len(images)).to(images.device)
        features = mixed_features(backbone, images, layer, share, partners)
        logits = self.scale * heads["classes"](features)
        return mixed_loss(logits, labels, share, partners)
