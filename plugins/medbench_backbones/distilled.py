"""A small network that imitates any backbone for images: ``distilled:BACKBONE``."""

from __future__ import annotations

import math
from typing import Final, final

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from medbench.api import Backbone, InputSpec, MedbenchError, Source, TrainingRun
from medbench_backbones.wrapper import Wrapper, refuse_replaced

_BLOCKS: Final = 4
_SMALLEST: Final = 4
_PROBE_IMAGES: Final = 2


@final
class Student(Backbone):
    """Four narrow convolutions, and a 1x1 convolution to the channels of the teacher's map.

    Blocks are conv4's; one halves the image while more than `_SMALLEST` pixels a side are left, or
    more than the map has. Features are made of the map as the teacher makes its own, or by a
    linear layer of its means where that is neither the map itself nor its means.
    """

    def __init__(self, wants: InputSpec, width: int, shape: tuple[int, ...], head: str, d: int):
        super().__init__()
        self.input, self.n_features = wants, d
        side, layers = wants.size, list[nn.Module]()
        for i in range(_BLOCKS):
            layers.append(nn.Conv2d(width if i else wants.channels, width, 3, padding=1))
            layers.append(nn.BatchNorm2d(width))
            if side // 2 >= max(_SMALLEST, *shape[1:]):
                layers.append(nn.MaxPool2d(2))
                side //= 2
            layers.append(nn.ReLU())
        self.blocks = nn.Sequential(*layers)
        self.places = nn.AdaptiveAvgPool2d(shape[1:])
        self.regressor = nn.Conv2d(width, shape[0], 1)
        self.head = nn.Linear(shape[0], d) if head == "linear" else None
        self.flat = head == "flat"

    def feature_map(self, images: Tensor) -> Tensor:
        """What stands for the teacher's map, of its shape."""
        out: Tensor = self.regressor(self.places(self.blocks(images)))
        return out

    def forward(self, images: Tensor) -> Tensor:
        """What stands for the teacher's features."""
        return self.of_map(self.feature_map(images))

    def of_map(self, maps: Tensor) -> Tensor:
        """Features of what `feature_map` gave."""
        if self.flat:
            return maps.flatten(1)
        means = maps.mean((2, 3))
        return means if self.head is None else self.head(means)


@final
class Distilled(Wrapper):
    """A network that is trained as it is, and then imitated by a small one, which is tested.

    After meta-training the student learns to give the teacher's feature maps and features for
    source images, and nothing else: no label and no image of the test. The loss is the mean squared
    error of each, relative to its variance: the hints of Romero et al., FitNets, ICLR 2015,
    section 2.2, equation 3, at the teacher's last map. ``images`` is what this may look at, each
    time counted; records add it to what the training looked at.

    Methods that change weights when they adapt are refused: what they learned is the teacher's.
    Raises `MedbenchError` for a network without feature maps.
    """

    adaptable = False

    def __init__(
        self,
        *,
        inner: Backbone,
        image_size: int,
        channels: int,
        student_width: int = 16,
        images: int = 32_000,
        lr: float = 3e-3,
        batch_size: int = 64,
    ) -> None:
        refuse_replaced(
            "distilled",
            inner,
            "Let it compress the student instead, as in int8:distilled:BACKBONE.",
        )
        super().__init__(inner)
        del image_size, channels  # the inner network has been built for them
        self.lesson_images = images
        self.lr, self.batch_size = lr, batch_size
        shape, head = _anatomy(inner)
        self.student = Student(inner.input, student_width, shape, head, inner.n_features)

    def learn(self, source: Source, run: TrainingRun) -> None:
        """Train the student on source images."""
        teacher, student = self.inner.eval(), self.student
        optimiser = torch.optim.Adam(student.parameters(), lr=self.lr)
        state = {"student": student, "optimiser": optimiser}
        n_steps = max(1, math.ceil(run.budget.images / self.batch_size))
        for step in run.steps(state, images_per_step=self.batch_size):
            # Half a cosine, of the step alone, so that a resumed lesson has the same rates.
            for group in optimiser.param_groups:
                group["lr"] = self.lr * (1 + math.cos(math.pi * step / n_steps)) / 2
            student.train()
            images, _ = source.batch(step, self.batch_size)
            with torch.no_grad():
                wanted = teacher.feature_map(images), teacher(images)
            maps = student.feature_map(images)
            found = maps, student.of_map(maps)
            loss = torch.stack([_error(f, w) for f, w in zip(found, wanted, strict=True)]).mean()
            optimiser.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimiser.step()
            run.log(loss.item())
        run.best()
        student.eval()

    def deployed(self) -> Backbone:
        """The student alone."""
        student = self.student
        student.origin = self.origin
        rest, whole = (sum(p.numel() for p in m.parameters()) for m in (student, self.inner))
        student.form = f"distilled: {rest} weights for {whole}"
        return student


def _error(found: Tensor, wanted: Tensor) -> Tensor:
    return F.mse_loss(found, wanted) / wanted.var().clamp_min(1e-12)


@torch.no_grad()
def _anatomy(teacher: Backbone) -> tuple[tuple[int, ...], str]:
    """The shape of the teacher's map of an image, and what its features are of it.

    ``flat``: the map itself; ``means``: its means over places; ``linear``: something else. Raises
    `MedbenchError` for a network without maps.
    """
    shape = (_PROBE_IMAGES, *teacher.input.shape)
    at = next(teacher.parameters(), torch.empty(0)).device
    images = torch.rand(shape, generator=torch.Generator().manual_seed(0)).to(at)
    teacher.eval()
    try:
        maps = teacher.feature_map(images)
    except MedbenchError as error:
        raise MedbenchError(
            f"distilled: a student learns a feature map, and there is none: {error}"
        ) from error
    features = teacher(images)
    heads = {"flat": maps.flatten(1), "means": maps.mean((2, 3))}
    near = [
        name
        for name, found in heads.items()
        if found.shape == features.shape and torch.allclose(found, features, rtol=1e-4, atol=1e-6)
    ]
    return tuple(maps.shape[1:]), next(iter(near), "linear")
