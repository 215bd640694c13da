"""Images to inputs, weights to networks, features to the cache and back."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from medbench.api import Backbone, Dataset, DatasetInfo, InputSpec
from medbench.backbones import build_backbone
from medbench.config import BackboneRef
from medbench.embed import ImageStore, embed, features_of, to_input, weights_digest
from medbench.errors import DataError, DataMissing, NonFinite, UsageError
from medbench.plugins import registry

CPU = torch.device("cpu")


class Noise(Dataset):
    def __init__(self, n=300, shape=(28, 28, 1)):
        self.labels = np.zeros(n, np.int64)
        self.info = DatasetInfo(
            name="noise",
            label_names=("a",),
            image_shape=shape,
            domain="d",
            modality="m",
            licence="l",
        )
        self.asked: list[int] = []
        self._pixels = np.random.default_rng(0).integers(0, 256, (n, *shape), dtype=np.uint8)

    @property
    def digest(self):
        return "noise"

    def read(self, indices):
        self.asked += indices.tolist()
        return self._pixels[indices]


def spec(size=28, channels=1, interpolation="bilinear"):
    return InputSpec(size, channels, (0.0,) * channels, (1.0,) * channels, interpolation)


def test_pixels_are_scaled_and_normalised():
    images = np.array([[[[0, 51, 255]]]], np.uint8)
    wants = InputSpec(1, 3, (0.5, 0.2, 0.0), (0.5, 0.1, 2.0))
    np.testing.assert_allclose(to_input(images, wants, CPU).ravel(), [-1.0, 0.0, 0.5], atol=1e-6)


def test_grey_becomes_colour_and_colour_grey_as_pil_does_it():
    rgb = np.random.default_rng(0).integers(0, 256, (1, 8, 8, 3), dtype=np.uint8)
    grey = to_input(rgb, spec(8), CPU)[0, 0] * 255
    np.testing.assert_allclose(grey, np.asarray(Image.fromarray(rgb[0]).convert("L")), atol=1.0)
    three = to_input(rgb[..., :1], spec(8, 3), CPU)
    assert three.shape == (1, 3, 8, 8)
    assert torch.equal(three[:, 0], three[:, 2])


@pytest.mark.parametrize("size", [14, 41])
@pytest.mark.parametrize("how", ["bilinear", "bicubic"])
def test_resizing_agrees_with_pil(size, how):
    # Clear of black and white: PIL clips between its two passes where bicubic overshoots.
    image = np.random.default_rng(0).integers(90, 160, (28, 28), dtype=np.uint8)
    resample = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}[how]
    expected = np.asarray(Image.fromarray(image).resize((size, size), resample), float)
    found = to_input(image[None, ..., None], spec(size, 1, how), CPU)[0, 0].numpy() * 255
    assert np.abs(found - expected).max() < 1.5


def test_the_store_reads_every_image_once():
    dataset = Noise()
    store = ImageStore(dataset)
    store.read(np.array([5, 3, 5, 9]))
    again = store.read(np.array([9, 5]))
    assert sorted(dataset.asked) == [3, 5, 9]
    np.testing.assert_array_equal(again, dataset._pixels[[9, 5]])


def conv4(seed=0, **more) -> Backbone:
    ref = BackboneRef(name="conv4", params={"width": 8}, **more)
    return build_backbone(registry(), ref, image_size=28, channels=1, seed=seed)


def test_random_weights_depend_on_the_seed_alone():
    torch.manual_seed(1)
    first = weights_digest(conv4())
    torch.manual_seed(2)
    torch.rand(3)
    assert weights_digest(conv4()) == first
    assert weights_digest(conv4(seed=1)) != first


def test_building_leaves_the_global_generator_alone():
    torch.manual_seed(7)
    before = torch.random.get_rng_state()
    conv4()
    assert torch.equal(before, torch.random.get_rng_state())


def test_features_are_embedded_once_and_come_from_the_cache(tmp_path):
    backbone, dataset, rows = conv4(), Noise(), np.arange(0, 300, 2)
    first = features_of(backbone, dataset, ImageStore(dataset), rows, CPU, tmp_path)
    count = len(dataset.asked)
    again = features_of(backbone, dataset, ImageStore(dataset), rows, CPU, tmp_path)
    assert len(dataset.asked) == count == 150
    assert torch.equal(first, again)
    assert torch.equal(first, embed(backbone, ImageStore(dataset), rows, CPU))
    other = features_of(conv4(seed=1), dataset, ImageStore(dataset), rows, CPU, tmp_path)
    assert not torch.equal(first, other)
    (file, _) = sorted(tmp_path.glob("*.safetensors"))
    file.write_bytes(file.read_bytes()[:100])
    assert torch.equal(
        first, features_of(backbone, dataset, ImageStore(dataset), rows, CPU, tmp_path)
    )


def test_features_that_are_not_finite_name_the_image():
    backbone, dataset = conv4(), Noise()
    with torch.no_grad():
        next(backbone.parameters()).fill_(float("nan"))
    with pytest.raises(NonFinite, match="image 4"):
        embed(backbone, ImageStore(dataset), np.array([4, 5]), CPU)


@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
def test_weights_come_from_a_file_with_or_without_a_classifier(tmp_path, suffix):
    state = conv4(seed=3).state_dict()
    path = tmp_path / f"w{suffix}"
    full = {k: v.contiguous() for k, v in state.items()} | {"fc.weight": torch.zeros(3, 8)}
    if suffix == ".pth":
        torch.save({"state_dict": {f"module.{k}": v for k, v in full.items()}}, path)
    else:
        save_file(full, path)
    loaded = conv4(weights=str(path))
    assert weights_digest(loaded) == weights_digest(conv4(seed=3))
    assert loaded.origin == f"file {path.name}"


def test_unusable_weights_are_explained(tmp_path):
    with pytest.raises(DataMissing, match="there is no file"):
        conv4(weights=str(tmp_path / "none.pth"))
    with pytest.raises(UsageError, match="has no pretrained weights"):
        conv4(weights="pretrained")
    path = tmp_path / "w.safetensors"
    path.write_bytes(b"nonsense")
    with pytest.raises(DataError, match="not a readable weights file"):
        conv4(weights=str(path))
    save_file({"x": torch.zeros(2)}, path)
    with pytest.raises(DataError, match="tensors are missing"):
        conv4(weights=str(path))
    wide = BackboneRef(name="conv4", params={"width": 16})
    other = build_backbone(registry(), wide, image_size=28, channels=1, seed=0).state_dict()
    save_file({k: v.contiguous() for k, v in other.items()}, path)
    with pytest.raises(DataError, match="is needed"):
        conv4(weights=str(path))


class Bomb:
    def __reduce__(self):
        return (print, ("the file ran code",))


def test_a_weights_file_cannot_run_code(tmp_path, capsys):
    path = tmp_path / "evil.pth"
    torch.save({"w": Bomb()}, path)
    with pytest.raises(DataError, match="more than tensors"):
        conv4(weights=str(path))
    assert "ran code" not in capsys.readouterr().out
