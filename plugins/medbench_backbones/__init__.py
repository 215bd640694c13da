"""The bundled backbones, as data; the networks themselves are loaded when they are used."""

from __future__ import annotations

from medbench.api import BackboneSpec, Citation, Parameter, hookimpl

__all__ = ["medbench_backbones"]

_CONV4 = BackboneSpec(
    name="conv4",
    version="1",
    factory="medbench_backbones.conv4:Conv4",
    summary="Conv-4, the small network of the few-shot literature: four blocks of 64 channels",
    citation=Citation(
        title="Matching Networks for One Shot Learning",
        authors="Oriol Vinyals, Charles Blundell, Timothy Lillicrap, Koray Kavukcuoglu, "
        "Daan Wierstra",
        venue="NeurIPS",
        year=2016,
        url="https://arxiv.org/abs/1606.04080",
    ),
    licence="Apache-2.0",
    parameters=(
        Parameter("width", 64, "channels of every block", "int", minimum=1, stage="both"),
        Parameter(
            "pools",
            4,
            "how many blocks halve the image; fewer leave larger feature maps",
            "int",
            minimum=1,
            maximum=4,
            stage="both",
        ),
    ),
)

_RESNET12 = BackboneSpec(
    name="resnet12",
    version="1",
    factory="medbench_backbones.resnet12:ResNet12",
    summary="ResNet-12 of the few-shot literature: four residual blocks, 640 features",
    citation=Citation(
        title="Meta-Learning with Differentiable Convex Optimization",
        authors="Kwonjoon Lee, Subhransu Maji, Avinash Ravichandran, Stefano Soatto",
        venue="CVPR",
        year=2019,
        url="https://arxiv.org/abs/1904.03758",
    ),
    licence="Apache-2.0",
    parameters=(
        Parameter(
            "width_factor",
            1.0,
            "multiplies the widths 64-160-320-640 of the four blocks",
            "float",
            above=0.0,
            stage="both",
        ),
        Parameter(
            "drop_rate",
            0.0,
            "share of activations dropped after every block while training",
            "float",
            minimum=0.0,
            maximum=0.99,
            stage="both",
        ),
    ),
)

_TIMM = BackboneSpec(
    name="timm",
    version="1",
    factory="medbench_backbones.timm_family:create",
    summary="Any image model of timm, random or pretrained, without its classifier",
    citation=Citation(
        title="PyTorch Image Models",
        authors="Ross Wightman",
        venue="GitHub",
        year=2019,
        url="https://github.com/huggingface/pytorch-image-models",
    ),
    licence="Apache-2.0 (the code; pretrained weights have licences of their own)",
    parameters=(
        Parameter(
            "input_size",
            None,
            "pixels a side; null takes the model's own size when it is pretrained or refuses the "
            "protocol's, and the protocol's otherwise",
            "int",
            minimum=1,
            optional=True,
            stage="both",
        ),
    ),
    takes_argument="MODEL",
    pretrained_on="what the model's tag says (mostly ImageNet-1k; see the model's page)",
)


@hookimpl
def medbench_backbones() -> list[BackboneSpec]:
    """The backbones this plugin brings."""
    return [_CONV4, _RESNET12, _TIMM]
