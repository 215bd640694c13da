"""From images to features and episodes: the network's own time, and as little as can be beside it.

Medbench's side runs in a process of its own, set up as a worker is: the setting of the allocator
belongs to a whole process, and the plain loop shall run as a user's script does.
"""

from __future__ import annotations

import multiprocessing
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from plain_embedding import images_to_tensor, plain_conv4, prototype_scores, sample_images
from torch import nn

from medbench.api import Dataset, DatasetInfo, Support
from medbench.backbones import inference_copy
from medbench.bench import _keep_freed_memory
from medbench.embed import ImageStore, embed, features_of, to_input
from medbench.episodes import Pool, Shape
from medbench_algorithms.metric.protonet import ProtoNet
from medbench_backbones.conv4 import Conv4

CPU = torch.device("cpu")
SHAPE = Shape(5, 5, 15)
N_CLASSES = 10


class Pictures(Dataset):
    """Noisy squares of a pattern for each class, in memory."""

    def __init__(self, n: int, size: int, channels: int) -> None:
        self.labels = np.arange(n) % N_CLASSES
        self.info = DatasetInfo(
            name="pictures",
            label_names=tuple(map(str, range(N_CLASSES))),
            image_shape=(size, size, channels),
            domain="d",
            modality="m",
            licence="l",
        )
        rng = np.random.default_rng(0)
        patterns = rng.integers(0, 200, (N_CLASSES, 4, 4, channels), dtype=np.uint8)
        patterns = patterns.repeat(size // 4, axis=1).repeat(size // 4, axis=2)
        self.pixels = rng.integers(0, 56, (n, size, size, channels), dtype=np.uint8)
        self.pixels += patterns[self.labels]

    @property
    def digest(self) -> str:
        return "pictures"

    def read(self, indices):
        return self.pixels[indices]

    def pool(self) -> Pool:
        """Episodes from all images."""
        return Pool([np.flatnonzero(self.labels == c) for c in range(N_CLASSES)])


def network_for(size: int, channels: int) -> Conv4:
    """A conv4 whose BatchNorms do something."""
    torch.manual_seed(0)
    network = Conv4(image_size=size, channels=channels)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.running_mean, 0.0, 0.1)
            nn.init.uniform_(module.running_var, 0.5, 2.0)
    return network.to(memory_format=torch.channels_last).eval()


class Work:
    """What a worker does with one dataset and conv4."""

    def __init__(self, n: int, size: int, channels: int) -> None:
        self.dataset = Pictures(n, size, channels)
        self.backbone = inference_copy(network_for(size, channels))
        self.rows = np.arange(n)
        self.inputs = to_input(self.dataset.pixels, self.backbone.input, CPU)

    def forward(self) -> torch.Tensor:
        """Features of all images, from pixels in memory."""
        return embed(self.backbone, ImageStore(self.dataset), self.rows, CPU)

    def pure_pass(self) -> torch.Tensor:
        """The network alone, on inputs that are ready."""
        with torch.inference_mode():
            return torch.cat([self.backbone(x) for x in self.inputs.split(128)])

    def through_cache(self) -> torch.Tensor:
        """Features of all images by way of an empty cache on disk."""
        store = ImageStore(self.dataset)
        with tempfile.TemporaryDirectory() as cache:
            return features_of(
                self.backbone, self.dataset, store, self.rows, CPU, Path(cache)
            ).clone()

    def episodes(self, n: int) -> torch.Tensor:
        """ProtoNet's scores ``(n, n_query, n_way)``, each image embedded once."""
        features = self.through_cache()
        block = self.dataset.pool().draw(SHAPE, "perf", 0, n)
        labels = torch.from_numpy(block.support_labels)
        algorithm, found = ProtoNet(), []
        algorithm.prepare(self.backbone, {})
        for first in range(0, n, 50):
            some = slice(first, min(first + 50, n))
            support = features[torch.from_numpy(block.support[some])]
            given = Support(support, labels.expand(len(support), -1), 5, (0,) * len(support))
            query = features[torch.from_numpy(block.query[some])]
            found.append(algorithm.adapt(given).predict(query))
        return torch.cat(found)


def _serve(pipe: Any, arguments: tuple[int, int, int]) -> None:
    torch.set_num_threads(1)
    _keep_freed_memory()
    work = Work(*arguments)
    while (asked := pipe.recv()) is not None:
        pipe.send(getattr(work, asked[0])(*asked[1:]).numpy())


Start = Callable[..., Callable[..., torch.Tensor]]


@pytest.fixture
def worker(race: Any) -> Iterator[Start]:
    """``worker(n, size, channels)`` calls methods of `Work` by name in a process like a worker."""
    started: list[tuple[Any, Any]] = []

    def start(*arguments: int) -> Callable[..., torch.Tensor]:
        if race.quick:
            work = Work(*arguments)
            return lambda name, *more: getattr(work, name)(*more)
        processes = multiprocessing.get_context("spawn")
        here, there = processes.Pipe()
        process = processes.Process(target=_serve, args=(there, arguments), daemon=True)
        process.start()

        def ask(*what: Any) -> torch.Tensor:
            here.send(what)
            return torch.from_numpy(here.recv())

        started.append((here, process))
        return ask

    yield start
    for pipe, process in started:
        pipe.send(None)
        process.join()


SIZES = pytest.mark.parametrize(("size", "channels"), [(28, 1), (84, 3)])


def gigaflops(size: int, channels: int, width: int = 64) -> float:
    """10^9 operations of conv4's convolutions for one image."""
    found, n_in = 0.0, channels
    for _ in range(4):
        found += 2e-9 * 9 * n_in * width * size**2
        n_in, size = width, size // 2
    return found


@SIZES
def test_forward_of_100_images(race, worker, size, channels):
    n = 10 if race.quick else 100
    plain, images = plain_conv4(network_for(size, channels)), Pictures(n, size, channels).pixels
    ask = worker(n, size, channels)

    def loop():
        with torch.no_grad():
            return plain(images_to_tensor(images))

    ours, theirs = race(
        f"conv4, forward of 100 images of {size} px",
        ours=lambda: ask("forward"),
        loop=loop,
        n_ours=n,
        n_loop=n,
        unit="image",
        goal={28: 4.0, 84: 6.0}[size],
        floor_s=lambda machine: machine.floor_s(flops=1e9 * gigaflops(size, channels)),
    )
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)


@SIZES
def test_600_episodes_from_600_images(race, worker, size, channels):
    n_images, n, n_loop = (200, 2, 1) if race.quick else (600, 600, 5)
    dataset, plain = Pictures(n_images, size, channels), plain_conv4(network_for(size, channels))
    block = dataset.pool().draw(SHAPE, "perf", 0, n)
    labels = torch.from_numpy(block.support_labels)
    ask = worker(n_images, size, channels)

    def loop():
        found = [
            prototype_scores(plain, dataset.pixels, (block.support[i], block.query[i]), labels)
            for i in range(n_loop)
        ]
        return torch.stack(found)

    ours, theirs = race(
        f"600 episodes of 600 images, {size} px, conv4 and ProtoNet",
        ours=lambda: ask("episodes", n),
        loop=loop,
        n_ours=n,
        n_loop=n_loop,
        goal={28: 150.0, 84: 480.0}[size],
        rounds=3,
    )
    assert torch.equal(ours[:n_loop].argmax(-1), theirs.argmax(-1))
    torch.testing.assert_close(ours[:n_loop], theirs, rtol=1e-3, atol=1e-3)


@SIZES
def test_features_on_disk_against_one_pure_pass(race, worker, size, channels):
    n = 140 if race.quick else {28: 3000, 84: 600}[size]
    ask = worker(n, size, channels)
    ours, theirs = race(
        f"conv4, {n} images of {size} px to cached features (against the bare network)",
        ours=lambda: ask("through_cache"),
        loop=lambda: ask("pure_pass"),
        n_ours=n,
        n_loop=n,
        unit="image",
        goal=1 / 1.15,
    )
    assert torch.equal(ours, theirs)


def test_episodes_of_images_in_memory(race):
    n, n_loop = (20, 5) if race.quick else (5000, 100)
    dataset = Pictures(6000, 28, 1)
    pool, store = dataset.pool(), ImageStore(dataset)
    store.read(np.arange(6000))
    by_class = {c: np.flatnonzero(dataset.labels == c).tolist() for c in range(N_CLASSES)}

    def ours():
        block = pool.draw(SHAPE, "perf", 0, n)
        for support, query in zip(block.support, block.query, strict=True):
            found = store.read(support), store.read(query)
        return found

    def loop():
        for _ in range(n_loop):
            found = sample_images(dataset.pixels, by_class, 5, 5, 15)
        return found

    (support, query), (pictures, labels) = race(
        "sampling, 100 images of 28 px in memory",
        ours=ours,
        loop=loop,
        n_ours=n,
        n_loop=n_loop,
        goal=10.0,
        floor_s=lambda machine: machine.floor_s(n_bytes=2 * 100 * 28 * 28),
    )
    assert len(support) + len(query) == len(pictures) == len(labels) == 100
    last = pool.draw(SHAPE, "perf", n - 1, 1)
    np.testing.assert_array_equal(query, dataset.pixels[last.query[0]])
