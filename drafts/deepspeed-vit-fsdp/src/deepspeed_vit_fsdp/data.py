"""From images on the disk to batches on the device: the same for any number of processes.

Whatever is random of an epoch (order, crops, partners to mix with) is drawn for the whole training set from (seed,
epoch) alone; each process takes its slice of every global batch. B images of S pixels a side, K classes.
"""

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from trainyard_shared.datasets.cifar import ImageDataset, load_cifar, load_sample
from trainyard_shared.datasets.image_folder import load_image_folder
from trainyard_shared.errors import UsageError
from trainyard_shared.tensors.images import BatchOrder, flipped

from deepspeed_vit_fsdp.config import TrainConfig

# Of the training set of CIFAR-100, as published.
CIFAR100_MEAN, CIFAR100_STD = (0.5071, 0.4865, 0.4409), (0.2673, 0.2564, 0.2762)
INTERPOLATIONS = {2: "bilinear", 3: "bicubic"}  # PIL's numbers, which image processors use


def load(config: TrainConfig) -> ImageDataset:
    """Return the images and labels as NumPy arrays; raises DataError if they cannot be had."""
    if config.data == "sample":
        return load_sample(
            "cifar100", seed=0, num_train=config.num_sample_images, num_test=config.num_sample_images // 5
        )
    folder = config.data_dir or os.environ.get("TRAINYARD_DATA_DIR")
    if config.data == "folder":
        if not folder:
            raise UsageError("error: --data folder needs --data-dir: a folder with one subfolder of images a class")
        return load_image_folder(Path(folder), config.folder_image_size)
    return load_cifar("cifar100", Path(folder) if folder else None)


@dataclass(frozen=True)
class Preparation:
    """What a model wants done to its images: scaled to a size, channels normalised. Whole batches, on their device.

    Attributes:
        image_size: pixels a side that the model takes.
        mean: of each channel, of pixels from 0 to 1.
        std: likewise.
        interpolation: how images of another size are scaled.
    """

    image_size: int
    mean: tuple[float, ...] = CIFAR100_MEAN
    std: tuple[float, ...] = CIFAR100_STD
    interpolation: str = "bilinear"

    @classmethod
    def of_processor(cls, processor: dict[str, Any], image_size: int) -> "Preparation":
        """Return what the image processor of a pretrained model does, at the image size of the model."""
        mean, std = processor.get("image_mean", (0.5,) * 3), processor.get("image_std", (0.5,) * 3)
        return cls(image_size, tuple(mean), tuple(std), INTERPOLATIONS.get(processor.get("resample", 2), "bilinear"))

    def processor(self) -> dict[str, Any]:
        """Return the settings of an image processor that does the same: preprocessor_config.json."""
        return {
            "image_processor_type": "ViTImageProcessor",
            "do_rescale": True,
            "rescale_factor": 1 / 255,
            "do_resize": True,
            "size": {"height": self.image_size, "width": self.image_size},
            "resample": {name: number for number, name in INTERPOLATIONS.items()}[self.interpolation],
            "do_normalize": True,
            "image_mean": list(self.mean),
            "image_std": list(self.std),
        }

    def __call__(self, images: Tensor) -> Tensor:
        """Turn images (B, 3, H, W) of 0 to 255 into normalised floats (B, 3, S, S)."""
        floats = images.float()
        if images.shape[-1] != self.image_size:
            size = (self.image_size, self.image_size)
            floats = F.interpolate(floats, size, mode=self.interpolation, antialias=True).clamp(0, 255)
        mean, std = floats.new_tensor(self.mean)[:, None, None], floats.new_tensor(self.std)[:, None, None]
        return (floats / 255 - mean) / std


class TrainBatches:
    """Micro-batches of one process, augmented on the device, where the whole set lies.

    Args:
        images: (N, 3, H, W) uint8 training images, H = W.
        labels: (N,) int64.
        num_classes: K.
        config: batch sizes, augmentation, seed.
        preparation: what the model wants done to its images.
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
        self.config, self.preparation, self.num_classes, self.device = config, preparation, num_classes, device
        self.order = BatchOrder(
            len(images), config.micro_batch_size, config.gradient_accumulation_steps, rank, world_size, config.seed
        )
        self.side = images.shape[-1]
        self.labels = labels.to(device)
        pad = config.crop_padding
        padded = F.pad(images.float(), (pad,) * 4, mode="reflect").byte() if pad else images
        self.pixels = padded.permute(0, 2, 3, 1).contiguous().to(device)

    def epoch(self, epoch: int, used: int = 0) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield this process's micro-batches of what is left of an epoch.

        Each is (B, 3, S, S) images and their labels (B,) or, where images are mixed, probabilities (B, K).
        """
        config, n = self.config, self.order.num_images
        micro_batches, _ = self.order.epoch(epoch, used)
        rng = np.random.default_rng((config.seed, epoch))
        self.shifts = torch.from_numpy(rng.integers(0, 2 * config.crop_padding + 1, (n, 2))).to(self.device)
        self.flips = flipped(n, epoch, config.flip, config.seed).to(self.device)
        self.draws = rng.integers(0, 2**31, n)
        mixes = _Mixes(rng, n, self.side, config) if config.mixup_alpha or config.cutmix_alpha else None
        partners = self._partners(epoch, used) if mixes else None
        for index in micro_batches:
            images, labels = self.augmented(index), self.labels[index]
            if mixes is None or partners is None:
                yield self.preparation(images), labels
                continue
            other = partners[index]
            keep = mixes.kept(index).to(self.device)  # (B, 1, H, W): of each pixel, the share of the first image
            mixed = keep * images + (1 - keep) * self.augmented(other)
            share = keep.mean(dim=(1, 2, 3))[:, None]
            first, second = (F.one_hot(label, self.num_classes) for label in (labels, self.labels[other]))
            yield self.preparation(mixed), share * first + (1 - share) * second

    def augmented(self, index: Tensor) -> Tensor:
        """Return the images (B, 3, H, W) of 0 to 255 that `index` names: cropped, flipped, changed by RandAugment."""
        on_device = index.to(self.device)
        pixel = torch.arange(self.side, device=self.device)
        rows = self.shifts[on_device, 0, None] + pixel  # (B, H)
        mirrored = torch.where(self.flips[on_device, None], self.side - 1 - pixel, pixel)
        columns = self.shifts[on_device, 1, None] + mirrored  # (B, W)
        images = self.pixels[on_device[:, None, None], rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)
        return self._randaugmented(images, index) if self.config.randaugment_ops else images

    def _randaugmented(self, images: Tensor, index: Tensor) -> Tensor:
        """Apply RandAugment (Cubuk et al. 2020, arXiv 1909.13719) to each image, with draws that belong to it alone."""
        from torchvision.transforms import v2

        change = v2.RandAugment(self.config.randaugment_ops, self.config.randaugment_magnitude)
        changed = []
        # torchvision draws from torch's global generator only: lend it one seeded for this image in this epoch.
        with torch.random.fork_rng(devices=[]):
            for image, place in zip(images, index.tolist(), strict=True):
                torch.default_generator.manual_seed(int(self.draws[place]))
                changed.append(change(image))
        return torch.stack(changed)

    def _partners(self, epoch: int, used: int) -> Tensor:
        """Return for each image the one it is mixed with (N,): the next one in its global batch, whoever has that."""
        size = self.order.global_batch_size
        generator = torch.Generator().manual_seed(self.config.seed * 1_000_003 + epoch)
        order = torch.randperm(self.order.num_images, generator=generator)[used:]
        batches = order[: len(order) // size * size].view(-1, size)
        partners = torch.arange(self.order.num_images)
        partners[batches] = batches.roll(-1, dims=1)
        return partners


class _Mixes:
    """How each image of an epoch is mixed with its partner: mixup (arXiv 1710.09412), CutMix (arXiv 1905.04899)."""

    def __init__(self, rng: np.random.Generator, num_images: int, side: int, config: TrainConfig) -> None:
        self.side = side
        both = bool(config.mixup_alpha and config.cutmix_alpha)
        self.cuts = rng.random(num_images) < 0.5 if both else np.full(num_images, config.cutmix_alpha > 0)
        mixup, cutmix = (rng.beta(a or 1, a or 1, num_images) for a in (config.mixup_alpha, config.cutmix_alpha))
        self.shares = np.where(self.cuts, cutmix, mixup)
        self.centres = rng.integers(0, side, (num_images, 2))

    def kept(self, index: Tensor) -> Tensor:
        """Return the share of the first image in each pixel, (B, 1, H, W)."""
        places = index.numpy()
        share = torch.from_numpy(self.shares[places]).float()  # (B,)
        half = (self.side * (1 - share).sqrt() / 2).round()[:, None]
        centre = torch.from_numpy(self.centres[places])
        pixel = torch.arange(self.side)
        row, column = ((pixel >= c[:, None] - half) & (pixel < c[:, None] + half) for c in centre.T)  # (B, H), (B, W)
        box = row[:, None, :, None] & column[:, None, None, :]
        cut = torch.from_numpy(self.cuts[places])[:, None, None, None]
        return torch.where(cut, (~box).float(), share[:, None, None, None].expand_as(box))
