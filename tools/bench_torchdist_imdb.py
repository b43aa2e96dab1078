"""How fast torchdist-imdb trains beside transformers' Trainer and a loop that pads every review to the maximum.

    uv run --group test --package torchdist-imdb --with accelerate python tools/bench_torchdist_imdb.py \\
        --model FOLDER --data-dir DIR

All three train the same model on the same real reviews with the same threads, in one process, in turn; what counts are
tokens that carry text per second. With --accuracy, each trains a fresh model on as many reviews, and is tested on
held-out ones, to see that speed costs none.
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
import torch.distributed
import torch.nn.functional as F
import transformers
from torch import nn
from torchdist_imdb import data, evaluate
from torchdist_imdb.config import TrainConfig
from torchdist_imdb.model import build
from torchdist_imdb.train import Run
from trainyard_shared.config import Parsed
from trainyard_shared.console import TrainingProgress
from transformers import DataCollatorWithPadding, Trainer, TrainingArguments

LEARNING_RATE = 1e-4


class Bench:
    """The reviews and what all contenders share: the first `val` are held out, those after them are trained on."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.options = options
        self.config = TrainConfig(
            data="real",
            data_dir=options.data_dir,
            model=str(options.model),
            max_length=options.max_length,
            truncation="head_tail",
            num_train=options.accuracy or options.reviews,
            num_val=options.val,
            epochs=1,
            warmup_fraction=0.0,
            weight_decay=0.0,
            learning_rate=LEARNING_RATE,
            global_batch_size=options.batch_size,
            micro_batch_size=options.batch_size,
            log_every=1_000_000,
        )
        self.dataset = data.load(self.config)
        _, self.tokenizer, _ = build(self.config, self.dataset.class_names, [])
        train, val = data.split(self.dataset, self.config)
        encoder = data.Encoder(self.tokenizer, self.config)
        self.train, _ = encoder(self.dataset.train_texts[train])
        self.val, _ = encoder(self.dataset.train_texts[val])
        self.train_labels = torch.from_numpy(self.dataset.train_labels[train])
        self.val_labels = torch.from_numpy(self.dataset.train_labels[val])

    def fresh_model(self) -> nn.Module:
        """Return the pretrained model with a new head, the same for all."""
        torch.manual_seed(0)
        return build(self.config, self.dataset.class_names, []).model.train()


def train_of_the_project(bench: Bench) -> tuple[nn.Module, float]:
    """Train with the project's own loop, as one process; return the model and the seconds of the epoch."""
    with tempfile.TemporaryDirectory() as folder:
        run = Run(Parsed(bench.config, "bench", (), resume=Path(folder)), bench.dataset, torch.device("cpu"))
        start = time.perf_counter()
        run.train_epoch(TrainingProgress(run.total_reviews, show=False))
        return run.model, time.perf_counter() - start


def padded_to_the_maximum(bench: Bench) -> tuple[nn.Module, float]:
    """Train with batches at random, every review padded to the maximum: what many examples do."""
    model, reviews = bench.fresh_model(), bench.train
    start = time.perf_counter()
    optimizer = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE, weight_decay=0.0, fused=True)
    order = torch.randperm(len(reviews), generator=torch.Generator().manual_seed(0))
    batches = order.split(bench.options.batch_size)
    for number, chosen in enumerate(batches):
        ids, mask = reviews.padded(
            chosen, bench.tokenizer.pad_token_id, torch.device("cpu"), multiple_of=bench.options.max_length
        )
        optimizer.param_groups[0]["lr"] = LEARNING_RATE * (1 - number / len(batches))
        optimizer.zero_grad()
        F.cross_entropy(model(input_ids=ids, attention_mask=mask).logits, bench.train_labels[chosen]).backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
    return model, time.perf_counter() - start


def trainer_at_its_defaults(bench: Bench) -> tuple[nn.Module, float]:
    """Train with transformers' Trainer: batches of 8 at random, padded to their longest review."""
    model, ids = bench.fresh_model(), bench.train.ids.split(bench.train.lengths.tolist())
    rows = [
        {"input_ids": own.tolist(), "labels": int(label)} for own, label in zip(ids, bench.train_labels, strict=True)
    ]
    with tempfile.TemporaryDirectory() as folder:
        arguments = TrainingArguments(
            output_dir=folder,
            num_train_epochs=1,
            learning_rate=LEARNING_RATE,
            report_to="none",
            save_strategy="no",
            use_cpu=True,
            disable_tqdm=True,
        )
        trainer = Trainer(
            model=model,
            args=arguments,
            train_dataset=rows,
            data_collator=DataCollatorWithPadding(bench.tokenizer),
        )
        start = time.perf_counter()
        trainer.train()
        return model, time.perf_counter() - start


CONTENDERS: dict[str, Callable[[Bench], tuple[nn.Module, float]]] = {
    "torchdist-imdb": train_of_the_project,
    "Trainer": trainer_at_its_defaults,
    "padded to the maximum": padded_to_the_maximum,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True, help="folder of a pretrained encoder")
    parser.add_argument("--data-dir", type=Path, required=True, help="folder with the real IMDb reviews")
    parser.add_argument("--max-length", type=int, default=512, help="tokens of a review at most")
    parser.add_argument("--batch-size", type=int, default=16, help="of the project and the padded loop")
    parser.add_argument("--reviews", type=int, default=320, help="reviews of a round")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--accuracy", type=int, default=0, metavar="N", help="train on N reviews and test instead")
    parser.add_argument("--val", type=int, default=500, help="held-out reviews to test on")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    transformers.logging.set_verbosity_error()
    # One process is a group, too: the project's loop communicates with itself.
    torch.distributed.init_process_group("gloo", init_method="tcp://127.0.0.1:0", rank=0, world_size=1)
    bench = Bench(options)
    tokens = int(bench.train.lengths.sum())
    print(
        f"{len(bench.train)} reviews, {tokens / len(bench.train):.0f} tokens each, {options.threads} threads",
        flush=True,
    )
    if options.accuracy:
        for name, train in CONTENDERS.items():
            model, seconds = train(bench)
            logits = evaluate.predict(
                model, bench.val, bench.tokenizer.pad_token_id, bench.config, torch.device("cpu")
            ).logits
            share = float((logits.argmax(dim=1) == bench.val_labels).float().mean())
            print(f"{name:<24}{share:>8.1%} of {options.val} reviews   {tokens / seconds:>8.0f} tokens/s", flush=True)
        return
    speeds: dict[str, list[float]] = {name: [] for name in CONTENDERS}
    for number in range(options.rounds):
        for name, train in CONTENDERS.items():
            speeds[name].append(tokens / train(bench)[1])
        print(f"round {number + 1}: " + "   ".join(f"{name} {own[-1]:.0f}" for name, own in speeds.items()), flush=True)
    for name, own in speeds.items():
        ratios = [a / b for a, b in zip(speeds["torchdist-imdb"], own, strict=True)]
        print(
            f"{name:<24}{statistics.median(own):>8.0f} tokens/s   torchdist-imdb / it {statistics.median(ratios):.2f}"
        )


if __name__ == "__main__":
    main()
