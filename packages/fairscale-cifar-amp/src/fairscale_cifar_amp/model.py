"""A small network for 32x32 images. A plain module: nothing here knows that training is sharded or in 16 bits.

Shapes: N images, C channels, H height, W width, K classes.
"""

import torch
from torch import Tensor, nn


class SmallCNN(nn.Module):
    """Seven convolutions, few and wide, so that a step costs little and 16 bits have large products to speed up.

    After Jordan, "94% on CIFAR-10 in 3.29 Seconds on a Single GPU" (arXiv 2404.00498): a stem that whitens 2x2 patches,
    convolutions that start as the identity, and a scaled output.

    Args:
        widths: channels of the three blocks.
        num_classes: K.
        norm: batch or group.
    """

    OUTPUT_SCALE = 1 / 9

    def __init__(self, widths: tuple[int, int, int], num_classes: int, norm: str) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 24, kernel_size=2)  # (N, 3, 32, 32) -> (N, 24, 31, 31)
        channels = [24, *widths]
        # H, W: 31 -> 15 -> 7 -> 3
        self.blocks = nn.Sequential(*(Block(channels[i], channels[i + 1], norm) for i in range(3)))
        self.pool = nn.MaxPool2d(3)  # (N, C, 3, 3) -> (N, C, 1, 1)
        self.head = nn.Linear(channels[-1], num_classes, bias=False)

    def forward(self, images: Tensor) -> Tensor:
        """Classify (N, 3, 32, 32) normalised images: (N, K) logits."""
        x = self.blocks(torch.relu(self.stem(images)))
        return self.head(self.pool(x).flatten(1)) * self.OUTPUT_SCALE

    @torch.no_grad()
    def set_whitening(self, images: Tensor) -> None:
        """Let the stem start as the map that decorrelates 2x2 patches to unit variance on `images`.

        Args:
            images: (N, 3, H, W) normalised training images; a few thousand are enough.
        """
        patches = images.double().unfold(2, 2, 1).unfold(3, 2, 1)  # (N, 3, H-1, W-1, 2, 2)
        flat = patches.permute(0, 2, 3, 1, 4, 5).reshape(-1, 12)
        variances, directions = torch.linalg.eigh(flat.T @ flat / len(flat))
        filters = (directions / torch.sqrt(variances + 5e-4)).T.reshape(12, 3, 2, 2)
        # Each filter and its negative, since the ReLU behind them drops one half of each.
        self.stem.weight.copy_(torch.cat([filters, -filters]))


class Block(nn.Module):
    """Two 3x3 convolutions; the pooling stands right behind the first, where it saves most of the work."""

    def __init__(self, in_channels: int, out_channels: int, norm: str) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, padding=1, bias=False)
        self.pool = nn.MaxPool2d(2)
        self.norm1 = norm_layer(norm, out_channels)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1, bias=False)
        self.norm2 = norm_layer(norm, out_channels)
        for conv in (self.conv1, self.conv2):
            # The first in_channels outputs start as a copy of the inputs; the others are random.
            nn.init.dirac_(conv.weight.data[: conv.in_channels])

    def forward(self, x: Tensor) -> Tensor:
        """(N, in_channels, H, W) -> (N, out_channels, H/2, W/2)."""
        x = torch.relu(self.norm1(self.pool(self.conv1(x))))
        return torch.relu(self.norm2(self.conv2(x)))


def norm_layer(kind: str, channels: int) -> nn.Module:
    """Normalisation after a convolution."""
    return nn.GroupNorm(8, channels) if kind == "group" else nn.BatchNorm2d(channels)
