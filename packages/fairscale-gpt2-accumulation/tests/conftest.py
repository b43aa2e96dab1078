"""What several test files need: a trained run, and the real tokenizer if it is at hand."""

import os
from pathlib import Path

import pytest
from trainyard_shared.testing import run, run_folder, script


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a small run of one process; tests only read it."""
    out_dir = tmp_path_factory.mktemp("trained")
    flags = ["--num-sample-articles", "20", "--epochs", "1", "--num-prompts", "4", "--log-every", "1"]
    finished = run([script("train"), *flags, "--nproc", "1", "--out-dir", str(out_dir)], out_dir)
    assert finished.status == 0, finished.stderr
    return run_folder(out_dir)


def real_data() -> Path:
    """Where real data may lie."""
    named = os.environ.get("TRAINYARD_TEST_DATA")
    return Path(named) if named else Path(__file__).resolve().parents[4] / "shared" / "data"


@pytest.fixture(scope="session")
def gpt2_tokenizer() -> Path:
    """The folder with OpenAI's encoder.json and vocab.bpe."""
    folder = real_data() / "gpt2_tokenizer"
    if not (folder / "encoder.json").is_file():
        pytest.skip(f"GPT-2's tokenizer is not in {folder}")
    return folder


@pytest.fixture(scope="session")
def wikitext() -> Path:
    """The folder with the real valid.txt and test.txt, word-level."""
    folder = real_data() / "wikitext-2"
    if not (folder / "valid.txt").is_file():
        pytest.skip(f"WikiText-2 is not in {folder}")
    return folder
