"""From CIFAR-10's arrays to augmented batches. The same images, in the same order, for any number of processes.

Order and augmentation of an epoch are drawn for the whole training set from a generator seeded by (seed, epoch); each
process then takes its slice of every global batch. So neither depends on how many processes there are, nor on where
a killed run was started again.
"""

import os
from collections.abc import Iterator
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from trainyard_shared.datasets.cifar import ImageDataset, load_cifar, load_sample

from torchdist_cifar.config import TrainConfig

# Mean and standard deviation of each channel over CIFAR-10's training images, in units of 0..255.
MEAN = torch.tensor([125.3, 123.0, 113.9])
STD = torch.tensor([63.0, 62.1, 66.7])

Batch = tuple[Tensor, Tensor]


def load(config: TrainConfig) -> ImageDataset:
    """Return the generated sample or the real CIFAR-10, as NumPy arrays; raises DataError if it cannot be had."""
    if config.data == "sample":
        return load_sample(
            "cifar10", seed=0, num_train=config.num_sample_images, num_test=config.num_sample_images // 5
        )
    folder = config.data_dir or os.environ.get("TRAINYARD_DATA_DIR")
    return load_cifar("cifar10", Path(folder) if folder else None)


def split(num_images: int, num_val: int) -> tuple[Tensor, Tensor]:
    """Return the indices of the training and validation images: the same split for every seed and every run."""
    order = torch.randperm(num_images, generator=torch.Generator().manual_seed(0))
    return order[num_val:], order[:num_val]


def normalize(images: Tensor, *, channels_last: bool) -> Tensor:
    """Turn uint8 images (B, H, W, 3) into normalised floats (B, 3, H, W), channels_last in memory or not."""
    mean, std = MEAN.to(images.device), STD.to(images.device)
    # Permuting the axes of (B, H, W, C) memory is what torch calls channels_last: it costs nothing.
    floats = ((images.float() - mean) / std).permute(0, 3, 1, 2)
    return floats if channels_last else floats.contiguous()


class TrainBatches:
    """Micro-batches of one process.

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
        self.config, self.rank, self.device = config, rank, device
        self.num_images = len(images)
        self.micro, self.steps = config.micro_batch_size, config.gradient_accumulation_steps
        self.global_batch_size = self.micro * self.steps * world_size
        self.labels = labels.to(device)
        pixels = images.permute(0, 2, 3, 1).contiguous()
        if config.loader == "memory":
            # Padding once, as uint8 and on the device, leaves one gather for each batch: nothing a GPU could wait for.
            pad = config.crop_padding
            padded = F.pad(pixels.permute(0, 3, 1, 2).float(), (pad,) * 4, mode="reflect") if pad else None
            self.pixels = (pixels if padded is None else padded.permute(0, 2, 3, 1).byte().contiguous()).to(device)
        else:
            self.dataset = _Augmented(images, config)

    def num_global_batches(self, used: int = 0) -> int:
        """Whole global batches left in an epoch of which `used` images are used; the rest is left out."""
        return (self.num_images - used) // self.global_batch_size

    def epoch(self, epoch: int, used: int = 0) -> Iterator[Batch]:
        """Yield this process's micro-batches (images (B, 3, 32, 32), labels (B,)) of what is left of an epoch."""
        generator = torch.Generator().manual_seed(self.config.seed * 1_000_003 + epoch)
        order = torch.randperm(self.num_images, generator=generator)[used:]
        count = self.num_global_batches(used)
        mine = order[: count * self.global_batch_size].view(count, -1, self.steps, self.micro)[:, self.rank]
        micro_batches = mine.reshape(-1, self.micro)
        if self.config.loader == "dataloader":
            yield from self._from_loader(micro_batches, epoch)
        else:
            yield from self._from_memory(micro_batches, epoch, generator)

    def _from_memory(self, micro_batches: Tensor, epoch: int, generator: torch.Generator) -> Iterator[Batch]:
        config, device, n = self.config, self.device, self.num_images
        shifts = torch.randint(0, 2 * config.crop_padding + 1, (n, 2), generator=generator)
        flips = flipped(n, epoch, config.flip, config.seed)
        holes = torch.randint(0, 32, (n, 2), generator=generator)
        shifts, flips, holes = shifts.to(device), flips.to(device), holes.to(device)
        pixel = torch.arange(32, device=device)
        for index in micro_batches.to(device):
            rows = shifts[index, 0, None] + pixel  # (B, 32)
            columns = shifts[index, 1, None] + torch.where(flips[index, None], 31 - pixel, pixel)
            images = self.pixels[index[:, None, None], rows[:, :, None], columns[:, None, :]]  # (B, 32, 32, 3)
            images = normalize(images, channels_last=config.channels_last)
            if config.cutout:
                images = images.masked_fill(_hole(holes[index], config.cutout, pixel), 0.0)
            yield images, self.labels[index]

    def _from_loader(self, micro_batches: Tensor, epoch: int) -> Iterator[Batch]:
        self.dataset.start_epoch(epoch)
        loader = DataLoader(
            self.dataset,
            batch_sampler=micro_batches.tolist(),
            num_workers=self.config.num_workers,
            pin_memory=self.device.type == "cuda",
        )
        layout = torch.channels_last if self.config.channels_last else torch.contiguous_format
        for images, index in loader:
            yield images.to(self.device, memory_format=layout, non_blocking=True), self.labels[index]


def flipped(num_images: int, epoch: int, mode: str, seed: int) -> Tensor:
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
    """Return the mask (B, 1, 32, 32) of squares around `centres` (B, 2), cut off at the border."""
    low = centres - side // 2
    rows = (pixel >= low[:, 0, None]) & (pixel < low[:, 0, None] + side)
    columns = (pixel >= low[:, 1, None]) & (pixel < low[:, 1, None] + side)
    return (rows[:, None, :, None]) & (columns[:, None, None, :])


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
        transforms.append(v2.Normalize(MEAN.tolist(), STD.tolist()))
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
