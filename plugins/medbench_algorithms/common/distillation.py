"""Supervised pretraining followed by generations of self-distillation."""

from __future__ import annotations

import copy
import math
from typing import final

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from medbench.api import Backbone, Source, TrainingRun
from medbench_algorithms.common.pretrain import nearest_unit_centroid, pretrained
from medbench_algorithms.common.training import descend


def distillation_loss(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """``T^2 KL(teacher || student)`` at temperature T, the mean over a batch of logits ``(b, c)``.

    Hinton, Vinyals and Dean 2015; T^2 keeps the size of gradients independent of T.
    """
    log_student = (student / temperature).log_softmax(-1)
    log_teacher = (teacher / temperature).log_softmax(-1)
    divergence = F.kl_div(log_student, log_teacher, log_target=True, reduction="batchmean")
    return temperature**2 * divergence


@final
class SelfDistillation:
    """Trains as `Supervised`, then again from the start with its own last state as teacher.

    Tian et al. 2020, section 3: generation k minimises ``(1 - alpha) * cross-entropy + alpha *
    KL`` to generation k - 1 (the authors' code: 0.5, temperature 4). The budget is split
    evenly over the ``generations + 1`` trainings, each of which starts from the same weights, with
    a fresh optimiser. The teacher is in eval mode. What is kept is the state that does best at
    validation tasks, of whatever generation. ``generations`` 0 is `Supervised`.
    """

    def __init__(
        self,
        *,
        generations: int = 1,
        alpha: float = 0.5,
        temperature: float = 4.0,
        lr: float = 1e-3,
        batch_size: int = 64,
    ) -> None:
        self.generations = generations
        self.alpha = alpha
        self.temperature = temperature
        self.lr = lr
        self.batch_size = batch_size

    def meta_train(self, backbone: Backbone, source: Source, run: TrainingRun) -> dict[str, Tensor]:
        """Train all generations; keeps the best backbone, and `source_statistics` of it."""
        classifier = nn.Linear(backbone.n_features, source.n_classes).to(run.device)
        student = nn.Sequential(backbone, classifier)
        # Copied before the run restores a checkpoint, so that a resumed run has the same.
        first = copy.deepcopy(student.state_dict())
        # A part of the state: a resumed run finds its teacher there.
        teacher = copy.deepcopy(student).requires_grad_(requires_grad=False)
        optimiser = torch.optim.Adam(student.parameters(), lr=self.lr)
        n_steps = max(1, math.ceil(run.budget.images / self.batch_size))
        length = math.ceil(n_steps / (self.generations + 1))
        state = {
            "backbone": backbone,
            "classifier": classifier,
            "teacher": teacher,
            "optimiser": optimiser,
        }
        validate = nearest_unit_centroid(backbone)
        for step in run.steps(state, images_per_step=self.batch_size, validate=validate):
            if step and step % length == 0:
                teacher.load_state_dict(student.state_dict())
                student.load_state_dict(first)
                optimiser.state.clear()
            student.train()
            teacher.eval()
            images, labels = source.batch(step, self.batch_size)
            logits = student(images)
            loss = F.cross_entropy(logits, labels)
            if step >= length:
                with torch.no_grad():
                    taught = teacher(images)
                divergence = distillation_loss(logits, taught, self.temperature)
                loss = (1 - self.alpha) * loss + self.alpha * divergence
            descend(loss, optimiser, run)
        return pretrained(backbone, source, run)
