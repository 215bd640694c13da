"""Tiny stand-ins for the core: a source of striped images, and a training run without a disk."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import pytest
import timm
import torch
from torch import Tensor, nn

from medbench.api import Algorithm, Backbone, Budget, InputSpec, Support, Task, derive_seed
from medbench_backbones.timm_family import TimmBackbone

SIZE = 16


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Checks of one method follow one another: one worker trains it, and not every worker."""
    places = [i for i, item in enumerate(items) if item.path.name == "test_every_method.py"]
    by_case = sorted((items[i] for i in places), key=_case)
    for place, item in zip(places, by_case, strict=True):
        items[place] = item


def _case(item: pytest.Item) -> str:
    callspec = getattr(item, "callspec", None)
    return str(callspec.params.get("case", "")) if callspec else ""


def stripes(labels: Tensor, generator: torch.Generator, noise: float = 0.3) -> Tensor:
    """Images ``(n, 1, 16, 16)``: a class is a frequency and an orientation, the phase is random."""
    grid = torch.arange(SIZE) / SIZE
    frequency = (1 + labels // 4).float()[:, None, None]
    angle = (labels % 4).float()[:, None, None] * torch.pi / 4
    phase = 0.4 * torch.rand(len(labels), 1, 1, generator=generator)
    wave = grid[None, :, None] * angle.cos() + grid[None, None, :] * angle.sin()
    images = 0.5 + 0.5 * torch.sin(2 * torch.pi * (frequency * wave + phase))
    return (images + noise * torch.randn(images.shape, generator=generator)).unsqueeze(1)


class StripesSource:
    """Striped classes; every draw depends on the seed and its arguments alone."""

    def __init__(self, way: int = 3, shot: int = 2, query: int = 4, n_classes: int = 8) -> None:
        self.way, self.shot, self.query = way, shot, query
        self.n_classes = n_classes
        self.ways: tuple[int, ...] = (way,)
        self.images_per_task = way * (shot + query)

    def task(self, *name: object) -> Task:
        generator = torch.Generator().manual_seed(derive_seed("task", *name))
        classes = torch.randperm(self.n_classes, generator=generator)[: self.way]
        own = torch.arange(self.way)
        labels, query_labels = own.repeat(self.shot), own.repeat(self.query)
        query_labels = query_labels[torch.randperm(len(query_labels), generator=generator)]
        images = stripes(classes[torch.cat([labels, query_labels])], generator)
        n = len(labels)
        return Task(
            Support(images[:n], labels, self.way, (derive_seed("adapt", *name),), classes=classes),
            images[n:],
            query_labels,
        )

    def tasks(self, step: int, count: int = 1, only: Sequence[int] | None = None) -> list[Task]:
        return [self.task("train", step, i) for i in (range(count) if only is None else only)]

    def batch(self, step: int, size: int) -> tuple[Tensor, Tensor]:
        generator = torch.Generator().manual_seed(derive_seed("batch", step))
        labels = torch.randint(self.n_classes, (size,), generator=generator)
        return stripes(labels, generator), labels

    def sweep(self, size: int = 256) -> Iterator[tuple[Tensor, Tensor]]:
        generator = torch.Generator().manual_seed(3)
        for _ in range(2):
            labels = torch.arange(self.n_classes).repeat(3)
            yield stripes(labels, generator), labels


class FakeRun:
    """Steps, losses and validation accuracies; the last state is the best."""

    def __init__(self, source: StripesSource, n_steps: int, images: int = 10**9) -> None:
        self.budget = Budget(episodes=n_steps, images=images)
        self.seed = 0
        self.device = torch.device("cpu")
        self.source, self.n_steps = source, n_steps
        self.losses: list[float] = []
        self.accuracies: list[float] = []
        self.images_per_step = 0

    def steps(
        self,
        state: Mapping[str, Any],
        *,
        images_per_step: int,
        validate: Callable[[Support, Tensor], Tensor] | None = None,
    ) -> Iterator[int]:
        self.state, self.images_per_step = state, images_per_step
        for step in range(self.n_steps):
            torch.manual_seed(derive_seed("step", step))
            yield step
        if validate is not None:
            tasks = [self.source.task("val", i) for i in range(20)]
            hits = [(validate(t.support, t.query).argmax(-1) == t.query_labels) for t in tasks]
            self.accuracies.append(torch.cat(hits).float().mean().item())

    def log(self, loss: float) -> None:
        self.losses.append(loss)

    def share(self, count: int) -> range:
        return range(count)

    def reseed(self, number: int) -> None:
        torch.manual_seed(derive_seed("task", len(self.losses), number))

    def together(self, parameters: Iterable[nn.Parameter], loss: float) -> float:
        return loss

    def best(self) -> dict[str, Tensor]:
        return {
            f"{name}.{key}": tensor.detach().clone()
            for name, module in self.state.items()
            if isinstance(module, nn.Module)
            for key, tensor in module.state_dict().items()
        }


class SmallConv(Backbone):
    """Two convolutions, with BatchNorm or without."""

    def __init__(self, norm: bool = True, width: int = 8) -> None:
        super().__init__()

        def block(n_in: int) -> list[nn.Module]:
            middle = [nn.BatchNorm2d(width)] if norm else []
            return [nn.Conv2d(n_in, width, 3, padding=1), *middle, nn.ReLU(), nn.MaxPool2d(2)]

        self.net = nn.Sequential(*block(1), *block(width))
        self.n_features = width * (SIZE // 4) ** 2
        self.input = InputSpec(size=SIZE, channels=1, mean=(0.0,), std=(1.0,))

    def feature_map(self, images: Tensor) -> Tensor:
        out: Tensor = self.net(images)
        return out

    def forward(self, images: Tensor) -> Tensor:
        return self.feature_map(images).flatten(1)


def small_vit(width: int = 12, depth: int = 2) -> TimmBackbone:
    """A Vision Transformer of two blocks, far enough from timm's start for blocks to matter."""
    torch.manual_seed(4)
    model = timm.models.VisionTransformer(
        img_size=SIZE,
        patch_size=4,
        in_chans=1,
        num_classes=0,
        embed_dim=width,
        depth=depth,
        num_heads=2,
        mlp_ratio=2,
    )
    for p in model.parameters():
        p.data.add_(0.1 * torch.randn(p.shape))
    spec = InputSpec(size=SIZE, channels=1, mean=(0.0,), std=(1.0,))
    return TimmBackbone(model.eval(), spec, width)


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def source() -> StripesSource:
    return StripesSource()


def feature_episodes(
    n_episodes: int = 6, n_way: int = 4, shots: tuple[int, ...] = (3, 1, 5, 2), d: int = 7
) -> tuple[Support, Tensor]:
    """Support and queries ``(n_episodes, n, d)``, unequal shots, labels in random order."""
    generator = torch.Generator().manual_seed(11)
    labels = torch.arange(n_way).repeat_interleave(torch.tensor(shots))
    labels = torch.stack(
        [labels[torch.randperm(len(labels), generator=generator)] for _ in range(n_episodes)]
    )
    means = torch.randn(n_episodes, n_way, d, generator=generator)
    inputs = means.gather(1, labels.unsqueeze(-1).expand(-1, -1, d))
    inputs = inputs + torch.randn(inputs.shape, generator=generator)
    query = torch.randn(n_episodes, 9, d, generator=generator)
    return Support(inputs, labels, n_way, tuple(range(100, 100 + n_episodes))), query


def one_of(support: Support, episode: int) -> Support:
    return Support(
        support.inputs[episode],
        support.labels[episode],
        support.n_way,
        (support.seeds[episode],),
    )


def ready(algorithm: Algorithm, learned: Mapping[str, Tensor] | None = None) -> Algorithm:
    """`algorithm` after `prepare`, with nothing learned unless told."""
    algorithm.prepare(SmallConv().eval(), learned or {})
    return algorithm
