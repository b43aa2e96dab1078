"""From CIFAR-10's arrays to augmented, enlarged batches: the same images in the same order for any number of processes.

Shapes: B images of a micro-batch, S pixels a side of what the network sees, K classes.
"""

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from trainyard_shared.datasets.cifar import ImageDataset, load_cifar, load_sample
from trainyard_shared.tensors.images import Augmentation, BatchOrder, ImageBatches, Normalization

from deepspeed_efficientnet_cifar.config import TrainConfig

# What ImageBatches is to leave as it is: images are resized, changed and mixed before they are normalised.
AS_THEY_ARE = Normalization((0.0, 0.0, 0.0), (1.0, 1.0, 1.0))


@dataclass(frozen=True)
class Preparation:
    """What a network wants done to its images.

    Attributes:
        image_size: S.
        mean: of each channel, in units of 0..1.
        std: of each channel, in units of 0..1.
    """

    image_size: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]

    def __call__(self, images: Tensor) -> Tensor:
        """Turn images (B, 3, H, W) of 0 to 255 into normalised floats (B, 3, S, S), channels_last in memory."""
        images = images.float()
        if images.shape[-1] != self.image_size:
            size = (self.image_size, self.image_size)
            images = F.interpolate(images, size, mode="bicubic", align_corners=False).clamp(0, 255)
        mean, std = images.new_tensor(self.mean)[:, None, None], images.new_tensor(self.std)[:, None, None]
        return ((images / 255 - mean) / std).contiguous(memory_format=torch.channels_last)


def load(config: TrainConfig) -> ImageDataset:
    """Return the generated sample or the real CIFAR-10, as NumPy arrays; raises DataError if it cannot be had."""
    if config.data == "sample":
        return load_sample(
            "cifar10", seed=0, num_train=config.num_sample_images, num_test=config.num_sample_images // 5
        )
    folder = config.data_dir or os.environ.get("TRAINYARD_DATA_DIR")
    return load_cifar("cifar10", Path(folder) if folder else None)


class TrainBatches:
    """Micro-batches of one process, augmented on the device, where the whole set lies.

    Args:
        images: (N, 3, 32, 32) uint8 training images.
        labels: (N,) int64.
        num_classes: K.
        config: batch sizes, augmentation, seed.
        preparation: what the network wants done to its images.
        rank: this process.
        world_size: all processes.
        device: where batches are wanted.
    """

    def __init__(
        self,
        images: Tensor,
        labels: Tensor,
        num_classes: int,
        config: TrainConfig,
        preparation: Preparation,
        rank: int,
        world_size: int,
        device: torch.device,
    ) -> None:
        self.config, self.preparation, self.num_classes = config, preparation, num_classes
        self.order = BatchOrder(
            len(images), config.micro_batch_size, config.gradient_accumulation_steps, rank, world_size, config.seed
        )
        augmentation = Augmentation(config.crop_padding, config.flip, config.cutout)
        self.batches = ImageBatches(images, labels, self.order, AS_THEY_ARE, augmentation, device, channels_last=True)

    def epoch(self, epoch: int, used: int = 0) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield this process's micro-batches of what is left of an epoch.

        Each is (B, 3, S, S) images and their labels (B,) or, where images are mixed, probabilities (B, K).
        """
        config = self.config
        indices, _ = self.order.epoch(epoch, used)
        for index, (images, labels) in zip(indices, self.batches.epoch(epoch, used), strict=True):
            if config.randaugment_ops:
                images = self._randaugmented(images, index, epoch)
            if config.mixup_alpha or config.cutmix_alpha:
                # Drawn from what is in the micro-batch, so that a run that resumes here mixes the same.
                rng = np.random.default_rng((config.seed, epoch, int(index[0])))
                images, labels = mixed(images, F.one_hot(labels, self.num_classes).float(), config, rng)
            yield self.preparation(images), labels

    def _randaugmented(self, images: Tensor, index: Tensor, epoch: int) -> Tensor:
        """Apply RandAugment (Cubuk et al. 2020, arXiv 1909.13719) to each image, with draws that belong to it alone."""
        from torchvision.transforms import v2

        change = v2.RandAugment(self.config.randaugment_ops, self.config.randaugment_magnitude)
        changed = []
        # torchvision draws from torch's global generator only: lend it one seeded for this image in this epoch.
        with torch.random.fork_rng(devices=[]):
            for image, place in zip(images.byte(), index.tolist(), strict=True):
                torch.default_generator.manual_seed((self.config.seed * 1_000_003 + epoch) * 100_003 + place)
                changed.append(change(image))
        return torch.stack(changed).float()


def mixed(images: Tensor, labels: Tensor, config: TrainConfig, rng: np.random.Generator) -> tuple[Tensor, Tensor]:
    """Mix each image with its neighbour in the micro-batch: mixup (arXiv 1710.09412) or CutMix (arXiv 1905.04899).

    Args:
        images: (B, 3, H, W).
        labels: (B, K) probabilities.
        config: parameters of the Beta distributions; if neither is 0, a coin decides.
        rng: draws one share for the micro-batch.

    Returns:
        Images and labels of the same shapes.
    """
    cut = bool(config.cutmix_alpha) and (not config.mixup_alpha or rng.random() < 0.5)
    alpha = config.cutmix_alpha if cut else config.mixup_alpha
    share = float(rng.beta(alpha, alpha))
    others = images.roll(1, dims=0)
    if cut:
        side = images.shape[-1]
        half = round(side * (1 - share) ** 0.5 / 2)
        row, column = rng.integers(0, side, 2)
        rows = slice(max(row - half, 0), row + half)
        columns = slice(max(column - half, 0), column + half)
        images = images.clone()
        images[:, :, rows, columns] = others[:, :, rows, columns]
        share = 1 - images[0, 0, rows, columns].numel() / side**2  # the square may be cut off at the border
    else:
        images = share * images + (1 - share) * others
    return images, share * labels + (1 - share) * labels.roll(1, dims=0)
