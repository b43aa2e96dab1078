"""Batches of small pictures, augmented as whole tensors on the device: the same for any number of processes.

Order and augmentation of an epoch are drawn for the whole training set from a generator seeded by (seed, epoch); each
process then takes its slice of every global batch. So neither depends on how many processes there are, nor on where
a killed run was started again.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

Batch = tuple[Tensor, Tensor]
Flip = Literal["none", "random", "alternating"]


@dataclass(frozen=True)
class Normalization:
    """Mean and standard deviation of each channel over a training set, in units of 0..255."""

    mean: tuple[float, float, float]
    std: tuple[float, float, float]

    def __call__(self, images: Tensor, *, channels_last: bool) -> Tensor:
        """Turn uint8 images (B, H, W, 3) into normalised floats (B, 3, H, W), channels_last in memory or not."""
        mean, std = images.new_tensor(self.mean, dtype=torch.float), images.new_tensor(self.std, dtype=torch.float)
        # Permuting the axes of (B, H, W, C) memory is what torch calls channels_last: it costs nothing.
        floats = ((images.float() - mean) / std).permute(0, 3, 1, 2)
        return floats if channels_last else floats.contiguous()


CIFAR10 = Normalization((125.3, 123.0, 113.9), (63.0, 62.1, 66.7))


@dataclass(frozen=True)
class Augmentation:
    """Random changes of training pictures.

    Attributes:
        crop_padding: pixels by which a random crop may shift an image.
        flip: mirror left-right at random, or each image in every other epoch.
        cutout: side in pixels of a square erased at a random place; 0 for none.
    """

    crop_padding: int = 0
    flip: Flip = "none"
    cutout: int = 0


class BatchOrder:
    """Which images each process takes for each micro-batch.

    Args:
        num_images: size of the training set.
        micro_batch_size: images per process and forward pass.
        gradient_accumulation_steps: micro-batches in a step.
        rank: this process.
        world_size: all processes.
        seed: of the order.
    """

    def __init__(
        self,
        num_images: int,
        micro_batch_size: int,
        gradient_accumulation_steps: int,
        rank: int,
        world_size: int,
        seed: int,
    ) -> None:
        self.num_images, self.micro, self.steps = num_images, micro_batch_size, gradient_accumulation_steps
        self.rank, self.seed = rank, seed
        self.global_batch_size = micro_batch_size * gradient_accumulation_steps * world_size

    def num_global_batches(self, used: int = 0) -> int:
        """Whole global batches left in an epoch of which `used` images are used; the rest is left out."""
        return (self.num_images - used) // self.global_batch_size

    def epoch(self, epoch: int, used: int = 0) -> tuple[Tensor, torch.Generator]:
        """Return this process's micro-batches (M, B) of what is left of an epoch, as indices, and the generator."""
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + epoch)
        order = torch.randperm(self.num_images, generator=generator)[used:]
        count = self.num_global_batches(used)
        mine = order[: count * self.global_batch_size].view(count, -1, self.steps, self.micro)[:, self.rank]
        return mine.reshape(-1, self.micro), generator


class ImageBatches:
    """Micro-batches of one process; the whole set lies on the device.

    Args:
        images: (N, 3, H, W) uint8 training images, H = W.
        labels: (N,) int64.
        order: who takes which images.
        normalization: of the channels.
        augmentation: random changes.
        device: where batches are wanted.
        channels_last: memory layout of the batches.
    """

    def __init__(
        self,
        images: Tensor,
        labels: Tensor,
        order: BatchOrder,
        normalization: Normalization,
        augmentation: Augmentation,
        device: torch.device,
        *,
        channels_last: bool,
    ) -> None:
        self.order, self.normalization, self.augmentation = order, normalization, augmentation
        self.device, self.channels_last = device, channels_last
        self.side = images.shape[-1]
        self.labels = labels.to(device)
        # Padding once, as uint8 and on the device, leaves one gather for each batch: nothing a GPU could wait for.
        pad = augmentation.crop_padding
        padded = F.pad(images.float(), (pad,) * 4, mode="reflect").byte() if pad else images
        self.pixels = padded.permute(0, 2, 3, 1).contiguous().to(device)

    def epoch(self, epoch: int, used: int = 0) -> Iterator[Batch]:
        """Yield this process's micro-batches (images (B, 3, H, W), labels (B,)) of what is left of an epoch."""
        augmentation, device, side = self.augmentation, self.device, self.side
        micro_batches, generator = self.order.epoch(epoch, used)
        n = self.order.num_images
        shifts = torch.randint(0, 2 * augmentation.crop_padding + 1, (n, 2), generator=generator).to(device)
        flips = flipped(n, epoch, augmentation.flip, self.order.seed).to(device)
        holes = torch.randint(0, side, (n, 2), generator=generator).to(device)
        pixel = torch.arange(side, device=device)
        for index in micro_batches.to(device):
            rows = shifts[index, 0, None] + pixel  # (B, H)
            columns = shifts[index, 1, None] + torch.where(flips[index, None], side - 1 - pixel, pixel)
            pixels = self.pixels[index[:, None, None], rows[:, :, None], columns[:, None, :]]  # (B, H, W, 3)
            images = self.normalization(pixels, channels_last=self.channels_last)
            if augmentation.cutout:
                images = images.masked_fill(_hole(holes[index], augmentation.cutout, pixel), 0.0)
            yield images, self.labels[index]


def split(num_samples: int, num_val: int) -> tuple[Tensor, Tensor]:
    """Return the indices of the training and validation samples: the same split for every seed and every run."""
    order = torch.randperm(num_samples, generator=torch.Generator().manual_seed(0))
    return order[num_val:], order[:num_val]


def flipped(num_images: int, epoch: int, mode: Flip, seed: int) -> Tensor:
    """Return for each image whether it is mirrored in `epoch`.

    `alternating` (arXiv 2404.00498) shows every image unmirrored and mirrored in turn, where independent draws would
    show many images the same way in consecutive epochs.
    """
    if mode == "none":
        return torch.zeros(num_images, dtype=torch.bool)
    draw_seed = seed * 1_000_003 + (epoch if mode == "random" else 0)
    first = torch.rand(num_images, generator=torch.Generator().manual_seed(draw_seed + 500_009)) < 0.5
    return first ^ bool(epoch % 2) if mode == "alternating" else first


def _hole(centres: Tensor, side: int, pixel: Tensor) -> Tensor:
    """Return the mask (B, 1, H, W) of squares around `centres` (B, 2), cut off at the border."""
    low = centres - side // 2
    rows = (pixel >= low[:, 0, None]) & (pixel < low[:, 0, None] + side)
    columns = (pixel >= low[:, 1, None]) & (pixel < low[:, 1, None] + side)
    return (rows[:, None, :, None]) & (columns[:, None, None, :])
