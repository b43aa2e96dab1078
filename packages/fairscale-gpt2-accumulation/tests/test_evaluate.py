"""Perplexity by windows against a computation token by token; baselines; continuations; zero-shot protocols."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from fairscale_gpt2_accumulation import evaluate, ngrams
from fairscale_gpt2_accumulation.config import TrainConfig
from fairscale_gpt2_accumulation.generate import continuations
from fairscale_gpt2_accumulation.model import LanguageModel, load_pretrained
from fairscale_gpt2_accumulation.tokenization import make_tokenizer
from trainyard_shared.datasets.wikitext import load_sample, num_words
from trainyard_shared.errors import UsageError
from trainyard_shared.results import read_json
from trainyard_shared.testing import run, script
from transformers import GPT2Config, GPT2LMHeadModel

CPU = torch.device("cpu")
CONTEXT = 12


@pytest.fixture(scope="module")
def model() -> LanguageModel:
    torch.manual_seed(0)
    settings = GPT2Config(
        vocab_size=50, n_positions=CONTEXT, n_embd=32, n_layer=2, n_head=1, bos_token_id=0, eos_token_id=0
    )
    gpt2 = GPT2LMHeadModel(settings)
    with torch.no_grad():
        for parameter in gpt2.parameters():
            parameter.mul_(8)  # opinions, so that the context matters
    return LanguageModel(gpt2).eval()


@torch.inference_mode()
def token_by_token(model: LanguageModel, tokens: torch.Tensor, context: int, stride: int) -> float:
    """The same sum from its definition: each token by itself, with the context that its window leaves it."""
    total = 0.0
    for target in range(1, len(tokens)):
        end_of_window = min(-(-target // stride) * stride, len(tokens) - 1)
        start = max(0, end_of_window - context)
        logits = model.gpt2(input_ids=tokens[None, start:target]).logits[0, -1]
        total -= logits.log_softmax(dim=0)[tokens[target]].item()
    return total


@pytest.mark.parametrize("num_tokens", [1, 11, 12, 13, 50])
@pytest.mark.parametrize("stride", [1, 5, 11, 12])
def test_windows_equal_a_computation_token_by_token(model: LanguageModel, num_tokens: int, stride: int) -> None:
    tokens = torch.randint(50, (num_tokens + 1,), generator=torch.Generator().manual_seed(num_tokens))
    found = evaluate.likelihood(model, tokens, CONTEXT, stride, "fp32", CPU)
    assert found.num_tokens == num_tokens
    assert found.nll == pytest.approx(token_by_token(model, tokens, CONTEXT, stride), rel=1e-5)


def test_more_context_changes_the_figure(model: LanguageModel) -> None:
    tokens = torch.randint(50, (51,), generator=torch.Generator().manual_seed(1))
    nlls = {stride: evaluate.likelihood(model, tokens, CONTEXT, stride, "fp32", CPU).nll for stride in (1, 6, 12)}
    assert len({round(nll, 3) for nll in nlls.values()}) == 3


@pytest.mark.parametrize(("num_tokens", "context", "stride"), [(100, 16, 16), (100, 16, 7), (5, 16, 16), (33, 16, 1)])
def test_windows_count_every_token_once_with_as_much_context_as_promised(
    num_tokens: int, context: int, stride: int
) -> None:
    counted = []
    for start, end, num_counted in evaluate.windows(num_tokens, context, stride):
        assert end - start <= context
        targets = range(end - num_counted + 1, end + 1)
        assert all(target - start >= min(context - stride + 1, target) for target in targets)
        counted += targets
    assert counted == list(range(1, num_tokens + 1))


def test_three_units_of_the_same_likelihood() -> None:
    text = " \n = Title = \n \n Three words here , äöü . \n"
    found = evaluate.Likelihood(nll=100.0, num_tokens=20, seconds=1.0)
    metrics = evaluate.perplexities(found, text, TrainConfig(context_length=64, eval_stride=32), "chosen so")
    assert metrics["test_perplexity"]["value"] == pytest.approx(math.exp(5))
    assert num_words(text) == 3 + 6 + 4
    assert metrics["test_word_perplexity"]["value"] == pytest.approx(math.exp(100 / 13))
    assert metrics["test_bits_per_byte"]["value"] == pytest.approx(100 / math.log(2) / len(text.encode()))
    for words in ("64 tokens", "stride 32", "as published", "raw form", "20 BPE tokens"):
        assert words in metrics["test_perplexity"]["protocol"]


def test_unigram_perplexity_is_the_exponential_of_the_entropy() -> None:
    tokens = np.repeat(np.arange(4), [40_000, 20_000, 10_000, 10_000])
    assert ngrams.unigram(tokens, tokens, 4) == pytest.approx(2**1.75, rel=1e-3)
    assert ngrams.unigram(np.array([0]), np.array([3]), 4) == pytest.approx(5), "unseen: (0 + 1) / (1 + 4)"


def test_bigram_equals_a_computation_by_hand() -> None:
    train, test = np.array([0, 1, 2, 1, 2, 1, 1]), np.array([0, 1, 2, 3, 1])
    single = {1: 5 / 10, 2: 3 / 10, 3: 1 / 10}  # counts 4, 2 and 0 of 6, each raised by one, of 4 tokens
    expected = [
        (1 - 0.75) / 1 + 0.75 * 1 / 1 * single[1],  # 1 after 0: once of once
        (2 - 0.75) / 3 + 0.75 * 2 / 3 * single[2],  # 2 after 1: twice of three, and one other
        0.75 * 1 / 2 * single[3],  # 3 after 2: never, 2 was followed by 1 only
        single[1],  # 1 after 3, after which nothing was seen
    ]
    wanted = math.exp(-sum(map(math.log, expected)) / 4)
    assert ngrams.bigram(train, test, 4) == pytest.approx(wanted)


def test_bigram_probabilities_add_up_to_one() -> None:
    train = np.random.default_rng(0).integers(0, 6, 200)
    for before in range(6):
        total = sum(1 / ngrams.bigram(train, np.array([before, token]), 6) for token in range(6))
        assert total == pytest.approx(1)


def test_distinct_n_counts_different_n_grams() -> None:
    assert evaluate.distinct([[1, 1, 1, 1], [1, 1, 2, 3]], 1) == 3 / 8
    assert evaluate.distinct([[1, 1, 1, 1], [1, 1, 2, 3]], 2) == 3 / 6
    assert evaluate.distinct([[1]], 2) == 0


@pytest.mark.parametrize("settings", [{"temperature": 0.0}, {"temperature": 1.0, "top_k": 1}])
def test_the_likeliest_token_is_taken(model: LanguageModel, settings: dict[str, Any]) -> None:
    prompts = torch.tensor([[3, 4, 5], [9, 8, 7]])
    tokens = prompts
    for _ in range(4):
        logits = model.gpt2(input_ids=tokens).logits[:, -1].clone()
        logits[:, 0] = -math.inf  # the end of text does not end it
        tokens = torch.cat([tokens, logits.argmax(dim=1)[:, None]], dim=1)
    assert torch.equal(continuations(model, prompts, 4, **settings), tokens[:, 3:])


def test_top_p_and_temperature_narrow_the_choice(model: LanguageModel) -> None:
    prompts = torch.tensor([[3, 4, 5]]).repeat(400, 1)
    state = torch.get_rng_state()
    wide = continuations(model, prompts, 1, temperature=3.0)
    narrow = continuations(model, prompts, 1, temperature=3.0, top_p=0.3)
    cold = continuations(model, prompts, 1, temperature=0.5)
    assert torch.equal(torch.get_rng_state(), state), "training goes on with its own random numbers"
    assert len(narrow.unique()) < len(wide.unique())
    assert len(cold.unique()) < len(wide.unique())
    logits = model.gpt2(input_ids=prompts[:1]).logits[0, -1].clone()
    logits[0] = -math.inf
    probabilities, order = (logits / 3).softmax(dim=0).sort(descending=True)
    nucleus = order[: int((probabilities.cumsum(0) < 0.3).sum()) + 1]
    assert set(narrow.flatten().tolist()) <= set(nucleus.tolist())
    assert torch.equal(narrow, continuations(model, prompts, 1, temperature=3.0, top_p=0.3)), "by the seed"


def test_a_prompt_longer_than_the_context_is_refused(model: LanguageModel) -> None:
    prompts = torch.ones(1, 10, dtype=torch.int64)
    assert continuations(model, prompts, 2, temperature=0.0).shape == (1, 2)
    with pytest.raises(
        UsageError, match="the prompt has 10 tokens and 3 are to follow, but this model sees at most 12"
    ):
        continuations(model, prompts, 3, temperature=0.0)


def test_prompts_are_beginnings_of_paragraphs() -> None:
    text = load_sample(0, 20).texts["test"]
    tokenizer = make_tokenizer(text, 400)
    config = TrainConfig(num_prompts=5, prompt_tokens=6, continuation_tokens=8)
    rows = evaluate.prompts_of(tokenizer, text, config)
    assert rows.shape == (5, 14)
    for row in rows:
        words = tokenizer.decode(row)
        assert f"\n{words}" in text
        assert not words.startswith(" =")


@pytest.fixture(scope="module")
def pretrained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A GPT-2 in the files of the Hub, with random weights."""
    folder = tmp_path_factory.mktemp("gpt2")
    tokenizer = make_tokenizer(load_sample(0, 20).texts["train"], 350)
    torch.manual_seed(0)
    settings = GPT2Config(vocab_size=len(tokenizer), n_positions=32, n_embd=32, n_layer=1, n_head=1)
    GPT2LMHeadModel(settings).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def test_a_pretrained_model_is_evaluated_as_it_is_by_the_protocol_asked_for(pretrained: Path, tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    text = " \n = A title = \n \n The guest @-@ star was 1 @,@ 000 years old . \n" * 8
    (tmp_path / "data" / "test.txt").write_text(text)
    flags = ["--model", str(pretrained), "--data-dir", "data", "--detokenize", "--eval-stride", "16", "--nproc", "1"]
    finished = run([script("evaluate"), *flags], tmp_path)
    assert finished.status == 0, finished.stderr
    (folder,) = (tmp_path / "results" / "fairscale-gpt2-accumulation").iterdir()
    metrics = read_json(folder / "summary.json")["metrics"]
    model, tokenizer = load_pretrained(str(pretrained), None)
    tokens = evaluate.stream(tokenizer, text, detokenize=True)
    nll = token_by_token(model.eval(), tokens, 32, 16)
    assert metrics["test_word_perplexity"]["value"] == pytest.approx(math.exp(nll / num_words(text)), rel=1e-4)
    assert metrics["test_perplexity"]["value"] == pytest.approx(math.exp(nll / (len(tokens) - 1)), rel=1e-4)
    for words in ("de-tokenised", "context at most 32 tokens, stride 16", "weights as they came"):
        assert words in metrics["test_perplexity"]["protocol"]
    assert (folder / "report.html").is_file()
