"""How fast deepspeed-bert-sentiment140 prepares 1.6 million tweets, and trains beside DDP and transformers.Trainer.

    uv run --package deepspeed-bert-sentiment140 python tools/bench_deepspeed_sentiment140.py --prepare
    uv run --with accelerate --package deepspeed-bert-sentiment140 python tools/bench_deepspeed_sentiment140.py
    ... --model FOLDER --data-dir DIR        a pretrained encoder on real tweets; default: `tiny` on generated ones
    ... --equal-lengths                      all tweets cut to the same number of tokens: no padding for anybody

--prepare writes generated rows in the form of the real file, then reads, cleans, splits and tokenises them in a fresh
process, and gives throughput and peak memory.

Without it, on the same tweets, with the same model, threads and DeepSpeed config, in turn, several rounds, medians of
tokens/s without padding:

    zero0    the project's loop with stage 0 of ZeRO: tweets sorted by length within windows
    ddp      the same batches with plain DistributedDataParallel: what DeepSpeed's engine costs is the difference
    trainer  transformers.Trainer at its defaults: random batches, each padded to its longest
"""

import argparse
import copy
import importlib.util
import json
import os
import resource
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any


def prepare(arguments: argparse.Namespace) -> None:
    """Write the rows, then prepare them in a fresh process with a cache of its own."""
    from trainyard_shared.datasets.sentiment140 import make_sample

    folder = Path(tempfile.mkdtemp(prefix="sentiment140-"))
    try:
        start = time.perf_counter()
        files = make_sample(folder / "tweets", seed=0, num_train=arguments.rows)
        size = sum(path.stat().st_size for path in files.glob("training*"))
        print(f"written: {arguments.rows:,} rows, {size / 1e6:.0f} MB, {time.perf_counter() - start:.0f} s", flush=True)
        command = [sys.executable, __file__, "--prepare-worker", str(files), *sys.argv[1:]]
        subprocess.run(command, check=True, env=os.environ | {"XDG_CACHE_HOME": str(folder / "cache")})
    finally:
        shutil.rmtree(folder)


def prepare_worker(arguments: argparse.Namespace) -> None:
    """Read alone, then everything; rows are generated, so their tokens are counted as well."""
    from deepspeed_bert_sentiment140 import data
    from deepspeed_bert_sentiment140.config import TrainConfig
    from deepspeed_bert_sentiment140.model import get_tokenizer
    from trainyard_shared.datasets.sentiment140 import read_chunks

    config = TrainConfig(data="real", data_dir=arguments.prepare_worker, model=arguments.model)
    files = data.find(config)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    start = time.perf_counter()
    rows = sum(len(chunk.texts) for chunk in read_chunks(files.train, config.chunk_rows))
    read_s = time.perf_counter() - start
    print(f"read in chunks of {config.chunk_rows:,}: {read_s:.0f} s, {rows / read_s:,.0f} rows/s", flush=True)
    tokenizer = get_tokenizer(config, data.training_texts(files, config))
    start = time.perf_counter()
    tweets = data.load(files, tokenizer, config)
    taken = time.perf_counter() - start
    tokens = len(tweets.sequences.ids)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    print(
        f"read, cleaned, split and tokenised: {taken:.0f} s, {rows / taken:,.0f} rows/s, "
        f"{tokens / taken:,.0f} tokens/s\n"
        f"peak memory of the process: {peak / 2**20:.2f} GiB, of which {before / 2**20:.2f} GiB for libraries\n"
        f"kept: {', '.join(f'{len(index):,} {name}' for index, name in zip(tweets.index, data.SPLITS, strict=True))}"
    )
    start = time.perf_counter()
    data.load(files, tokenizer, config)
    print(f"a second time, from the cache: {time.perf_counter() - start:.1f} s")


def train(arguments: argparse.Namespace) -> None:
    """Start the processes that train."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    environment = os.environ | {
        "WORLD_SIZE": str(arguments.nproc),
        "LOCAL_WORLD_SIZE": str(arguments.nproc),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "OMP_NUM_THREADS": str(arguments.threads),
        "TOKENIZERS_PARALLELISM": "false",
    }
    command = [sys.executable, "-W", "ignore", __file__, *sys.argv[1:]]
    workers = [
        subprocess.Popen(command, env=environment | {"RANK": str(rank), "LOCAL_RANK": str(rank)})
        for rank in range(arguments.nproc)
    ]
    try:
        sys.exit(max(worker.wait() for worker in workers))
    finally:
        for worker in workers:
            worker.kill()


def train_worker(arguments: argparse.Namespace) -> None:
    """Train with each loop in turn."""
    import torch
    import torch.distributed as dist
    from deepspeed_bert_sentiment140.config import TrainConfig
    from deepspeed_bert_sentiment140.train import Run, start_deepspeed
    from trainyard_shared.config import Parsed
    from trainyard_shared.tensors.lengths import Sequences

    torch.set_num_threads(arguments.threads)
    torch.set_flush_denormal(True)  # for all alike
    cpu = torch.device("cpu")
    deepspeed = start_deepspeed(cpu, 600.0)
    config = TrainConfig(
        data="real" if arguments.data_dir else "sample",
        data_dir=arguments.data_dir,
        num_train=arguments.tweets,
        model=arguments.model,
        deepspeed="zero0",
        epochs=arguments.rounds + 1,
        micro_batch_size=arguments.micro_batch,
        log_every=10**6,
        learning_rate=1e-4,
    )
    run = Run(Parsed(config, "bench", (), resume=Path(tempfile.mkdtemp())), deepspeed, cpu)
    if arguments.equal_lengths:
        # The mean length, rounded; shorter tweets are filled up with their own tokens.
        tweets = run.tweets.sequences
        width = round(run.batches.lengths.float().mean().item())
        rows = [
            (tweets.ids[s : s + n].tolist() * width)[:width] for s, n in zip(tweets.starts, tweets.lengths, strict=True)
        ]
        object.__setattr__(run.tweets, "sequences", Sequences.from_lists(rows))
        run.batches.lengths = torch.full_like(run.batches.lengths, width)
    twins = [copy.deepcopy(run.whole).train() for _ in range(2)]
    loops: dict[str, Callable[[], float]] = {
        "zero0": ours(run),
        "ddp": ddp(run, twins[0]),
    }
    if importlib.util.find_spec("accelerate"):
        loops["trainer"] = trainer(run, twins[1])
    tokens = int(run.batches.lengths.sum())
    speeds: dict[str, list[float]] = {name: [] for name in loops}
    for number in range(arguments.rounds + 1):
        for name, work in loops.items():
            dist.barrier()
            taken = work()
            if number:  # the first round is not counted: memory is allocated
                speeds[name].append(tokens / taken)
    if dist.get_rank() == 0:
        print(
            f"tokens/s over {arguments.rounds} rounds of {len(run.train_index)} tweets with {tokens:,} tokens, "
            f"{arguments.nproc} processes of {arguments.threads} threads, passes of {arguments.micro_batch}"
        )
        for name, values in speeds.items():
            print(
                f"  {name:<8} median {statistics.median(values):7.0f}   min {min(values):7.0f}   max {max(values):7.0f}"
            )
        for other in list(loops)[1:]:
            ratios = [mine / theirs for mine, theirs in zip(speeds["zero0"], speeds[other], strict=True)]
            print(
                f"  zero0 / {other:<8} median {statistics.median(ratios):.2f}   {min(ratios):.2f} to {max(ratios):.2f}"
            )
        print(json.dumps(speeds))
    dist.barrier()


def ours(run: Any) -> Callable[[], float]:
    """The project's loop over one epoch."""
    from trainyard_shared.console import TrainingProgress

    progress = TrainingProgress(run.total_tweets, show=False)

    def work() -> float:
        start = time.perf_counter()
        run.train_epoch(progress)
        run.epoch, run.used = run.epoch + 1, 0
        return time.perf_counter() - start

    return work


def ddp(run: Any, model: Any) -> Callable[[], float]:
    """The same batches and steps with plain PyTorch."""
    import torch
    from deepspeed_bert_sentiment140.losses import tweet_losses

    parallel = torch.nn.parallel.DistributedDataParallel(model, gradient_as_bucket_view=True)
    optimizer = torch.optim.AdamW(model.parameters(), lr=run.config.learning_rate)
    epochs = iter(range(10**6))

    def work() -> float:
        start = time.perf_counter()
        for num_tweets, micro_batches in run.batches.epoch(next(epochs)):
            optimizer.zero_grad(set_to_none=False)
            for micro_batch in micro_batches:
                ids, mask, labels = run.batch(micro_batch)
                logits = parallel(input_ids=ids, attention_mask=mask).logits
                loss = micro_batch.weight * tweet_losses(logits, labels, run.class_weights, run.config).sum()
                (loss * run.world_size / num_tweets).backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), run.config.max_grad_norm)
            optimizer.step()
        return time.perf_counter() - start

    return work


def trainer(run: Any, model: Any) -> Callable[[], float]:
    """transformers.Trainer with the same DeepSpeed config; its start is not in its time."""
    import transformers

    sequences, labels = run.tweets.sequences, run.tweets.labels
    dataset: Any = [
        {
            "input_ids": sequences.ids[sequences.starts[i] : sequences.starts[i] + sequences.lengths[i]].tolist(),
            "labels": int(labels[i]),
        }
        for i in run.train_index.tolist()
    ]

    class Clock(transformers.TrainerCallback):
        def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            if state.global_step == 0:
                self.start = time.perf_counter()

        def on_train_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            self.seconds = time.perf_counter() - self.start

    def work() -> float:
        folder, clock = tempfile.mkdtemp(), Clock()
        arguments = transformers.TrainingArguments(
            output_dir=folder,
            num_train_epochs=1,
            per_device_train_batch_size=run.config.micro_batch_size,
            learning_rate=run.config.learning_rate,
            weight_decay=run.config.weight_decay,
            max_grad_norm=run.config.max_grad_norm,
            deepspeed=json.loads(json.dumps(run.settings)),
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
            logging_strategy="no",
            use_cpu=True,
        )
        collator = transformers.DataCollatorWithPadding(run.tokenizer)
        transformers.Trainer(model, arguments, data_collator=collator, train_dataset=dataset, callbacks=[clock]).train()
        shutil.rmtree(folder, ignore_errors=True)
        return clock.seconds

    return work


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prepare", action="store_true", help="prepare generated rows instead of training")
    parser.add_argument("--prepare-worker", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--rows", type=int, default=1_600_000, help="rows to prepare")
    parser.add_argument("--model", default="tiny")
    parser.add_argument("--data-dir", type=Path)
    parser.add_argument("--nproc", type=int, default=2)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--tweets", type=int, default=512, help="tweets in each round")
    parser.add_argument("--micro-batch", type=int, default=16)
    parser.add_argument("--equal-lengths", action="store_true")
    arguments = parser.parse_args()
    if arguments.prepare_worker:
        prepare_worker(arguments)
    elif arguments.prepare:
        prepare(arguments)
    elif "RANK" not in os.environ:
        train(arguments)
    else:
        train_worker(arguments)
        sys.stdout.flush()
        os._exit(0)  # see trainyard_shared.launch.leave_together


if __name__ == "__main__":
    main()
