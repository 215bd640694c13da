"""Speed of the parts that every run goes through. Compare runs with ``--benchmark-compare``."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from medbench.episodes import Pool, Shape
from medbench.metrics import classification


@pytest.mark.parametrize("per_class", [20, 600])
def test_draw_10000_episodes_5_way_5_shot_15_query(benchmark, per_class):
    pool = Pool([np.arange(i * per_class, (i + 1) * per_class) for i in range(64)])
    block = benchmark(pool.draw, Shape(5, 5, 15), "perf", 0, 10_000)
    benchmark.extra_info["episodes"] = len(block)


def test_score_600_episodes(benchmark):
    rng = np.random.default_rng(0)
    scores, labels = rng.normal(size=(600, 75, 5)), rng.integers(0, 5, (600, 75))
    found = benchmark(classification, scores, labels)
    assert len(found["accuracy"]) == 600


def test_protonet_predicts_1000_episodes_of_512_features(benchmark):
    from medbench.api import Support
    from medbench_algorithms.metric.protonet import ProtoNet
    from medbench_backbones.conv4 import Conv4

    features = torch.randn(6400, 512, generator=torch.Generator().manual_seed(0))
    pool = Pool([np.arange(i * 100, (i + 1) * 100) for i in range(64)])
    labels = torch.arange(5).repeat_interleave(5)
    algorithm = ProtoNet()
    algorithm.prepare(Conv4(image_size=28, channels=1), {})

    def run():
        block = pool.draw(Shape(5, 5, 15), "perf", 0, 1000)
        for first in range(0, 1000, 50):
            some = slice(first, first + 50)
            support = features[torch.from_numpy(block.support[some])]
            query = features[torch.from_numpy(block.query[some])]
            given = Support(support, labels.expand(50, -1), 5, (0,) * 50)
            scores = algorithm.adapt(given).predict(query)
        return scores

    assert benchmark(run).shape == (50, 75, 5)
