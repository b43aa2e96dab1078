"""DeepSpeed's JSON files: completed from the config, checked before DeepSpeed sees them."""

import json
from pathlib import Path
from typing import Any

import pytest
from trainyard_shared.deepspeed_json import complete, find, read
from trainyard_shared.errors import UsageError

SETTINGS: dict[str, Any] = {
    "train_batch_size": "auto",
    "gradient_clipping": "auto",
    "optimizer": {"type": "AdamW", "params": {"lr": "auto", "betas": [0.9, 0.95]}},
    "zero_optimization": {"stage": 3},
}
VALUES = {"gradient_clipping": 1.0, "optimizer.params.lr": 3e-4}
BATCH = {"micro_batch_size": 4, "gradient_accumulation_steps": 3, "world_size": 2}


def test_auto_is_replaced_wherever_it_stands_and_the_rest_is_kept() -> None:
    done = complete(SETTINGS, "zero3.json", **BATCH, values=VALUES)
    assert done == {
        "train_batch_size": 24,
        "train_micro_batch_size_per_gpu": 4,
        "gradient_accumulation_steps": 3,
        "gradient_clipping": 1.0,
        "optimizer": {"type": "AdamW", "params": {"lr": 3e-4, "betas": [0.9, 0.95]}},
        "zero_optimization": {"stage": 3},
    }
    assert SETTINGS["optimizer"]["params"]["lr"] == "auto", "the settings given are not changed"


def test_batch_sizes_that_do_not_multiply_are_explained_with_their_numbers() -> None:
    with pytest.raises(UsageError) as error:
        complete(SETTINGS | {"train_batch_size": 32}, "mine.json", **BATCH, values=VALUES)
    assert str(error.value) == (
        "error: mine.json: train_batch_size is 32, which does not fit micro_batch_size x gradient_accumulation_steps x "
        'processes = 4 x 3 x 2 = 24 = train_batch_size; write "auto"'
    )


def test_batch_sizes_that_multiply_may_be_written_out() -> None:
    done = complete(SETTINGS | {"train_batch_size": 24}, "mine.json", **BATCH, values=VALUES)
    assert done["train_batch_size"] == 24


def test_every_finding_is_told_at_once() -> None:
    settings = SETTINGS | {"gradient_clipping": 0.5, "steps_per_print": "auto"}
    with pytest.raises(UsageError) as error:
        complete(settings, "mine.json", **BATCH, values=VALUES)
    assert str(error.value).splitlines() == [
        'error: mine.json: gradient_clipping is 0.5, but the config says 1.0; write "auto" or change one',
        'error: mine.json: steps_per_print is "auto", but nothing in the config decides it: write a value',
    ]


def test_a_preset_a_file_and_a_typo(tmp_path: Path) -> None:
    (tmp_path / "zero3.json").write_text("{}")
    (tmp_path / "mine.json").write_text("{}")
    assert find("zero3", tmp_path).name == "zero3.json"
    assert find(str(tmp_path / "mine.json"), tmp_path) == tmp_path / "mine.json"
    with pytest.raises(UsageError, match=r"--deepspeed zreo3: no preset and no file .* perhaps you meant zero3"):
        find("zreo3", tmp_path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{\n"a": 1,\n}', "bad.json, line 3: not valid JSON"),
        ('{"a": 1, "a": 2}', "bad.json: cannot be read: 'a' is given twice"),
        ("[]", "bad.json: must hold a JSON object, found list"),
        (b"\xff", "bad.json: cannot be read"),
    ],
)
def test_a_broken_file_is_named_with_the_line(content: str | bytes, message: str, tmp_path: Path) -> None:
    path = tmp_path / "bad.json"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(UsageError, match=message):
        read(path)


def test_what_is_read_is_what_was_written(tmp_path: Path) -> None:
    path = tmp_path / "zero3.json"
    path.write_text(json.dumps(SETTINGS))
    assert read(path) == SETTINGS
