"""ResNet-12, the larger network of the few-shot literature."""

from __future__ import annotations

from typing import final

from torch import Tensor, nn
from torch.nn import functional as F

from medbench.api import Backbone, InputSpec
from medbench_backbones.sizes import check_four_poolings, check_no_weights

_WIDTHS = (64, 160, 320, 640)
_SLOPE = 0.1


def _conv_norm(n_in: int, n_out: int, kernel: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(n_in, n_out, kernel, padding=kernel // 2, bias=False), nn.BatchNorm2d(n_out)
    )


@final
class _Block(nn.Module):
    """Three 3x3 convolutions beside a 1x1 shortcut, then LeakyReLU and 2x2 max-pooling."""

    def __init__(self, n_in: int, n_out: int, drop_rate: float) -> None:
        super().__init__()
        self.conv1 = _conv_norm(n_in, n_out, 3)
        self.conv2 = _conv_norm(n_out, n_out, 3)
        self.conv3 = _conv_norm(n_out, n_out, 3)
        self.shortcut = _conv_norm(n_in, n_out, 1)
        self.drop_rate = drop_rate

    def forward(self, x: Tensor) -> Tensor:
        out = F.leaky_relu(self.conv1(x), _SLOPE)
        out = F.leaky_relu(self.conv2(out), _SLOPE)
        out = F.leaky_relu(self.conv3(out) + self.shortcut(x), _SLOPE)
        out = F.max_pool2d(out, 2)
        return F.dropout(out, self.drop_rate, self.training)


@final
class ResNet12(Backbone):
    """ResNet-12 with widths 64-160-320-640 and global average pooling: 640 features.

    ``width_factor`` scales the widths (rounded, at least 1); ``drop_rate`` is plain dropout after
    each block. DropBlock, which some papers add, is left out. Raises `MedbenchError` for images
    under 16 pixels.

    Oreshkin et al. 2018 (TADAM), as specified by Lee et al. 2019 (MetaOptNet), section 4.1:
    12,424,320 parameters for 3 channels.
    """

    def __init__(
        self,
        *,
        image_size: int,
        channels: int,
        pretrained: bool = False,
        width_factor: float = 1.0,
        drop_rate: float = 0.0,
    ) -> None:
        super().__init__()
        check_no_weights("resnet12", pretrained)
        check_four_poolings("resnet12", image_size)
        widths = [max(1, round(w * width_factor)) for w in _WIDTHS]
        self.blocks = nn.Sequential(
            *(
                _Block(n_in, n_out, drop_rate)
                for n_in, n_out in zip([channels, *widths[:-1]], widths, strict=True)
            )
        )
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(
                    module.weight, a=_SLOPE, mode="fan_out", nonlinearity="leaky_relu"
                )
        self.n_features = widths[-1]
        # -1...1 rather than some dataset's statistics: the first BatchNorm takes up the rest.
        self.input = InputSpec(
            size=image_size, channels=channels, mean=(0.5,) * channels, std=(0.5,) * channels
        )

    def feature_map(self, images: Tensor) -> Tensor:
        """The last spatial features ``(b, n_features, size // 16, size // 16)``."""
        out: Tensor = self.blocks(images)
        return out

    def forward(self, images: Tensor) -> Tensor:
        """Features ``(b, n_features)``: the mean of the map."""
        return self.feature_map(images).mean(dim=(2, 3))
