"""What several test files need: one finished run, and the real CIFAR-100 where it lies."""

import os
from pathlib import Path

import pytest
from trainyard_shared.config import to_flags
from trainyard_shared.testing import run, run_folder, script


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of one process with ZeRO-3, label smoothing and all augmentation."""
    folder = tmp_path_factory.mktemp("finished")
    flags = to_flags(
        {
            "num_sample_images": 600,
            "num_val": 60,
            "epochs": 1,
            "patch_size": 8,
            "hidden_size": 32,
            "num_layers": 2,
            "log_every": 2,
            "num_threads": 1,
            "nproc": 1,
            "randaugment_ops": 1,
            "mixup_alpha": 0.4,
            "cutmix_alpha": 1.0,
            "count_communication": True,
        }
    )
    done = run([script("train"), *flags, "--out-dir", str(folder)], folder)
    assert done.status == 0, done.stderr
    return run_folder(folder)


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder of the real CIFAR-100, whole or in part."""
    places = [os.environ.get("TRAINYARD_TEST_DATA"), Path(__file__).parents[4] / "shared" / "data"]
    for place in places:
        for folder in (Path(place), Path(place) / "cifar100") if place else ():
            if (folder / "cifar-100-python" / "train").is_file():
                return folder
    pytest.skip("the real CIFAR-100 (cifar-100-python) is neither in TRAINYARD_TEST_DATA nor beside the checkout")
