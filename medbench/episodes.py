"""Frozen episodes: labels, a shape and a name in, index arrays and a digest out; pure numpy.

Episode ``i`` depends on the key and on ``i`` alone, so any worker can draw any episode in any
order (see ``medbench.draws``). All episodes of a request are drawn together, by vector operations
over episodes: nothing here loops over images.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from medbench.api import derive_seed
from medbench.draws import (
    CLASSES,
    ORDER,
    QUERY,
    SUPPORT,
    Ints,
    Words,
    again,
    choose,
    shuffle,
    states,
    uniform,
    words,
)
from medbench.errors import ProtocolError

# Episodes drawn at a time: the working arrays of this many fit a core's cache.
_BLOCK = 512
_MAX_ATTEMPTS = 200


@dataclass(frozen=True)
class Shape:
    """Ways, shots and queries per class of an episode."""

    way: int
    shot: int
    query: int

    def __str__(self) -> str:
        return f"{self.way}-way {self.shot}-shot {self.query}-query"


@dataclass(frozen=True)
class Block:
    """Some consecutive episodes of one pool, as indices into the dataset.

    ``support`` is ``(n, way * shot)``, class after class, so its labels are ``support_labels``
    in every episode. ``query`` and ``query_labels`` are ``(n, way * query)``, shuffled. ``classes``
    ``(n, way)`` holds the dataset's class behind each episode label.
    """

    first: int
    shape: Shape
    classes: Ints
    support: Ints
    query: Ints
    query_labels: Ints

    @property
    def support_labels(self) -> Ints:
        """Labels ``(way * shot,)`` of the support set, the same in every episode."""
        return np.repeat(np.arange(self.shape.way), self.shape.shot)

    def __len__(self) -> int:
        return len(self.classes)


class TooFewPatients(ProtocolError):
    """An episode in which no patient is on both sides cannot be found."""

    def __init__(
        self, shape: Shape, episode: int, label: int, n_images: int, n_patients: int
    ) -> None:
        """`label`: the class with the fewest patients to ask about, and what it has."""
        self.shape, self.episode, self.label = shape, episode, label
        self.n_images, self.n_patients = n_images, n_patients
        super().__init__(self.told(f"class {label}"))

    def told(self, label: str) -> str:
        """The message, with the class called `label`."""
        images = f"{self.n_images} image{'s' * (self.n_images != 1)}"
        people = f"{self.n_patients} patient{'s' * (self.n_patients != 1)}"
        return (
            f"episode {self.episode} ({self.shape}) was not found in {_MAX_ATTEMPTS} draws: "
            f"patients of the support set may not be asked about, and {label} has {images} to ask "
            f"about, of {people}. Ask for fewer shots, queries or ways, or leave such classes out."
        )


class Pool:
    """The images that episodes of one target, or one source dataset, are drawn from.

    ``support`` and ``query`` hold, for each class, the dataset indices that may serve on that side.
    Where a class has the same images on both sides, an image is used once in an episode. With
    `patients` (one identity for each dataset index) no patient is on both sides of an episode.
    """

    def __init__(
        self,
        support: Sequence[Ints],
        query: Sequence[Ints] | None = None,
        patients: Ints | None = None,
        classes: Sequence[int] | None = None,
    ) -> None:
        """`query` None: both sides share the images. `classes`: the dataset's class numbers."""
        self.shared = query is None
        sides = [support, support if query is None else query]
        self._flat = [np.concatenate([*side, np.empty(0, np.int64)]) for side in sides]
        self._sizes = [np.array([len(c) for c in side], dtype=np.int64) for side in sides]
        self._starts = [np.cumsum(sizes) - sizes for sizes in self._sizes]
        self.classes = np.arange(len(support)) if classes is None else np.asarray(classes, np.int64)
        self._patients = self._needed(patients)

    def _needed(self, patients: Ints | None) -> Ints | None:
        # Splits that already separate the patients need no care, and get the fast road.
        if patients is None:
            return None
        if not self.shared:
            sides = [np.unique(patients[flat]) for flat in self._flat]
            if not np.intersect1d(sides[0], sides[1]).size:
                return None
        elif len(np.unique(patients[self._flat[0]])) == len(self._flat[0]):
            return None
        return np.asarray(patients, dtype=np.int64)

    @property
    def n_classes(self) -> int:
        """How many classes episodes choose from."""
        return len(self.classes)

    @property
    def images(self) -> Ints:
        """Every dataset index that an episode can contain, ascending."""
        return np.unique(np.concatenate(self._flat))

    def problem(self, shape: Shape, label_names: Sequence[str] = ()) -> str | None:
        """Why episodes of `shape` cannot be drawn, with the counts seen; None when they can."""

        def name(i: int) -> str:
            number = int(self.classes[i])
            return repr(label_names[number]) if number < len(label_names) else f"class {number}"

        if self.n_classes < shape.way:
            return (
                f"{shape.way}-way episodes need {shape.way} classes, and there are {self.n_classes}"
            )
        sides = (
            [("images", self._sizes[0], shape.shot + shape.query)]
            if self.shared
            else [
                ("support images", self._sizes[0], shape.shot),
                ("query images", self._sizes[1], shape.query),
            ]
        )
        for what, sizes, need in sides:
            i = int(np.argmin(sizes))
            if sizes[i] < need:
                return (
                    f"{shape} episodes need {need} {what} in every class, and {name(i)} has "
                    f"{int(sizes[i])}"
                )
        if self._patients is not None:
            for i in range(self.n_classes):
                n = len(np.unique(self._patients[self.members(0, i)]))
                if n < 2 and self.shared:
                    return (
                        "support and query must not share a patient, and the images of "
                        f"{name(i)} come from {n}"
                    )
        return None

    def fit(self, shape: Shape, least: int = 2) -> Shape | None:
        """`shape` with as many ways and queries as this pool can serve; None when it cannot.

        Nor when it has fewer than `least` classes.
        """
        if self.n_classes < least:
            return None
        room = int(self._sizes[1].min()) - (shape.shot if self.shared else 0)
        fitted = Shape(min(shape.way, self.n_classes), shape.shot, min(shape.query, room))
        return fitted if fitted.query > 0 and not self.problem(fitted) else None

    def members(self, side: int, i: int) -> Ints:
        """Dataset indices of the `i`-th class on a side (0 support, 1 query)."""
        start = self._starts[side][i]
        return self._flat[side][start : start + self._sizes[side][i]]

    def draw(self, shape: Shape, key: str, first: int, count: int) -> Block:
        """Episodes ``first ... first + count - 1`` of the sequence named `key`.

        Raises `ProtocolError` when the pool is too small for `shape`.
        """
        blocks = list(self.stream(shape, key, first, count))
        if len(blocks) == 1:
            return blocks[0]

        def join(field: str, width: int) -> Ints:
            return np.concatenate(
                [np.empty((0, width), np.int64), *(getattr(b, field) for b in blocks)]
            )

        return Block(
            first=first,
            shape=shape,
            classes=join("classes", shape.way),
            support=join("support", shape.way * shape.shot),
            query=join("query", shape.way * shape.query),
            query_labels=join("query_labels", shape.way * shape.query),
        )

    def stream(self, shape: Shape, key: str, first: int, count: int) -> Iterator[Block]:
        """The episodes of `draw` in blocks of at most 512, in memory that `count` does not change.

        Raises `ProtocolError` when the pool is too small for `shape`.
        """
        trouble = self.problem(shape)
        if trouble:
            raise ProtocolError(trouble[0].upper() + trouble[1:] + ".")
        seed = np.uint64(derive_seed("episodes", key))
        for start in range(first, first + count, _BLOCK):
            yield self._draw(shape, seed, start, min(_BLOCK, first + count - start))

    def _draw(self, shape: Shape, seed: np.uint64, first: int, count: int) -> Block:
        way, shot, query = shape.way, shape.shot, shape.query
        episode = np.arange(first, first + count, dtype=np.uint64)
        state = states(seed, episode)
        picked = choose(
            uniform(state, CLASSES, way), np.full(count, self.n_classes, dtype=np.int64)
        )  # (way, count)
        if self._patients is not None:
            support, asked = self._by_patient(shape, state, picked, first)
        else:
            support, asked = self._by_image(shape, state, picked)
        labels = np.repeat(np.arange(way), query)
        order = shuffle(words(state, ORDER, way * query))
        return Block(
            first=first,
            shape=shape,
            classes=self.classes[picked.T],
            support=support.reshape(count, way * shot),
            query=asked.reshape(-1).take(order + np.arange(0, asked.size, way * query)[:, None]),
            query_labels=labels.take(order),
        )

    def _by_image(self, shape: Shape, state: Words, picked: Ints) -> tuple[Ints, Ints]:
        """Support ``(count, way, shot)`` and query ``(count, way, query)`` indices."""
        way, count = picked.shape
        lanes = picked.T.reshape(-1)  # one lane for each (episode, class)

        def take(kind: int, side: int, k: int) -> Ints:
            u = uniform(state, kind, way * k).reshape(way, k, count).transpose(1, 2, 0)
            chosen = (
                choose(u.reshape(k, count * way), self._sizes[side][lanes])
                + self._starts[side][lanes]
            )
            return self._flat[side][chosen].T.reshape(count, way, k)

        if self.shared:
            both = take(SUPPORT, 0, shape.shot + shape.query)
            return both[..., : shape.shot], both[..., shape.shot :]
        return take(SUPPORT, 0, shape.shot), take(QUERY, 1, shape.query)

    def _by_patient(
        self, shape: Shape, state: Words, picked: Ints, first: int
    ) -> tuple[Ints, Ints]:
        """As `_by_image`, redrawing an episode until no patient is on both sides of it.

        Support images are drawn first; queries come from the patients left over, all classes
        considered. A draw that leaves too few queries is dropped whole, so that an episode is
        uniform among those that keep the rule.
        """
        assert self._patients is not None
        way, count = picked.shape
        support = np.empty((count, way, shape.shot), np.int64)
        asked = np.empty((count, way, shape.query), np.int64)
        for e in range(count):
            for attempt in range(_MAX_ATTEMPTS):
                salted = again(state[e : e + 1], attempt)
                drawn = self._one_by_patient(shape, salted, picked[:, e], support[e], asked[e])
                if drawn:
                    break
            else:
                raise self._too_few_patients(shape, first + e, picked[:, e])
        return support, asked

    def _too_few_patients(self, shape: Shape, episode: int, picked: Ints) -> TooFewPatients:
        """Tells of the class with the fewest patients to ask about."""
        assert self._patients is not None
        who = {int(i): np.unique(self._patients[self.members(1, int(i))]) for i in picked}
        i = min(who, key=lambda i: len(who[i]))
        n_images = len(self.members(1, i))
        return TooFewPatients(shape, episode, int(self.classes[i]), n_images, len(who[i]))

    def _one_by_patient(
        self, shape: Shape, state: Words, picked: Ints, support: Ints, asked: Ints
    ) -> bool:
        assert self._patients is not None
        for j, i in enumerate(picked):
            pool = self.members(0, int(i))
            u = uniform(state, SUPPORT, shape.shot, offset=j * shape.shot)
            support[j] = pool[choose(u, np.array([len(pool)]))[:, 0]]
        taken = self._patients[support]
        for j, i in enumerate(picked):
            pool = self.members(1, int(i))
            free = pool[~np.isin(self._patients[pool], taken)]
            if len(free) < shape.query:
                return False
            u = uniform(state, QUERY, shape.query, offset=j * shape.query)
            asked[j] = free[choose(u, np.array([len(free)]))[:, 0]]
        return True


def digest(block: Block) -> str:
    """A fingerprint of episodes: BLAKE2b-128 over their indices and labels, in hexadecimal."""
    h = hashlib.blake2b(digest_size=16)
    for array in (block.classes, block.support, block.query, block.query_labels):
        h.update(np.ascontiguousarray(array, dtype="<i8").tobytes())
    return h.hexdigest()
