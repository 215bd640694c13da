"""Zero adaptation for masks: masked prototypes that are those of source images."""

from __future__ import annotations

from collections.abc import Mapping
from typing import final

import torch
from torch import Tensor

from medbench.api import Algorithm, Backbone, ContractError, Predictor, Source, Support, TrainingRun
from medbench_algorithms.dense.masked_prototypes import (
    NearestPrototype,
    centre_of,
    class_prototypes,
)
from medbench_algorithms.references.asked import asked_classes

_NEEDED = ("prototypes", "backgrounds", "middle")


@final
class SourceMaskedPrototypes(Algorithm):
    """`MaskedPrototypes` with source tasks in place of the support set, which is not looked at.

    The prototype of a class is the mean of those it has in `tasks` source tasks; so is that of the
    background of tasks with the class. A task of several classes takes the mean of their
    backgrounds. The backbone stays as it is.
    """

    def __init__(
        self,
        *,
        tasks: int = 50,
        alpha: float = 20.0,
        centre: bool = False,
        train_way: int | None = None,
        train_shot: int | None = None,
        train_query: int | None = None,
    ) -> None:
        # The shape of training tasks is the core's business: it has shaped the source by it.
        del train_way, train_shot, train_query
        self.tasks = tasks
        self.alpha = alpha
        self.centre = centre
        self._learned: dict[str, Tensor] | None = None

    @torch.no_grad()
    def meta_train(self, backbone: Backbone, source: Source, run: TrainingRun) -> dict[str, Tensor]:
        """``prototypes`` and ``backgrounds`` ``(n_classes, c)``, and the mean feature ``middle``.

        Raises `ContractError` when no source task shows a class.
        """
        backbone.eval()
        found: list[dict[int, tuple[Tensor, Tensor]]] = []
        middles: list[Tensor] = []
        for step in range(self.tasks):
            (task,) = source.tasks(step)
            assert task.support.masks is not None
            assert task.query_masks is not None
            maps = backbone.feature_map(torch.cat([task.support.inputs, task.query]))
            masks = torch.cat([task.support.masks, task.query_masks])
            means = class_prototypes(maps, masks, tuple(masks.shape[2:]))
            numbers = asked_classes(task.support, "zero-adaptation-masks").tolist()
            found.append({c: (means[i + 1], means[0]) for i, c in enumerate(numbers)})
            middles.append(centre_of(maps)[0, :, 0, 0])
        rows = []
        for c in range(source.n_classes):
            own = [task[c] for task in found if c in task]
            if not own:
                raise ContractError(
                    f"None of {self.tasks} source tasks shows class {c} of {source.n_classes}; set "
                    "tasks higher."
                )
            rows.append([torch.stack(side).mean(0).cpu() for side in zip(*own, strict=True)])
        prototypes, backgrounds = (torch.stack(side) for side in zip(*rows, strict=True))
        middle = torch.stack(middles).mean(0).cpu()
        return {"prototypes": prototypes, "backgrounds": backgrounds, "middle": middle}

    def prepare(self, backbone: Backbone, learned: Mapping[str, Tensor]) -> None:
        """Take the prototypes. Raises `ContractError` when some are missing."""
        missing = [name for name in _NEEDED if name not in learned]
        if missing:
            raise ContractError(
                f"zero-adaptation-masks needs {', '.join(missing)} of its training, and was given "
                f"{', '.join(sorted(learned)) or 'nothing'}. Meta-train it first."
            )
        self._learned = {name: learned[name] for name in _NEEDED}

    def adapt(self, support: Support) -> Predictor:
        """Prototypes of the task's classes. Raises `ContractError` before `prepare`."""
        if self._learned is None:
            raise ContractError("zero-adaptation-masks: adapt was called before prepare.")
        assert support.size is not None
        classes = asked_classes(support, "zero-adaptation-masks")
        own, background, middle = (self._learned[name].to(support.inputs) for name in _NEEDED)
        known = torch.cat([background[classes].mean(-2, keepdim=True), own[classes]], dim=-2)
        centre = middle[:, None, None] if self.centre else None
        if centre is not None:
            known = known - middle
        predictor = NearestPrototype(known, self.alpha, support.size, centre)
        predictor.n_adapted = 0
        return predictor
