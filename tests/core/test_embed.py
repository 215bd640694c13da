"""Features: each image embedded once, by whichever process comes first, in a form that is named."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open
from torch import nn

from medbench import embed as embedding
from medbench.api import Backbone, Dataset, DatasetInfo, InputSpec
from medbench.backbones import inference_copy
from medbench.embed import ImageStore, embed, features_of, form_of, forward, to_input
from medbench.errors import DataError, NonFinite
from medbench.source import _stores
from medbench_backbones.conv4 import Conv4

CPU = torch.device("cpu")


class Noise(Dataset):
    """Random images that remember which of them were asked for."""

    def __init__(self, n: int = 300, log: Path | None = None, delay_s: float = 0.0) -> None:
        self.labels = np.zeros(n, np.int64)
        self.info = DatasetInfo(
            name="noise",
            label_names=("a",),
            image_shape=(16, 16, 1),
            domain="d",
            modality="m",
            licence="l",
        )
        self.asked: list[int] = []
        self._log, self._delay_s = log, delay_s
        self._pixels = np.random.default_rng(0).integers(0, 256, (n, 16, 16, 1), dtype=np.uint8)

    @property
    def digest(self) -> str:
        return "noise"

    def read(self, indices):
        self.asked += indices.tolist()
        if self._log is not None:
            with self._log.open("a") as file:
                file.writelines(f"{os.getpid()} {i}\n" for i in indices)
        if len(self.asked) > len(indices):
            time.sleep(self._delay_s)  # not at the first batch
        return self._pixels[indices]


def conv4(seed: int = 0) -> Conv4:
    torch.manual_seed(seed)
    return shaken(Conv4(image_size=16, channels=1, width=8))


def shaken(network):
    """In eval mode, with statistics and scales in every BatchNorm as training leaves them."""
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.running_mean)
            nn.init.uniform_(module.running_var, 0.5, 2.0)
            nn.init.normal_(module.weight, 1.0, 0.3)
            nn.init.normal_(module.bias)
    return network.eval()


# --- the faster copy -----------------------------------------------------------------------------


class Twisted(Backbone):
    """A small network that does with its first convolution what `twist` says."""

    def __init__(self, twist: str) -> None:
        super().__init__()
        self.twist = twist
        self.conv = nn.Conv2d(1, 4, 3, padding=1)
        self.norm = nn.BatchNorm2d(4, track_running_stats=twist != "no statistics")
        self.n_features = 4
        self.input = InputSpec(16, 1, (0.5,), (0.5,))

    def feature_map(self, images):
        found = self.conv(images)
        if self.twist == "control flow" and found.sum() > 0:
            found = found + 1
        normed = self.norm(found)
        if self.twist == "used twice":
            return normed + found
        if self.twist == "norm called twice":
            return self.norm(normed)
        return normed

    def forward(self, images):
        return self.feature_map(images).mean((2, 3))


class HiddenUse(Twisted):
    """The map uses the convolution in a way that a trace of `forward` does not show."""

    def feature_map(self, images):
        return self.norm(self.conv(images)) + self.conv(images)

    def forward(self, images):
        return self.norm(self.conv(images)).mean((2, 3))


def test_the_copy_gives_equal_features_and_maps_without_any_batchnorm():
    network = conv4()
    found = inference_copy(network)
    assert form_of(network) == "plain"
    assert form_of(found) == "4 BatchNorms folded"
    assert not any(isinstance(m, nn.BatchNorm2d) for m in found.modules())
    assert (found.n_features, found.input, found.origin) == (8, network.input, "random")
    images = torch.rand(5, 1, 16, 16)
    with torch.inference_mode():
        for view in ("features", "maps"):
            plain = forward(network, images, view)
            torch.testing.assert_close(forward(found, images, view), plain, rtol=1e-5, atol=1e-5)


def test_the_copy_shares_nothing_with_the_network():
    network = conv4()
    before = embedding.weights_digest(network)
    found = inference_copy(network)
    assert found.original == before == embedding.weights_digest(network)
    with torch.no_grad():
        for tensor in found.state_dict().values():
            tensor.zero_()
    assert embedding.weights_digest(network) == before
    assert all(p.requires_grad for p in network.parameters())
    assert not any(p.requires_grad for p in found.parameters())


@pytest.mark.parametrize(
    "twist", ["control flow", "used twice", "norm called twice", "no statistics", "hooked"]
)
def test_what_cannot_be_folded_is_left_as_it_is(twist):
    network = shaken(Twisted(twist)) if twist != "no statistics" else Twisted(twist).eval()
    if twist == "hooked":
        network.conv.register_forward_hook(lambda module, given, found: found * 2)
    assert inference_copy(network) is network


def test_a_plain_pair_is_folded():
    assert form_of(inference_copy(shaken(Twisted("none")))) == "1 BatchNorms folded"


def test_a_copy_whose_maps_differ_is_refused():
    network = shaken(HiddenUse("none"))
    assert inference_copy(network) is network


def test_a_network_in_training_mode_has_no_copy():
    network = conv4().train()
    before = embedding.weights_digest(network)
    assert inference_copy(network) is network
    assert embedding.weights_digest(network) == before


# --- batches -------------------------------------------------------------------------------------


@pytest.mark.parametrize("n", [1, 2, 127, 129, 257, 300])
def test_batches_are_read_ahead_and_come_in_order(n):
    network, dataset = conv4(), Noise()
    rows = np.random.default_rng(1).permutation(300)[:n]
    found = embed(network, ImageStore(dataset), rows, CPU)
    assert dataset.asked == rows.tolist()
    with torch.inference_mode():
        whole = network(to_input(dataset._pixels[rows], network.input, CPU))
    torch.testing.assert_close(found, whole, rtol=1e-5, atol=1e-5)


def test_features_do_not_depend_on_the_images_beside_them():
    store = ImageStore(Noise())
    network = inference_copy(conv4())
    together = embed(network, store, np.arange(300), CPU)
    for rows in (np.array([299]), np.array([7, 250]), np.arange(100, 229)):
        assert torch.equal(embed(network, store, rows, CPU), together[torch.from_numpy(rows)])


def test_a_sweep_keeps_no_images_and_uses_those_that_are_there():
    dataset = Noise()
    store = ImageStore(dataset)
    store.read(np.array([3, 4]))
    first = store.read(np.array([5, 3, 6]), keep=False)
    np.testing.assert_array_equal(first, dataset._pixels[[5, 3, 6]])
    assert dataset.asked == [3, 4, 5, 6]
    store.read(np.array([5]))
    assert dataset.asked == [3, 4, 5, 6, 5]


@pytest.mark.parametrize("limit", [0, 1 << 30])
def test_the_store_takes_indices_of_any_shape(limit):
    dataset = Noise()
    rows = np.array([[[4, 1], [1, 2]]])
    found = ImageStore(dataset, limit).read(rows)
    np.testing.assert_array_equal(found, dataset._pixels[rows])


def test_the_stores_of_all_sources_share_one_limit(monkeypatch):
    sets = [Noise(10), Noise(30), Noise(20), Noise(5)]
    monkeypatch.setattr("medbench.source.STORE_LIMIT_BYTES", 40 * 256)
    stores = _stores([*sets, sets[0]])
    kept = {len(d): stores[id(d)]._pixels is not None for d in sets}
    assert kept == {5: True, 10: True, 20: True, 30: False}


def test_files_that_cannot_be_read_are_the_datasets_trouble(tmp_path):
    # And not the cache's: a full disk ends a run, an image that is gone ends a cell.
    dataset = Noise()
    dataset.read = lambda indices: Path("/nowhere").read_bytes()
    with pytest.raises(DataError, match=r"dataset noise: its images cannot be read.*nowhere"):
        features_of(conv4(), dataset, ImageStore(dataset), np.arange(3), CPU, tmp_path)


# --- the cache -----------------------------------------------------------------------------------


def test_an_image_is_embedded_once_whatever_is_asked_for_beside_it(tmp_path):
    network, dataset = conv4(), Noise()

    def ask(rows):
        return features_of(network, dataset, ImageStore(dataset), np.array(rows), CPU, tmp_path)

    ask([1, 3, 5])
    found = ask([0, 1, 2, 3])
    assert dataset.asked == [1, 3, 5, 0, 2]
    assert torch.equal(found, embed(network, ImageStore(dataset), np.arange(4), CPU))
    asked = len(dataset.asked)
    assert torch.equal(ask([0, 5]), embed(network, ImageStore(Noise()), np.array([0, 5]), CPU))
    assert len(dataset.asked) == asked
    assert ask([]).shape == (0, 8)


@pytest.mark.parametrize("view", ["features", "maps"])
def test_files_are_safetensors_that_others_can_read(tmp_path, view):
    network, dataset, rows = conv4(), Noise(), np.arange(10, 140)
    found = features_of(network, dataset, ImageStore(dataset), rows, CPU, tmp_path, view)
    (path,) = tmp_path.glob("*.safetensors")
    with safe_open(path, framework="np") as file:
        assert file.get_tensor("rows").tolist() == rows.tolist()
        np.testing.assert_array_equal(file.get_tensor(view), found.numpy())
    assert torch.equal(found, embed(network, ImageStore(dataset), rows, CPU, view))


def test_each_form_view_and_network_has_features_of_its_own(tmp_path):
    network, dataset = conv4(), Noise()
    forms = [(network, "features"), (inference_copy(network), "features"), (network, "maps")]
    for backbone, view in [*forms, (conv4(seed=1), "features")]:
        features_of(backbone, dataset, ImageStore(dataset), np.arange(9), CPU, tmp_path, view)
    assert dataset.asked == 4 * list(range(9))
    assert len(list(tmp_path.glob("*.safetensors"))) == 4


def test_nothing_is_left_of_features_that_are_not_finite(tmp_path, monkeypatch):
    network, dataset = conv4(), Noise()
    monkeypatch.setattr(embedding, "BATCH", 2)
    factors = iter([1.0, 1.0, float("nan")])
    plain = network.forward
    network.forward = lambda images: plain(images) * next(factors)
    with pytest.raises(NonFinite, match="image 4"):
        features_of(network, dataset, ImageStore(dataset), np.arange(8), CPU, tmp_path)
    assert [p.suffix for p in tmp_path.iterdir()] == [".lock"]


_MAPPED = """
import json, sys
import torch
from pathlib import Path
from medbench.embed import _mapped

def anonymous():
    line = next(l for l in open("/proc/self/status") if l.startswith("RssAnon"))
    return int(line.split()[1]) << 10

before = anonymous()
rows, features = _mapped(Path(sys.argv[1]), "features")
total = float(features.sum())
print(json.dumps([features.numel() * 4, anonymous() - before]))
"""


def test_features_from_the_cache_are_mapped_and_not_loaded(tmp_path):
    path, rows = tmp_path / "f.safetensors", np.arange(40_000)
    embedding._write(path, "features", rows, iter(torch.ones(40, 1000, 256)))
    found = subprocess.run(
        [sys.executable, "-c", _MAPPED, str(path)], capture_output=True, text=True, check=True
    )
    size, grown = json.loads(found.stdout)
    assert size == 40_960_000
    assert grown < size / 4


# --- several processes ---------------------------------------------------------------------------


def _ask(cache: Path, log: Path, rows: list[int], delay_s: float) -> None:
    torch.set_num_threads(1)
    dataset = Noise(log=log, delay_s=delay_s)
    found = features_of(conv4(), dataset, ImageStore(dataset), np.array(rows), CPU, cache)
    expected = embed(conv4(), ImageStore(Noise()), np.array(rows), CPU)
    if not torch.equal(found, expected):
        raise AssertionError("other features than this process computes itself")


def test_of_many_processes_one_embeds_and_one_killed_in_the_middle_is_made_up_for(tmp_path):
    cache, log = tmp_path / "cache", tmp_path / "log"
    log.touch()
    processes = multiprocessing.get_context("spawn")
    everything = list(range(300))

    def start(rows, delay_s):
        process = processes.Process(target=_ask, args=(cache, log, rows, delay_s))
        process.start()
        return process

    # The first holds the lock and writes its file when it is killed.
    killed = start(everything, 600.0)
    wait_for(lambda: len(log.read_text().splitlines()) > 128 and list(cache.glob(".*.tmp")))
    others = [start(everything, 0.0), start(everything[50:], 0.0)]
    time.sleep(0.5)
    os.kill(killed.pid, signal.SIGKILL)
    for process in [killed, *others]:
        process.join()
    assert [p.exitcode for p in [killed, *others]] == [-signal.SIGKILL, 0, 0]
    # Whoever came first, every image was read by one of the others, once.
    lines = [line.split() for line in log.read_text().splitlines()]
    read = sorted(int(image) for pid, image in lines if int(pid) != killed.pid)
    assert read == everything
    assert not list(cache.glob(".*"))


def wait_for(condition, seconds: float = 120.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.02)
