"""The networks, the optimizer of this project, and weights from elsewhere."""

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
from colossal_cifar_cnn import model as models
from colossal_cifar_cnn import optimizers
from colossal_cifar_cnn.config import USUAL, TrainConfig
from colossal_cifar_cnn.train import schedule
from safetensors.torch import save_file
from torch import nn
from trainyard_shared.errors import DataError


@pytest.mark.parametrize("norm", ["batch", "group"])
@pytest.mark.parametrize(("model", "parameters"), [("cnn", 146_744), ("resnet18", 11_181_642)])
def test_every_network_maps_images_to_logits(model: Any, parameters: int, norm: Any) -> None:
    network = models.build_model(dataclasses.replace(TrainConfig(), model=model, norm=norm), 10)
    assert network(torch.randn(2, 3, 32, 32)).shape == (2, 10)
    assert sum(p.numel() for p in network.parameters()) == parameters
    assert network.head.out_features == 10


def test_batch_statistics_survive_a_change_of_type() -> None:
    torch.manual_seed(0)
    ours, theirs = models.BatchNorm2d(4), nn.BatchNorm2d(4)
    x = torch.randn(8, 4, 5, 5) * 3 + 1
    torch.testing.assert_close(ours(x), theirs(x))
    torch.testing.assert_close(ours.running_var, theirs.running_var)
    before = ours.running_mean.clone()
    ours.to(torch.bfloat16)
    assert ours.weight.dtype == torch.bfloat16
    assert ours.running_mean.dtype == torch.float32
    assert torch.equal(ours.running_mean, before)
    narrow = ours(x.bfloat16())
    assert narrow.dtype == torch.bfloat16
    torch.testing.assert_close(narrow.float(), theirs(x), atol=0.05, rtol=0)
    ours.eval()
    theirs.eval()
    torch.testing.assert_close(ours(x.bfloat16()).float(), theirs(x), atol=0.05, rtol=0.02)


class TestPretrained:
    @pytest.fixture(scope="class")
    @classmethod
    def weights(cls) -> dict[str, torch.Tensor]:
        torch.manual_seed(1)
        return {name: tensor.clone() for name, tensor in models.resnet18(1000, "batch").net.state_dict().items()} | {
            "fc.weight": torch.zeros(1000, 512),
            "fc.bias": torch.zeros(1000),
        }

    @pytest.mark.parametrize("suffix", ["safetensors", "pth"])
    def test_file_gives_all_but_the_last_layer(self, weights: dict, suffix: str, tmp_path: Path) -> None:
        path = tmp_path / f"weights.{suffix}"
        save_file(weights, path) if suffix == "safetensors" else torch.save({"state_dict": weights}, path)
        torch.manual_seed(2)
        network = models.resnet18(10, "batch")
        head = network.head.weight.clone()
        assert models.load_pretrained(network, str(path)) == str(path)
        for name, tensor in network.net.state_dict().items():
            assert torch.equal(tensor, weights[name]), name
        assert torch.equal(network.head.weight, head)

    def test_files_that_are_no_such_weights(self, weights: dict, tmp_path: Path) -> None:
        network = models.resnet18(10, "batch")
        before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
        save_file({"a": torch.ones(1)}, tmp_path / "other.safetensors")
        save_file(weights | {"conv1.weight": torch.ones(64, 3, 3, 3)}, tmp_path / "stem.safetensors")
        (tmp_path / "noise.pth").write_bytes(b"no weights at all")
        torch.save({"code": Path("x")}, tmp_path / "code.pth")
        for name, words in (
            ("missing.pth", "no such file"),
            ("other.safetensors", "no weights of ResNet-18: it has no bn1"),
            ("stem.safetensors", r"conv1.weight has the shape \(64, 3, 3, 3\), but that of ResNet-18 is"),
            ("noise.pth", "cannot be read as weights"),
            ("code.pth", "cannot be read as weights"),
        ):
            with pytest.raises(DataError, match=words):
                models.load_pretrained(network, str(tmp_path / name))
        assert all(torch.equal(tensor, before[name]) for name, tensor in network.state_dict().items())

    def test_weights_that_cannot_be_had_are_no_reason_to_train_without(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("TORCH_HOME", str(tmp_path))

        def offline(*args: Any, **kwargs: Any) -> None:
            raise OSError("no route to host")

        monkeypatch.setattr("torch.hub.download_url_to_file", offline)
        monkeypatch.setattr("huggingface_hub.hf_hub_download", offline)
        network = models.resnet18(10, "batch")
        for source in ("torchvision", "hub:timm/resnet18.a1_in1k"):
            with pytest.raises(DataError, match=r"cannot be had.*no route to host.*--pretrained FILE"):
                models.load_pretrained(network, source)


def test_lion_follows_its_formula() -> None:
    parameter = nn.Parameter(torch.tensor([1.0, -2.0]))
    lion = optimizers.Lion([parameter], lr=0.1, weight_decay=0.5)
    parameter.grad = torch.tensor([3.0, -0.2])
    lion.step()
    torch.testing.assert_close(parameter.detach(), torch.tensor([1.0 * 0.95 - 0.1, -2.0 * 0.95 + 0.1]))
    torch.testing.assert_close(lion.state[parameter]["exp_avg"], torch.tensor([0.03, -0.002]))
    # 0.9 of the mean of 0.03 and 0.1 of a gradient of -0.2: still positive, so it goes down again.
    parameter.grad = torch.tensor([-0.2, 10.0])
    before = parameter.detach().clone()
    lion.step()
    torch.testing.assert_close(parameter.detach(), before * 0.95 - 0.1 * torch.tensor([1.0, 1.0]))


def test_an_optimizer_gets_its_usual_settings_unless_others_are_given() -> None:
    for name in ("sgd", "adam", "adamw", "lion"):
        config = dataclasses.replace(TrainConfig(), optimizer=name)
        (group,) = optimizers.build([nn.Parameter(torch.ones(1))], config).param_groups
        assert (group["lr"], group["weight_decay"]) == USUAL[name]
    config = dataclasses.replace(TrainConfig(), learning_rate=0.5, weight_decay=0.0)
    assert (config.peak_learning_rate, config.decay) == (0.5, 0.0)


def test_schedule_rises_then_falls_to_zero() -> None:
    rates = [schedule(i / 100, warmup=0.2) for i in range(101)]
    assert rates[0] > 0
    assert rates[20] == max(rates) == 1.0
    assert rates[20:] == sorted(rates[20:], reverse=True)
    assert rates[100] == pytest.approx(0)
