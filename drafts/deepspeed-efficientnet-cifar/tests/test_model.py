"""The networks, and pretrained weights of all the forms in which they come."""

from pathlib import Path

import numpy as np
import pytest
import torch
from deepspeed_efficientnet_cifar import data, model
from deepspeed_efficientnet_cifar.config import TrainConfig
from safetensors.torch import save_file
from trainyard_shared.errors import DataError, UsageError

LITE = "tf_efficientnet_lite0"
# ImageNet's classes: dogs are 151 to 268.
DOGS = range(151, 269)


def config(**fields: object) -> TrainConfig:
    return TrainConfig(**{"model": "tiny", "image_size": 32, **fields})


def test_every_legacy_tensor_is_used_once_and_fits(lite0: Path) -> None:
    legacy = model.read_weights(lite0)
    own = model.make(config(model=LITE), 1000).state_dict()
    translated = model.from_legacy(legacy, list(own))
    assert len(translated) == len(legacy) == len(own), "no two have become one"
    assert translated.keys() == own.keys()
    assert all(translated[name].shape == own[name].shape for name in own)
    # Shapes alone would not notice two exchanged normalisations of a block: each layer stands beside its own.
    assert translated["blocks.0.0.bn1.running_var"] is legacy["_blocks.0._bn1.running_var"]
    assert translated["blocks.0.0.bn2.running_var"] is legacy["_blocks.0._bn2.running_var"]
    assert translated["blocks.3.1.bn1.weight"] is legacy["_blocks.6._bn0.weight"]
    assert translated["blocks.3.1.conv_pwl.weight"] is legacy["_blocks.6._project_conv.weight"]
    assert translated["bn2.bias"] is legacy["_bn1.bias"]


def test_real_weights_know_a_dog(lite0: Path, cifar10: Path) -> None:
    settings = config(model=LITE, weights=str(lite0), image_size=128)
    network = model.make(settings, 1000).eval()
    dataset = data.load(TrainConfig(data="real", data_dir=cifar10))
    dogs = np.flatnonzero(dataset.test_labels == dataset.class_names.index("dog"))[:24]
    others = np.flatnonzero(dataset.test_labels == dataset.class_names.index("truck"))[:24]
    images = model.preparation(settings)(torch.from_numpy(dataset.test_images[[*dogs, *others]]))
    with torch.inference_mode():
        found = network(images).argmax(dim=1).tolist()
        network.bn2.reset_running_stats()
        wrong = network(images).argmax(dim=1).tolist()
    assert sum(of in DOGS for of in found[:24]) >= 16, "two of three dogs are taken for one of ImageNet's dogs"
    assert sum(of in DOGS for of in found[24:]) <= 3, "but no trucks"
    assert sum(of in DOGS for of in wrong[:24]) < 12, "one layer with wrong statistics, and the network is blind"


def test_statistics_fit_the_features(lite0: Path, cifar10: Path) -> None:
    """The running statistics that came with the weights are about those that real images have at that layer."""
    settings = config(model=LITE, weights=str(lite0), image_size=128)
    network = model.make(settings, 10).eval()
    dataset = data.load(TrainConfig(data="real", data_dir=cifar10))
    seen = {}
    for name in ("blocks.1.0.bn1", "blocks.3.1.bn2", "blocks.5.2.bn1"):
        network.get_submodule(name).register_forward_pre_hook(lambda _, x, name=name: seen.update({name: x[0]}))
    with torch.inference_mode():
        network(model.preparation(settings)(torch.from_numpy(dataset.test_images[:32])))
    for name, features in seen.items():
        own = torch.log(features.var(dim=(0, 2, 3)) + 1e-6)
        expected = torch.log(network.get_submodule(name).running_var + 1e-6)
        assert torch.corrcoef(torch.stack([own, expected]))[0, 1] > 0.6, name


def test_safetensors_and_folders(tmp_path: Path) -> None:
    torch.manual_seed(1)
    source = model.make(config(model="efficientnet_lite0"), 7)
    save_file(source.state_dict(), tmp_path / "model.safetensors")
    for path in (tmp_path, tmp_path / "model.safetensors"):
        network = model.make(config(model="efficientnet_lite0", weights=str(path)), 10)
        assert torch.equal(network.conv_head.weight, source.conv_head.weight)
        assert network.classifier.weight.shape == (10, 1280), "a classifier of other classes is drawn anew"


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("broken.pth", b"no weights", "broken.pth: cannot be read as weights"),
        ("broken.safetensors", b"\x00" * 20, "broken.safetensors: cannot be read as weights"),
        ("list.pth", [1, 2], "list.pth: must hold a dictionary of tensors"),
        (
            "other.pth",
            {"weight": torch.zeros(2)},
            "other.pth: weights of another network: no tensor blocks.0.0.bn1.bias",
        ),
        ("b0.pth", "efficientnet_b1", "b0.pth: weights of another network: a tensor blocks."),
        ("small.pth", "small", "conv_stem.weight has the shape (16, 3, 3, 3), but the network wants (32, 3, 3, 3)"),
    ],
)
def test_files_that_hold_no_weights_of_the_network(tmp_path: Path, name: str, content: object, words: str) -> None:
    file = tmp_path / name
    if isinstance(content, bytes):
        file.write_bytes(content)
    elif content == "efficientnet_b1":
        torch.save(model.make(config(model="efficientnet_b1"), 10).state_dict(), file)
    elif content == "small":
        state = model.make(config(model="efficientnet_b0"), 10).state_dict()
        torch.save(state | {"conv_stem.weight": torch.zeros(16, 3, 3, 3)}, file)
    else:
        torch.save(content, file)
    with pytest.raises(DataError) as raised:
        model.make(config(model="efficientnet_b0", weights=str(file)), 10)
    assert words in str(raised.value)


def test_a_file_that_would_run_code_is_refused(tmp_path: Path) -> None:
    class Malicious:
        def __reduce__(self) -> tuple:
            return (Path.touch, (tmp_path / "ran",))

    torch.save({"conv_stem.weight": Malicious()}, tmp_path / "evil.pth")
    with pytest.raises(DataError, match="cannot be read as weights"):
        model.make(config(model="efficientnet_lite0", weights=str(tmp_path / "evil.pth")), 10)
    assert not (tmp_path / "ran").exists()


def test_paths_without_weights(tmp_path: Path) -> None:
    lite = {"model": "efficientnet_lite0"}
    with pytest.raises(UsageError, match="no such file or folder"):
        model.make(config(**lite, weights=str(tmp_path / "nowhere")), 10)
    with pytest.raises(UsageError, match="no file of weights in this folder"):
        model.make(config(**lite, weights=str(tmp_path)), 10)
    with pytest.raises(UsageError, match="tiny has no pretrained weights"):
        model.make(config(weights="hub"), 10)


def test_frozen_parts_take_no_gradients_and_keep_their_statistics() -> None:
    settings = config(frozen_stages=2)
    network = model.make(settings, 10)
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    model.set_training(network, settings)
    network(torch.randn(4, 3, 32, 32)).sum().backward()
    after = network.state_dict()
    for name in ("bn1.running_mean", "blocks.0.0.bn1.running_mean", "blocks.1.0.bn2.running_var"):
        assert torch.equal(before[name], after[name]), name
    assert not torch.equal(before["blocks.2.0.bn1.running_mean"], after["blocks.2.0.bn1.running_mean"])
    trained = {name for name, p in network.named_parameters() if p.grad is not None}
    assert "conv_head.weight" in trained
    assert not any(name.startswith(("conv_stem", "blocks.0", "blocks.1.")) for name in trained)


def test_only_weights_of_products_decay() -> None:
    network = model.make(config(), 10)
    decayed, others = model.parameter_groups(network, 0.1)
    assert {p.ndim for p in decayed["params"]} == {2, 4}
    assert {p.ndim for p in others["params"]} == {1}
    assert (decayed["weight_decay"], others["weight_decay"]) == (0.1, 0.0)
    assert sum(p.numel() for group in (decayed, others) for p in group["params"]) == 51_988


def test_flops_of_a_network_whose_count_is_known() -> None:
    # timm's table gives EfficientNet-B0 0.39 to 0.40 G multiply-adds at 224 pixels with 1000 classes.
    flops = model.flops_per_image(config(model="efficientnet_b0", image_size=224), 1000)
    assert flops == pytest.approx(2 * 0.39e9, rel=0.03)
