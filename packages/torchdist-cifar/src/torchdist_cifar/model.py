"""Networks for 32x32 images. Plain modules: nothing here knows that training is distributed.

Shapes: N images, C channels, H height, W width, K classes. Every model maps (N, 3, 32, 32) to logits (N, K).
"""

import torch
from torch import Tensor, nn

from torchdist_cifar.config import TrainConfig

VGG_LAYERS: dict[str, tuple[int | str, ...]] = {
    "vgg11": (64, "M", 128, "M", 256, 256, "M", 512, 512, "M", 512, 512, "M"),
    "vgg16": (64, 64, "M", 128, 128, "M", 256, 256, 256, "M", 512, 512, 512, "M", 512, 512, 512, "M"),
}


def build_model(config: TrainConfig, num_classes: int) -> nn.Module:
    """Return the untrained network that `config` names, its weights drawn from torch's global generator."""
    if config.model == "cnn":
        return SmallCNN(config.widths, num_classes, config.norm, whiten=config.whiten)
    if config.model == "resnet18":
        return ResNet18(num_classes, config.norm)
    return VGG(VGG_LAYERS[config.model], num_classes, config.norm)


def norm_layer(kind: str, channels: int) -> nn.Module:
    """Normalisation after a convolution. `sync_batch` is built as BatchNorm; `train.py` converts it."""
    return nn.GroupNorm(8, channels) if kind == "group" else nn.BatchNorm2d(channels)


class SmallCNN(nn.Module):
    """Seven convolutions in the shape of airbench94: few, wide layers, so that a step costs little.

    After Jordan, "94% on CIFAR-10 in 3.29 Seconds on a Single GPU" (arXiv 2404.00498): a frozen whitening convolution,
    convolutions that start as the identity, and a scaled output. ReLU takes the place of GELU, which on a CPU costs a
    fifth of the step.
    """

    OUTPUT_SCALE = 1 / 9

    def __init__(self, widths: tuple[int, int, int], num_classes: int, norm: str, *, whiten: bool) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 24, kernel_size=2)  # (N, 3, 32, 32) -> (N, 24, 31, 31)
        self.whiten = whiten
        blocks, channels = [], 24
        for width in widths:
            blocks.append(_Block(channels, width, norm))  # H, W: 31 -> 15 -> 7 -> 3
            channels = width
        self.blocks = nn.Sequential(*blocks)
        self.pool = nn.MaxPool2d(3)  # (N, C, 3, 3) -> (N, C, 1, 1)
        self.head = nn.Linear(channels, num_classes, bias=False)

    def forward(self, images: Tensor) -> Tensor:
        """Classify (N, 3, 32, 32) normalised images: (N, K) logits."""
        x = self.blocks(torch.relu(self.stem(images)))
        return self.head(self.pool(x).flatten(1)) * self.OUTPUT_SCALE

    @torch.no_grad()
    def set_whitening(self, images: Tensor) -> None:
        """Make the stem decorrelate 2x2 patches, and freeze it: its outputs have unit variance on `images`.

        Args:
            images: (N, 3, H, W) normalised training images; a few thousand are enough.
        """
        patches = images.double().unfold(2, 2, 1).unfold(3, 2, 1)  # (N, 3, H-1, W-1, 2, 2)
        flat = patches.permute(0, 2, 3, 1, 4, 5).reshape(-1, 12)
        variances, directions = torch.linalg.eigh(flat.T @ flat / len(flat))
        filters = (directions / torch.sqrt(variances + 5e-4)).T.reshape(12, 3, 2, 2)
        # Each filter and its negative, since the ReLU behind them drops one half of each.
        self.stem.weight.copy_(torch.cat([filters, -filters]))
        self.stem.weight.requires_grad_(False)


class _Block(nn.Module):
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


class ResNet18(nn.Module):
    """ResNet-18 in its form for CIFAR: a 3x3 stem without pooling (He et al., arXiv 1512.03385)."""

    def __init__(self, num_classes: int, norm: str) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 64, 3, padding=1, bias=False), norm_layer(norm, 64), nn.ReLU())
        blocks, channels = [], 64
        for width, stride in ((64, 1), (64, 1), (128, 2), (128, 1), (256, 2), (256, 1), (512, 2), (512, 1)):
            blocks.append(_Residual(channels, width, stride, norm))
            channels = width
        self.blocks = nn.Sequential(*blocks)  # (N, 64, 32, 32) -> (N, 512, 4, 4)
        self.head = nn.Linear(512, num_classes)

    def forward(self, images: Tensor) -> Tensor:
        """Classify (N, 3, 32, 32) normalised images: (N, K) logits."""
        return self.head(self.blocks(self.stem(images)).mean(dim=(2, 3)))


class _Residual(nn.Module):
    """Two 3x3 convolutions beside a shortcut, which is a 1x1 convolution where the shape changes."""

    def __init__(self, in_channels: int, out_channels: int, stride: int, norm: str) -> None:
        super().__init__()
        self.path = nn.Sequential(
            nn.Conv2d(in_channels, out_channels, 3, stride, padding=1, bias=False),
            norm_layer(norm, out_channels),
            nn.ReLU(),
            nn.Conv2d(out_channels, out_channels, 3, padding=1, bias=False),
            norm_layer(norm, out_channels),
        )
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or in_channels != out_channels:
            self.shortcut = nn.Sequential(
                nn.Conv2d(in_channels, out_channels, 1, stride, bias=False), norm_layer(norm, out_channels)
            )

    def forward(self, x: Tensor) -> Tensor:
        """(N, in_channels, H, W) -> (N, out_channels, H/stride, W/stride)."""
        return torch.relu(self.path(x) + self.shortcut(x))


class VGG(nn.Module):
    """VGG with normalisation and one linear layer, as is usual for CIFAR (Simonyan and Zisserman, arXiv 1409.1556).

    Args:
        layers: output channels of the 3x3 convolutions, "M" for a 2x2 max-pooling.
        num_classes: K.
        norm: kind of normalisation.
    """

    def __init__(self, layers: tuple[int | str, ...], num_classes: int, norm: str) -> None:
        super().__init__()
        modules: list[nn.Module] = []
        channels = 3
        for layer in layers:
            if isinstance(layer, str):
                modules.append(nn.MaxPool2d(2))
            else:
                modules += [nn.Conv2d(channels, layer, 3, padding=1, bias=False), norm_layer(norm, layer), nn.ReLU()]
                channels = layer
        self.features = nn.Sequential(*modules)  # (N, 3, 32, 32) -> (N, 512, 1, 1)
        self.head = nn.Linear(channels, num_classes)

    def forward(self, images: Tensor) -> Tensor:
        """Classify (N, 3, 32, 32) normalised images: (N, K) logits."""
        return self.head(self.features(images).flatten(1))
