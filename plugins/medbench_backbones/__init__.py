"""The bundled backbones, as data; the networks themselves are loaded when they are used."""

from __future__ import annotations

from medbench.api import BackboneSpec, Citation, Conformance, Parameter, hookimpl

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

_CONV4_3D = BackboneSpec(
    name="conv4-3d",
    version="1",
    factory="medbench_backbones.conv4_3d:Conv4Volume",
    summary="Conv-4 for volumes: four blocks of 64 channels, 3x3x3 kernels",
    citation=Citation(
        title="Learning Spatiotemporal Features with 3D Convolutional Networks",
        authors="Du Tran, Lubomir Bourdev, Rob Fergus, Lorenzo Torresani, Manohar Paluri",
        venue="ICCV",
        year=2015,
        url="https://arxiv.org/abs/1412.0767",
    ),
    licence="Apache-2.0",
    n_dims=3,
    parameters=(
        Parameter("width", 64, "channels of every block", "int", minimum=1, stage="both"),
        Parameter(
            "pools",
            4,
            "how many blocks halve the volume; fewer leave larger feature maps",
            "int",
            minimum=0,
            maximum=4,
            stage="both",
        ),
    ),
    conformance=Conformance(params={"width": 8}),
)

_SLICES = BackboneSpec(
    name="slices",
    version="1",
    factory="medbench_backbones.slices:Slices",
    summary="Volumes through a backbone for images, slice by slice, features pooled over slices",
    citation=Citation(
        title="Multi-view Convolutional Neural Networks for 3D Shape Recognition",
        authors="Hang Su, Subhransu Maji, Evangelos Kalogerakis, Erik Learned-Miller",
        venue="ICCV",
        year=2015,
        url="https://arxiv.org/abs/1505.00880",
    ),
    licence="Apache-2.0",
    takes_argument="BACKBONE",
    wraps=(2,),
    n_dims=3,
    parameters=(
        Parameter(
            "axis",
            0,
            "which axis is cut into slices: 0 depth, 1 height, 2 width; no matter with planes 3",
            "int",
            choices=(0, 1, 2),
        ),
        Parameter(
            "planes",
            1,
            "3 cuts along all three axes, whose features then stand side by side",
            "int",
            choices=(1, 3),
        ),
        Parameter("pooling", "mean", "over slices", "str", choices=("mean", "max")),
    ),
)

_INFLATED = BackboneSpec(
    name="inflated",
    version="1",
    factory="medbench_backbones.inflated:Inflated",
    summary="Volumes through a convolutional backbone for images whose kernels became cubes",
    citation=Citation(
        title="Quo Vadis, Action Recognition? A New Model and the Kinetics Dataset",
        authors="Joao Carreira, Andrew Zisserman",
        venue="CVPR",
        year=2017,
        url="https://arxiv.org/abs/1705.07750",
    ),
    licence="Apache-2.0",
    takes_argument="BACKBONE",
    wraps=(2,),
    n_dims=3,
    parameters=(
        Parameter(
            "volume_size",
            None,
            "voxels an edge (default: the protocol's image_size)",
            "int",
            minimum=1,
            optional=True,
        ),
    ),
)

_STACKED = BackboneSpec(
    name="stacked",
    version="1",
    factory="medbench_backbones.fusion:Stacked",
    summary="Aligned modalities as channels of one network's input (early fusion)",
    citation=Citation(
        title="Multimodal Machine Learning: A Survey and Taxonomy",
        authors="Tadas Baltrusaitis, Chaitanya Ahuja, Louis-Philippe Morency",
        venue="IEEE TPAMI 41(2)",
        year=2019,
        url="https://arxiv.org/abs/1705.09406",
    ),
    licence="Apache-2.0",
    takes_argument="BACKBONE",
    wraps=(2, 3),
    n_dims=None,
    parameters=(
        Parameter(
            "fill",
            0.0,
            "pixel value of a modality that an image lacks, 0 black, 1 white",
            "float",
            minimum=0.0,
            maximum=1.0,
        ),
    ),
)

_LATE = BackboneSpec(
    name="late",
    version="1",
    factory="medbench_backbones.fusion:Late",
    summary="A network for each aligned modality; features averaged over those present",
    citation=Citation(
        title="HeMIS: Hetero-Modal Image Segmentation",
        authors="Mohammad Havaei, Nicolas Guizard, Nicolas Chapados, Yoshua Bengio",
        venue="MICCAI",
        year=2016,
        url="https://arxiv.org/abs/1607.05194",
    ),
    licence="Apache-2.0",
    takes_argument="BACKBONE",
    wraps=(2, 3),
    n_dims=None,
    fuses=True,
    parameters=(
        Parameter(
            "fusion",
            "mean",
            "of features over modalities; with concat they stand side by side, zeros for missing",
            "str",
            choices=("mean", "concat"),
        ),
    ),
)

_GATED = BackboneSpec(
    name="gated",
    version="1",
    factory="medbench_backbones.fusion:Gated",
    summary="A network for each aligned modality, weighed by gates that are learned",
    citation=Citation(
        title="Gated Multimodal Units for Information Fusion",
        authors="John Arevalo, Thamar Solorio, Manuel Montes-y-Gomez, Fabio A. Gonzalez",
        venue="ICLR Workshop",
        year=2017,
        url="https://arxiv.org/abs/1702.01992",
    ),
    licence="Apache-2.0",
    takes_argument="BACKBONE",
    wraps=(2, 3),
    n_dims=None,
    fuses=True,
    parameters=(
        Parameter(
            "hidden",
            None,
            "features after fusion (default: as many as each network has)",
            "int",
            minimum=1,
            optional=True,
        ),
    ),
)


_INT8 = BackboneSpec(
    name="int8",
    version="1",
    factory="medbench_backbones.int8:Int8",
    summary="A backbone tested with weights of one byte, and layers that multiply whole numbers",
    citation=Citation(
        title="Quantization and Training of Neural Networks for Efficient Integer-Arithmetic-Only "
        "Inference",
        authors="Benoit Jacob, Skirmantas Kligys, Bo Chen, Menglong Zhu, Matthew Tang, "
        "Andrew Howard, Hartwig Adam, Dmitry Kalenichenko",
        venue="CVPR",
        year=2018,
        url="https://arxiv.org/abs/1712.05877",
    ),
    licence="Apache-2.0",
    takes_argument="BACKBONE",
    wraps=(2, 3),
    n_dims=None,
    parameters=(
        Parameter(
            "activations",
            True,
            "whether layers take whole numbers too; if not, weights become floats at every use",
            "bool",
        ),
    ),
)

_PRUNED = BackboneSpec(
    name="pruned",
    version="1",
    factory="medbench_backbones.pruned:Pruned",
    summary="A convolutional backbone tested without the channels of the smallest weights",
    citation=Citation(
        title="Pruning Filters for Efficient ConvNets",
        authors="Hao Li, Asim Kadav, Igor Durdanovic, Hanan Samet, Hans Peter Graf",
        venue="ICLR",
        year=2017,
        url="https://arxiv.org/abs/1608.08710",
    ),
    licence="Apache-2.0",
    takes_argument="BACKBONE",
    wraps=(2, 3),
    n_dims=None,
    parameters=(
        Parameter(
            "share",
            0.5,
            "of the channels of every layer but the last, rounded down",
            "float",
            minimum=0.0,
            maximum=0.99,
        ),
        Parameter(
            "when",
            "after",
            "after training, or before: then what is left is trained",
            "str",
            choices=("after", "before"),
        ),
    ),
)

_DISTILLED = BackboneSpec(
    name="distilled",
    version="1",
    factory="medbench_backbones.distilled:Distilled",
    summary="A narrow network taught by a backbone, on source images, to give its features",
    citation=Citation(
        title="FitNets: Hints for Thin Deep Nets",
        authors="Adriana Romero, Nicolas Ballas, Samira Ebrahimi Kahou, Antoine Chassang, "
        "Carlo Gatta, Yoshua Bengio",
        venue="ICLR",
        year=2015,
        url="https://arxiv.org/abs/1412.6550",
    ),
    licence="Apache-2.0",
    takes_argument="BACKBONE",
    wraps=(2,),
    learns=True,
    parameters=(
        Parameter("student_width", 16, "channels of the student's four blocks", "int", minimum=1),
        Parameter(
            "images",
            32_000,
            "how many source images the student looks at, each time counted",
            "int",
            minimum=1,
        ),
        Parameter("lr", 3e-3, "of Adam", "float", above=0.0),
        Parameter("batch_size", 64, "source images a step", "int", minimum=2),
    ),
)


@hookimpl
def medbench_backbones() -> list[BackboneSpec]:
    """The backbones this plugin brings."""
    volumes = [_CONV4_3D, _SLICES, _INFLATED]
    fusions = [_STACKED, _LATE, _GATED]
    compressed = [_INT8, _PRUNED, _DISTILLED]
    return [_CONV4, _RESNET12, _TIMM, *volumes, *fusions, *compressed]
