"""How fast `train` of torchdist-imdb is, beside transformers.Trainer and beside a plain loop that pads to the maximum.

    uv run --with accelerate --package torchdist-imdb python tools/bench_torchdist_imdb.py --model FOLDER --data-dir DIR
    ... --accuracy 2000        train each on the same 2,000 reviews and report the validation accuracy as well

One process, the same model, reviews, threads and dtype for all, in turn, several rounds, medians. What counts are the
tokens of the texts, without padding:

    train    the project's own loop: sorted by length within windows, padded to the longest, passes of 8, fused AdamW
    trainer  transformers.Trainer at its defaults: batches of 8 in random order, padded to the longest of each
    padded   a plain loop: batches in random order, every review padded to max_length
"""

import argparse
import copy
import os
import socket
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
import transformers
from torch.utils.data import DataLoader
from torchdist_imdb import data, evaluate
from torchdist_imdb.config import TrainConfig
from torchdist_imdb.train import Run
from trainyard_shared.config import Parsed
from trainyard_shared.console import TrainingProgress
from trainyard_shared.tensors.lengths import Sequences

CPU = torch.device("cpu")
Work = Callable[[], Any]
"""trains over the reviews once, or for all epochs, and returns the model"""


def rows(run: Run) -> list[dict[str, Any]]:
    """The run's training reviews as a data set of dictionaries, which Trainer and DataLoader take."""
    ids = run.reviews.ids.tolist()
    ends = run.reviews.lengths.cumsum(0).tolist()
    return [
        {"input_ids": ids[end - n : end], "labels": label}
        for end, n, label in zip(ends, run.reviews.lengths.tolist(), run.labels.tolist(), strict=True)
    ]


def ours(run: Run) -> Work:
    """The project's loop over what is left of the run's epochs."""
    progress = TrainingProgress(run.total_reviews, show=False)

    def work() -> Any:
        run.train_epoch(progress)
        run.epoch, run.used = run.epoch + 1, 0
        return run.model

    return work


def trainer(run: Run, model: Any, folder: Path, learning_rate: float) -> Work:
    """transformers.Trainer as it comes, but for what it would write, and the learning rate if accuracy counts."""
    arguments = transformers.TrainingArguments(
        output_dir=str(folder),
        num_train_epochs=1,
        learning_rate=learning_rate,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        logging_strategy="no",
        use_cpu=True,
    )
    dataset: Any = rows(run)
    collator = transformers.DataCollatorWithPadding(run.tokenizer)

    def work() -> Any:
        transformers.Trainer(model, arguments, data_collator=collator, train_dataset=dataset).train()
        return model

    return work


def padded(run: Run, model: Any, config: TrainConfig) -> Work:
    """A plain loop with every review padded to max_length."""
    pad_id, width = run.tokenizer.pad_token_id, config.max_length

    def collate(batch: list[dict[str, Any]]) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        ids = torch.full((len(batch), width), pad_id)
        for row, sample in enumerate(batch):
            ids[row, : len(sample["input_ids"])] = torch.tensor(sample["input_ids"])
        return ids, ids != pad_id, torch.tensor([sample["labels"] for sample in batch])

    dataset: Any = rows(run)
    loader = DataLoader(dataset, config.global_batch_size, shuffle=True, collate_fn=collate)
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=config.learning_rate)

    def work() -> Any:
        model.train()
        for step, (ids, mask, labels) in enumerate(loader):
            optimizer.param_groups[0]["lr"] = config.learning_rate * (1 - step / len(loader))
            optimizer.zero_grad()
            loss = F.cross_entropy(model(input_ids=ids, attention_mask=mask).logits, labels)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(trained, 1.0)
            optimizer.step()
        return model

    return work


def seconds(work: Work) -> tuple[float, Any]:
    start = time.perf_counter()
    result = work()
    return time.perf_counter() - start, result


def accuracy(model: Any, reviews: Sequences, labels: torch.Tensor, pad_id: int, config: TrainConfig) -> float:
    logits = evaluate.predict(model, reviews, pad_id, config, CPU).logits
    return (logits.argmax(dim=1) == labels).float().mean().item()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True)
    parser.add_argument("--data-dir", type=Path, required=True)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--reviews", type=int, default=256, help="reviews in each round")
    parser.add_argument("--batch", type=int, default=16, help="of `train` and of the padded loop")
    # Tensors of 32 reviews are so large that the allocator hands their memory back after each use, and the kernel
    # clears it anew for the next.
    parser.add_argument("--micro-batch", type=int, default=8, help="reviews that `train` takes in one pass")
    parser.add_argument("--max-length", type=int, default=512)
    parser.add_argument("--learning-rate", type=float, default=2e-4)
    parser.add_argument("--accuracy", type=int, metavar="N", help="train each once on N reviews and validate it")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    torch.set_flush_denormal(True)  # for all alike
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(probe.getsockname()[1]), RANK="0", WORLD_SIZE="1")
    dist.init_process_group("gloo")
    num_rounds = 1 if arguments.accuracy else arguments.rounds + 1
    config = TrainConfig(
        data="real",
        data_dir=arguments.data_dir,
        num_train=arguments.accuracy or arguments.reviews,
        num_val=1000,
        test=False,
        model=arguments.model,
        max_length=arguments.max_length,
        epochs=num_rounds,
        global_batch_size=arguments.batch,
        micro_batch_size=arguments.micro_batch,
        learning_rate=arguments.learning_rate,
    )
    dataset = data.load(config)
    with tempfile.TemporaryDirectory() as folder:
        run = Run(Parsed(config, "bench", (), resume=Path(folder)), dataset, CPU)
        twins = [copy.deepcopy(run.model) for _ in range(2)]
        default = transformers.TrainingArguments(output_dir=folder).learning_rate
        loops = {
            "train": ours(run),
            "trainer": trainer(run, twins[0], Path(folder), arguments.learning_rate if arguments.accuracy else default),
            "padded": padded(run, twins[1], config),
        }
        tokens = int(run.reviews.lengths.sum())
        speeds: dict[str, list[float]] = {name: [] for name in loops}
        for number in range(num_rounds):
            for name, work in loops.items():
                taken, model = seconds(work)
                if arguments.accuracy:
                    found = accuracy(model, run.val_reviews, run.val_labels, run.tokenizer.pad_token_id, config)
                    print(f"{name:<8} {taken:6.0f} s   validation accuracy {found:.2%}", flush=True)
                elif number:  # the first round is not counted: memory is allocated
                    speeds[name].append(tokens / taken)
    if arguments.accuracy:
        return
    print(
        f"tokens/s over {arguments.rounds} rounds of {arguments.reviews} reviews with {tokens:,} tokens, "
        f"{arguments.threads} threads"
    )
    for name, values in speeds.items():
        print(f"  {name:<8} median {statistics.median(values):7.0f}   min {min(values):7.0f}   max {max(values):7.0f}")
    for other in ("trainer", "padded"):
        ratios = [ours / theirs for ours, theirs in zip(speeds["train"], speeds[other], strict=True)]
        middle = statistics.median(ratios)
        print(f"  train / {other:<8} median {middle:.2f}   min {min(ratios):.2f}   max {max(ratios):.2f}")


if __name__ == "__main__":
    main()
    sys.stdout.flush()
    os._exit(0)  # see trainyard_shared.launch.leave_together
