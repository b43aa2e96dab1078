"""How fast DeepSpeed's step is, beside plain PyTorch and beside transformers.Trainer with the same DeepSpeed config.

    python tools/bench_deepspeed_gpt2.py [--nproc 2] [--rounds 5] [--steps 10] [--data-dir DIR --tokenizer FOLDER]

In turn, in the same processes, several rounds, medians; the same model, threads, dtype, sequences in a batch and
optimizer for all. What counts are the tokens that the model reads, without padding:

    plain    this project's loop with PyTorch's DistributedDataParallel
    zero0    this project's loop with DeepSpeed, ZeRO stage 0: the same work, so the difference is DeepSpeed's overhead
    zero2    the same with ZeRO stage 2
    packed   transformers.Trainer with the zero0 config, on the same packed sequences
    padded   transformers.Trainer with the zero0 config, one document a row, cut at the context length, padded to the
             longest of the batch: what one does who does not pack
"""

import argparse
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

import torch
import torch.distributed as dist

CPU = torch.device("cpu")
Work = Callable[[int], tuple[int, float]]
NAMES = ("plain", "zero0", "zero2", "packed", "padded")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--nproc", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=10, help="optimizer steps of each in a round")
    parser.add_argument("--data-dir", type=Path)
    parser.add_argument("--tokenizer")
    arguments = parser.parse_args()
    if "RANK" in os.environ:
        work(arguments)
        return
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    common = {"WORLD_SIZE": str(arguments.nproc), "LOCAL_WORLD_SIZE": str(arguments.nproc), "OMP_NUM_THREADS": "1"}
    common |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    workers = [
        subprocess.Popen(
            [sys.executable, "-W", "ignore", *sys.argv],
            env=os.environ | common | {"RANK": str(rank), "LOCAL_RANK": str(rank)},
        )
        for rank in range(arguments.nproc)
    ]
    sys.exit(max(worker.wait() for worker in workers))


def work(arguments: argparse.Namespace) -> None:
    from deepspeed_gpt2_pile.train import start

    torch.set_num_threads(1)
    start(CPU, 600)
    with tempfile.TemporaryDirectory() as folder:
        work_of = {name: make(name, arguments, Path(folder)) for name in NAMES}
        speeds: dict[str, list[float]] = {name: [] for name in NAMES}
        for name in NAMES:
            work_of[name](2)  # the first steps allocate
        for _ in range(arguments.rounds):
            for name in NAMES:
                dist.barrier()
                tokens, seconds = work_of[name](arguments.steps)
                of_all = torch.tensor(float(tokens))
                dist.all_reduce(of_all)
                speeds[name].append(of_all.item() / seconds)
    if dist.get_rank() == 0:
        print(
            f"{arguments.nproc} processes, medians and ranges of {arguments.rounds} rounds of {arguments.steps} steps"
        )
        base = statistics.median(speeds["zero0"])
        for name, found in speeds.items():
            median = statistics.median(found)
            ratio = f"{base / median:.2f} times its speed has zero0"
            print(f"{name:<8}{median:>9.0f} tokens/s ({min(found):.0f} to {max(found):.0f}), {ratio}")
    dist.barrier()
    sys.stdout.flush()
    os._exit(0)


def make(name: str, arguments: argparse.Namespace, folder: Path) -> Work:
    """Return what makes a number of steps and says how many tokens this process has trained on, in how many seconds."""
    from deepspeed_gpt2_pile import data, model
    from deepspeed_gpt2_pile.config import TrainConfig
    from deepspeed_gpt2_pile.train import Run, deepspeed_settings
    from trainyard_shared.config import Parsed

    config = TrainConfig(
        data="real" if arguments.data_dir else "sample",
        data_dir=arguments.data_dir,
        tokenizer=arguments.tokenizer,
        engine="ddp" if name == "plain" else "deepspeed",
        deepspeed="zero2" if name == "zero2" else "zero0",
    )
    run_dir = folder / name
    run_dir.mkdir(exist_ok=True)
    run = Run(
        Parsed(config, name, (), resume=run_dir),
        data.load(config),
        CPU,
        deepspeed_settings(config, dist.get_world_size(), CPU),
    )

    def ours(steps: int) -> tuple[int, float]:
        begin = time.perf_counter()
        for _ in range(steps):
            tokens = run.batches.next()
            loss = model.loss_of(run.engine, tokens)
            run.engine.backward(loss)
            run.engine.step()
        return steps * config.micro_batch_size * config.context_length, time.perf_counter() - begin

    if name in ("plain", "zero0", "zero2"):
        run.engine.train()
        return ours
    return of_trainer(name, run, folder)


def of_trainer(name: str, run: Any, folder: Path) -> Work:
    """Return transformers.Trainer over packed sequences or padded documents, stopped and continued by steps."""
    import itertools

    import transformers
    from deepspeed_gpt2_pile import data, model
    from deepspeed_gpt2_pile.plain import BETAS
    from trainyard_shared.datasets import pile

    config, end = run.config, data.end_of_text(run.tokenizer)

    def documents() -> Any:
        stream = pile.Stream(run.files.train, dist.get_rank(), dist.get_world_size())
        for document, _ in stream.documents():
            yield [end, *run.tokenizer.encode(document.text, add_special_tokens=False).ids][: config.context_length]

    def rows(count: int) -> list[list[int]]:
        if name == "padded":
            return list(itertools.islice(documents(), count))
        # As many as the model sees at once; Trainer makes the targets of the inputs, which ends a token earlier.
        return [row[:-1] for _ in range(count // config.micro_batch_size) for row in run.batches.next().tolist()]

    counted = 0

    def collate(batch: list[list[int]]) -> dict[str, torch.Tensor]:
        nonlocal counted
        counted += sum(map(len, batch))
        length = max(map(len, batch))
        ids = torch.tensor([row + [end] * (length - len(row)) for row in batch])
        mask = torch.tensor([[1] * len(row) + [0] * (length - len(row)) for row in batch])
        return {"input_ids": ids, "attention_mask": mask, "labels": ids.masked_fill(mask == 0, -100)}

    settings_file = folder / "trainer.json"
    settings = run.settings_for(run.whole) | {"train_batch_size": "auto"}
    settings_file.write_text(json.dumps(settings))

    class Clock(transformers.TrainerCallback):
        """Measures from the first step to the last: Trainer's start is not to count."""

        begin = end = 0.0

        def on_step_begin(self, *_: Any, **__: Any) -> None:
            self.begin = self.begin or time.perf_counter()

        def on_step_end(self, *_: Any, **__: Any) -> None:
            self.end = time.perf_counter()

    def work(steps: int) -> tuple[int, float]:
        nonlocal counted
        counted = 0
        own = rows(steps * config.micro_batch_size)
        wanted = transformers.TrainingArguments(
            output_dir=str(folder / "trainer"),
            per_device_train_batch_size=config.micro_batch_size,
            max_steps=steps,
            learning_rate=config.learning_rate,
            weight_decay=config.weight_decay,
            adam_beta2=BETAS[1],
            max_grad_norm=config.max_grad_norm,
            lr_scheduler_type="constant",
            report_to="none",
            save_strategy="no",
            logging_strategy="no",
            disable_tqdm=True,
            use_cpu=True,
            deepspeed=str(settings_file),
        )
        clock = Clock()
        transformers.Trainer(
            model.from_scratch(run.model_settings),
            wanted,
            train_dataset=own * dist.get_world_size(),
            data_collator=collate,
            callbacks=[clock],
        ).train()
        return counted, clock.end - clock.begin

    return work


if __name__ == "__main__":
    main()
