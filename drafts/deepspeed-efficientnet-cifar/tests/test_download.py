"""The verb `download`: which data it means, and what it says when it cannot have them."""

import pytest
from deepspeed_efficientnet_cifar.cli import main


@pytest.mark.parametrize(
    ("flag", "status", "words"),
    [
        ("--offline", 1, "CIFAR-10 is not in"),
        (
            "--ofline",
            2,
            "error: --ofline: no flag of deepspeed-efficientnet-cifar download; perhaps you meant --offline",
        ),
    ],
)
def test_download(flag, status, words, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("platformdirs.user_cache_dir", lambda name: str(tmp_path))
    assert main(["download", flag]) == status
    assert words in capsys.readouterr().err
    assert not [path for path in tmp_path.rglob("*") if path.is_file() and not path.name.endswith(".lock")]
