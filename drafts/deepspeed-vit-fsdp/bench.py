"""How fast `train` of deepspeed-vit-fsdp is: DeepSpeed beside plain PyTorch, and beside transformers.Trainer.

    uv run --package deepspeed-vit-fsdp python tools/bench_deepspeed_vit.py --data-dir DIR
    ... --nproc 2 --rounds 5 --images 1024

The same model, images, batch, threads and number of processes for all, in turn, several rounds, medians:

    ddp        the project's loop with PyTorch's DDP: what DeepSpeed's overhead is measured against
    zero0 .. 3 the same loop with DeepSpeed, of which each stage shares out more
    trainer0   transformers.Trainer with the DeepSpeed config of zero0; images augmented one by one in its data set, as
    trainer3   ... of zero3                                                      its examples do

Then the bytes of parameters, gradients and optimizer state that rank 0 held, beside the formulas of ZeRO.
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
LOOPS = {"ddp": {"engine": "ddp"}} | {f"zero{stage}": {"deepspeed": f"zero{stage}"} for stage in range(4)}
TRAINERS = {"trainer0": "zero0", "trainer3": "zero3"}


def make_run(settings: dict[str, Any], arguments: argparse.Namespace, folder: Path) -> Any:
    from deepspeed_vit_fsdp import data
    from deepspeed_vit_fsdp.config import TrainConfig
    from deepspeed_vit_fsdp.train import Run, deepspeed_settings
    from trainyard_shared.config import Parsed

    where = {"data": "real", "data_dir": arguments.data_dir} if arguments.data_dir else {}
    config = TrainConfig(
        **where, **settings, num_val=0, epochs=10**6, micro_batch_size=arguments.micro_batch_size, log_every=10**6
    )
    dataset = data.load(config)
    run_dir = folder / "-".join(settings.values())
    run_dir.mkdir(parents=True, exist_ok=True)
    os.environ["TRAINYARD_RUN_DIR"] = str(run_dir)
    return Run(Parsed(config, "bench", (), None), dataset, CPU, deepspeed_settings(config, dist.get_world_size(), CPU))


def loop(run: Any, num_images: int) -> Callable[[], None]:
    """The project's own loop over so many images of all processes together."""
    from trainyard_shared.console import TrainingProgress

    progress = TrainingProgress(run.total_images, show=False)
    per_epoch = run.order.num_global_batches() * run.order.global_batch_size

    def work() -> None:
        run.used = per_epoch - num_images  # what is left of an epoch
        run.train_epoch(progress)
        run.epoch += 1

    return work


class Images(torch.utils.data.Dataset):
    """CIFAR images, augmented one by one with torchvision, as in the examples of transformers."""

    def __init__(self, run: Any) -> None:
        from torchvision.transforms import v2

        preparation = run.preparation
        self.images, self.labels = run.dataset.train_images, run.dataset.train_labels
        self.change = v2.Compose(
            [
                v2.RandomCrop(preparation.image_size, padding=4, padding_mode="reflect"),
                v2.RandomHorizontalFlip(),
                v2.ToDtype(torch.float32, scale=True),
                v2.Normalize(preparation.mean, preparation.std),
            ]
        )

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {
            "pixel_values": self.change(torch.from_numpy(self.images[index])),
            "labels": int(self.labels[index]),
        }


def trainer(run: Any, name: str, arguments: argparse.Namespace, folder: Path) -> Callable[[], None]:
    """transformers.Trainer with the same DeepSpeed config, batch and model, for as many steps."""
    import transformers
    from deepspeed_vit_fsdp import model

    settings = run.settings_for(run.whole)
    steps = arguments.images // run.order.global_batch_size

    def work() -> None:
        torch.manual_seed(0)
        made = model.make_tiny(run.module_config, "mimetic")
        training = transformers.TrainingArguments(
            output_dir=str(folder / name),
            max_steps=steps,
            per_device_train_batch_size=arguments.micro_batch_size,
            learning_rate=settings["optimizer"]["params"]["lr"],
            weight_decay=settings["optimizer"]["params"]["weight_decay"],
            max_grad_norm=settings["gradient_clipping"],
            label_smoothing_factor=0.1,
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
            logging_strategy="no",
            use_cpu=True,
            deepspeed=settings,
        )
        timer = Timer()
        transformers.Trainer(made, training, train_dataset=Images(run), callbacks=[timer]).train()
        work.seconds = timer.seconds  # type: ignore[attr-defined]

    return work


def Timer() -> Any:  # noqa: N802 - a class that needs transformers
    """Measures from the first step's beginning to the last one's end: without the making of the engine."""
    import transformers

    class Steps(transformers.TrainerCallback):
        start, seconds = 0.0, 0.0

        def on_train_begin(self, *_: Any, **__: Any) -> None:
            self.start = time.perf_counter()

        def on_step_end(self, *_: Any, **__: Any) -> None:
            self.seconds = time.perf_counter() - self.start

    return Steps()


def bytes_of(runs: dict[str, Any]) -> dict[str, tuple[int, int]]:
    """Measured and predicted bytes of the training state of this rank."""
    from deepspeed_vit_fsdp.planning import state_bytes

    found = {}
    for name, run in runs.items():
        formula = state_bytes(run.num_parameters, run.strategy, run.world_size, run.config.precision, reduced=True)
        found[name] = (sum(run.held.values()), sum(formula.values()))
    return found


def worker(arguments: argparse.Namespace) -> None:
    from deepspeed_vit_fsdp.train import start

    torch.set_num_threads(arguments.num_threads)
    start(CPU, 600.0)
    folder = Path(arguments.folder)
    runs = {name: make_run(settings, arguments, folder) for name, settings in LOOPS.items()}
    size = runs["ddp"].order.global_batch_size
    arguments.images = arguments.images // size * size
    works = {name: loop(run, arguments.images) for name, run in runs.items()}
    works |= {name: trainer(runs[loop_name], name, arguments, folder) for name, loop_name in TRAINERS.items()}
    rates: dict[str, list[float]] = {name: [] for name in works}
    for number in range(arguments.rounds + 1):
        for name, work in works.items():
            dist.barrier()
            begin = time.perf_counter()
            work()
            seconds = getattr(work, "seconds", None) or time.perf_counter() - begin
            if number:  # the first round warms up
                rates[name].append(arguments.images / seconds)
    if dist.get_rank() == 0:
        (folder / "found.json").write_text(json.dumps({"rates": rates, "bytes": bytes_of(runs)}))
    dist.barrier()
    sys.stdout.flush()
    os._exit(0)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-dir", help="folder with the real CIFAR-100; without it the generated sample")
    parser.add_argument("--nproc", type=int, default=2)
    parser.add_argument("--num-threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--images", type=int, default=1024, help="images in a round, of all processes")
    parser.add_argument("--micro-batch-size", type=int, default=32)
    parser.add_argument("--folder", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.folder:
        worker(arguments)
    with tempfile.TemporaryDirectory() as folder, socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
        probe.close()
        command = [sys.executable, "-W", "ignore", __file__, *sys.argv[1:], "--folder", folder]
        environment = os.environ | {
            "WORLD_SIZE": str(arguments.nproc),
            "LOCAL_WORLD_SIZE": str(arguments.nproc),
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": port,
            "OMP_NUM_THREADS": str(arguments.num_threads),
        }
        processes = [
            subprocess.Popen(command, env=environment | {"RANK": str(rank), "LOCAL_RANK": str(rank)})
            for rank in range(arguments.nproc)
        ]
        statuses = [process.wait() for process in processes]
        if any(statuses):
            return 1
        found = json.loads((Path(folder) / "found.json").read_text())
    rates = found["rates"]
    for name, values in rates.items():
        print(f"{name:10} {statistics.median(values):7.0f} images/s   {min(values):.0f} to {max(values):.0f}")
    against_ddp = [(name, "ddp") for name in LOOPS if name != "ddp"]
    for name, other in (*against_ddp, ("zero0", "trainer0"), ("zero3", "trainer3")):
        ratios = [a / b for a, b in zip(rates[name], rates[other], strict=True)]
        print(f"{name} / {other}: {statistics.median(ratios):.2f} (by round {min(ratios):.2f} to {max(ratios):.2f})")
    for name, (measured, predicted) in found["bytes"].items():
        print(f"{name}: {measured:,} bytes of training state a rank, formula {predicted:,}: {measured / predicted:.3f}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
