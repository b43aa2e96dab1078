"""Augmentation: what is drawn for an image belongs to it, and mixing keeps the sum of its labels."""

from collections.abc import Iterator

import numpy as np
import pytest
import torch
from deepspeed_efficientnet_cifar.config import TrainConfig
from deepspeed_efficientnet_cifar.data import Preparation, TrainBatches, mixed
from torch import Tensor

PREPARATION = Preparation(48, (0.5, 0.4, 0.3), (0.2, 0.2, 0.2))


def batches(rank: int = 0, world_size: int = 1, used: int = 0, **fields: object) -> Iterator[tuple[Tensor, Tensor]]:
    config = TrainConfig(**{"micro_batch_size": 4, **fields})
    images = torch.randint(0, 256, (16, 3, 32, 32), generator=torch.Generator().manual_seed(1), dtype=torch.uint8)
    labels = torch.arange(16) % 10
    return TrainBatches(images, labels, 10, config, PREPARATION, rank, world_size, torch.device("cpu")).epoch(3, used)


def test_images_are_enlarged_and_normalised() -> None:
    grey = torch.full((2, 3, 32, 32), 51, dtype=torch.uint8)
    prepared = PREPARATION(grey)
    assert prepared.shape == (2, 3, 48, 48)
    assert prepared.is_contiguous(memory_format=torch.channels_last)
    assert prepared[0, :, 5, 5].tolist() == pytest.approx([-1.5, -1.0, -0.5], abs=1e-5)
    same_size = Preparation(32, (0.0,) * 3, (1.0,) * 3)
    assert torch.allclose(same_size(grey), torch.full((2, 3, 32, 32), 0.2))


@pytest.mark.parametrize("fields", [{}, {"randaugment_ops": 2}, {"cutout": 8}])
def test_the_same_images_for_any_number_of_processes(fields: dict) -> None:
    alone = torch.cat([images for images, _ in batches(micro_batch_size=8, **fields)])
    shared = [list(batches(rank, 2, **fields)) for rank in (0, 1)]
    together = torch.cat([images for step in zip(*shared, strict=True) for images, _ in step])
    assert torch.equal(alone, together)


@pytest.mark.parametrize("fields", [{}, {"randaugment_ops": 1}, {"mixup_alpha": 0.4, "cutmix_alpha": 1.0}])
def test_a_run_that_goes_on_sees_the_same_images(fields: dict) -> None:
    whole, rest = list(batches(**fields)), list(batches(used=8, **fields))
    assert len(whole) == 4
    for expected, found in zip(whole[2:], rest, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(expected, found, strict=True))


def test_randaugment_changes_images_and_leaves_the_random_state_alone() -> None:
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    changed = torch.cat([images for images, _ in batches(randaugment_ops=2, flip="none")])
    assert torch.equal(torch.rand(3), expected)
    plain = torch.cat([images for images, _ in batches(flip="none")])
    assert (changed != plain).flatten(1).any(dim=1).float().mean() > 0.5


@pytest.mark.parametrize("fields", [{"mixup_alpha": 1.0}, {"cutmix_alpha": 1.0}])
def test_labels_are_mixed_as_the_images_are(fields: dict) -> None:
    # Images that show their own number: the share of each number in a mixed image is that of its label.
    images = torch.arange(4.0)[:, None, None, None].expand(4, 3, 32, 32)
    labels = torch.eye(4)
    for seed in range(20):
        found, shares = mixed(images, labels, TrainConfig(**fields), np.random.default_rng(seed))
        assert shares.sum(dim=1).tolist() == pytest.approx([1.0] * 4)
        wanted = shares @ torch.arange(4.0)
        assert torch.allclose(found.mean(dim=(1, 2, 3)), wanted, atol=1e-4)
    assert images[0].eq(0).all(), "the original is left alone"
