"""From CIFAR-10's arrays to augmented batches. The same images, in the same order, for any number of processes."""

import os
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from trainyard_shared.datasets.cifar import ImageDataset, load_cifar, load_sample
from trainyard_shared.tensors.images import CIFAR10, Augmentation, Batch, BatchOrder, ImageBatches, flipped

from torchdist_cifar.config import TrainConfig


def load(config: TrainConfig) -> ImageDataset:
    """Return the generated sample or the real CIFAR-10, as NumPy arrays; raises DataError if it cannot be had."""
    if config.data == "sample":
        return load_sample(
            "cifar10", seed=0, num_train=config.num_sample_images, num_test=config.num_sample_images // 5
        )
    folder = config.data_dir or os.environ.get("TRAINYARD_DATA_DIR")
    return load_cifar("cifar10", Path(folder) if folder else None)


class TrainBatches:
    """Micro-batches of one process, from the device's memory or from torch's DataLoader.

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
        self.config, self.device = config, device
        self.num_images = len(images)
        self.labels = labels.to(device)
        self.order = BatchOrder(
            len(images), config.micro_batch_size, config.gradient_accumulation_steps, rank, world_size, config.seed
        )
        self.global_batch_size = self.order.global_batch_size
        self.num_global_batches = self.order.num_global_batches
        if config.loader == "memory":
            augmentation = Augmentation(config.crop_padding, config.flip, config.cutout)
            self.in_memory = ImageBatches(
                images, labels, self.order, CIFAR10, augmentation, device, channels_last=config.channels_last
            )
        else:
            self.dataset = _Augmented(images, config)

    def epoch(self, epoch: int, used: int = 0) -> Iterator[Batch]:
        """Yield this process's micro-batches (images (B, 3, 32, 32), labels (B,)) of what is left of an epoch."""
        if self.config.loader == "memory":
            yield from self.in_memory.epoch(epoch, used)
        else:
            yield from self._from_loader(epoch, used)

    def _from_loader(self, epoch: int, used: int) -> Iterator[Batch]:
        self.dataset.start_epoch(epoch)
        micro_batches, _ = self.order.epoch(epoch, used)
        loader = DataLoader(
            self.dataset,
            batch_sampler=micro_batches.tolist(),
            num_workers=self.config.num_workers,
            pin_memory=self.device.type == "cuda",
        )
        layout = torch.channels_last if self.config.channels_last else torch.contiguous_format
        for images, index in loader:
            yield images.to(self.device, memory_format=layout, non_blocking=True), self.labels[index]


class _Augmented(Dataset):
    """Single images for a DataLoader, augmented by torchvision: what most training scripts do."""

    def __init__(self, images: Tensor, config: TrainConfig) -> None:
        # Imported here: torchvision takes as long to import as torch itself, and the fast path does without.
        from torchvision.transforms import v2

        self.images, self.seed, self.mode = images, config.seed, config.flip
        self.start_epoch(0)
        transforms: list = []
        if config.crop_padding:
            transforms.append(v2.RandomCrop(32, config.crop_padding, padding_mode="reflect"))
        if config.flip == "random":
            transforms.append(v2.RandomHorizontalFlip())
        transforms.append(v2.ToDtype(torch.float32))
        transforms.append(v2.Normalize(CIFAR10.mean, CIFAR10.std))
        if config.cutout:
            area = (config.cutout / 32) ** 2
            transforms.append(v2.RandomErasing(p=1.0, scale=(area, area), ratio=(1.0, 1.0)))
        self.transform = v2.Compose(transforms)

    def start_epoch(self, epoch: int) -> None:
        self.epoch = epoch
        self.flips = flipped(len(self), epoch, "alternating", self.seed)

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        # torchvision draws from the global generator. Seeding it for each image makes the draw a function of seed,
        # epoch and image, so that it does not matter which worker, or which process, loads the image.
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed((self.seed * 1_000_003 + self.epoch) * 1_000_003 + index)
            image = self.transform(self.images[index])
        if self.mode == "alternating" and self.flips[index]:
            image = image.flip(2)
        return image, index
