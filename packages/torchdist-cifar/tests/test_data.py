"""Batches: the right images, each once, augmented as asked, for any number of processes."""

import dataclasses

import numpy as np
import pytest
import torch
from torchdist_cifar import data
from torchdist_cifar.config import TrainConfig
from trainyard_shared.tensors.images import CIFAR10, split

N = 103
MEAN, STD = torch.tensor(CIFAR10.mean), torch.tensor(CIFAR10.std)


def make_batches(world_size: int = 1, rank: int = 0, **fields: object) -> data.TrainBatches:
    config = dataclasses.replace(TrainConfig(), **{"micro_batch_size": 8, **fields})  # type: ignore[arg-type]
    # Every pixel of image i has the value i, and so has its label: an image can be recognised in a batch.
    images = torch.arange(N, dtype=torch.uint8)[:, None, None, None].expand(N, 3, 32, 32)
    return data.TrainBatches(images, torch.arange(N), config, rank, world_size, torch.device("cpu"))


def numbers(images: torch.Tensor) -> list[int]:
    """Which images these are, read from their pixels."""
    return (images[:, 0, 16, 16] * STD[0] + MEAN[0]).round().int().tolist()


@pytest.mark.parametrize("loader", ["memory", "dataloader"])
def test_an_epoch_shows_each_image_at_most_once_with_its_label(loader: str) -> None:
    batches = list(make_batches(loader=loader).epoch(0))
    seen = [number for images, _ in batches for number in numbers(images)]
    assert len(seen) == 96, "12 batches of 8; the 7 images that fill no batch are left out"
    assert len(set(seen)) == 96
    assert seen == [label for _, labels in batches for label in labels.tolist()]


def test_epochs_differ_and_leave_out_different_images() -> None:
    first, second = ([n for images, _ in make_batches().epoch(e) for n in numbers(images)] for e in (0, 1))
    assert first != second
    assert set(first) != set(second)
    again = [n for images, _ in make_batches().epoch(0) for n in numbers(images)]
    assert first == again


@pytest.mark.parametrize(("world_size", "steps"), [(2, 1), (4, 1), (2, 2), (1, 4)])
def test_processes_share_the_batches_of_one_process(world_size: int, steps: int) -> None:
    micro = 16 // world_size // steps
    whole = [sorted(numbers(images)) for images, _ in make_batches(micro_batch_size=16).epoch(3)]
    shares = [
        [numbers(images) for images, _ in make_batches(
            world_size, rank, micro_batch_size=micro, gradient_accumulation_steps=steps).epoch(3)]
        for rank in range(world_size)
    ]  # fmt: skip
    together = [
        sorted(n for share in shares for part in share[batch * steps : (batch + 1) * steps] for n in part)
        for batch in range(len(whole))
    ]
    assert together == whole


def test_the_rest_of_an_epoch_is_what_a_resumed_run_needs() -> None:
    whole = [numbers(images) for images, _ in make_batches().epoch(2)]
    rest = [numbers(images) for images, _ in make_batches().epoch(2, used=5 * 8)]
    assert rest == whole[5:]


def test_split_is_fixed_and_disjoint() -> None:
    train, val = split(1000, 100)
    assert len(val) == 100
    assert sorted(torch.cat([train, val]).tolist()) == list(range(1000))
    assert torch.equal(split(1000, 100)[1], val)


def noise(count: int = N) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(0).integers(0, 256, (count, 3, 32, 32), dtype=np.uint8))


def first_batch(images: torch.Tensor, epoch: int = 0, **fields: object) -> tuple[torch.Tensor, torch.Tensor]:
    config = dataclasses.replace(TrainConfig(), **{"micro_batch_size": 64, **fields})  # type: ignore[arg-type]
    batches = data.TrainBatches(images, torch.arange(len(images)), config, 0, 1, torch.device("cpu"))
    return next(iter(batches.epoch(epoch)))


@pytest.mark.parametrize("loader", ["memory", "dataloader"])
def test_without_augmentation_images_are_only_normalised(loader: str) -> None:
    images = noise()
    batch, labels = first_batch(images, crop_padding=0, flip="none", loader=loader)
    expected = (images[labels].float() - MEAN[:, None, None]) / STD[:, None, None]
    torch.testing.assert_close(batch, expected)
    assert batch.is_contiguous(memory_format=torch.channels_last)
    plain, _ = first_batch(images, crop_padding=0, flip="none", loader=loader, channels_last=False)
    assert plain.is_contiguous()


@pytest.mark.parametrize("loader", ["memory", "dataloader"])
def test_alternating_flip_shows_both_sides_in_turn(loader: str) -> None:
    images = noise(64)
    flips = []
    for epoch in (0, 1, 2):
        batch, labels = first_batch(images, epoch, crop_padding=0, flip="alternating", loader=loader)
        plain = (images[labels].float() - MEAN[:, None, None]) / STD[:, None, None]
        straight = torch.isclose(batch, plain, atol=1e-5).all(dim=(1, 2, 3))
        mirrored = torch.isclose(batch, plain.flip(3), atol=1e-5).all(dim=(1, 2, 3))
        assert torch.equal(straight, ~mirrored)
        flips.append(mirrored[labels.argsort()])
    assert torch.equal(flips[0], ~flips[1])
    assert torch.equal(flips[0], flips[2])
    assert 16 < int(flips[0].sum()) < 48


def test_crops_are_windows_of_the_reflected_image() -> None:
    images = noise(64)
    batch, labels = first_batch(images, crop_padding=2, flip="none")
    padded = torch.nn.functional.pad(images.float(), (2, 2, 2, 2), mode="reflect")
    padded = (padded - MEAN[:, None, None]) / STD[:, None, None]
    offsets = set()
    for image, label in zip(batch, labels, strict=True):
        found = [
            (row, column)
            for row in range(5)
            for column in range(5)
            if torch.allclose(image, padded[label, :, row : row + 32, column : column + 32], atol=1e-5)
        ]
        assert len(found) == 1
        offsets.update(found)
    assert len(offsets) > 15, "nearly all of the 25 shifts occur among 64 images"


def test_cutout_erases_one_square() -> None:
    batch, _ = first_batch(noise(64) // 4 + 150, crop_padding=0, flip="none", cutout=8)  # no pixel near the mean
    erased = (batch == 0).all(dim=1)
    sizes = erased.sum(dim=(1, 2))
    assert int(sizes.max()) == 64
    assert int(sizes.min()) >= 16, "a square in a corner loses at most three quarters"
    rows = erased.any(dim=2).sum(dim=1)
    columns = erased.any(dim=1).sum(dim=1)
    assert torch.equal(rows * columns, sizes)
