"""How well a model foretells text: perplexity per token and bits per byte, for each component of The Pile.

Bits per byte = sum of the negative log-likelihoods of all tokens, in bits, / UTF-8 bytes of the raw text. It can be
compared between tokenizers, which the perplexity per token cannot: the larger the pieces, the higher that one is.

The protocol: each document stands alone, after an end-of-text token; all of its tokens count, each once; the
end-of-text token after it does not. A window of T tokens moves by `stride`: every token is foretold from at least
T - stride tokens before it, or from all there are. The documents are dealt out to the processes, each to one.
"""

import dataclasses
import lzma
import math
import shutil
import sys
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.distributed as dist
import torch.nn.functional as F
from numpy.typing import NDArray
from tokenizers import Tokenizer
from torch import nn
from trainyard_shared import console, launch, metrics, plotting, results
from trainyard_shared.config import load_preset
from trainyard_shared.datasets import pile
from trainyard_shared.datasets.pile import PileFiles
from trainyard_shared.errors import DataError
from trainyard_shared.report import write_report
from trainyard_shared.tensors.quick_start import postpone_dynamo

postpone_dynamo()  # before transformers is imported: nothing here is compiled

from deepspeed_gpt2_pile import data, generate  # noqa: E402
from deepspeed_gpt2_pile.config import EvaluateConfig, SamplingConfig, TrainConfig, weights_of  # noqa: E402
from deepspeed_gpt2_pile.model import load_trained  # noqa: E402

MODEL = "model"
WINDOWS_AT_ONCE = 32  # batches among which windows are sorted by length, to be padded little
BASELINE_TOKENS = 2_000_000  # of the training data, from which the baselines learn how frequent tokens and pairs are
COMPRESSED_BYTES = 4_000_000  # of each component, for the anchors: xz takes a second for a megabyte
NUM_RESAMPLES = 1000
NUM_SAMPLES = 4


class Measured(NamedTuple):
    """What was measured of each of N documents, in their order; the same on every process."""

    component: list[str]
    nats: NDArray[np.float64]
    """(N,) negative log-likelihood of the whole document"""
    tokens: NDArray[np.int64]
    bytes: NDArray[np.int64]

    def of(self, component: str) -> "Measured":
        """Return the documents of one component."""
        own = np.array([name == component for name in self.component], dtype=bool)
        return Measured([component] * int(own.sum()), self.nats[own], self.tokens[own], self.bytes[own])

    def bits_per_byte(self) -> float:
        """All bits over all bytes: long documents weigh more."""
        return float(self.nats.sum() / math.log(2) / self.bytes.sum())

    def perplexity(self) -> float:
        """Perplexity per token."""
        return float(np.exp(self.nats.sum() / max(self.tokens.sum(), 1)))

    def interval(self) -> tuple[float, float]:
        """Return the 95 % bootstrap interval of the bits per byte: documents are drawn anew, with replacement."""
        rng = np.random.default_rng(0)
        drawn = rng.integers(len(self.nats), size=(NUM_RESAMPLES, len(self.nats)))
        values = self.nats[drawn].sum(axis=1) / math.log(2) / self.bytes[drawn].sum(axis=1)
        low, high = np.percentile(values, [2.5, 97.5])
        return float(low), float(high)


@torch.inference_mode()
def measure(
    model: nn.Module,
    tokenizer: Tokenizer,
    files: Sequence[Path],
    limit: int | None,
    config: TrainConfig,
    device: torch.device,
) -> Measured:
    """Measure documents, shared out among all processes; each calls it with the whole model, not a sharded one.

    Args:
        model: plain module on `device`.
        tokenizer: of the model.
        files: of the documents.
        limit: how many of them, from the first; None for all.
        config: context length, stride, batch size.
        device: where to compute.
    """
    was_training = model.training
    model.eval()
    rank, world_size = (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)
    end = data.end_of_text(tokenizer)
    found: dict[int, list[Any]] = {}  # by number of the document: component, nats, tokens, bytes
    waiting: list[data.Window] = []
    for number, document in enumerate(pile.documents(files, limit)):
        if number % world_size != rank or not document.text:
            continue
        tokens = tokenizer.encode(document.text, add_special_tokens=False).ids
        found[number] = [document.component, 0.0, len(tokens), len(document.text.encode())]
        waiting += data.windows([end, *tokens], number, config.context_length, config.stride)
        if len(waiting) >= WINDOWS_AT_ONCE * config.eval_batch_size:
            _add(model, waiting, found, end, config.eval_batch_size, device)
            waiting = []
    _add(model, waiting, found, end, config.eval_batch_size, device)
    model.train(was_training)
    if dist.is_initialized():
        parts: list[Any] = [None] * world_size
        dist.all_gather_object(parts, found)
    else:
        parts = [found]
    return _together(parts)


def _add(
    model: nn.Module,
    waiting: list[data.Window],
    found: dict[int, list[Any]],
    pad: int,
    batch_size: int,
    device: torch.device,
) -> None:
    """Add the nats of windows to their documents."""
    waiting = sorted(waiting, key=lambda window: len(window.tokens))
    for begin in range(0, len(waiting), batch_size):
        batch = waiting[begin : begin + batch_size]
        length = len(batch[-1].tokens)
        # Padding stands behind, where no token that counts can see it.
        tokens = torch.tensor(
            [window.tokens + [pad] * (length - len(window.tokens)) for window in batch], device=device
        )
        logits = model(input_ids=tokens[:, :-1]).logits.float()  # (B, T, V)
        nats = F.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten(), reduction="none").view(len(batch), -1)
        nats = nats.double().cpu()
        for row, window in zip(nats, batch, strict=True):
            found[window.document][1] += float(row[window.first - 1 : len(window.tokens) - 1].sum())


def _together(parts: list[dict[int, list[Any]]]) -> Measured:
    found: dict[int, list[Any]] = {}
    for part in parts:
        found |= part
    rows = [found[number] for number in sorted(found)]
    if not rows:
        raise DataError("error: the documents to measure are all empty")
    names, nats, tokens, sizes = zip(*rows, strict=True)
    return Measured(list(names), np.array(nats), np.array(tokens), np.array(sizes))


# ------------------------------------------------------------------------------------------------------------ baselines


def frequency_bits_per_byte(files: PileFiles, tokenizer: Tokenizer, config: TrainConfig) -> dict[str, dict[str, float]]:
    """Return, by component, the bits per byte of models that only know how frequent tokens, and pairs of tokens, are.

    They have seen the first BASELINE_TOKENS tokens of the training data, in the mixture of the run, but not twice. The
    unigram counts one more of each token. The bigram mixes the tokens that followed the one before with the unigram, in
    the shares of Witten and Bell (1991, doi 10.1109/18.87000): the more kinds of tokens followed, the more of that.
    """
    end, vocab_size = data.end_of_text(tokenizer), tokenizer.get_vocab_size()
    ids = _training_tokens(files, tokenizer, config)
    unigram = np.bincount(ids[ids != end], minlength=vocab_size) + 1.0
    unigram /= unigram.sum()
    pairs, times = np.unique(ids[:-1] * vocab_size + ids[1:], return_counts=True)
    pairs, times = np.append(pairs, -1), np.append(times, 0)  # where what was not seen is looked up
    followed = np.bincount(pairs[:-1] // vocab_size, weights=times[:-1], minlength=vocab_size)
    kinds = np.bincount(pairs[:-1] // vocab_size, minlength=vocab_size)
    bits: dict[str, dict[str, float]] = {}
    sizes: dict[str, int] = {}
    for document in pile.documents(files.test, config.num_test_documents):
        name = document.component
        own = np.array([end, *tokenizer.encode(document.text, add_special_tokens=False).ids], dtype=np.int64)
        before, after = own[:-1], own[1:]
        at = np.searchsorted(pairs[:-1], before * vocab_size + after)
        seen = np.where(pairs[at] == before * vocab_size + after, times[at], 0)
        share = (seen + kinds[before] * unigram[after]) / np.maximum(followed[before] + kinds[before], 1)
        bigram = np.where(followed[before] > 0, share, unigram[after])
        total = bits.setdefault(name, {"unigram": 0.0, "bigram": 0.0})
        total["unigram"] -= float(np.log2(unigram[after]).sum())
        total["bigram"] -= float(np.log2(bigram).sum())
        sizes[name] = sizes.get(name, 0) + len(document.text.encode())
    return {
        name: {kind: value / sizes[name] for kind, value in total.items()}
        for name, total in bits.items()
        if sizes[name]
    }


def _training_tokens(files: PileFiles, tokenizer: Tokenizer, config: TrainConfig) -> NDArray[np.int64]:
    """Return the first tokens of the training data, at most one pass, with an end-of-text token around documents."""
    end = data.end_of_text(tokenizer)
    ids: list[int] = [end]
    stream = pile.Stream(files.train, weights=weights_of(config.mixture), seed=config.seed)
    for document, place in stream.documents():
        if len(ids) >= BASELINE_TOKENS or place.epoch > 0:
            break
        ids += [*tokenizer.encode(document.text, add_special_tokens=False).ids, end]
    return np.array(ids, dtype=np.int64)


def compressed_bits_per_byte(files: Sequence[Path], limit: int | None) -> dict[str, dict[str, float]]:
    """Return, by component, the bits per byte of `zlib -9` and `xz -9e` over the joined texts of its documents."""
    makers = {"zlib": lambda: zlib.compressobj(9), "xz": lambda: lzma.LZMACompressor(preset=9 | lzma.PRESET_EXTREME)}
    compressors: dict[str, dict[str, Any]] = {}
    read: dict[str, int] = {}
    written: dict[str, dict[str, int]] = {}
    for document in pile.documents(files, limit):
        name, content = document.component, document.text.encode()
        if name not in compressors:
            compressors[name] = {kind: make() for kind, make in makers.items()}
            read[name], written[name] = 0, dict.fromkeys(makers, 0)
        content = content[: max(COMPRESSED_BYTES - read[name], 0)]
        read[name] += len(content)
        for kind, compressor in compressors[name].items():
            written[name][kind] += len(compressor.compress(content))
    for name, own in compressors.items():
        for kind, compressor in own.items():
            written[name][kind] += len(compressor.flush())
    return {
        name: {kind: 8 * size / read[name] for kind, size in sizes.items()}
        for name, sizes in written.items()
        if read[name]
    }


# ----------------------------------------------------------------------------------------------------------- the report


def save_model(model: Any, tokenizer: Tokenizer, folder: Path, context_length: int) -> None:
    """Write a folder that `transformers.GPT2LMHeadModel.from_pretrained` and `AutoTokenizer` read."""
    draft = folder.with_name(f"{folder.name}.partial")
    shutil.rmtree(draft, ignore_errors=True)
    model.save_pretrained(draft)
    data.write_tokenizer(tokenizer, draft, context_length)
    shutil.rmtree(folder, ignore_errors=True)
    draft.rename(folder)


def test_and_report(
    model: Any,
    tokenizer: Tokenizer,
    files: PileFiles,
    config: TrainConfig,
    device: torch.device,
    folder: results.RunFolder,
    summary: dict[str, Any],
    train_end_s: float | None = None,
) -> None:
    """Test the model; rank 0 writes metrics, pictures, summary and report.

    Args:
        model: the chosen weights; all processes hold the same.
        tokenizer: of the model.
        files: gives the test set, which is left alone if the config says so.
        config: of the run.
        device: where to compute.
        folder: of the run.
        summary: what is known of the run already.
        train_end_s: seconds from the command to the end of training, None if this is a later evaluation.
    """
    measured = None
    if config.test:
        measured = measure(model, tokenizer, files.test, config.num_test_documents, config, device)
    if launch.rank() != 0:
        return
    note = "generated sample data" if files.kind == "sample" else ""
    plotting.training_curves(folder.records(), folder.plots / "curves.png", note=note)
    if measured is not None:
        summary |= tabulate(measured, files, tokenizer, config)
        summary["tables"].append(samples(model, tokenizer, files, device))
        draw(summary, folder.plots, note)
    else:
        protocol = (
            f"best of all epochs on {config.num_val_documents:,} validation documents; the test set was left alone"
        )
        value = {"value": summary["val_bits_per_byte"], "unit": "bits/byte", "protocol": protocol}
        summary["metrics"] = {"val_bits_per_byte": value}
    if train_end_s is not None:
        start_up_s = summary.pop("start_up_s")
        summary["phases_s"] = {
            "start_up": round(start_up_s, 1),
            "train": round(train_end_s - start_up_s, 1),
            "test_and_plots": round(launch.seconds_since_command() - train_end_s, 1),
        }
        summary["wall_time_s"] = round(launch.seconds_since_command(), 1)
        summary["finished_at"] = results.now()
    if files.kind == "sample":
        summary["next_command"] = "train --config cpu --data-dir FOLDER     # real text on a CPU; --config full on GPUs"
    folder.write_summary(summary)
    report = write_report(folder.path)
    for name, metric in summary["metrics"].items():
        interval = ""
        if "interval" in metric:
            low, high = metric["interval"]
            interval = f" (95 % interval {low:.4f} to {high:.4f})"
        console.say(f"{metrics.metric_label(name)} {metrics.format_value(metric['value'], metric['unit'])}{interval}")
    for component, figures in summary.get("components", {}).items():
        anchors = ", ".join(f"{name} {figures[name]:.3f}" for name in ("unigram", "bigram", "xz"))
        console.say(f"  {component:<20} {figures['bits_per_byte']:.3f} bits per byte ({anchors})")
    if files.kind == "sample":
        console.say("these data are a generated sample: the figures say nothing about The Pile")
    console.say(f"results: {folder.path}\nreport:  {report}")
    if files.kind == "sample":
        console.say(f"the real thing: {summary['next_command']}")


def tabulate(measured: Measured, files: PileFiles, tokenizer: Tokenizer, config: TrainConfig) -> dict[str, Any]:
    """Return metrics and results by component, as summary.json has them."""
    frequencies = frequency_bits_per_byte(files, tokenizer, config)
    anchors = compressed_bits_per_byte(files.test, config.num_test_documents)
    which = "all" if config.num_test_documents is None else "the first"
    protocol = (
        f"{which} {len(measured.nats):,} test documents, {measured.bytes.sum():,} bytes of UTF-8, "
        f"{measured.tokens.sum():,} tokens, each counted once; every document by itself after an end-of-text token; "
        f"context {config.context_length} tokens, stride {config.stride}"
    )
    components: dict[str, dict[str, Any]] = {}
    for name in sorted(set(measured.component)):
        own = measured.of(name)
        components[name] = {
            "documents": len(own.nats),
            "bytes": int(own.bytes.sum()),
            "tokens": int(own.tokens.sum()),
            "bits_per_byte": own.bits_per_byte(),
            "interval": list(own.interval()),
            "perplexity": own.perplexity(),
            **frequencies[name],
            **anchors[name],
        }
    weights = {name: figures["bytes"] for name, figures in components.items()}
    means = {
        kind: sum(components[name][kind] * size for name, size in weights.items()) / sum(weights.values())
        for kind in ("unigram", "bigram", "zlib", "xz")
    }
    return {
        "components": components,
        "metrics": {
            "test_bits_per_byte": {
                "value": measured.bits_per_byte(),
                "unit": "bits/byte",
                "protocol": f"{protocol}; interval: bootstrap over documents",
                "interval": list(measured.interval()),
            },
            "test_perplexity": {
                "value": measured.perplexity(),
                "unit": "per token",
                "protocol": f"of the same tokens; tokenizer {Path(config.tokenizer_name).name}, so not comparable "
                "with models of other tokenizers",
            },
            "unigram_bits_per_byte": {
                "value": means["unigram"],
                "unit": "bits/byte",
                "protocol": f"baseline: frequencies of tokens in the first {BASELINE_TOKENS:,} tokens of the training "
                "data, or in all if there are fewer; add-one smoothing",
            },
            "bigram_bits_per_byte": {
                "value": means["bigram"],
                "unit": "bits/byte",
                "protocol": "baseline: how often a token has followed the one before in the same tokens; smoothing of "
                "Witten and Bell",
            },
            "xz_bits_per_byte": {
                "value": means["xz"],
                "unit": "bits/byte",
                "protocol": f"anchor: xz -9e of each component's texts joined, at most {COMPRESSED_BYTES:,} bytes",
            },
        },
        "tables": [
            {
                "title": "Bits per byte by component",
                "columns": [
                    "component", "documents", "bytes", "bits per byte", "95 % interval", "perplexity per token",
                    "unigram", "bigram", "zlib -9", "xz -9e",
                ],
                "rows": [
                    [
                        name, f"{c['documents']:,}", f"{c['bytes']:,}", f"{c['bits_per_byte']:.3f}",
                        f"{c['interval'][0]:.3f} to {c['interval'][1]:.3f}", f"{c['perplexity']:.2f}",
                        f"{c['unigram']:.3f}", f"{c['bigram']:.3f}", f"{c['zlib']:.3f}", f"{c['xz']:.3f}",
                    ]
                    for name, c in components.items()
                ],
                "note": "The last four columns are bits per byte, too: of the frequencies of tokens and of pairs of "
                "tokens in the training data, and of compressors that see the test documents only.",
            }
        ],
    }  # fmt: skip


def samples(model: Any, tokenizer: Tokenizer, files: PileFiles, device: torch.device) -> dict[str, Any]:
    """Return a table with texts that the model has written after beginnings of validation documents."""
    prompts = generate.beginnings(files.val, NUM_SAMPLES)
    how = SamplingConfig(max_new_tokens=60)
    texts = generate.continuations(model, tokenizer, list(prompts.values()), how, device)
    return {
        "title": "Written by the model",
        "columns": ["component", "beginning (of a validation document)", "continuation"],
        "rows": [[name, prompt, text[0]] for (name, prompt), text in zip(prompts.items(), texts, strict=True)],
        "note": f"Drawn with temperature {how.temperature}, top-k {how.top_k}, top-p {how.top_p}; not selected.",
    }


def draw(summary: dict[str, Any], plots: Path, note: str) -> None:
    """Draw bits per byte by component, beside the baselines."""
    components = summary["components"]
    kinds = {"bits_per_byte": "GPT-2", "bigram": "bigram", "unigram": "unigram", "xz": "xz -9e", "zlib": "zlib -9"}
    plotting.heat_map(
        [[figures[kind] for kind in kinds] for figures in components.values()],
        list(components),
        list(kinds.values()),
        plots / "bits_per_byte.png",
        title="Bits per byte of the test documents",
        note=note,
    )


def trained_config(run: Path) -> TrainConfig:
    """Return the config of a finished run; raises DataError if the folder holds no trained model."""
    if not (run / MODEL / "config.json").is_file():
        raise DataError(f"error: {run}: no {MODEL}/: the run has not finished; continue it with train --resume {run}")
    return load_preset(TrainConfig, run / "config.yaml")


def evaluate(run: Path, config: EvaluateConfig) -> None:
    """Test the model of a finished run again; runs in each process.

    Raises:
        DataError: the folder holds no trained model.
    """
    trained = trained_config(run)
    changes: dict[str, Any] = {"data_dir": config.data_dir or trained.data_dir, "test": True}
    for name in ("num_test_documents", "eval_stride"):
        if getattr(config, name) is not None:
            changes[name] = getattr(config, name)
    trained = dataclasses.replace(trained, **changes)
    if config.num_threads != "auto":
        torch.set_num_threads(config.num_threads)
    device = launch.choose_device(config.device)
    dist.init_process_group(launch.backend_for(device.type))
    files = data.load(trained)
    tokenizer = data.load_tokenizer(str(run / MODEL))
    model = load_trained(run / MODEL).to(device)
    test_and_report(model, tokenizer, files, trained, device, results.RunFolder(run), {})
    launch.leave_together()


if __name__ == "__main__":
    from deepspeed_gpt2_pile import cli

    sys.exit(cli.evaluate())
