"""Frozen episodes: random access, fair draws, disjoint sides."""

from __future__ import annotations

import tracemalloc
from itertools import pairwise
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from medbench.draws import _swap, _swap_virtually, uniforms
from medbench.episodes import Pool, Shape, digest
from medbench.errors import ProtocolError
from medbench.ingredients import Ingredients
from medbench.plugins import registry


def pool(sizes: list[int], **kwargs) -> Pool:
    starts = np.cumsum([0, *sizes])
    return Pool([np.arange(a, b) for a, b in pairwise(starts)], **kwargs)


def test_an_episode_is_the_same_alone_in_a_block_and_from_any_start():
    p, shape = pool([40, 25, 60, 33, 80, 29]), Shape(5, 3, 7)
    whole = p.draw(shape, "key", 0, 1300)  # crosses the internal block size
    for first, count in ((0, 1), (511, 3), (1299, 1), (700, 600)):
        part = p.draw(shape, "key", first, count)
        rows = slice(first, first + count)
        for field in ("classes", "support", "query", "query_labels"):
            np.testing.assert_array_equal(getattr(part, field), getattr(whole, field)[rows])


def test_another_key_gives_other_episodes():
    p, shape = pool([50] * 6), Shape(5, 1, 5)
    assert digest(p.draw(shape, "a", 0, 50)) != digest(p.draw(shape, "b", 0, 50))


def test_digests_are_frozen():
    # If this fails, every published episode list has changed: the protocol versions must too.
    block = pool([30, 40, 50, 60, 70]).draw(Shape(3, 2, 4), "golden", 0, 1000)
    assert digest(block) == GOLDEN
    assert block.support[0].tolist() == GOLDEN_SUPPORT


@settings(max_examples=60, deadline=None)
@given(
    sizes=st.lists(st.integers(6, 40), min_size=2, max_size=7),
    shot=st.integers(1, 3),
    query=st.integers(1, 3),
    first=st.integers(0, 10**9),
    data=st.data(),
)
def test_labels_tell_the_class_and_no_image_is_used_twice(sizes, shot, query, first, data):
    way = data.draw(st.integers(2, len(sizes)))
    block = pool(sizes).draw(Shape(way, shot, query), "k", first, 5)
    owner = np.repeat(np.arange(len(sizes)), sizes)
    assert all(len(set(c)) == way for c in block.classes.tolist())
    np.testing.assert_array_equal(owner[block.support], block.classes[:, block.support_labels])
    np.testing.assert_array_equal(
        owner[block.query], np.take_along_axis(block.classes, block.query_labels, axis=1)
    )
    both = np.concatenate([block.support, block.query], axis=1)
    assert all(len(set(row)) == len(row) for row in both.tolist())
    for label in range(way):
        assert (np.sum(block.query_labels == label, axis=1) == query).all()


def test_classes_images_and_orders_are_uniform():
    block = pool([12] * 8).draw(Shape(4, 2, 3), "uniform", 0, 20000)
    columns = [
        block.classes[:, 0],
        block.classes[:, 3],
        block.support[:, 0],
        block.support[:, 1],
        block.query[:, 5],
        block.query_labels[:, 0],
        block.query_labels[:, 11],
    ]
    for column in columns:
        assert stats.chisquare(np.unique(column, return_counts=True)[1]).pvalue > 1e-3


def test_every_ordered_choice_of_three_from_four_is_equally_likely():
    block = Pool([np.arange(4)]).draw(Shape(1, 2, 1), "choose", 0, 24000)
    code = block.support[:, 0] * 16 + block.support[:, 1] * 4 + block.query[:, 0]
    counts = np.unique(code, return_counts=True)[1]
    assert len(counts) == 24
    assert stats.chisquare(counts).pvalue > 1e-3


def test_support_comes_from_one_split_and_queries_from_the_other():
    support = [np.arange(0, 10), np.arange(20, 30)]
    query = [np.arange(10, 20), np.arange(30, 40)]
    block = Pool(support, query).draw(Shape(2, 3, 4), "split", 0, 200)
    assert set(block.support.ravel()) <= {*range(10), *range(20, 30)}
    assert set(block.query.ravel()) <= {*range(10, 20), *range(30, 40)}


def test_no_patient_is_on_both_sides():
    rng = np.random.default_rng(0)
    patients = rng.integers(0, 15, 120)
    p = pool([40, 40, 40], patients=patients)
    block = p.draw(Shape(3, 3, 3), "patients", 0, 300)
    for support, query in zip(block.support, block.query, strict=True):
        assert not set(patients[support]) & set(patients[query])
        assert len(set(support) | set(query)) == 18
    alone = p.draw(Shape(3, 3, 3), "patients", 123, 1)
    np.testing.assert_array_equal(alone.support[0], block.support[123])


@pytest.mark.parametrize(
    ("make", "shape", "words"),
    [
        (lambda: pool([9, 9]), Shape(3, 1, 1), "need 3 classes, and there are 2"),
        (lambda: pool([9, 4]), Shape(2, 2, 3), "need 5 images in every class, and class 1 has 4"),
        (
            lambda: Pool([np.arange(3)] * 2, [np.arange(9)] * 2),
            Shape(2, 5, 1),
            "5 support images in every class",
        ),
        (
            lambda: pool([4, 4], patients=np.zeros(8, int)),
            Shape(2, 1, 1),
            "must not share a patient",
        ),
    ],
)
def test_a_pool_that_is_too_small_says_what_it_lacks(make, shape, words):
    with pytest.raises(ProtocolError, match=words):
        make().draw(shape, "k", 0, 1)


def test_patients_that_cannot_be_kept_apart_are_an_error_and_no_endless_loop():
    patients = np.array([0, 0, 0, 0, 1, 0, 0, 0, 0, 1])
    with pytest.raises(ProtocolError, match=r"class [01] has 5 images to ask about, of 2"):
        pool([5, 5], patients=patients).draw(Shape(2, 2, 2), "k", 0, 5)


def test_a_target_with_too_few_patients_is_named_with_its_class():
    patients = np.array([0, 0, 0, 0, 1, 0, 0, 0, 0, 1])
    info = SimpleNamespace(label_names=("disc", "ring"))
    target = SimpleNamespace(
        pool=pool([5, 5], patients=patients),
        shape=Shape(2, 2, 2),
        episode_key="k",
        id="smears:2w2s",
        protocol=SimpleNamespace(name="acme/p"),
        opened=SimpleNamespace(dataset=SimpleNamespace(info=info)),
    )
    known = Ingredients(registry(), SimpleNamespace(), SimpleNamespace())
    with pytest.raises(
        ProtocolError, match=r"protocol acme/p, target smears:2w2s: .*'(disc|ring)' has 5 images"
    ):
        known.target(target, {"episodes": 5})


def test_uniforms_depend_on_key_and_index_alone():
    np.testing.assert_array_equal(uniforms("a", 3, 5), uniforms("a", 3, 5))
    assert not np.array_equal(uniforms("a", 3, 5), uniforms("a", 4, 5))
    many = np.concatenate([uniforms("u", i, 100) for i in range(200)])
    assert stats.kstest(many, "uniform").pvalue > 1e-3


GOLDEN = "31929684a15aa72d8a9e9893d84b11ca"
GOLDEN_SUPPORT = [108, 87, 153, 165, 11, 16]


@settings(max_examples=50, deadline=None)
@given(st.data())
def test_the_two_ways_of_shuffling_swap_alike(data):
    k, lanes = data.draw(st.integers(1, 12)), data.draw(st.integers(1, 30))
    n = data.draw(st.integers(k, 40))
    steps = np.arange(k)[:, None]
    u = np.random.default_rng(data.draw(st.integers(0, 999))).random((k, lanes))
    places = (u * (n - steps)).astype(np.int64) + steps
    np.testing.assert_array_equal(_swap(places, n), _swap_virtually(places))


def test_a_stream_gives_the_drawn_episodes_in_memory_that_does_not_grow():
    source, shape = pool([30] * 10), Shape(5, 5, 15)
    together = source.draw(shape, "k", 3, 1500)
    at = 0
    for block in source.stream(shape, "k", 3, 1500):
        assert block.first == 3 + at
        np.testing.assert_array_equal(block.query, together.query[at : at + len(block)])
        np.testing.assert_array_equal(block.support, together.support[at : at + len(block)])
        at += len(block)
    assert at == 1500

    def peak(count):
        tracemalloc.start()
        for _ in source.stream(shape, "k", 0, count):
            pass
        found = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return found

    assert peak(8192) < 1.1 * peak(1024)
