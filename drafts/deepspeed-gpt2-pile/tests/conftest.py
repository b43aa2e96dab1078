"""What several test files need: a trained run, and the files of the real tokenizer if they are there."""

import os
from pathlib import Path

import pytest
from trainyard_shared.config import to_flags
from trainyard_shared.testing import run, run_folder, script

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch is imported: threads of tiny models wait for each other

# Flags of a run of a few seconds.
SMALL = to_flags(
    {
        "num_sample_documents": 200,
        "num_val_documents": 8,
        "num_test_documents": 12,
        "epochs": 1,
        "steps_per_epoch": 12,
        "hidden_size": 64,
        "num_layers": 2,
        "context_length": 64,
        "nproc": 2,
        "num_threads": 1,
    }
)


@pytest.fixture(scope="session")
def small() -> list[str]:
    """Flags of a run of a few seconds."""
    return SMALL


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a small run of two processes under ZeRO-3; tests only read it."""
    out_dir = tmp_path_factory.mktemp("trained")
    finished = run([script("train"), *SMALL, "--deepspeed", "zero3", "--out-dir", str(out_dir)], out_dir)
    assert finished.status == 0, finished.stderr
    return run_folder(out_dir)


@pytest.fixture(scope="session")
def gpt2_tokenizer() -> Path:
    """Folder with OpenAI's encoder.json and vocab.bpe."""
    root = os.environ.get("TRAINYARD_TEST_DATA")
    folders = (
        [Path(root)] if root else [parent.parent / "shared" / "data" for parent in Path(__file__).resolve().parents]
    )
    for folder in folders:
        if (folder / "gpt2_tokenizer" / "encoder.json").is_file():
            return folder / "gpt2_tokenizer"
    pytest.skip(
        "the files of the GPT-2 tokenizer are not there: TRAINYARD_TEST_DATA names a folder with gpt2_tokenizer"
    )
