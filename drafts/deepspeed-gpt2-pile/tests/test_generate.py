"""What the models write: the settings do what they say, prompts do not disturb each other, messages are clear."""

from pathlib import Path

import pytest
import torch
from deepspeed_gpt2_pile import data, generate, model
from deepspeed_gpt2_pile.config import SamplingConfig, TrainConfig
from trainyard_shared.errors import UsageError
from trainyard_shared.testing import run, script

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def untrained() -> tuple:
    torch.manual_seed(1)
    tokenizer = data.byte_tokenizer()
    config = TrainConfig(hidden_size=32, num_layers=2, num_heads=2, context_length=64)
    settings = model.settings_of(config, tokenizer.get_vocab_size(), data.end_of_text(tokenizer))
    return model.from_scratch(settings), tokenizer


def texts(untrained: tuple, prompts: list[str], **settings: object) -> list[list[str]]:
    return generate.continuations(*untrained, prompts, SamplingConfig(max_new_tokens=12, **settings), CPU)


def test_the_same_seed_writes_the_same_whatever_other_prompts_there_are(untrained: tuple) -> None:
    one = texts(untrained, ["one", "two"], num_samples=2)
    assert texts(untrained, ["one", "other, longer"], num_samples=2)[0] == one[0]
    assert texts(untrained, ["one", "two"], num_samples=2, seed=1) != one
    assert one[0][0] != one[0][1]
    assert all(len(of_prompt) == 2 for of_prompt in one)


def test_temperature_0_and_top_k_1_take_the_likeliest(untrained: tuple) -> None:
    greedy = texts(untrained, ["one"], temperature=0.0, seed=3)
    assert greedy == texts(untrained, ["one"], temperature=0.0, seed=4)
    assert greedy == texts(untrained, ["one"], temperature=2.0, top_k=1)
    assert greedy == texts(untrained, ["one"], temperature=2.0, top_k=0, top_p=1e-6)
    gpt2, tokenizer = untrained
    ids = [data.end_of_text(tokenizer), *tokenizer.encode("one").ids]
    with torch.inference_mode():
        likeliest = gpt2.eval()(input_ids=torch.tensor([ids])).logits[0, -1].argmax().item()
    assert tokenizer.encode(greedy[0][0]).ids[:1] == [likeliest] or likeliest > 127


def test_a_prompt_that_leaves_no_room_is_named(untrained: tuple) -> None:
    with pytest.raises(UsageError, match="prompt 2 has 64 tokens; the model reads 64"):
        texts(untrained, ["short", "x" * 64])
    assert len(texts(untrained, ["x" * 62])[0][0]) <= 1, "one token is left to write"


def test_drawing_leaves_the_global_random_state_alone(untrained: tuple) -> None:
    before = torch.get_rng_state()
    texts(untrained, ["one"])
    assert torch.equal(torch.get_rng_state(), before)


def test_several_prompts_and_models_side_by_side(trained: Path, tmp_path: Path) -> None:
    (tmp_path / "prompts.txt").write_text("What is 1 + 2?\n\n<b>def</b>\n")
    exported = tmp_path / "exported"
    done = run([script("export"), "--run", str(trained), "--to", str(exported)], tmp_path)
    assert done.status == 0, done.stderr
    flags = ["--run", str(trained), str(exported), "--prompts-file", "prompts.txt", "--max-new-tokens", "10"]
    finished = run([script("generate"), *flags, "--out", "texts.html"], tmp_path)
    assert finished.status == 0, finished.stderr
    assert f"[{trained.name}] What is 1 + 2?|" in finished.stdout
    page = (tmp_path / "texts.html").read_text()
    assert f"<th>{trained.name}</th><th>exported</th>" in page
    assert page.count("<tr>") == 3
    assert "&lt;b&gt;def" in page


@pytest.mark.parametrize(
    ("flags", "status", "words"),
    [
        (["--run", "nowhere"], 1, "nowhere: holds no trained model"),
        (["--temperature", "-1"], 2, "--temperature: -1 is not allowed: must be at least 0"),
        (["--top-p", "0"], 2, "--top-p: 0 is not allowed: must be greater than 0"),
        ([], 2, "train first"),
    ],
)
def test_wrong_flags_are_named(tmp_path: Path, flags: list[str], status: int, words: str) -> None:
    finished = run([script("generate"), "--prompts", "x", *flags], tmp_path)
    assert finished.status == status
    assert words in finished.stderr
