"""Checks of backbones: features of the promised shape, and a network that stays as it is."""

from __future__ import annotations

import copy
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from medbench.api import Backbone
from medbench.backbones import build_backbone, deploy
from medbench.config import BackboneRef
from medbench.conformance import fresh, guards, material
from medbench.conformance.check import Broken, DoesNotApply, Shelf, in_words
from medbench.conformance.common import COMMON
from medbench.conformance.subject import Subject
from medbench.embed import to_input, weights_digest
from medbench.errors import MedbenchError
from medbench.modalities import Images
from medbench.nesting import layers
from medbench.plugins import Entry, Plugin, Registry, load_factory

BACKBONES = Shelf("backbones")
BACKBONES.take(*COMMON)
_ROUNDING = 1e-4
_SIZE, _VOLUME_SIZE = 32, 16


@dataclass
class Built:
    """What the checks of one backbone share: the network with random weights, built on demand."""

    subject: Subject
    _networks: dict[int, Backbone] = field(default_factory=dict)

    def build(self, channels: int = 1, seed: int = 0, modalities: tuple[str, ...] = ()) -> Backbone:
        """A new network with random weights, in eval mode."""
        registry = _with(self.subject)
        ref = BackboneRef(name=self.subject.name, params=dict(self.subject.params))
        n_dims = layers(registry, ref.name, ref.params)[0].n_dims
        return build_backbone(
            registry,
            ref,
            image_size=_SIZE if n_dims == 2 else _VOLUME_SIZE,
            channels=channels,
            seed=seed,
            modalities=modalities,
        )

    def network(self, channels: int = 1) -> Backbone:
        """A copy of the network of seed 0."""
        if channels not in self._networks:
            self._networks[channels] = self.build(channels)
        return copy.deepcopy(self._networks[channels])

    def images(self, backbone: Backbone, n: int = 6) -> Tensor:
        """Images of stripes, or volumes that grow darker in depth, as `backbone` wants them."""
        images = material.episode(0, (2, 2, 2), n).query
        if backbone.input.n_dims == 3:
            images = np.stack([images // (1 + z) for z in range(_VOLUME_SIZE // 4)], axis=1)
        return to_input(images, backbone.input, torch.device("cpu"))


def _with(subject: Subject) -> Registry:
    """The registry with this subject in it, installed or not."""
    registry = Registry(entries={k: dict(v) for k, v in subject.registry.entries.items()})
    registry.entries["backbones"][subject.entry.name] = subject.entry
    return registry


@BACKBONES.add(
    "factory",
    reason="Protocols choose image size and channels, and suites parameters.",
    hint="Take image_size, channels, pretrained and the spec's parameters as keywords (**_ will "
    "not do), and return a medbench.api.Backbone.",
)
def _factory(built: Built) -> None:
    for channels in (1, 3):
        built.network(channels)


@BACKBONES.add(
    "input",
    reason="Images are resized and normalised by the core, as backbone.input says.",
    hint="Set self.input = InputSpec(size=..., channels=..., mean=..., std=...), with one mean and "
    "one std above zero for each channel.",
    needs=("factory",),
)
def _input(built: Built) -> None:
    for channels in (1, 3):
        wants = built.network(channels).input
        if wants.channels not in (1, 3) or wants.size < 1:
            raise Broken(f"input wants {wants.channels} channels of {wants.size} pixels.")
        if not len(wants.mean) == len(wants.std) == wants.channels:
            raise Broken(
                f"input has {wants.channels} channels, {len(wants.mean)} means and "
                f"{len(wants.std)} stds."
            )
        if min(wants.std) <= 0:
            raise Broken(f"input has a std of {min(wants.std):g}.")


@BACKBONES.add(
    "feature-dimension",
    reason="Methods and caches are laid out for n_features numbers an image.",
    hint="Set self.n_features to the length of what forward returns: (b, n_features).",
    needs=("input",),
)
def _feature_dimension(built: Built) -> None:
    for channels in (1, 3):
        backbone = built.network(channels)
        for n in (1, 6):
            with torch.no_grad():
                found = backbone(built.images(backbone, n))
            if tuple(found.shape) != (n, backbone.n_features):
                raise Broken(
                    f"forward returned {tuple(found.shape)} for {n} images of {channels} channels, "
                    f"and n_features is {backbone.n_features}."
                )
            if found.dtype != torch.float32:
                raise Broken(f"forward returned {found.dtype}, and torch.float32 is needed.")


@BACKBONES.add(
    "feature-map",
    reason="Methods that compare places need the map before pooling.",
    hint="Return (b, c, h, w) from feature_map; a network without places gives (b, c, 1, 1).",
    needs=("input",),
)
def _feature_map(built: Built) -> None:
    backbone = built.network()
    with torch.no_grad():
        found = backbone.feature_map(built.images(backbone))
    if found.ndim != 4 or len(found) != 6:
        raise Broken(f"feature_map returned {tuple(found.shape)} for 6 images, not (6, c, h, w).")


@BACKBONES.add(
    "finite",
    reason="One NaN makes every cell of this backbone fail.",
    hint="Initialise every parameter and buffer, and guard divisions.",
    needs=("feature-dimension",),
)
def _finite(built: Built) -> None:
    backbone = built.network()
    images = built.images(backbone)
    for what, x in (("ordinary", images), ("black", torch.zeros_like(images))):
        with torch.no_grad():
            bad = ~torch.isfinite(backbone(x))
        if bad.any():
            raise Broken(
                f"{int(bad.sum())} of {bad.numel()} features of {what} images are not finite."
            )


@BACKBONES.add(
    "modalities",
    reason="Images may lack some of several aligned modalities, and have a class nevertheless.",
    hint="Take a network for each modality as inner, and its channels in order. The pixels of a "
    "missing one are input.missing (NaN, if so set): leave its features out.",
    needs=("feature-dimension",),
)
def _modalities(built: Built) -> None:
    if not built.subject.spec.fuses:
        raise DoesNotApply("it does not fuse modalities")
    backbone = built.build(modalities=("one", "two"))
    wants = backbone.input
    images = material.episode(0, (2, 2, 2), 6).query
    if wants.n_dims == 3:
        images = np.stack([images // (1 + z) for z in range(_VOLUME_SIZE // 4)], axis=1)
    both = np.concatenate([images, 255 - images], axis=-1)
    lacks = np.zeros((len(both), 2), np.bool_)
    for without in (None, 0, 1):
        lacks[:] = [number == without for number in (0, 1)]
        x = to_input(Images(both, (1, 1), lacks), wants, torch.device("cpu"))
        with torch.no_grad():
            found = backbone(x)
        told = "two modalities" if without is None else f"modality {without + 1} of two missing"
        if tuple(found.shape) != (len(both), backbone.n_features):
            raise Broken(
                f"with {told}, forward returned {tuple(found.shape)} for {len(both)} images, and "
                f"n_features is {backbone.n_features}."
            )
        if not torch.isfinite(found).all():
            raise Broken(f"with {told}, features are not finite.")


@BACKBONES.add(
    "eval-mode",
    reason="An image's features must not depend on its company, and embedding must not change the "
    "network.",
    hint="Let eval() reach every layer (register them as modules): BatchNorm then uses its running "
    "statistics and dropout is off. Draw nothing and count nothing in forward.",
    needs=("finite",),
)
def _eval_mode(built: Built) -> None:
    backbone = built.network().eval()
    images = built.images(backbone)
    before = weights_digest(backbone)
    with torch.no_grad():
        together = backbone(images)
        again = backbone(images)
        alone = torch.cat([backbone(image.unsqueeze(0)) for image in images])
    scale = float(together.abs().max().clamp_min(1e-6))
    if float((again - together).abs().max()) > 0:
        raise Broken("the same images twice gave other features in eval mode.")
    if float((alone - together).abs().max()) > _ROUNDING * scale:
        raise Broken(
            "an image alone has other features than in a batch, in eval mode (by "
            f"{float((alone - together).abs().max()) / scale:.2g} of the largest)."
        )
    if weights_digest(backbone) != before:
        raise Broken("forward changed parameters or buffers in eval mode.")


@BACKBONES.add(
    "weights-digest",
    reason="Random weights must be the same on every machine, and others for another seed.",
    hint="Initialise from torch's global generator, which the core has seeded; use no generator or "
    "seed of your own.",
    needs=("factory",),
)
def _weights_digest(built: Built) -> None:
    first = weights_digest(built.build())
    if weights_digest(built.build()) != first:
        raise Broken("built twice from the same seed, the weights differ.")
    if not any(True for _ in built.network().parameters()):
        return
    if weights_digest(built.build(seed=1)) == first:
        raise Broken("built from another seed, the weights are the same.")
    spec, name = built.subject.spec, built.subject.name
    if fresh.elsewhere(_digest, spec, name, dict(built.subject.params)) != first:
        raise Broken("built from the same seed in another process, the weights differ.")


def _digest(spec: Any, name: str, params: Mapping[str, Any]) -> str:
    from medbench.plugins import registry

    entry = Entry("backbones", spec, Plugin("checked", "0", "-", "-", (), 0.0))
    return weights_digest(Built(Subject(registry(), entry, name, params)).build())


@BACKBONES.add(
    "trainable",
    reason="Methods meta-train copies of the backbone, and store and load its weights by name.",
    hint="Keep parameters in the module tree (nn.ModuleList, not a list), do not detach inside "
    "forward, and let copy.deepcopy work.",
    needs=("eval-mode",),
)
def _trainable(built: Built) -> None:
    backbone = built.network()
    if not any(True for _ in backbone.parameters()):
        raise DoesNotApply("it has no parameters")
    twin = built.build(seed=1)
    twin.load_state_dict(backbone.state_dict())
    images = built.images(backbone)
    with torch.no_grad():
        if not torch.allclose(twin(images), backbone(images), rtol=1e-5, atol=1e-6):
            raise Broken("another instance with the same state_dict gives other features.")
    backbone.train()
    backbone(images).square().sum().backward()
    if all(p.grad is None for p in backbone.parameters()):
        raise Broken("no parameter gets a gradient.")


@BACKBONES.add(
    "deployed",
    reason="What is tested must serve the methods that were trained, and stay as it is.",
    hint="Return a Backbone with the same input and n_features from deployed(), whose eval mode "
    "depends on no other image, and which copy.deepcopy copies; without it a network is tested as "
    "it was trained.",
    needs=("eval-mode",),
)
def _deployed(built: Built) -> None:
    backbone = built.network().eval()
    images = built.images(backbone)
    with torch.no_grad():
        maps = backbone.feature_map(images).shape
        found = deploy(backbone)
        before = weights_digest(found)
        together = found(images)
        alone = torch.cat([found(image.unsqueeze(0)) for image in images])
        copied = copy.deepcopy(found)(images)
        mapped = found.feature_map(images).shape
    if together.shape != (len(images), found.n_features) or not torch.isfinite(together).all():
        raise Broken(
            f"what is tested gave {tuple(together.shape)} for {len(images)} images, some perhaps "
            f"not finite; ({len(images)}, {found.n_features}) finite numbers are needed."
        )
    if mapped != maps:
        raise Broken(
            f"maps are {tuple(maps)} in training and {tuple(mapped)} in what is tested: methods "
            "on maps learn from the first and are asked about the second."
        )
    scale = float(together.abs().max().clamp_min(1e-6))
    for what, other in (("alone than in a batch", alone), ("from a copy", copied)):
        if float((other - together).abs().max()) > _ROUNDING * scale:
            raise Broken(f"of what is tested an image has other features {what}.")
    if weights_digest(found) != before:
        raise Broken("forward changed parameters or buffers of what is tested.")


@BACKBONES.add(
    "random-state",
    reason="Features must not depend on what ran before, nor change what runs after.",
    hint="Draw no random numbers in forward when in eval mode.",
    needs=("feature-dimension",),
)
def _random_state(built: Built) -> None:
    backbone = built.network().eval()
    with guards.seeded(), torch.no_grad():
        before = guards.random_states()
        backbone(built.images(backbone))
        moved = guards.changed_states(before)
    if moved:
        raise Broken(f"forward drew from the global generator of {' and '.join(moved)}.")


@BACKBONES.add(
    "pretrained",
    reason="Whoever asks for pretrained weights must get them or a clear error, never random ones.",
    hint="Say in pretrained_on what the weights have seen; without weights leave it empty and "
    "raise medbench.api.Unavailable for pretrained=True.",
    needs=("factory",),
)
def _pretrained(built: Built) -> None:
    spec, subject = built.subject.spec, built.subject
    if spec.wraps:
        raise DoesNotApply("its weights are those of the backbone it wraps")
    if spec.pretrained_on:
        raise DoesNotApply("it has pretrained weights, which may have to be downloaded")
    extra = {"argument": subject.argument} if spec.takes_argument else {}
    try:
        load_factory(subject.entry)(
            image_size=_SIZE, channels=1, pretrained=True, **extra, **subject.params
        )
    except MedbenchError:
        return
    except Exception as error:
        raise Broken(f"asked for pretrained weights, it {in_words(error)}") from error
    raise Broken(
        "asked for pretrained weights, which the spec says there are not, it built a network."
    )


@BACKBONES.add(
    "no-network",
    reason="Random weights need no download, and cluster nodes have no network.",
    hint="Download in the factory only for pretrained=True.",
    needs=("factory",),
)
def _no_network(built: Built) -> None:
    with guards.no_network() as seen:
        try:
            backbone = built.build()
            backbone(built.images(backbone))
        except Exception:
            if not seen:
                raise
    if seen:
        raise Broken(f"it asked for {', '.join(sorted(set(seen))[:3])}.")


@BACKBONES.add(
    "no-writing",
    reason="Many cells build the network at once, on read-only and shared disks too.",
    hint="Write nothing when random weights are asked for.",
    needs=("factory",),
)
def _no_writing(built: Built) -> None:
    with tempfile.TemporaryDirectory() as folder, guards.writing_only(Path(folder)) as seen:
        backbone = built.build()
        backbone(built.images(backbone))
    if seen:
        raise Broken(f"it wrote {', '.join(sorted(set(seen))[:3])}.")
