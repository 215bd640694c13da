"""Frozen episodes: labels, a shape and a name in, index arrays and a digest out; pure numpy.

Episode ``i`` depends on the key and on ``i`` alone, so any worker can draw any episode in any
order. Randomness is SplitMix64 (Steele, Lea and Flood, OOPSLA 2014) used as a counter-based
generator: numpy promises stable streams for its bit generators only, not for ``choice`` or
``permutation``, and episodes must be the same with every numpy that users have.

All episodes of a request are drawn together, by vector operations over episodes: nothing here
loops over images.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from medbench.api import derive_seed
from medbench.errors import ProtocolError

Ints = NDArray[np.int64]
Words = NDArray[np.uint64]

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_MIX1 = np.uint64(0xBF58476D1CE4E5B9)
_MIX2 = np.uint64(0x94D049BB133111EB)
# Which draw a random word serves; draws of different kinds never share a counter.
_CLASSES, _SUPPORT, _QUERY, _ORDER = range(4)
_KIND_STRIDE = 1 << 40
# Episodes drawn at a time: the working arrays of this many fit a core's cache.
_BLOCK = 512
# Up to so many images a class, shuffling an array of them beats looking up what was swapped.
_SMALL = 1024
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
        state = _mix(seed + _GOLDEN * (episode + np.uint64(1)))
        picked = _choose(
            _uniform(state, _CLASSES, way), np.full(count, self.n_classes, dtype=np.int64)
        )  # (way, count)
        if self._patients is not None:
            support, asked = self._by_patient(shape, state, picked, first)
        else:
            support, asked = self._by_image(shape, state, picked)
        labels = np.repeat(np.arange(way), query)
        order = _shuffle(_words(state, _ORDER, way * query))
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
            u = _uniform(state, kind, way * k).reshape(way, k, count).transpose(1, 2, 0)
            chosen = (
                _choose(u.reshape(k, count * way), self._sizes[side][lanes])
                + self._starts[side][lanes]
            )
            return self._flat[side][chosen].T.reshape(count, way, k)

        if self.shared:
            both = take(_SUPPORT, 0, shape.shot + shape.query)
            return both[..., : shape.shot], both[..., shape.shot :]
        return take(_SUPPORT, 0, shape.shot), take(_QUERY, 1, shape.query)

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
                salted = _mix(state[e : e + 1] + _GOLDEN * np.array([attempt + 1], np.uint64))
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
            u = _uniform(state, _SUPPORT, shape.shot, offset=j * shape.shot)
            support[j] = pool[_choose(u, np.array([len(pool)]))[:, 0]]
        taken = self._patients[support]
        for j, i in enumerate(picked):
            pool = self.members(1, int(i))
            free = pool[~np.isin(self._patients[pool], taken)]
            if len(free) < shape.query:
                return False
            u = _uniform(state, _QUERY, shape.query, offset=j * shape.query)
            asked[j] = free[_choose(u, np.array([len(free)]))[:, 0]]
        return True


def digest(block: Block) -> str:
    """A fingerprint of episodes: BLAKE2b-128 over their indices and labels, in hexadecimal."""
    h = hashlib.blake2b(digest_size=16)
    for array in (block.classes, block.support, block.query, block.query_labels):
        h.update(np.ascontiguousarray(array, dtype="<i8").tobytes())
    return h.hexdigest()


def _mix(x: Words) -> Words:
    """SplitMix64's finaliser, element by element."""
    x = (x ^ (x >> np.uint64(30))) * _MIX1
    x = (x ^ (x >> np.uint64(27))) * _MIX2
    return x ^ (x >> np.uint64(31))


def _words(state: Words, kind: int, n: int, offset: int = 0) -> Words:
    """Random 64-bit words ``(n, len(state))``: word ``j`` of draw `kind` for each state."""
    start = kind * _KIND_STRIDE + offset + 1
    counter = np.arange(start, start + n, dtype=np.uint64) * _GOLDEN
    return _mix(state[None, :] + counter[:, None])


def _uniform(state: Words, kind: int, n: int, offset: int = 0) -> NDArray[np.float64]:
    """Uniform numbers in [0, 1) of 53 random bits, ``(n, len(state))``."""
    return (_words(state, kind, n, offset) >> np.uint64(11)).astype(np.float64) * 2.0**-53


def _choose(u: NDArray[np.float64], sizes: Ints) -> Ints:
    """For each lane, ``k`` of ``sizes`` things without replacement, in order: ``(k, lanes)``.

    Fisher-Yates: step ``t`` swaps places ``t`` and ``t + floor(u (n - t))``.
    """
    steps = np.arange(len(u))[:, None]
    places = (u * (sizes - steps)).astype(np.int64)
    places += steps
    n = int(sizes.max())
    return _swap(places, n) if n <= _SMALL else _swap_virtually(places)


def _swap(places: Ints, n: int) -> Ints:
    """What stands at each of ``places`` ``(k, lanes)`` when its step comes.

    It takes ``4 n lanes`` bytes. Place ``t`` itself is never asked for after step ``t``, so only
    the other one is written.
    """
    k, lanes = places.shape
    things = np.empty((n, lanes), np.int32)
    things[:] = np.arange(n, dtype=np.int32)[:, None]
    flat = things.reshape(-1)
    out = np.empty((k, lanes), np.int32)
    for t, place in enumerate(places * lanes + np.arange(lanes)):
        # Any mode but "raise" lets take write where it is told without a copy.
        np.take(flat, place, out=out[t], mode="wrap")
        flat[place] = things[t]
    return out.astype(np.int64)


def _swap_virtually(places: Ints) -> Ints:
    """As `_swap`, for any n: ``k ** 2`` vector operations, and no array of length n.

    Only the places written so far differ from the identity, and those are looked up among the
    earlier steps.
    """
    k, lanes = places.shape
    values = np.empty((k, lanes), np.int64)  # what step s moved into places[s]
    out = np.empty((k, lanes), np.int64)
    for t, place in enumerate(places):
        there = place.copy()
        here = np.full(lanes, t, np.int64)
        for s in range(t):
            np.copyto(there, values[s], where=places[s] == place)
            np.copyto(here, values[s], where=places[s] == t)
        values[t], out[t] = here, there
    return out


def _shuffle(words: Words) -> Ints:
    """A uniformly random order of the rows for each column: ``(columns, rows)``.

    The row number replaces the low bits of each word, so that one sort of plain integers gives
    the permutation, and ties (2^-48 and rarer) break by row.
    """
    n = len(words)
    bits = np.uint64(max(1, (n - 1).bit_length()))
    low = (np.uint64(1) << bits) - np.uint64(1)
    keys = np.ascontiguousarray(words.T)
    keys &= ~low
    keys |= np.arange(n, dtype=np.uint64)
    keys.sort(axis=1)
    keys &= low
    return keys.view(np.int64)


def uniforms(key: str, index: int, n: int) -> NDArray[np.float64]:
    """`n` uniform numbers in [0, 1) that depend on `key` and `index` alone, ``(n,)``."""
    seed = np.uint64(derive_seed("uniforms", key))
    state = _mix(seed + _GOLDEN * np.array([index + 1], dtype=np.uint64))
    return _uniform(state, _CLASSES, n)[:, 0]
