"""Data sets that each break one promise, and keep all others. All need a file ``wrong.txt``."""

from __future__ import annotations

import hashlib
import os
import socket
import time
from dataclasses import replace

import numpy as np

from medbench.api import Boxes, ClassSplit, DataError, Dataset, DatasetInfo, Modality

N, CLASSES = 72, 3


class Right(Dataset):
    """Right in every way; the others change one thing."""

    def __init__(self, place, **info):
        self.find(place)
        self.place = place
        self.labels = np.arange(N) % CLASSES
        self.splits = np.repeat([0, 1, 2], N // 3).astype(np.uint8)
        self.patients = np.arange(N) // 2
        self.sites = np.arange(N) % 2
        given = {"domain": "wrong", "licence": "CC0-1.0", "class_splits": {}, **info}
        self.info = DatasetInfo(
            name="wrong",
            label_names=("a", "b", "c"),
            image_shape=(8, 8, 1),
            modality="made up",
            site_names=("north", "south"),
            **given,
        )

    def find(self, place):
        place.find("wrong.txt", hint="It comes with the tests.")

    @property
    def digest(self):
        return hashlib.blake2b(b"right", digest_size=16).hexdigest()

    def read(self, indices):
        images = np.zeros((len(indices), 8, 8, 1), np.uint8)
        images[:, 0, 0, 0] = indices
        images[:, 1] = 50 * self.labels[indices][:, None, None]
        return images


def no_dataset(place):
    place.find("wrong.txt", hint="")
    return [1, 2, 3]


class NotThere(Right):
    def find(self, place):
        (place.data / "wrong.txt").read_text()


class WrongError(Right):
    def find(self, place):
        if not (place.data / "wrong.txt").exists():
            raise DataError("it is not there")


class NonCommercial(Right):
    def __init__(self, place):
        super().__init__(place, licence="CC BY-NC 4.0")


class OtherDomain(Right):
    def __init__(self, place):
        super().__init__(place, domain="somewhere-else")


class FromOne(Right):
    def __init__(self, place):
        super().__init__(place)
        self.labels = self.labels + 1


class Floats(Right):
    def __init__(self, place):
        super().__init__(place)
        self.labels = self.labels.astype(float)


class Overlap(Right):
    def __init__(self, place):
        super().__init__(place, class_splits={"s": ClassSplit((0, 1), (), (1, 2))})


class FourSplits(Right):
    def __init__(self, place):
        super().__init__(place)
        self.splits = (np.arange(N) % 4).astype(np.uint8)


class NoTest(Right):
    def __init__(self, place):
        super().__init__(place)
        self.splits = np.zeros(N, np.uint8)


class SplitByImage(Right):
    def __init__(self, place):
        super().__init__(place)
        self.patients = np.arange(N) % 20


class UnknownSite(Right):
    def __init__(self, place):
        super().__init__(place)
        self.sites = np.arange(N) % 3


class NamesAlone(Right):
    def __init__(self, place):
        super().__init__(place)
        self.sites = None


class OneTooMany(Right):
    def __init__(self, place):
        super().__init__(place)
        self.info = replace(self.info, modalities=(Modality("ct"), Modality("mri")))


class Nameless(Right):
    def __init__(self, place):
        super().__init__(place)
        self.info = replace(self.info, modalities=(Modality("CT scan"),))


class Sorts(Right):
    def read(self, indices):
        return super().read(np.sort(indices))


class FloatPixels(Right):
    def read(self, indices):
        return super().read(indices) / 255.0


class Augments(Right):
    calls = 0

    def read(self, indices):
        self.calls += 1
        return super().read(indices) + np.uint8(self.calls)


class Seeds(Right):
    def __init__(self, place):
        super().__init__(place)
        np.random.seed(3)  # noqa: NPY002


class Clock(Right):
    @property
    def digest(self):
        return f"{time.perf_counter_ns():032x}"


class Process(Right):
    @property
    def digest(self):
        return f"{os.getpid():032x}"


class Word(Right):
    @property
    def digest(self):
        return "version 3"


class Relabels(Right):
    def read(self, indices):
        images = super().read(indices)
        self.patients[0] = 99
        return images


class Downloads(Right):
    def __init__(self, place):
        super().__init__(place)
        try:
            socket.create_connection(("192.0.2.1", 443), timeout=0.01).close()
        except OSError:
            return


class WritesBeside(Right):
    def __init__(self, place):
        super().__init__(place)
        (place.data / "index.cache").write_text("the index")


# --- masks and boxes ---


class Masks(Right):
    """Right masks: one pixel of the class that an image has."""

    def __init__(self, place):
        super().__init__(place, task_kind="segmentation")
        self.labels = np.eye(CLASSES, dtype=np.uint8)[self.labels]
        self.spacings = np.full((N, 2), 0.5)

    def read(self, indices):
        images = np.zeros((len(indices), 8, 8, 1), np.uint8)
        images[:, 0, 0, 0] = indices
        return images

    def read_masks(self, indices):
        masks = np.zeros((len(indices), CLASSES, 8, 8), bool)
        masks[..., 2, 3] = self.labels[indices]
        return masks


class ForgetsMasks(Masks):
    read_masks = Dataset.read_masks


class ClassesLast(Masks):
    def read_masks(self, indices):
        return np.moveaxis(super().read_masks(indices), 1, -1)


class SortsMasks(Masks):
    def read_masks(self, indices):
        return super().read_masks(np.sort(indices))


class MoreMasks(Masks):
    def read_masks(self, indices):
        return super().read_masks(indices) | True


class OneSpacing(Masks):
    def __init__(self, place):
        super().__init__(place)
        self.spacings = np.array([0.5, 0.5])


class RightBoxes(Masks):
    """Right boxes: one of the class that an image has, and one of the next, which is ignored."""

    box = (1.0, 2.0, 8.0, 4.0)

    def __init__(self, place):
        super().__init__(place)
        self.info = replace(self.info, task_kind="detection")

    def label(self, index):
        return int(self.labels[index].argmax())

    def read_boxes(self, indices):
        ignored = np.array([False, True])
        labels = [np.array([self.label(i), (self.label(i) + 1) % CLASSES]) for i in indices]
        return [Boxes(np.array([self.box] * 2), two, ignored) for two in labels]


class BeforeResizing(RightBoxes):
    box = (1.0, 2.0, 80.0, 40.0)


class WidthAndHeight(RightBoxes):
    box = (3.0, 3.0, 4.0, 2.0)


class BoxesFromOne(RightBoxes):
    def label(self, index):
        return super().label(index) + 1


class OtherBoxes(RightBoxes):
    def label(self, index):
        return 0


class OnlyArrays(RightBoxes):
    def read_boxes(self, indices):
        return [boxes.xyxy for boxes in super().read_boxes(indices)]
