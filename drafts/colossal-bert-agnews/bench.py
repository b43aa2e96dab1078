"""What Colossal-AI's booster costs beside plain PyTorch, and what its layouts cost beside each other, in one run.

    uv run --package colossal-bert-agnews python tools/bench_colossal_agnews.py
    ... --model FOLDER --data-dir DIR        a pretrained encoder on real articles; default: `tiny` on generated ones

On the same articles in the same global batches, with the same model, threads and optimizer, in turn, several rounds,
medians of tokens/s without padding:

    ddp        plain PyTorch: DistributedDataParallel, clipping and AdamW
    data       the same steps by Booster and HybridParallelPlugin: what these cost is the difference
    tensor     the processes share each layer
    pipeline   each process has half of the layers

Forward, backward and optimizer step are in the times; start, validation and checkpoints are not.
"""

import argparse
import copy
import json
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any


def launch(arguments: argparse.Namespace) -> int:
    """Start the processes that train, and return the worst status."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    environment = os.environ | {
        "WORLD_SIZE": "2",
        "LOCAL_WORLD_SIZE": "2",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "OMP_NUM_THREADS": str(arguments.threads),
        "TOKENIZERS_PARALLELISM": "false",
    }
    command = [sys.executable, "-W", "ignore", __file__, *sys.argv[1:]]
    workers = [
        subprocess.Popen(command, env=environment | {"RANK": str(rank), "LOCAL_RANK": str(rank)}) for rank in (0, 1)
    ]
    try:
        return max(worker.wait() for worker in workers)
    finally:
        for worker in workers:
            worker.kill()


def worker(arguments: argparse.Namespace) -> None:
    """Train with each loop in turn."""
    import torch
    import torch.distributed as dist
    from colossal_bert_agnews import data, train
    from colossal_bert_agnews.config import TrainConfig
    from trainyard_shared.config import Parsed

    torch.set_num_threads(arguments.threads)
    torch.set_flush_denormal(True)  # for all alike
    cpu = torch.device("cpu")
    train.start_colossalai(cpu, 0)
    layouts: dict[str, dict[str, Any]] = {
        "data": {},
        "tensor": {"tp_size": 2, "gradient_accumulation_steps": 2},
        "pipeline": {"pp_size": 2, "gradient_accumulation_steps": 2},
    }
    loops: dict[str, Callable[[], float]] = {}
    for name, fields in layouts.items():
        config = TrainConfig(
            data="real" if arguments.data_dir else "sample",
            data_dir=arguments.data_dir,
            num_train=arguments.articles,
            num_val=0,
            model=arguments.model,
            dropout=0.0,
            epochs=arguments.rounds + 1,
            micro_batch_size=arguments.micro_batch,
            log_every=10**6,
            learning_rate=1e-4,
            **fields,
        )
        run = train.Run(Parsed(config, "bench", (), resume=Path(shared_folder())), data.load(config), cpu)
        if name == "data":
            loops["ddp"] = ddp(run, copy.deepcopy(run.whole).train())
            tokens = int(run.batches.lengths.sum())
        loops[name] = booster(run)
    speeds: dict[str, list[float]] = {name: [] for name in loops}
    for number in range(arguments.rounds + 1):
        for name, work in loops.items():
            dist.barrier()
            taken = work()
            if number:  # the first round is not counted: memory is allocated
                speeds[name].append(tokens / taken)
    if dist.get_rank() == 0:
        report(arguments, speeds, tokens)
    dist.barrier()


def report(arguments: argparse.Namespace, speeds: dict[str, list[float]], tokens: int) -> None:
    """Print medians, and each loop as a multiple of plain DDP, round by round."""
    print(
        f"{arguments.model}: tokens/s over {arguments.rounds} rounds of {arguments.articles} articles with {tokens:,} "
        f"tokens, 2 processes of {arguments.threads} threads, passes of {arguments.micro_batch}"
    )
    for name, values in speeds.items():
        ratios = [mine / plain for mine, plain in zip(values, speeds["ddp"], strict=True)]
        print(
            f"  {name:<8} median {statistics.median(values):7.0f}   {min(values):.0f} to {max(values):.0f}   "
            f"of ddp {statistics.median(ratios):.2f}   {min(ratios):.2f} to {max(ratios):.2f}"
        )
    overhead = statistics.median(p / m - 1 for m, p in zip(speeds["data"], speeds["ddp"], strict=True))
    print(f"overhead of the booster, time of a step beside plain DDP: {overhead:+.1%}")
    print(json.dumps(speeds))


def shared_folder() -> str:
    """Return an empty folder, the same for all processes."""
    import torch.distributed as dist

    place: list[Any] = [tempfile.mkdtemp() if dist.get_rank() == 0 else None]
    dist.broadcast_object_list(place, src=0)
    return str(place[0])


def booster(run: Any) -> Callable[[], float]:
    """The project's loop over one epoch."""
    from trainyard_shared.console import TrainingProgress

    progress = TrainingProgress(run.total, show=False)

    def work() -> float:
        start = time.perf_counter()
        run.train_epoch(progress)
        run.epoch, run.used = run.epoch + 1, 0
        return time.perf_counter() - start

    return work


def ddp(run: Any, model: Any) -> Callable[[], float]:
    """The same batches and steps with plain PyTorch."""
    import torch
    from colossal_bert_agnews import train

    config = run.config
    parallel = torch.nn.parallel.DistributedDataParallel(model, gradient_as_bucket_view=True, broadcast_buffers=False)
    optimizer = torch.optim.AdamW(train.optimizer_groups(model, config.weight_decay), lr=config.learning_rate)
    epochs = iter(range(10**6))

    def work() -> float:
        start = time.perf_counter()
        for num_articles, micro_batches in run.batches.epoch(next(epochs)):
            for micro_batch in micro_batches:
                ids, mask, labels = run.batch(micro_batch)
                logits = parallel(input_ids=ids, attention_mask=mask).logits
                loss = micro_batch.weight * train.article_losses(logits, labels, config).sum()
                (loss * run.world_size / num_articles).backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), config.max_grad_norm)
            optimizer.step()
            optimizer.zero_grad()
        return time.perf_counter() - start

    return work


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="tiny")
    parser.add_argument("--data-dir", type=Path)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--articles", type=int, default=512, help="articles in each round")
    parser.add_argument("--micro-batch", type=int, default=16)
    arguments = parser.parse_args()
    if "RANK" not in os.environ:
        sys.exit(launch(arguments))
    worker(arguments)
    sys.stdout.flush()
    os._exit(0)  # see trainyard_shared.launch.leave_together


if __name__ == "__main__":
    main()
