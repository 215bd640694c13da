"""Transductive methods on 512-d features, as the accuracy lane calls them, against plain loops."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, partial

import numpy as np
import plain_transductive as plain
import pytest
import torch
from torch import Tensor

from medbench.api import Algorithm, Support
from medbench.episodes import Block, Pool, Shape
from medbench.lanes import EPISODES_PER_BLOCK
from medbench_algorithms.transductive.bd_cspn import BDCSPN
from medbench_algorithms.transductive.gaussian_mixture import GaussianMixture
from medbench_algorithms.transductive.joint import Joint
from medbench_algorithms.transductive.label_propagation import LabelPropagation
from medbench_algorithms.transductive.laplacian_shot import LaplacianShot
from medbench_algorithms.transductive.pt_map import PTMAP
from medbench_algorithms.transductive.tim import TIM, AlphaTIM
from medbench_algorithms.transductive.tpn import TPN, Widths
from medbench_algorithms.transductive.transductive_fine_tuning import TransductiveFineTuning

WAY, QUERY, D = 5, 15, 512
CLASSES, PER_CLASS = 64, 100


@cache
def source() -> tuple[Pool, Tensor]:
    """A pool, and its features: positive, with a large common part, as behind a ReLU."""
    generator = torch.Generator().manual_seed(0)
    centres = 0.5 * torch.randn(CLASSES, 1, D, generator=generator)
    noise = torch.randn(CLASSES, PER_CLASS, D, generator=generator)
    rows = np.arange(CLASSES * PER_CLASS).reshape(CLASSES, PER_CLASS)
    return Pool(list(rows)), (centres + noise).relu().flatten(0, 1)


@cache
def widths() -> Widths:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return Widths(D).eval().requires_grad_(requires_grad=False)


@cache
def mean() -> Tensor:
    return source()[1].mean(0)


@dataclass(frozen=True)
class Case:
    """A method in both forms. `goal` is for five shots; in no shot may ours be the slower.

    `flops` are those of the products with features of ``n`` images that no form of it can spare.
    """

    ours: Callable[[], Algorithm]
    loop: plain.Method
    flops: Callable[[int], float]
    goal: float | None = None
    n_loop: int = 20
    n_ours: int = 200


def products(count: int) -> Callable[[int], float]:
    """So many products of one vector a class with all features."""
    return lambda n: 2.0 * count * WAY * n * D


def gram(n: int) -> float:
    return 2.0 * n * n * D


def cases() -> dict[str, Case]:
    tim = partial(plain.tim, steps=50)
    return {
        "bd-cspn": Case(BDCSPN, plain.bd_cspn, products(4), 12, 50, 500),
        "laplacian-shot": Case(
            LaplacianShot,
            partial(plain.laplacian_shot, mean=mean()),
            lambda n: products(4)(n) + gram(WAY * QUERY),
            10,
            50,
            500,
        ),
        "pt-map, 30 steps": Case(
            partial(PTMAP, steps=30), partial(plain.pt_map, steps=30), gram, 15, 2, 100
        ),
        "tim, 50 steps": Case(partial(TIM, steps=50), tim, products(100), 20, 5, 100),
        "alpha-tim, 50 steps": Case(
            partial(AlphaTIM, steps=50, alpha=7.0),
            partial(tim, alpha=7.0),
            products(100),
            None,
            5,
            100,
        ),
        "tim-adm, 50 steps": Case(
            partial(TIM, solver="adm", steps=50),
            partial(plain.tim_adm, steps=50),
            gram,
            None,
            5,
            100,
        ),
        "transductive fine-tuning, 10 steps": Case(
            partial(TransductiveFineTuning, epochs=10),
            partial(plain.transductive_fine_tuning, epochs=10),
            products(20),
            20,
        ),
        "label propagation": Case(
            LabelPropagation, partial(plain.label_propagation, mean=mean()), gram
        ),
        "tpn, head only": Case(TPN, partial(plain.tpn, widths=widths()), gram),
        "gaussian mixture": Case(
            GaussianMixture, partial(plain.gaussian_mixture, mean=mean()), gram
        ),
    }


def prepared(algorithm: Algorithm) -> Algorithm:
    if isinstance(algorithm, TPN):
        algorithm._head = widths()
    if isinstance(algorithm, Joint):
        algorithm.mean = mean() if algorithm.normalize == "cl2" else None
    return algorithm


def in_blocks(algorithm: Algorithm, features: Tensor, labels: Tensor, block: Block) -> Tensor:
    """Scores as the accuracy lane gets them."""
    support, query = torch.from_numpy(block.support), torch.from_numpy(block.query)
    scores = []
    for first in range(0, len(block), EPISODES_PER_BLOCK):
        some = slice(first, first + EPISODES_PER_BLOCK)
        s, q = features[support[some]], features[query[some]]
        given = Support(s, labels.expand(len(s), -1), WAY, (0,) * len(s))
        scores.append(algorithm.adapt(given).predict(q).detach())
    return torch.cat(scores)


@pytest.mark.parametrize("shot", [1, 5, 20])
@pytest.mark.parametrize("name", cases())
def test_a_transductive_method_against_one_episode_at_a_time(race, name, shot):
    case = cases()[name]
    pool, features = source()
    n_ours, n_loop = (4, 2) if race.quick else (case.n_ours, case.n_loop)
    shape, labels = Shape(WAY, shot, QUERY), torch.arange(WAY).repeat_interleave(shot)
    algorithm = prepared(case.ours())
    drawn = pool.draw(shape, "perf", 0, n_loop)
    support, query = torch.from_numpy(drawn.support), torch.from_numpy(drawn.query)

    def ours():
        return in_blocks(algorithm, features, labels, pool.draw(shape, "perf", 0, n_ours))

    def loop():
        return plain.one_by_one(case.loop, features, labels, support, query)

    n = WAY * (shot + QUERY)
    found, expected = race(
        f"{name}, {shot}-shot",
        ours=ours,
        loop=loop,
        n_ours=n_ours,
        n_loop=n_loop,
        goal=case.goal if shot == 5 else None,
        floor_s=lambda machine: machine.floor_s(flops=case.flops(n), n_bytes=4.0 * n * D),
    )
    found = found[:n_loop]
    # The loop is in float32, and its iterations stop at tolerances of their own.
    gap = (found - expected).abs().amax() / (expected.amax() - expected.amin())
    assert float(gap) < 1e-3
    margin = expected.topk(2).values.diff().abs().squeeze(-1)
    clear = margin > 1e-3 * (expected.amax() - expected.amin())
    assert torch.equal(found.argmax(-1)[clear], expected.argmax(-1)[clear])
