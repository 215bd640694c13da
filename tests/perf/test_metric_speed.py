"""Metric methods as the accuracy lane calls them, against plain loops over episodes."""

from __future__ import annotations

from functools import partial

import plain_metric as plain
import pytest
import torch
from contest import Contest, D, features, maps
from torch import nn

from medbench.episodes import Shape
from medbench_algorithms.common.episodic import Episodic
from medbench_algorithms.metric.dsn import DSN
from medbench_algorithms.metric.feat import FEAT, SetTransformer
from medbench_algorithms.metric.matching_networks import FullContext, MatchingNetworks
from medbench_algorithms.metric.nearest_neighbour import NearestNeighbour
from medbench_algorithms.metric.protonet import ProtoNet
from medbench_algorithms.metric.relation_network import RelationModule, RelationNetwork
from medbench_algorithms.metric.simple_cnaps import SimpleCNAPS
from medbench_algorithms.metric.simpleshot import SimpleShot


def of(shot: int) -> Shape:
    return Shape(5, shot, 15)


def learned(algorithm: Episodic, head: nn.Module | None = None) -> Episodic:
    """`algorithm` with a head that has learned nothing yet, as `prepare` would leave it."""
    made = nn.Identity() if head is None else head
    algorithm._head = made.eval().requires_grad_(requires_grad=False)
    return algorithm


def gathered(shape: Shape, d: int = D) -> float:
    """Bytes that an episode's features take: read where they are, written and read again."""
    return 3 * 4.0 * d * shape.way * (shape.shot + shape.query)


def memory(shape: Shape, d: int = D) -> dict[str, float]:
    return {"n_bytes": gathered(shape, d)}


@pytest.mark.parametrize("shot", [1, 5, 20])
def test_protonet(race, shot):
    contest = Contest(features(), of(shot), learned(ProtoNet()), plain.protonet)
    contest.run(race, f"ProtoNet, {shot}-shot", 300, 3000, 35 if shot == 5 else None, memory)


def test_simpleshot(race):
    mean = features().inputs.mean(0)
    ours = SimpleShot()
    ours.mean = mean
    contest = Contest(features(), of(5), ours, partial(plain.simpleshot, mean=mean))
    contest.run(race, "SimpleShot", 300, 3000, 25, memory)


def test_nearest_centroid_by_cosine(race):
    ours = learned(ProtoNet(distance="cosine"))
    contest = Contest(features(), of(5), ours, plain.cosine_centroid)
    contest.run(race, "nearest centroid, cosine", 300, 3000, 20, memory)


@pytest.mark.parametrize("shot", [1, 5, 20])
def test_nearest_neighbour(race, shot):
    contest = Contest(features(), of(shot), NearestNeighbour(), plain.nearest_neighbour)
    contest.run(race, f"nearest neighbour, {shot}-shot", 300, 2000, 20, memory)


def test_three_nearest_neighbours(race):
    loop = partial(plain.neighbours, k=3)
    contest = Contest(features(), of(5), NearestNeighbour(k=3), loop, scores_alike=False)
    contest.run(race, "3 nearest neighbours", 300, 1000, 20, memory)


def test_matching_networks(race):
    ours = learned(MatchingNetworks())
    contest = Contest(features(), of(5), ours, plain.matching_networks)
    contest.run(race, "Matching Networks", 300, 1000, 20, memory)


@pytest.mark.parametrize("shot", [1, 5])
def test_matching_networks_in_full_context(race, shot):
    torch.manual_seed(0)
    head = FullContext(D, None)
    loop = partial(
        plain.matching_networks_in_context,
        along_support=head.along_support,
        reader=head.reader,
    )
    ours = learned(MatchingNetworks(fce=True), head)

    def work(shape: Shape) -> dict[str, float]:
        # What is left in any order of work: the state's share of the gates, at all steps but one.
        steps = shape.way * shape.shot - 1
        return {"flops": 2.0 * shape.way * shape.query * 4 * D * D * steps}

    contest = Contest(features(), of(shot), ours, loop)
    n_loop, n_ours = {1: (10, 30), 5: (3, 9)}[shot]
    contest.run(race, f"Matching Networks, LSTM, {shot}-shot", n_loop, n_ours, 100, work)


@pytest.mark.parametrize("shot", [1, 5])
def test_feat(race, shot):
    torch.manual_seed(0)
    head = SetTransformer(D)
    loop = partial(plain.feat, head=head, temperature=64.0)
    contest = Contest(features(), of(shot), learned(FEAT(), head), loop)

    def work(shape: Shape) -> dict[str, float]:
        return {"flops": 2.0 * shape.way * 4 * D * D, "n_bytes": gathered(shape)}

    contest.run(race, f"FEAT, {shot}-shot", 200, 1000, 10, work)


@pytest.mark.parametrize("shot", [1, 5, 20])
def test_simple_cnaps(race, shot):
    contest = Contest(features(), of(shot), SimpleCNAPS(), plain.simple_cnaps)
    contest.run(race, f"Simple CNAPS, {shot}-shot", 4, {1: 500, 5: 300, 20: 100}[shot], 20)


@pytest.mark.parametrize("shot", [5, 20])
def test_dsn(race, shot):
    contest = Contest(features(), of(shot), learned(DSN()), plain.dsn)
    contest.run(race, f"DSN, {shot}-shot", 100, 300, 20)


def test_relation_network(race):
    torch.manual_seed(0)
    head = RelationModule(64, 5, 5).eval()
    loop = partial(plain.relation_network, module=head)

    def work(shape: Shape) -> dict[str, float]:
        # The first convolution of 4 x 4 places that pooling keeps, once for an image, and the
        # second of each pair, from four places to four.
        first = shape.way * (1 + shape.query) * 16 * 9 * 64 * 64
        second = shape.way**2 * shape.query * 16 * 64 * 64
        return {"flops": 2.0 * (first + second)}

    contest = Contest(maps(), of(5), learned(RelationNetwork(), head), loop)
    contest.run(race, "Relation Network, 64x5x5", 20, 100, 5, work)
