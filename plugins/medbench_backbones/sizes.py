"""The one check that all networks with four poolings need."""

from __future__ import annotations

from medbench.api import MedbenchError


def check_four_poolings(name: str, image_size: int) -> None:
    """Refuse images that four 2x2 poolings would shrink to nothing. Raises `MedbenchError`."""
    if image_size < 16:
        raise MedbenchError(
            f"{name} halves the image four times, so it needs images of 16 pixels or more a side; "
            f"got {image_size}. Ask for a larger image_size."
        )


def check_no_weights(name: str, pretrained: bool) -> None:
    """Refuse pretrained weights for a network that has none. Raises `MedbenchError`."""
    if pretrained:
        raise MedbenchError(
            f"{name} comes without pretrained weights. Use random weights, or a weights file."
        )
