"""Conv-4 for volumes: the field's small network with a third dimension."""

from __future__ import annotations

from typing import final

from torch import Tensor, nn

from medbench.api import Backbone, InputSpec
from medbench_backbones.sizes import check_four_poolings, check_no_weights

_BLOCKS = 4


def _block(n_in: int, n_out: int, *, pooled: bool) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv3d(n_in, n_out, kernel_size=3, padding=1),
        nn.BatchNorm3d(n_out),
        # As in conv4: pooling commutes with ReLU, which then has an eighth of the voxels.
        nn.MaxPool3d(2) if pooled else nn.Identity(),
        nn.ReLU(),
    )


@final
class Conv4Volume(Backbone):
    """Four times 3x3x3 convolution, BatchNorm, ReLU and 2x2x2 max-pooling.

    Conv-4 (Vinyals et al. 2016, section 4.1.1) with the kernels of C3D (Tran et al. 2015, section
    3.1: 3x3x3 throughout). Features are the flattened last map:
    ``width * (image_size // 2**pools) ** 3``, so 64 at 28 voxels an edge. Raises `MedbenchError`
    for volumes under 16 voxels an edge.
    """

    def __init__(
        self,
        *,
        image_size: int,
        channels: int,
        pretrained: bool = False,
        width: int = 64,
        pools: int = 4,
    ) -> None:
        super().__init__()
        check_no_weights("conv4-3d", pretrained)
        check_four_poolings("conv4-3d", image_size)
        self.blocks = nn.Sequential(
            *(_block(width if i else channels, width, pooled=i < pools) for i in range(_BLOCKS)),
        )
        self.n_features = width * (image_size // 2**pools) ** 3
        self.input = InputSpec(
            size=image_size,
            channels=channels,
            mean=(0.0,) * channels,
            std=(1.0,) * channels,
            n_dims=3,
        )

    def feature_map(self, images: Tensor) -> Tensor:
        """The last map of volumes ``(b, C, D, H, W)`` as ``(b, width, d * h, w)``."""
        out: Tensor = self.blocks(images)
        return out.flatten(2, 3)

    def forward(self, images: Tensor) -> Tensor:
        """Features ``(b, n_features)``: the flattened map."""
        return self.feature_map(images).flatten(1)
