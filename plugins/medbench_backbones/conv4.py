"""Conv-4, the network behind most published numbers on Omniglot and miniImageNet."""

from __future__ import annotations

from typing import final

from torch import Tensor, nn

from medbench.api import Backbone, InputSpec
from medbench_backbones.sizes import check_four_poolings, check_no_weights


def _block(n_in: int, n_out: int, *, pooled: bool) -> nn.Sequential:
    # The convolution keeps its bias, which BatchNorm makes redundant, because the published
    # networks do: 111,936 parameters at width 64 and one channel.
    return nn.Sequential(
        nn.Conv2d(n_in, n_out, kernel_size=3, padding=1),
        nn.BatchNorm2d(n_out),
        # The paper's order is ReLU, then pooling. The two commute exactly, and this way round the
        # ReLU has a quarter of the pixels.
        nn.MaxPool2d(2) if pooled else nn.Identity(),
        nn.ReLU(),
    )


_BLOCKS = 4


@final
class Conv4(Backbone):
    """The field's Conv-4: four times 3x3 convolution, BatchNorm, ReLU and 2x2 max-pooling.

    Features are the flattened last map: ``width * (image_size // 16) ** 2``, so 64 at 28 pixels
    and 1600 at 84. With ``pools`` = 2 only the first two blocks pool, which leaves maps of 7x7 at
    28 pixels for methods that compare places (Sung et al. 2018, figure 2, there without padding:
    5x5). Raises `MedbenchError` for images under 16 pixels.

    Vinyals et al. 2016, section 4.1.1; Snell et al. 2017, section 3.1.
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
        check_no_weights("conv4", pretrained)
        check_four_poolings("conv4", image_size)
        self.blocks = nn.Sequential(
            *(_block(width if i else channels, width, pooled=i < pools) for i in range(_BLOCKS)),
        )
        self.n_features = width * (image_size // 2**pools) ** 2
        # Pixels stay in 0...1, as in the Omniglot experiments the published numbers come from.
        self.input = InputSpec(
            size=image_size, channels=channels, mean=(0.0,) * channels, std=(1.0,) * channels
        )

    def feature_map(self, images: Tensor) -> Tensor:
        """The last spatial features ``(b, width, s, s)``, ``s = size // 2**pools``."""
        out: Tensor = self.blocks(images)
        return out

    def forward(self, images: Tensor) -> Tensor:
        """Features ``(b, n_features)``: the flattened map."""
        return self.feature_map(images).flatten(1)
