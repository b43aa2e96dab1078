"""What FairScale costs beside plain DDP on the same work, in one run, with and without accumulation.

    uv run --package fairscale-gpt2-accumulation python tools/bench_fairscale_gpt2.py
    ... --accumulation 1 8 --rounds 5 --hidden-size 128

Two processes, the same model, blocks and threads for all, in turn, several rounds, medians. The blocks of a step are
the same for every number of accumulation steps; activations are what autograd keeps in the forward pass of a
micro-batch.
"""

import argparse
import copy
import os
import socket
import statistics
import subprocess
import sys
import time
from pathlib import Path

NPROC = 2


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=1, help="of each process")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=4, help="optimizer steps of a round")
    parser.add_argument("--blocks", type=int, default=8, help="of each process in a step")
    parser.add_argument("--accumulation", type=int, nargs="+", default=[1, 8])
    parser.add_argument("--context", type=int, default=64)
    parser.add_argument("--hidden-size", type=int, default=64)
    parser.add_argument("--vocab-size", type=int, default=5000)
    return parser.parse_args()


def work(options: argparse.Namespace) -> None:
    """Measure in one process; rank 0 prints."""
    import contextlib

    import torch
    import torch.distributed as dist
    from fairscale_gpt2_accumulation.config import TrainConfig
    from fairscale_gpt2_accumulation.model import LanguageModel
    from fairscale_gpt2_accumulation.sharding import WAYS, Sharding
    from trainyard_shared.tensors import memory
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.set_num_threads(options.threads)
    dist.init_process_group("gloo")
    torch.manual_seed(0)
    settings = GPT2Config(
        vocab_size=options.vocab_size,
        n_positions=options.context,
        n_embd=options.hidden_size,
        n_layer=2,
        n_head=options.hidden_size // 32,
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
    )
    model = LanguageModel(GPT2LMHeadModel(settings))
    blocks = torch.randint(options.vocab_size, (options.blocks, options.context + 1))

    def step(sharded: Sharding, accumulate: int) -> None:
        sharded.zero_grad()
        parts = blocks.chunk(accumulate)
        for i, part in enumerate(parts):
            with contextlib.nullcontext() if i == len(parts) - 1 else sharded.no_sync():
                (sharded.parallel(part[:, :-1], part[:, 1:]) / blocks[:, 1:].numel()).backward()
        sharded.step()

    loops: dict[tuple[str, int], Sharding] = {}
    for accumulate in options.accumulation:
        for way in WAYS:
            loops[way, accumulate] = WAYS[way](copy.deepcopy(model), TrainConfig(), torch.device("cpu"))
        config = TrainConfig(sharding="ddp", adascale=True, gradient_accumulation_steps=accumulate)
        loops["ddp + AdaScale", accumulate] = WAYS["ddp"](copy.deepcopy(model), config, torch.device("cpu"))
    seconds: dict[tuple[str, int], list[float]] = {key: [] for key in loops}
    for number in range(options.rounds + 1):
        for key, sharded in loops.items():
            dist.barrier()
            start = time.perf_counter()
            for _ in range(options.steps):
                step(sharded, key[1])
            dist.barrier()
            if number:  # the first round is not counted: memory is allocated
                seconds[key].append(time.perf_counter() - start)
    if dist.get_rank() == 0:
        tokens = NPROC * blocks[:, 1:].numel() * options.steps
        first = options.accumulation[0]
        whole = blocks[:, :-1], blocks[:, 1:]
        most = memory.saved_bytes(model, *whole)
        print(
            f"{NPROC} processes with {options.threads} thread(s), medians of {options.rounds} rounds, {tokens:,} tokens"
        )
        for accumulate in options.accumulation:
            kept = memory.saved_bytes(model, *(tensor.chunk(accumulate)[0].contiguous() for tensor in whole))
            print(f"accumulation {accumulate}: activations {kept:,} bytes, {kept / most:.1%} of those of {first}")
            for (way, number), values in seconds.items():
                if number == accumulate:
                    ratios = [a / b for a, b in zip(values, seconds["ddp", accumulate], strict=True)]
                    print(
                        f"  {way:<16} {tokens / statistics.median(values):8.0f} tokens/s   time / plain DDP "
                        f"{statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})"
                    )
        sys.stdout.flush()
    dist.barrier()
    os._exit(0)  # see trainyard_shared.launch.leave_together


def main() -> None:
    options = arguments()
    if "RANK" in os.environ:
        work(options)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    shared = {"WORLD_SIZE": str(NPROC), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    command = [sys.executable, "-W", "ignore", str(Path(__file__).resolve()), *sys.argv[1:]]
    workers = [subprocess.Popen(command, env=os.environ | shared | {"RANK": str(rank)}) for rank in range(NPROC)]
    try:
        sys.exit(max(worker.wait(timeout=1800) for worker in workers))
    finally:
        for worker in workers:
            worker.kill()


if __name__ == "__main__":
    main()
