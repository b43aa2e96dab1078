"""Batches: the same for any number of processes, prepared as the image processor would, mixed as the papers say."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from deepspeed_vit_fsdp.config import TrainConfig
from deepspeed_vit_fsdp.data import Preparation, TrainBatches, load
from torch import Tensor

CPU = torch.device("cpu")
IMAGES = torch.randint(0, 256, (40, 3, 16, 16), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
LABELS = torch.arange(40) % 7
RAW = Preparation(16, (0.0,) * 3, (1.0,) * 3)


def batches(rank: int = 0, world_size: int = 1, **settings: Any) -> TrainBatches:
    config = TrainConfig(**({"micro_batch_size": 8, "crop_padding": 2} | settings))
    return TrainBatches(IMAGES, LABELS, 7, config, RAW, rank, world_size, CPU)


def epoch_of(*args: Any, used: int = 0, epoch: int = 0, **settings: Any) -> tuple[Tensor, Tensor]:
    images, labels = zip(*batches(*args, **settings).epoch(epoch, used), strict=True)
    return torch.stack(images), torch.stack(labels)


ALL: dict[str, Any] = {"randaugment_ops": 2, "mixup_alpha": 0.5, "cutmix_alpha": 1.0}


def test_two_processes_get_the_batches_of_one() -> None:
    whole, labels = epoch_of(micro_batch_size=8, **ALL)  # 5 batches of 8
    halves = [epoch_of(rank, 2, micro_batch_size=4, **ALL) for rank in (0, 1)]
    assert torch.equal(torch.cat([half[0] for half in halves], dim=1), whole)
    assert torch.equal(torch.cat([half[1] for half in halves], dim=1), labels)
    steps, _ = epoch_of(micro_batch_size=2, gradient_accumulation_steps=4, **ALL)
    assert torch.equal(steps.view(whole.shape), whole)


def test_an_epoch_goes_on_where_it_was_left_and_the_next_is_another() -> None:
    whole, _ = epoch_of(**ALL)
    rest, _ = epoch_of(used=16, **ALL)
    assert torch.equal(rest, whole[2:])
    assert not torch.equal(epoch_of(epoch=1, **ALL)[0], whole)


def test_every_image_is_used_once_and_only_moved_and_mirrored() -> None:
    images, labels = epoch_of(crop_padding=0, flip="none")
    ordered = (images * 255).round().byte().flatten(0, 1)
    assert sorted(map(bytes, (i.numpy().tobytes() for i in ordered))) == sorted(i.numpy().tobytes() for i in IMAGES)
    assert sorted(labels.flatten().tolist()) == sorted(LABELS.tolist())
    mirrored = epoch_of(crop_padding=0, flip="random")[0]
    per_image = [torch.equal(a, b) for a, b in zip(mirrored.flatten(0, 1), images.flatten(0, 1), strict=True)]
    assert 0 < sum(per_image) < 40
    for same, a, b in zip(per_image, mirrored.flatten(0, 1), images.flatten(0, 1), strict=True):
        assert same or torch.equal(a, b.flip(-1))


def test_mixup_mixes_images_and_labels_by_the_same_share() -> None:
    plain, own = epoch_of(crop_padding=0, flip="none")
    mixed, labels = epoch_of(crop_padding=0, flip="none", mixup_alpha=1.0)
    assert torch.allclose(labels.sum(dim=-1), torch.ones(5, 8))
    for b in range(5):
        for i in range(8):
            j = (i + 1) % 8  # the next in the batch
            if own[b, i] == own[b, j]:
                continue
            share = labels[b, i, own[b, i]]
            expected = share * plain[b, i] + (1 - share) * plain[b, j]
            assert torch.allclose(mixed[b, i], expected, atol=1e-4)


def test_cutmix_takes_a_box_and_counts_its_area() -> None:
    plain, own = epoch_of(crop_padding=0, flip="none")
    cut, labels = epoch_of(crop_padding=0, flip="none", cutmix_alpha=1.0)
    found = 0
    for b in range(5):
        for i in range(8):
            j = (i + 1) % 8
            first, second = (torch.isclose(cut[b, i], plain[b, k]).all(dim=0) for k in (i, j))
            assert (first | second).all(), "each pixel is one of either image"
            if own[b, i] != own[b, j]:
                found += 1
                assert abs(labels[b, i, own[b, i]] - first.float().mean()) < 0.02
    assert found > 20


def test_randaugment_changes_images_and_leaves_torchs_random_numbers_alone() -> None:
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    changed, _ = epoch_of(randaugment_ops=2, flip="none", crop_padding=0)
    assert torch.equal(torch.rand(3), expected)
    plain, _ = epoch_of(flip="none", crop_padding=0)
    differs = (changed != plain).flatten(2).any(dim=2)
    assert differs.sum() > 20


def test_preparation_is_what_the_image_processor_of_the_exported_model_does(tmp_path: Path) -> None:
    import json

    from PIL import Image
    from transformers import AutoImageProcessor

    preparation = Preparation(48, (0.5, 0.4, 0.3), (0.2, 0.25, 0.3))
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(preparation.processor()))
    processor = AutoImageProcessor.from_pretrained(tmp_path)
    pictures = [Image.fromarray(image.numpy().transpose(1, 2, 0)) for image in IMAGES[:3]]
    expected = processor(pictures, return_tensors="pt").pixel_values
    # The processor scales bytes to bytes, with rounded weights: up to one step of 1/255, divided by the deviation.
    assert (preparation(IMAGES[:3]) - expected).abs().max() < 1 / 255 / 0.2
    assert Preparation.of_processor(preparation.processor(), 48) == preparation


def test_real_cifar100_in_part_is_taken_and_said_to_be_a_part(real_data: Path) -> None:
    dataset = load(TrainConfig(data="real", data_dir=real_data))
    assert dataset.kind == "real"
    assert len(dataset.class_names) == 100
    if len(dataset.train_images) < 50_000:
        assert "not the original files" in dataset.source
        assert f"{len(dataset.train_images):,} of 50,000" in dataset.source
    mean = dataset.train_images.mean(axis=(0, 2, 3)) / 255
    assert mean == pytest.approx(np.array([0.5071, 0.4865, 0.4409]), abs=0.003)
