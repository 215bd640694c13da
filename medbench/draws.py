"""Random draws that depend on a name and on numbers alone; vectorised, pure numpy.

Randomness is SplitMix64 (Steele, Lea and Flood, OOPSLA 2014) used as a counter-based generator:
numpy promises stable streams for its bit generators only, not for ``choice`` or ``permutation``,
and episodes must be the same with every numpy that users have.

A *state* is one 64-bit word for each thing that is drawn (an episode, say); draws of different
kinds never share a counter.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from medbench.api import derive_seed

Ints = NDArray[np.int64]
Words = NDArray[np.uint64]

# Which draw of an episode a random word serves.
CLASSES, SUPPORT, QUERY, ORDER, PATIENT, OTHERS = range(6)

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_MIX1 = np.uint64(0xBF58476D1CE4E5B9)
_MIX2 = np.uint64(0x94D049BB133111EB)
_KIND_STRIDE = 1 << 40
# Up to so many images a class, shuffling an array of them beats looking up what was swapped.
_SMALL = 1024


def states(seed: np.uint64, numbers: Words) -> Words:
    """The state of each of `numbers`, of its own shape."""
    return _mix(seed + _GOLDEN * (numbers + np.uint64(1)))


def again(state: Words, attempt: int) -> Words:
    """Other states of the same things, for attempt 0, 1, ... at a draw that may be refused."""
    return _mix(state + _GOLDEN * np.array([attempt + 1], np.uint64))


def words(state: Words, kind: int, n: int, offset: int = 0) -> Words:
    """Random 64-bit words ``(n, len(state))``: word ``j`` of draw `kind` for each state."""
    start = kind * _KIND_STRIDE + offset + 1
    counter = np.arange(start, start + n, dtype=np.uint64) * _GOLDEN
    return _mix(state[None, :] + counter[:, None])


def uniform(state: Words, kind: int, n: int, offset: int = 0) -> NDArray[np.float64]:
    """Uniform numbers in [0, 1) of 53 random bits, ``(n, len(state))``."""
    return (words(state, kind, n, offset) >> np.uint64(11)).astype(np.float64) * 2.0**-53


def choose(u: NDArray[np.float64], sizes: Ints) -> Ints:
    """For each lane, ``k`` of ``sizes`` things without replacement, in order: ``(k, lanes)``.

    Fisher-Yates: step ``t`` swaps places ``t`` and ``t + floor(u (n - t))``.
    """
    steps = np.arange(len(u))[:, None]
    places = (u * (sizes - steps)).astype(np.int64)
    places += steps
    n = int(sizes.max())
    return _swap(places, n) if n <= _SMALL else _swap_virtually(places)


def shuffle(random: Words) -> Ints:
    """A uniformly random order of the rows for each column: ``(columns, rows)``.

    The row number replaces the low bits of each word, so that one sort of plain integers gives
    the permutation, and ties (2^-48 and rarer) break by row.
    """
    n = len(random)
    bits = np.uint64(max(1, (n - 1).bit_length()))
    low = (np.uint64(1) << bits) - np.uint64(1)
    keys = np.ascontiguousarray(random.T)
    keys &= ~low
    keys |= np.arange(n, dtype=np.uint64)
    keys.sort(axis=1)
    keys &= low
    return keys.view(np.int64)


def uniforms(key: str, index: int, n: int) -> NDArray[np.float64]:
    """`n` uniform numbers in [0, 1) that depend on `key` and `index` alone, ``(n,)``."""
    seed = np.uint64(derive_seed("uniforms", key))
    return uniform(states(seed, np.array([index], dtype=np.uint64)), CLASSES, n)[:, 0]


def _mix(x: Words) -> Words:
    """SplitMix64's finaliser, element by element."""
    x = (x ^ (x >> np.uint64(30))) * _MIX1
    x = (x ^ (x >> np.uint64(27))) * _MIX2
    return x ^ (x >> np.uint64(31))


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
