"""Features and images of episodes as the field's code makes them: one episode at a time."""

from __future__ import annotations

import random

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from medbench.api import Backbone

Episode = tuple[NDArray[np.int64], NDArray[np.int64]]


def plain_conv4(network: Backbone) -> nn.Sequential:
    """Conv-4 in the papers' order of layers, with the weights of a `Conv4`."""

    def block(n_in: int, n_out: int) -> nn.Sequential:
        return nn.Sequential(
            nn.Conv2d(n_in, n_out, 3, padding=1),
            nn.BatchNorm2d(n_out),
            nn.ReLU(),
            nn.MaxPool2d(2),
        )

    weights = {k.removeprefix("blocks."): v for k, v in network.state_dict().items()}
    width, channels = weights["0.0.weight"].shape[:2]
    found = nn.Sequential(block(channels, width), *(block(width, width) for _ in range(3)))
    found.load_state_dict({k: v.contiguous() for k, v in weights.items()})
    return nn.Sequential(found, nn.Flatten()).eval()


def images_to_tensor(images: NDArray[np.uint8]) -> Tensor:
    """Images ``(b, H, W, C)`` uint8 to ``(b, C, H, W)`` in 0...1, one after the other."""
    return torch.stack([torch.from_numpy(i).permute(2, 0, 1).float() / 255 for i in images])


@torch.no_grad()
def prototype_scores(
    network: nn.Module, images: NDArray[np.uint8], episode: Episode, labels: Tensor
) -> Tensor:
    """Scores ``(n_query, n_way)`` of one episode, its images embedded for it alone."""
    support = network(images_to_tensor(images[episode[0]]))
    query = network(images_to_tensor(images[episode[1]]))
    way = int(labels.max()) + 1
    prototypes = torch.stack([support[labels == c].mean(0) for c in range(way)])
    return -(torch.cdist(query, prototypes) ** 2)


def sample_images(
    images: NDArray[np.uint8], by_class: dict[int, list[int]], way: int, shot: int, query: int
) -> tuple[Tensor, Tensor]:
    """Images ``(way * (shot + query), C, H, W)`` uint8 and labels of one random episode."""
    chosen = random.sample(list(by_class), way)
    pictures, labels = [], []
    for label, c in enumerate(chosen):
        for i in random.sample(by_class[c], shot + query):
            pictures.append(torch.from_numpy(images[i]).permute(2, 0, 1))
            labels.append(label)
    return torch.stack(pictures), torch.tensor(labels)
