"""Drawing episodes and scoring them: by vector operations, and by a loop over images."""

from __future__ import annotations

import random

import numpy as np
import pytest
from sklearn.metrics import balanced_accuracy_score, f1_score

from medbench.episodes import Pool, Shape
from medbench.metrics import classification

SHAPE = Shape(5, 5, 15)


def plain_episodes(by_class, n):
    """Episodes as the field samples them: classes, then images of each, by Python's `random`."""
    rng = random.Random(0)
    found = []
    for _ in range(n):
        support, query, labels = [], [], []
        for label, c in enumerate(rng.sample(sorted(by_class), SHAPE.way)):
            picked = rng.sample(by_class[c], SHAPE.shot + SHAPE.query)
            support += picked[: SHAPE.shot]
            query += picked[SHAPE.shot :]
            labels += [label] * SHAPE.query
        found.append((np.array(support), np.array(query), np.array(labels)))
    return found


@pytest.mark.parametrize("per_class", [20, 100, 600, 5000])
def test_sampling(race, per_class):
    ranges = [range(i * per_class, (i + 1) * per_class) for i in range(64)]
    pool = Pool([np.array(r) for r in ranges])
    by_class = {i: list(r) for i, r in enumerate(ranges)}
    n_ours, n_loop = (600, 50) if race.quick else (100_000, 3_000)

    def ours():
        last = None
        for block in pool.stream(SHAPE, "perf", 0, n_ours):
            last = block
        return last

    block, episodes = race(
        f"sampling, indices only, {per_class} images a class",
        ours=ours,
        loop=lambda: plain_episodes(by_class, n_loop),
        n_ours=n_ours,
        n_loop=n_loop,
        goal=12,
    )
    # Both keep the rules: each class brings its shots and queries, and no image comes twice.
    for support, query, labels in [
        *zip(block.support, block.query, block.query_labels, strict=True),
        *episodes[-50:],
    ]:
        assert len(np.unique(np.concatenate([support, query]))) == 100
        of_label = support.reshape(5, 5)[:, 0] // per_class
        assert (support // per_class == np.repeat(of_label, 5)).all()
        assert (query // per_class == of_label[labels]).all()


def test_scoring(race):
    rng = np.random.default_rng(0)
    n = 100 if race.quick else 600
    scores, labels = rng.normal(size=(n, 75, 5)), rng.integers(0, 5, (n, 75))

    def plain():
        rows = []
        for s, y in zip(scores, labels, strict=True):
            guess = s.argmax(-1)
            macro = f1_score(y, guess, average="macro", labels=np.arange(5), zero_division=0)
            rows.append(((guess == y).mean(), balanced_accuracy_score(y, guess), macro))
        return np.array(rows)

    found, rows = race(
        "scoring (all metrics; loop: three of them)",
        ours=lambda: classification(scores, labels),
        loop=plain,
        n_ours=n,
        n_loop=n,
    )
    np.testing.assert_allclose(found["accuracy"], rows[:, 0])
    np.testing.assert_allclose(found["balanced_accuracy"], rows[:, 1])
    np.testing.assert_allclose(found["f1"], rows[:, 2])
