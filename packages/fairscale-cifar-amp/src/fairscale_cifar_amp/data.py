"""From CIFAR-10's arrays to augmented batches. The same images, in the same order, for any number of processes."""

import os
from pathlib import Path

import torch
from torch import Tensor
from trainyard_shared.datasets.cifar import ImageDataset, load_cifar, load_sample
from trainyard_shared.tensors.images import CIFAR10, Augmentation, BatchOrder, ImageBatches

from fairscale_cifar_amp.config import TrainConfig


def load(config: TrainConfig) -> ImageDataset:
    """Return the generated sample or the real CIFAR-10, as NumPy arrays; raises DataError if it cannot be had."""
    if config.data == "sample":
        return load_sample(
            "cifar10", seed=0, num_train=config.num_sample_images, num_test=config.num_sample_images // 5
        )
    folder = config.data_dir or os.environ.get("TRAINYARD_DATA_DIR")
    return load_cifar("cifar10", Path(folder) if folder else None)


def train_batches(
    images: Tensor, labels: Tensor, config: TrainConfig, rank: int, world_size: int, device: torch.device
) -> ImageBatches:
    """Return the micro-batches of one process.

    Args:
        images: (N, 3, 32, 32) uint8 training images.
        labels: (N,) int64.
        config: batch sizes, augmentation, seed.
        rank: this process.
        world_size: all processes.
        device: where batches are wanted.
    """
    order = BatchOrder(
        len(images), config.micro_batch_size, config.gradient_accumulation_steps, rank, world_size, config.seed
    )
    augmentation = Augmentation(config.crop_padding, config.flip, config.cutout)
    return ImageBatches(images, labels, order, CIFAR10, augmentation, device, channels_last=True)
