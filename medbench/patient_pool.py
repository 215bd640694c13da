"""Episodes within one patient, for personalised protocols; pure numpy."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from medbench.draws import (
    CLASSES,
    ORDER,
    OTHERS,
    PATIENT,
    QUERY,
    SUPPORT,
    Ints,
    Words,
    choose,
    shuffle,
    states,
    uniform,
    words,
)
from medbench.episodes import Block, Pool, Shape


@dataclass(frozen=True)
class Moment:
    """What a patient can be asked about at one moment: of each class, images before and after.

    ``classes`` are places in the pool. Where no time is known there is one moment, and both sides
    are the same images, each of which is used once in an episode.
    """

    patient: int
    classes: tuple[int, ...]
    support: tuple[Ints, ...]
    query: tuple[Ints, ...]
    shared: bool


class PatientPool(Pool):
    """Images of which every episode takes those of one patient, on both sides.

    The rule of other pools, that no patient is on both sides of an episode, is lifted here and
    nowhere else. An episode draws a patient, then a moment of theirs (where `times` are known),
    then `way` of the classes with enough images: support from those up to the moment, queries from
    those after it. So whatever is asked about came later than all that was learned from. Images
    without a time (NaN) are left out then.

    With `support_from` ``others`` support comes from all other patients of the pool instead. Where
    these have enough images of every class the queries are the same, and what a patient's own
    images are worth is the difference.
    """

    def __init__(
        self,
        members: Sequence[Ints],
        patients: Ints,
        classes: Sequence[int],
        times: NDArray[Any] | None = None,
        support_from: Literal["same", "others"] = "same",
    ) -> None:
        """`members`: dataset indices of each class, which may share images where `way` is 1."""
        super().__init__(members, None, None, classes)
        self._who, self._times, self._support_from = patients, times, support_from
        self.patients = np.unique(patients[self._flat[0]]) if len(self._flat[0]) else np.array([])
        self._known: dict[Shape, list[list[Moment]]] = {}
        self._elsewhere: dict[tuple[int, int], Ints] = {}

    def usable(self, shape: Shape) -> list[list[Moment]]:
        """The patients that can serve episodes of `shape`, each as their moments."""
        if shape not in self._known:
            every = [self._moments(int(p), shape) for p in self.patients]
            self._known[shape] = [moments for moments in every if moments]
        return self._known[shape]

    def _own(self, patient: int) -> list[Ints]:
        """The patient's images of each class."""
        everything = (self.members(0, i) for i in range(self.n_classes))
        return [m[self._who[m] == patient] for m in everything]

    def _moments(self, patient: int, shape: Shape) -> list[Moment]:
        own = self._own(patient)
        if self._times is None:
            enough = [i for i, m in enumerate(own) if len(m) >= shape.shot + shape.query]
            found = [self._moment(patient, enough, own, own, shared=True)]
        else:
            times = self._times
            found = []
            known = times[np.concatenate(own)]
            for time in np.unique(known[np.isfinite(known)]):
                before = [m[times[m] <= time] for m in own]
                after = [m[times[m] > time] for m in own]
                enough = [
                    i
                    for i in range(len(own))
                    if len(before[i]) >= shape.shot and len(after[i]) >= shape.query
                ]
                found.append(self._moment(patient, enough, before, after, shared=False))
        if self._support_from == "others":
            found = [self._with_others(m, shape) for m in found]
        return [m for m in found if len(m.classes) >= shape.way]

    def _moment(
        self,
        patient: int,
        enough: list[int],
        support: list[Ints],
        query: list[Ints],
        *,
        shared: bool,
    ) -> Moment:
        return Moment(
            patient,
            tuple(enough),
            tuple(support[i] for i in enough),
            tuple(query[i] for i in enough),
            shared,
        )

    def _with_others(self, moment: Moment, shape: Shape) -> Moment:
        keep = [
            i
            for i, c in enumerate(moment.classes)
            if len(self._of_others(moment.patient, c)) >= shape.shot
        ]
        return Moment(
            moment.patient,
            tuple(moment.classes[i] for i in keep),
            tuple(moment.support[i] for i in keep),
            tuple(moment.query[i] for i in keep),
            moment.shared,
        )

    def _of_others(self, patient: int, i: int) -> Ints:
        """Images of the `i`-th class of all other patients."""
        if (patient, i) not in self._elsewhere:
            members = self.members(0, i)
            self._elsewhere[patient, i] = members[self._who[members] != patient]
        return self._elsewhere[patient, i]

    def left_out(self, shape: Shape) -> int:
        """How many patients have too few images or classes for `shape`."""
        return len(self.patients) - len(self.usable(shape))

    def problem(self, shape: Shape, label_names: Sequence[str] = ()) -> str | None:
        """See `Pool.problem`."""
        if self.n_classes < shape.way:
            return (
                f"{shape.way}-way episodes need {shape.way} classes, and there are {self.n_classes}"
            )
        if self.usable(shape):
            return None
        most = max((self._classes_of(int(p), shape) for p in self.patients), default=0)
        order = ", support before queries" if self._times is not None else ""
        return (
            f"{shape} episodes of one patient each need one with {shape.shot} support and "
            f"{shape.query} query images in {shape.way} classes{order}, and of "
            f"{len(self.patients)} patients none has them: the best has {most} such classes"
        )

    def _classes_of(self, patient: int, shape: Shape) -> int:
        """In how many classes at most a patient has enough images at one moment."""
        moments = self._moments(patient, Shape(0, shape.shot, shape.query))
        return max((len(m.classes) for m in moments), default=0)

    def fit(self, shape: Shape, least: int = 2) -> Shape | None:
        """See `Pool.fit`; ways are kept before queries."""
        for way in range(min(shape.way, self.n_classes), least - 1, -1):
            for query in range(shape.query, 0, -1):
                fitted = Shape(way, shape.shot, query)
                if self.usable(fitted):
                    return fitted
        return None

    def _draw(self, shape: Shape, seed: np.uint64, first: int, count: int) -> Block:
        way, shot, query = shape.way, shape.shot, shape.query
        people = self.usable(shape)
        episode = np.arange(first, first + count, dtype=np.uint64)
        state = states(seed, episode)
        who = uniform(state, PATIENT, 2)
        picked = np.empty((count, way), np.int64)
        support = np.empty((count, way, shot), np.int64)
        asked = np.empty((count, way, query), np.int64)
        for e in range(count):
            moments = people[int(who[0, e] * len(people))]
            moment = moments[int(who[1, e] * len(moments))]
            picked[e] = self._one(shape, state[e : e + 1], moment, support[e], asked[e])
        labels = np.repeat(np.arange(way), query)
        order = shuffle(words(state, ORDER, way * query))
        return Block(
            first=first,
            shape=shape,
            classes=self.classes[picked],
            support=support.reshape(count, way * shot),
            query=np.take_along_axis(asked.reshape(count, way * query), order, axis=1),
            query_labels=labels.take(order),
        )

    def _one(self, shape: Shape, state: Words, moment: Moment, support: Ints, asked: Ints) -> Ints:
        """Draw one episode into `support` and `asked`; returns the places of its classes."""
        places = choose(uniform(state, CLASSES, shape.way), np.array([len(moment.classes)]))
        both = shape.shot + shape.query
        for j, k in enumerate(places[:, 0].tolist()):
            early, late = moment.support[k], moment.query[k]
            if moment.shared:
                rows = _drawn(early, state, SUPPORT, both, j)
                support[j], asked[j] = rows[: shape.shot], rows[shape.shot :]
            else:
                support[j] = _drawn(early, state, SUPPORT, shape.shot, j)
                asked[j] = _drawn(late, state, QUERY, shape.query, j)
            if self._support_from == "others":
                others = self._of_others(moment.patient, moment.classes[k])
                support[j] = _drawn(others, state, OTHERS, shape.shot, j)
        return np.array(moment.classes, np.int64)[places[:, 0]]


def _drawn(images: Ints, state: Words, kind: int, k: int, j: int) -> Ints:
    """`k` of some images without replacement, by the `j`-th stretch of words of a kind."""
    u = uniform(state, kind, k, offset=j * k)
    found: Ints = images[choose(u, np.array([len(images)]))[:, 0]]
    return found
