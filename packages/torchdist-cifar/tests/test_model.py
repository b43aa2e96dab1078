"""The networks: shapes, and what their construction promises."""

import dataclasses
from typing import Any

import pytest
import torch
from torchdist_cifar.config import TrainConfig
from torchdist_cifar.model import SmallCNN, build_model
from torchdist_cifar.train import build_optimizer, schedule


@pytest.mark.parametrize("norm", ["batch", "group"])
@pytest.mark.parametrize(
    ("model", "parameters"), [("cnn", 146_744), ("resnet18", 11_173_962), ("vgg11", 9_228_362), ("vgg16", 14_724_042)]
)
def test_every_network_maps_images_to_logits(model: Any, parameters: int, norm: Any) -> None:
    network = build_model(dataclasses.replace(TrainConfig(), model=model, norm=norm), 10)
    assert network(torch.randn(2, 3, 32, 32)).shape == (2, 10)
    assert sum(p.numel() for p in network.parameters()) == parameters


def test_whitening_makes_patches_uncorrelated() -> None:
    torch.manual_seed(0)
    smooth = torch.nn.functional.avg_pool2d(torch.randn(500, 3, 34, 34), 3, stride=1)  # neighbours are alike
    network = SmallCNN((8, 8, 8), 10, "batch", whiten=True)
    network.set_whitening(smooth)
    with torch.no_grad():
        outputs = network.stem(smooth) - network.stem.bias[:, None, None]
    covariance = outputs[:, :12].permute(1, 0, 2, 3).flatten(1).cov()
    assert not network.stem.weight.requires_grad
    off_diagonal = covariance - covariance.diag().diag()
    assert float(off_diagonal.abs().max()) < 0.05
    torch.testing.assert_close(covariance.diag(), torch.ones(12), atol=0.1, rtol=0)
    torch.testing.assert_close(outputs[:, :12], -outputs[:, 12:])


def test_schedule_rises_then_falls_to_zero() -> None:
    rates = [schedule(i / 100, warmup=0.2) for i in range(101)]
    assert rates[0] > 0
    assert rates[20] == max(rates) == 1.0
    assert rates[:21] == sorted(rates[:21])
    assert rates[20:] == sorted(rates[20:], reverse=True)
    assert rates[100] == pytest.approx(0)
    assert schedule(0.5, warmup=0.0) == 0.5


def test_norm_biases_learn_faster_and_decay_alike() -> None:
    config = dataclasses.replace(TrainConfig(), bias_learning_rate_factor=64.0)
    network = build_model(config, 10)
    rest, fast = build_optimizer(network, config).param_groups
    assert len(fast["params"]) == 6
    assert all(p.ndim == 1 for p in fast["params"])
    assert fast["peak_learning_rate"] == 64 * rest["peak_learning_rate"]
    assert fast["peak_learning_rate"] * fast["weight_decay"] == pytest.approx(
        rest["peak_learning_rate"] * rest["weight_decay"]
    )
    assert len(rest["params"]) + len(fast["params"]) == len(list(network.parameters()))
