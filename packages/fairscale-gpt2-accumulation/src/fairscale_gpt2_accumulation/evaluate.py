"""Perplexity by its several protocols, and continuations of prompts, on the test text."""

import contextlib
import math
import shutil
import sys
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor
from trainyard_shared import console, launch, metrics, plotting, results
from trainyard_shared.config import load_preset, to_dict, to_yaml, validate
from trainyard_shared.datasets.wikitext import TextDataset, num_words
from trainyard_shared.errors import DataError
from trainyard_shared.report import write_report
from trainyard_shared.tensors.evaluation import gather_in_order, shard_batches
from trainyard_shared.tensors.quick_start import postpone_dynamo

postpone_dynamo()  # before transformers is imported: nothing here is compiled

from fairscale_gpt2_accumulation import data, ngrams  # noqa: E402
from fairscale_gpt2_accumulation.config import EvaluateConfig, TrainConfig  # noqa: E402
from fairscale_gpt2_accumulation.generate import RUN_MODEL as MODEL  # noqa: E402
from fairscale_gpt2_accumulation.generate import continuations  # noqa: E402
from fairscale_gpt2_accumulation.model import LanguageModel, load_pretrained  # noqa: E402

PACKAGE = "fairscale-gpt2-accumulation"
TOKENS_AT_ONCE = 2048
NUM_SHOWN = 6


class Window(NamedTuple):
    """A stretch of text that the model reads, and how many of its last tokens count."""

    start: int
    end: int
    num_counted: int


class Likelihood(NamedTuple):
    """What the model says of a text; the same on every process."""

    nll: float
    """-log p of all tokens together, in nats"""
    num_tokens: int
    seconds: float

    @property
    def perplexity(self) -> float:
        """Per token."""
        return safe_exp(self.nll / self.num_tokens)


def windows(num_tokens: int, context: int, stride: int) -> list[Window]:
    """Return the windows that count each of `num_tokens` tokens once, with as much context as there is.

    The text is x[0], ..., x[num_tokens], where x[0] only precedes it. A window reads x[start:end] and predicts
    x[start + 1 : end + 1]; the last `num_counted` of these count. A token has at least context - stride + 1 tokens
    before it, or all there are.
    """
    found = []
    for begin in range(0, num_tokens, stride):
        end = min(begin + stride, num_tokens)
        found.append(Window(max(0, end - context), end, end - begin))
    return found


@torch.inference_mode()
def likelihood(
    model: LanguageModel, tokens: Tensor, context: int, stride: int, precision: str, device: torch.device
) -> Likelihood:
    """Return how likely a text is; each process computes its share of the windows.

    Args:
        model: plain, on `device`: shares can differ by one batch, and the forward pass of a sharded module would wait.
        tokens: (N + 1,) the first only precedes the text.
        context: tokens that the model reads at once.
        stride: tokens by which the window moves on, at most `context`.
        precision: fp32 or bf16.
        device: where to compute.
    """
    start = launch.seconds_since_command()
    rank, world_size = (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)
    was_training = model.training
    model.eval()
    all_windows = windows(len(tokens) - 1, context, stride)
    sums = [torch.empty(0, dtype=torch.double)]
    for index in shard_batches(len(all_windows), max(1, TOKENS_AT_ONCE // context), rank, world_size):
        batch = [all_windows[i] for i in index]
        width = max(window.end - window.start for window in batch)
        inputs = torch.zeros(len(batch), width, dtype=torch.int64)
        targets, counted = inputs.clone(), torch.zeros(len(batch), width, dtype=torch.bool)
        for row, (begin, end, num_counted) in enumerate(batch):
            length = end - begin
            inputs[row, :length], targets[row, :length] = tokens[begin:end], tokens[begin + 1 : end + 1]
            counted[row, length - num_counted : length] = True
        where = counted.to(device)
        with autocast(device, precision):
            hidden = model.gpt2.transformer(input_ids=inputs.to(device), use_cache=False).last_hidden_state
            logits = model.gpt2.lm_head(hidden[where])  # only where it counts
        losses = F.cross_entropy(logits.float(), targets.to(device)[where], reduction="none")
        per_window = torch.zeros(len(batch), dtype=torch.double)
        sums.append(per_window.index_add_(0, counted.nonzero()[:, 0], losses.double().cpu()))
    model.train(was_training)
    nll = gather_in_order(torch.cat(sums), len(all_windows)).sum().item()
    return Likelihood(nll, len(tokens) - 1, launch.seconds_since_command() - start)


def autocast(device: torch.device, precision: str) -> contextlib.AbstractContextManager:
    """Mixed precision for the forward pass: matrix products in 16 bits, sums and norms in 32."""
    return torch.autocast(device.type, torch.bfloat16) if precision == "bf16" else contextlib.nullcontext()


def stream(tokenizer: Any, text: str, detokenize: bool) -> Tensor:
    """Return a text as one run of tokens, (N + 1,), preceded by the end-of-text token: all of the text is predicted."""
    return torch.cat([torch.tensor([tokenizer.bos_token_id]), data.encode(tokenizer, text, detokenize)])


def safe_exp(value: float) -> float:
    """exp, infinite where it would overflow."""
    return math.exp(value) if value < 700 else math.inf


def perplexities(found: Likelihood, text: str, config: TrainConfig, chosen: str) -> dict[str, Any]:
    """Return the likelihood of a text in the three units in use, each with its protocol."""
    stride = config.eval_stride or config.context_length
    words, size = num_words(text), len(text.encode())
    form = "de-tokenised" if config.detokenize else "as published"
    how = (
        f"whole test text ({config.form} form, {form}) as one stream, each of {found.num_tokens:,} BPE tokens counted "
        f"once; context at most {config.context_length} tokens, stride {stride}; {config.precision}; {chosen}"
    )
    return {
        "test_perplexity": {
            "value": found.perplexity,
            "unit": "",
            "protocol": f"per BPE token: exp(nll / {found.num_tokens:,}); {how}",
        },
        "test_word_perplexity": {
            "value": safe_exp(found.nll / words),
            "unit": "",
            "protocol": f"per word of the published text: exp(nll / {words:,}), an end of line is a word; the rest as "
            "above",
        },
        "test_bits_per_byte": {
            "value": found.nll / math.log(2) / size,
            "unit": "bits",
            "protocol": f"nll in bits / {size:,} bytes of the published text in UTF-8; the rest as above",
        },
    }


# ------------------------------------------------------------------------------------------------------- continuations


def distinct(token_rows: list[list[int]], n: int) -> float:
    """Return the share of different n-grams among all of some continuations (Li et al. 2016, arXiv 1510.03055)."""
    grams = [tuple(row[i : i + n]) for row in token_rows for i in range(len(row) - n + 1)]
    return len(set(grams)) / len(grams) if grams else 0.0


def prompts_of(tokenizer: Any, text: str, config: TrainConfig) -> Tensor:
    """Return beginnings of paragraphs and what follows them, (num_prompts, prompt_tokens + continuation_tokens).

    They are spread evenly over the paragraphs that are long enough.
    """
    need = config.prompt_tokens + config.continuation_tokens
    lines = [line for line in text.splitlines(keepends=True) if line.strip() and not line.startswith(" =")]
    rows = [ids for ids in (data.encode(tokenizer, line, config.detokenize) for line in lines) if len(ids) >= need]
    if not rows or not config.num_prompts:
        return torch.empty(0, need, dtype=torch.int64)
    chosen = torch.linspace(0, len(rows) - 1, min(config.num_prompts, len(rows))).long().unique()
    return torch.stack([rows[i][:need] for i in chosen])


def continue_prompts(model: LanguageModel, tokenizer: Any, text: str, config: TrainConfig, device: Any) -> dict:
    """Return BLEU and distinct-n of continuations at each temperature, as summary.json has them; on one process."""
    import sacrebleu

    rows = prompts_of(tokenizer, text, config)
    if not len(rows):
        return {}
    prompts, truth = rows[:, : config.prompt_tokens].to(device), rows[:, config.prompt_tokens :]
    references = tokenizer.batch_decode(truth)
    score = sacrebleu.metrics.BLEU()
    # What texts on other things have in common: the true continuations, each compared with the next one.
    by_chance = score.corpus_score([*references[1:], references[0]], [references]).score
    found, columns = {}, []
    for temperature in config.temperatures:
        tokens = continuations(
            model,
            prompts,
            config.continuation_tokens,
            temperature=temperature,
            top_k=config.top_k,
            top_p=config.top_p,
            seed=config.seed,
        ).cpu()
        texts = tokenizer.batch_decode(tokens)
        columns.append(texts)
        found[temperature] = [
            score.corpus_score(texts, [references]).score,
            *(distinct(tokens.tolist(), n) for n in (1, 2, 3)),
        ]
    drawn = "all tokens" if not config.top_k else f"the {config.top_k} likeliest tokens"
    protocol = (
        f"{len(rows)} paragraphs of the test text: {config.prompt_tokens} tokens given, {config.continuation_tokens} "
        f"compared with those that follow; drawn among {drawn} and the likeliest with together {config.top_p:g} of the "
        f"probability, seed {config.seed}"
    )
    first = config.temperatures[0]
    head = [f"T = {temperature:g}" for temperature in config.temperatures]
    shown = range(min(NUM_SHOWN, len(rows)))
    return {
        "metrics": {
            "test_bleu": {
                "value": found[first][0],
                "unit": "",
                "protocol": f"sacrebleu {score.get_signature()}, 0 to 100, temperature {first:g}; {protocol}; the true "
                f"continuations of other paragraphs have {by_chance:.2f}",
            },
            "test_distinct_2": {
                "value": found[first][2],
                "unit": "fraction",
                "protocol": f"different pairs of tokens among all in the continuations at temperature {first:g}; the "
                f"true ones have {distinct(truth.tolist(), 2):.1%}",
            },
        },
        "tables": [
            {
                "title": "Continuations by temperature",
                "columns": ["temperature", "BLEU", "distinct-1", "distinct-2", "distinct-3"],
                "rows": [
                    *([f"{t:g}", f"{bleu:.2f}", *(f"{d:.1%}" for d in ds)] for t, (bleu, *ds) in found.items()),
                    ["true text", "100", *(f"{distinct(truth.tolist(), n):.1%}" for n in (1, 2, 3))],
                ],
                "note": f"{protocol}. BLEU by chance: {by_chance:.2f}.",
            },
            {
                "title": "Continuations side by side",
                "columns": ["given", "true", *head],
                "rows": [
                    [
                        tokenizer.decode(prompts[i]).strip(),
                        references[i].strip(),
                        *(column[i].strip() for column in columns),
                    ]
                    for i in shown
                ],
            },
        ],
    }


# -------------------------------------------------------------------------------------------------------------- report


def save_model(model: LanguageModel, tokenizer: Any, run_dir: Path) -> None:
    """Write a folder that `transformers.AutoModelForCausalLM.from_pretrained` reads."""
    draft = run_dir / f"{MODEL}.partial"
    shutil.rmtree(draft, ignore_errors=True)
    model.gpt2.save_pretrained(draft)
    tokenizer.save_pretrained(draft)
    shutil.rmtree(run_dir / MODEL, ignore_errors=True)
    draft.rename(run_dir / MODEL)


def test_and_report(
    model: LanguageModel,
    tokenizer: Any,
    dataset: TextDataset,
    config: TrainConfig,
    device: torch.device,
    folder: results.RunFolder,
    summary: dict[str, Any],
    train_end_s: float | None = None,
    *,
    train_text: str | None = None,
) -> None:
    """Measure the model on the whole test text; rank 0 writes metrics, pictures, summary and report.

    Args:
        model: the chosen weights; all processes hold the same.
        tokenizer: of the model.
        dataset: gives the test text.
        config: of the run.
        device: where to compute.
        folder: of the run.
        summary: what is known of the run already.
        train_end_s: seconds from the command to the end of training, None if this is a later evaluation.
        train_text: what the model was trained on, for the baselines; None if it is not this text.
    """
    text = dataset.texts["test"]
    tokens = stream(tokenizer, text, config.detokenize)
    stride = config.eval_stride or config.context_length
    found = likelihood(model, tokens, config.context_length, stride, config.precision, device)
    if launch.rank() != 0:
        return
    chosen = "weights of the epoch with the best validation loss" if train_text is not None else "weights as they came"
    summary["metrics"] = perplexities(found, text, config, chosen)
    note = "generated sample data" if dataset.kind == "sample" else ""
    if train_text is not None:
        train, vocab_size = stream(tokenizer, train_text, config.detokenize).numpy(), len(tokenizer)
        baselines = {
            "unigram": ngrams.unigram(train[1:], tokens[1:].numpy(), vocab_size),
            "bigram": ngrams.bigram(train, tokens.numpy(), vocab_size),
        }
        words = {"unigram": "each token by its frequency", "bigram": "by its frequency after the token before"}
        for name, value in baselines.items():
            summary["metrics"][f"test_{name}_perplexity"] = {
                "value": value,
                "unit": "",
                "protocol": f"per BPE token, on the same text, {words[name]} in the training text (smoothed)",
            }
        all_of_them = baselines | {"GPT-2": found.perplexity}
        rows = [{"variant": name, "values": {"perplexity": [value]}} for name, value in all_of_them.items()]
        title = "Perplexity of the test text, per BPE token"
        plotting.comparison_bars(rows, "perplexity", folder.plots / "perplexities.png", title=title, note=note)
        plotting.training_curves(folder.records(), folder.plots / "curves.png", note=note)
    continued = continue_prompts(model, tokenizer, text, config, device)
    summary["metrics"] |= continued.get("metrics", {})
    summary["tables"] = continued.get("tables", [])
    if train_end_s is not None:
        start_up_s = summary.pop("start_up_s")
        summary["phases_s"] = {
            "start_up": round(start_up_s, 1),
            "train": round(train_end_s - start_up_s, 1),
            "test_and_plots": round(launch.seconds_since_command() - train_end_s, 1),
        }
        summary["wall_time_s"] = round(launch.seconds_since_command(), 1)
        summary["finished_at"] = results.now()
    summary["evaluation_tokens_per_second"] = round(found.num_tokens / found.seconds, 1)
    if dataset.kind == "sample":
        summary["next_command"] = (
            "train --config cpu --data-dir DIR --tokenizer DIR     # real text on a CPU; --config full on a GPU"
        )
    folder.write_summary(summary)
    report = write_report(folder.path)
    for name, metric in summary["metrics"].items():
        console.say(f"{metrics.metric_label(name)} {metrics.format_value(metric['value'], metric['unit'])}")
    if dataset.kind == "sample":
        console.say("these data are a generated sample: the figures say nothing about WikiText-2")
    console.say(f"results: {folder.path}\nreport:  {report}")
    if dataset.kind == "sample":
        console.say(f"the real thing: {summary['next_command']}")


def evaluate(config: EvaluateConfig) -> None:
    """Measure a run's model again, or a pretrained one; runs in each process.

    Raises:
        DataError: there is no trained model, or the text cannot be had.
        UsageError: context_length is more than the model can see.
    """
    device = launch.choose_device(config.device)
    dist.init_process_group(launch.backend_for(device.type))
    if config.model is not None:
        evaluate_pretrained(config, device)
    else:
        assert config.run is not None  # cli.py has chosen it
        evaluate_run(config.run, config, device)
    launch.leave_together()


def evaluate_run(run: Path, config: EvaluateConfig, device: torch.device) -> None:
    """Measure the model of a finished run."""
    if not (run / MODEL / "config.json").is_file():
        raise DataError(f"error: {run}: no {MODEL}/: the run has not finished; continue it with train --resume {run}")
    trained = with_changes(load_preset(TrainConfig, run / "config.yaml"), config)
    model, tokenizer = load_pretrained(str(run / MODEL), None, context_length=trained.context_length)
    dataset = data.load(trained)
    text = data.split(dataset, trained).train
    folder = results.RunFolder(run)
    test_and_report(model.to(device), tokenizer, dataset, trained, device, folder, {}, train_text=text)


def evaluate_pretrained(config: EvaluateConfig, device: torch.device) -> None:
    """Measure a pretrained model as it is, and write a report of its own: zero-shot, if it never saw this text."""
    assert config.model is not None
    dataset = data.load_real(config.data_dir, config.form or "raw", ("test",))
    model, tokenizer = load_pretrained(config.model, config.tokenizer, context_length=config.context_length)
    sees = model.gpt2.config.n_positions
    base = TrainConfig(
        data="real",
        model=config.model,
        tokenizer=config.tokenizer,
        context_length=sees,
        num_prompts=TrainConfig.num_prompts if sees > 64 else 0,
    )
    setting = with_changes(base, config)
    folder = results.RunFolder(launch.run_dir(config.out_dir, PACKAGE, "pretrained", None))
    summary = {
        "package": PACKAGE,
        "config": "pretrained",
        "state": "finished",
        "model": config.model,
        "data": {"kind": dataset.kind, "name": dataset.name, "source": dataset.source},
        "world_size": launch.world_size(),
        "started_at": results.now(),
        "notes": list(dataset.notes),
        **results.provenance((PACKAGE, "trainyard-shared", "torch", "transformers", "tokenizers")),
    }
    if launch.rank() == 0:
        results.write_atomically(folder.path / "config.yaml", to_yaml(setting))
    test_and_report(model.to(device), tokenizer, dataset, setting, device, folder, summary)


def with_changes(base: TrainConfig, config: EvaluateConfig) -> TrainConfig:
    """Return a config with what an evaluation sets differently; raises UsageError if that does not fit together."""
    names = ("data_dir", "form", "detokenize", "context_length", "eval_stride")
    changed = {name: getattr(config, name) for name in names if getattr(config, name) is not None}
    if config.context_length is not None and config.eval_stride is None:
        changed["eval_stride"] = None  # that of the run may be more than the new context
    return validate(TrainConfig, to_dict(base) | changed, source="evaluate")


if __name__ == "__main__":
    from fairscale_gpt2_accumulation import cli

    sys.exit(cli.evaluate())
