"""Batches: the right images, each once, augmented as asked, for any number of processes."""

import dataclasses
from typing import Any

import pytest
import torch
from colossal_cifar_cnn import data
from colossal_cifar_cnn.config import TrainConfig
from trainyard_shared.errors import UsageError

CPU = torch.device("cpu")


def first_batches(world_size: int, rank: int = 0, **fields: Any) -> list[torch.Tensor]:
    config = dataclasses.replace(TrainConfig(), **{"global_batch_size": 16, "rotation": 30.0, **fields})
    images = torch.randint(0, 256, (64, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    batches = data.TrainBatches(images, torch.arange(64), config, rank, world_size, CPU)
    return [images for images, _ in batches.epoch(1)]


def test_processes_turn_their_images_as_one_process_would() -> None:
    whole = first_batches(1)
    shares = [first_batches(2, rank) for rank in (0, 1)]
    for batch, *parts in zip(whole, *shares, strict=True):
        torch.testing.assert_close(torch.cat(parts), batch)
    assert not torch.equal(whole[0], first_batches(1, rotation=0.0)[0])


def test_a_quarter_turn_is_that_of_torch() -> None:
    images = torch.randn(2, 3, 32, 32)
    turned = data.rotated(images, torch.tensor([90.0, -90.0]))
    torch.testing.assert_close(turned[0], images[0].rot90(1, (1, 2)), atol=1e-4, rtol=0)
    torch.testing.assert_close(turned[1], images[1].rot90(-1, (1, 2)), atol=1e-4, rtol=0)


def test_small_turns_keep_the_middle_and_show_no_black_corners() -> None:
    turned = data.rotated(torch.ones(1, 1, 32, 32), torch.tensor([15.0]))
    torch.testing.assert_close(turned, torch.ones(1, 1, 32, 32))


@pytest.mark.parametrize(("plugin", "channels_last"), [("zero1", True), ("gemini", False)])
@pytest.mark.parametrize("rotation", [0.0, 10.0])
def test_layout_is_what_the_plugin_can_take(plugin: str, channels_last: bool, rotation: float) -> None:
    narrow = {"precision": "bf16", "optimizer": "hybrid_adam"} if plugin == "gemini" else {}
    batch = first_batches(1, plugin=plugin, rotation=rotation, **narrow)[0]
    assert batch.is_contiguous(memory_format=torch.channels_last) == channels_last
    assert batch.is_contiguous() != channels_last


def test_global_batch_is_shared_out_or_refused() -> None:
    config = dataclasses.replace(TrainConfig(), global_batch_size=96, gradient_accumulation_steps=3)
    assert data.micro_batch_size(config, 4) == 8
    with pytest.raises(UsageError, match="96 images do not divide by 5 processes x 3 accumulation steps = 15"):
        data.micro_batch_size(config, 5)
    assert data.micro_batch_size(TrainConfig(), 7) == TrainConfig().micro_batch_size
