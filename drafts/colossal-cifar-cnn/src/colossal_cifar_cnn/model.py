"""Networks for 32x32 images. Plain modules: nothing here knows of Colossal-AI, or that training is distributed.

Shapes: N images, C channels, H height, W width, K classes. Every model maps (N, 3, 32, 32) to logits (N, K) and has its
last layer in `head`.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from trainyard_shared.errors import DataError

from colossal_cifar_cnn.config import TrainConfig


def build_model(config: TrainConfig, num_classes: int) -> nn.Module:
    """Return the untrained network that `config` names, its weights drawn from torch's global generator."""
    if config.model == "resnet18":
        return resnet18(num_classes, config.norm)
    return SmallCNN(config.widths, num_classes, config.norm)


def norm_layer(kind: str, channels: int) -> nn.Module:
    """Normalisation after a convolution."""
    return nn.GroupNorm(8, channels) if kind == "group" else BatchNorm2d(channels)


class BatchNorm2d(nn.BatchNorm2d):
    """BatchNorm2d whose statistics stay in fp32 when a plugin turns the whole network into 16 bits.

    A running mean in bf16 would stand still: a tenth of a small change is less than its 8 bits can tell.
    """

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "BatchNorm2d":
        statistics = {name: buffer for name, buffer in self._buffers.items() if buffer is not None}
        super()._apply(fn, recurse)
        for name, buffer in statistics.items():
            self._buffers[name] = buffer.to(self._buffers[name].device)
        return self

    def forward(self, x: Tensor) -> Tensor:
        """Normalise (N, C, H, W) of any float type; scale and shift are applied in fp32, too."""
        if self.training:
            self.num_batches_tracked.add_(1)
        assert self.momentum is not None
        return F.batch_norm(
            x,
            self.running_mean,
            self.running_var,
            self.weight.float(),
            self.bias.float(),
            self.training,
            self.momentum,
            self.eps,
        )


class SmallCNN(nn.Module):
    """Seven convolutions, few and wide, so that a step costs little.

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


class _ResNet18(nn.Module):
    """torchvision's ResNet-18 under the names of this project, its stem fitted to small images.

    As it is, it would shrink 32x32 images to 1x1 by a convolution of stride 2 and a pooling of stride 2 in its stem
    alone. Both are taken out, which changes no weight: what was learned on ImageNet fits. (He et al. 2015, arXiv
    1512.03385.)
    """

    def __init__(self, num_classes: int, norm: str) -> None:
        super().__init__()
        # Imported here: torchvision takes as long to import as torch itself, and the small network does without.
        from torchvision.models import resnet18 as of_torchvision

        self.net = of_torchvision(norm_layer=lambda channels: norm_layer(norm, channels))
        self.net.conv1.stride = (1, 1)
        self.net.maxpool = nn.Identity()
        self.net.fc = nn.Identity()
        self.head = nn.Linear(512, num_classes)

    def forward(self, images: Tensor) -> Tensor:
        """Classify (N, 3, 32, 32) normalised images: (N, K) logits."""
        return self.head(self.net(images))


def resnet18(num_classes: int, norm: str) -> nn.Module:
    """Return an untrained ResNet-18 of 11 million parameters."""
    return _ResNet18(num_classes, norm)


def load_pretrained(model: nn.Module, source: str) -> str:
    """Give ResNet-18 the weights of `source`, all but its last layer, and say where they are from.

    Args:
        model: of `resnet18`, with batch normalisation.
        source: a file, `torchvision`, or hub:OWNER/NAME.

    Raises:
        DataError: they cannot be had, or do not fit; nothing falls back to random weights.
    """
    if source == "torchvision":
        weights, origin = _of_torchvision()
    elif source.startswith("hub:"):
        weights, origin = _of_hub(source.removeprefix("hub:"))
    else:
        weights, origin = _read(Path(source)), source
    own = model.net.state_dict()
    weights = _translated(weights)
    # The last layer knows other classes; a file need not count the batches of its normalisation layers.
    wanted = {name for name in own if not name.endswith("num_batches_tracked")}
    if missing := sorted(wanted - weights.keys()):
        raise DataError(f"error: --pretrained {source}: no weights of ResNet-18: it has no {missing[0]}")
    for name in sorted(wanted):
        if weights[name].shape != own[name].shape:
            raise DataError(
                f"error: --pretrained {source}: {name} has the shape {tuple(weights[name].shape)}, "
                f"but that of ResNet-18 is {tuple(own[name].shape)}"
            )
    model.net.load_state_dict({name: weights[name] for name in wanted}, strict=False)
    return origin


def _read(path: Path) -> dict[str, Tensor]:
    """Read a file of weights as data: nothing in it is run."""
    if not path.is_file():
        raise DataError(f"error: --pretrained {path}: no such file")
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            return load_file(path)
        content: Any = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # whatever the two make of bytes that are no weights
        raise DataError(
            f"error: --pretrained {path}: cannot be read as weights: {str(error).splitlines()[0]}"
        ) from error
    content = content.get("state_dict", content) if isinstance(content, dict) else content
    if not isinstance(content, dict) or not all(torch.is_tensor(value) for value in content.values()):
        raise DataError(f"error: --pretrained {path}: holds no dictionary of tensors")
    return content


def _of_torchvision() -> tuple[dict[str, Tensor], str]:
    from torchvision.models import ResNet18_Weights

    weights = ResNet18_Weights.IMAGENET1K_V1
    try:
        return weights.get_state_dict(check_hash=True), f"torchvision {weights}"
    except OSError as error:
        raise DataError(
            f"error: --pretrained torchvision: {weights.url} cannot be had: {error}; download it elsewhere and give "
            "the file: --pretrained FILE"
        ) from error


def _of_hub(name: str) -> tuple[dict[str, Tensor], str]:
    from huggingface_hub import hf_hub_download

    failures = []
    for file in ("model.safetensors", "pytorch_model.bin"):
        try:
            return _read(Path(hf_hub_download(name, file))), f"Hugging Face Hub {name}, {file}"
        except DataError:
            raise
        except Exception as error:  # of the network, of the Hub, or a name that is none
            failures.append(f"{file}: {str(error).splitlines()[0]}")
    raise DataError(
        f"error: --pretrained hub:{name}: cannot be had: {'; '.join(failures)}; download the weights and give "
        "the file: --pretrained FILE"
    )


def _translated(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """Bring weights under torchvision's names: timm's are the same, a run of this project has `net.` before them."""
    weights = {name.removeprefix("net."): tensor for name, tensor in weights.items()}
    return {name: tensor for name, tensor in weights.items() if not name.startswith(("fc.", "head."))}
