"""Episodes within one patient: nobody mixed, time's order kept, the same draws everywhere."""

from __future__ import annotations

import numpy as np
import pytest

from medbench.episodes import Pool, Shape, digest
from medbench.errors import ProtocolError
from medbench.patient_pool import PatientPool

# Three patients: 0 has four images of each of three classes, 1 of two classes, 2 one image each.
kinds = np.array([*[0] * 4, *[1] * 4, *[2] * 4, *[0] * 4, *[1] * 4, 0, 1, 2])
WHO = np.array([*[7] * 12, *[8] * 8, 9, 9, 9])
# Within a class of a patient images come in the order of their rows, but for the first two.
WHEN = np.array([1.0, 0.0, 2.0, 3.0] * 5 + [0.0, 0.0, 0.0])


def pool(times=None, who=WHO, **more):
    members = [np.flatnonzero(kinds == c) for c in range(3)]
    return PatientPool(members, who, [0, 1, 2], times, **more)


def test_support_and_queries_are_of_one_patient_and_no_image_is_used_twice():
    block = pool().draw(Shape(2, 1, 2), "k", 0, 300)
    everything = np.concatenate([block.support, block.query], axis=1)
    people = WHO[everything]
    assert (people == people[:, :1]).all()
    assert set(people[:, 0]) == {7, 8}
    assert all(len(set(row)) == len(row) for row in everything.tolist())


def test_labels_are_those_of_the_classes_drawn():
    block = pool().draw(Shape(2, 2, 2), "k", 0, 100)
    for e in range(100):
        assert (kinds[block.support[e]] == block.classes[e][block.support_labels]).all()
        assert (kinds[block.query[e]] == block.classes[e][block.query_labels[e]]).all()
        assert sorted(block.query_labels[e].tolist()) == [0, 0, 1, 1]


def test_patients_are_drawn_alike_however_many_images_they_have():
    block = pool().draw(Shape(2, 1, 1), "k", 0, 2000)
    share = (WHO[block.support[:, 0]] == 7).mean()
    assert share == pytest.approx(0.5, abs=4 * 0.5 / np.sqrt(2000))


def test_with_times_every_query_came_after_every_support_image():
    block = pool(WHEN).draw(Shape(2, 1, 1), "k", 0, 400)
    assert (WHEN[block.support].max(axis=1) < WHEN[block.query].min(axis=1)).all()
    # All moments with an image before and one after are drawn: after 0, 1 and 2.
    assert set(WHEN[block.support].max(axis=1)) == {0.0, 1.0, 2.0}


def test_with_times_two_shots_and_two_queries_leave_one_moment_which_can_be_told_by_hand():
    block = pool(WHEN).draw(Shape(2, 2, 2), "k", 0, 50)
    for e in range(50):
        assert set(WHEN[block.support[e]]) == {0.0, 1.0}
        assert set(WHEN[block.query[e]]) == {2.0, 3.0}


def test_images_of_one_moment_never_stand_on_both_sides():
    # All images of patient 7 are of one day: nothing comes after.
    times = np.where(WHO == 7, 5.0, WHEN)
    found = pool(times)
    assert [m[0].patient for m in found.usable(Shape(2, 1, 1))] == [8]
    assert set(WHO[found.draw(Shape(2, 1, 1), "k", 0, 20).support.ravel()]) == {8}


def test_patients_with_too_few_images_or_classes_are_left_out_and_counted():
    assert pool().left_out(Shape(2, 1, 2)) == 1
    assert pool().left_out(Shape(3, 1, 2)) == 2
    assert pool().left_out(Shape(1, 1, 4)) == 3
    said = pool().problem(Shape(3, 2, 3))
    assert said == (
        "3-way 2-shot 3-query episodes of one patient each need one with 2 support and 3 query "
        "images in 3 classes, and of 3 patients none has them: the best has 0 such classes"
    )
    assert "support before queries" in str(pool(WHEN).problem(Shape(3, 3, 3)))
    with pytest.raises(ProtocolError, match="of 4 patients none has them: the best has 2 such"):
        pool(who=np.where(WHO == 7, np.where(kinds == 2, 6, 7), WHO)).draw(
            Shape(3, 2, 2), "k", 0, 1
        )


def test_support_of_others_is_of_another_patient_and_the_queries_stay():
    own = pool().draw(Shape(2, 1, 2), "k", 0, 200)
    others = pool(support_from="others").draw(Shape(2, 1, 2), "k", 0, 200)
    assert (own.query == others.query).all()
    assert (own.classes == others.classes).all()
    assert (own.query_labels == others.query_labels).all()
    patient = WHO[others.query[:, 0]]
    assert (WHO[others.support] != patient[:, None]).all()
    for e in range(200):
        assert (kinds[others.support[e]] == kinds[own.support[e]]).all()
    # Of class 2 only patient 9 has an image beside patient 7's: one shot it can serve, and not two.
    assert pool(support_from="others").usable(Shape(3, 1, 2))
    assert not pool(support_from="others").usable(Shape(3, 2, 2))


def test_an_episode_depends_on_key_and_number_alone():
    whole = pool(WHEN).draw(Shape(2, 1, 1), "k", 0, 600)
    again = pool(WHEN).draw(Shape(2, 1, 1), "k", 550, 7)
    assert (whole.support[550:557] == again.support).all()
    assert (whole.query[550:557] == again.query).all()
    other = pool(WHEN).draw(Shape(2, 1, 1), "another", 0, 600)
    assert (whole.support != other.support).any()
    assert digest(whole) != digest(other)


def test_these_episodes_are_the_same_on_every_machine():
    found = [
        digest(made.draw(Shape(2, 1, 2), "golden", 0, 100))
        for made in (pool(), pool(WHEN), pool(support_from="others"))
    ]
    assert found == GOLDEN


GOLDEN = [
    "bda8ccad136a0c47e7f59f581899b114",
    "f14764b873c4f5a1930bf3cfcad8375f",
    "6c517d8e1768c0c599d7de63d1788273",
]


def test_validation_takes_what_there_is():
    assert pool().fit(Shape(5, 2, 9), 2) == Shape(3, 2, 2)
    assert pool(WHEN).fit(Shape(2, 2, 9), 2) == Shape(2, 2, 2)
    assert pool().fit(Shape(2, 4, 2), 2) is None
    assert PatientPool([], WHO, []).fit(Shape(2, 1, 1)) is None


def test_other_pools_keep_patients_apart_as_before():
    members = [np.flatnonzero(kinds == c) for c in range(2)]
    block = Pool(members, None, WHO, [0, 1]).draw(Shape(2, 1, 1), "k", 0, 50)
    for e in range(50):
        assert not set(WHO[block.support[e]]) & set(WHO[block.query[e]])
