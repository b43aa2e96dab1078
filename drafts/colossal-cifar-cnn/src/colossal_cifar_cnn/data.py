"""From CIFAR-10's arrays to augmented batches. The same images, in the same order, for any number of processes."""

import os
from collections.abc import Iterator
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor
from trainyard_shared.datasets.cifar import ImageDataset, load_cifar, load_sample
from trainyard_shared.errors import UsageError
from trainyard_shared.tensors.images import CIFAR10, Augmentation, Batch, BatchOrder, ImageBatches

from colossal_cifar_cnn.config import TrainConfig


def load(config: TrainConfig) -> ImageDataset:
    """Return the generated sample or the real CIFAR-10, as NumPy arrays; raises DataError if it cannot be had."""
    if config.data == "sample":
        return load_sample(
            "cifar10", seed=0, num_train=config.num_sample_images, num_test=config.num_sample_images // 5
        )
    folder = config.data_dir or os.environ.get("TRAINYARD_DATA_DIR")
    return load_cifar("cifar10", Path(folder) if folder else None)


def micro_batch_size(config: TrainConfig, world_size: int) -> int:
    """Return the images per process and forward pass.

    Raises:
        UsageError: the global batch cannot be shared out evenly.
    """
    if config.global_batch_size is None:
        return config.micro_batch_size
    shares = world_size * config.gradient_accumulation_steps
    size, rest = divmod(config.global_batch_size, shares)
    if rest:
        raise UsageError(
            f"error: global_batch_size: {config.global_batch_size} images do not divide by {world_size} processes x "
            f"{config.gradient_accumulation_steps} accumulation steps = {shares}"
        )
    return size


class TrainBatches:
    """Micro-batches of one process: cropped, mirrored and cut by `ImageBatches`, then turned.

    Args:
        images: (N, 3, 32, 32) uint8 training images.
        labels: (N,) int64.
        config: batch sizes, augmentation, seed.
        rank: this process.
        world_size: all processes.
        device: where batches are wanted.
    """

    def __init__(
        self, images: Tensor, labels: Tensor, config: TrainConfig, rank: int, world_size: int, device: torch.device
    ) -> None:
        self.order = BatchOrder(
            len(images),
            micro_batch_size(config, world_size),
            config.gradient_accumulation_steps,
            rank,
            world_size,
            config.seed,
        )
        augmentation = Augmentation(config.crop_padding, config.flip, config.cutout)
        # channels_last is what convolutions are fastest on. Not under Gemini: its gradient hook hands on an emptied
        # tensor in the layout of the gradient, and where that is not the layout of the weight, autograd copies it.
        self.layout = torch.contiguous_format if config.plugin == "gemini" else torch.channels_last
        channels_last = self.layout is torch.channels_last
        self.in_memory = ImageBatches(
            images, labels, self.order, CIFAR10, augmentation, device, channels_last=channels_last
        )
        self.rotation, self.seed, self.device = config.rotation, config.seed, device

    def epoch(self, epoch: int, used: int = 0) -> Iterator[Batch]:
        """Yield this process's micro-batches (images (B, 3, 32, 32), labels (B,)) of what is left of an epoch."""
        batches = self.in_memory.epoch(epoch, used)
        if not self.rotation:
            yield from batches
            return
        # One angle for each image of the set, as the shifts and mirrors have, so that no process needs to know
        # what the others draw, nor a continued run what was drawn before.
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + epoch + 250_007)
        angles = torch.empty(self.order.num_images).uniform_(-self.rotation, self.rotation, generator=generator)
        micro_batches, _ = self.order.epoch(epoch, used)
        for index, (images, labels) in zip(micro_batches, batches, strict=True):
            turned = rotated(images, angles[index].to(self.device))
            yield turned.contiguous(memory_format=self.layout), labels


def rotated(images: Tensor, degrees: Tensor) -> Tensor:
    """Turn each image around its centre, counter-clockwise, all at once; corners show the nearest border pixel.

    Args:
        images: (B, C, H, W), H = W.
        degrees: (B,).
    """
    radians = torch.deg2rad(degrees)
    cos, sin, zero = radians.cos(), radians.sin(), torch.zeros_like(radians)
    # affine_grid says for each place of the result where in the image to look, with y pointing down.
    matrices = torch.stack([cos, -sin, zero, sin, cos, zero], dim=1).view(-1, 2, 3)
    grid = F.affine_grid(matrices, list(images.shape), align_corners=False)
    return F.grid_sample(images, grid, mode="bilinear", padding_mode="border", align_corners=False)
