"""Data parallel fine-tuning with torch.distributed: the loop this project is about.

Every process runs this file. What makes it distributed is marked [dist]:

    init_process_group      processes find each other through RANK, WORLD_SIZE, MASTER_ADDR, MASTER_PORT
    DistributedDataParallel same weights everywhere; gradients are averaged while the backward pass still runs
    sums of losses          reviews differ in length, so micro-batches differ in size: the loss of a step is a sum
                            divided once, by the reviews of all processes
    no_sync                 only the last backward pass of a step communicates
    all_reduce              sums of losses and counts, and whether any process was asked to stop
    checkpoints             rank 0 writes what all share and each rank's random state; every rank reads it
"""

import contextlib
import datetime
import math
import sys
import time
from collections.abc import Iterator
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from trainyard_shared import console, launch, results
from trainyard_shared.checkpoints import CheckpointFolder, manifest
from trainyard_shared.config import Parsed, to_yaml
from trainyard_shared.datasets.imdb import ReviewDataset
from trainyard_shared.errors import TrainyardError
from trainyard_shared.tensors import memory
from trainyard_shared.tensors.checkpointing import newest_for_all
from trainyard_shared.tensors.lengths import LengthBatches
from trainyard_shared.tensors.quick_start import postpone_dynamo

postpone_dynamo()  # before transformers is imported: nothing here is compiled

from torchdist_imdb import data, evaluate  # noqa: E402
from torchdist_imdb.config import TrainConfig  # noqa: E402
from torchdist_imdb.model import build, layers_of  # noqa: E402

PACKAGE = "torchdist-imdb"


def train(parsed: Parsed[TrainConfig]) -> None:
    """Train, test, and write the run folder; runs in each process.

    Raises:
        Interrupted: the process was asked to stop and has saved a checkpoint.
        TrainyardError: data, model, device or settings do not fit; the message says how.
    """
    config = parsed.config
    if config.num_threads != "auto":
        torch.set_num_threads(config.num_threads)
    torch.set_flush_denormal(True)  # AdamW's second moments get that small, and then cost a CPU hundreds of cycles
    device = launch.choose_device(config.device)
    # [dist] NCCL between GPUs, Gloo between CPUs. A peer that is silent for longer than the time-out is given up.
    timeout = datetime.timedelta(seconds=config.collective_timeout_s)
    dist.init_process_group(launch.backend_for(device.type), timeout=timeout)

    dataset = data.load(config)
    run = Run(parsed, dataset, device)
    if dist.get_rank() == 0:
        run.announce()
    with console.TrainingProgress(
        run.total_reviews, run.used_before_epoch() + run.used, show=dist.get_rank() == 0
    ) as progress:
        while run.epoch < config.epochs:
            run.train_epoch(progress)
            run.validate(progress)
            run.epoch, run.used = run.epoch + 1, 0
            run.save()
    run.finish()
    launch.leave_together()


class Run:
    """The state of a training run, which is what a checkpoint holds, and the steps that change it."""

    def __init__(self, parsed: Parsed[TrainConfig], dataset: ReviewDataset, device: torch.device) -> None:
        config = self.config = parsed.config
        self.parsed, self.dataset, self.device = parsed, dataset, device
        self.rank, self.world_size = dist.get_rank(), dist.get_world_size()

        train_part, val_part = data.split(dataset, config)
        torch.manual_seed(config.seed)
        with rank_0_first():  # [dist] one process fetches a model, the others find it in the cache
            self.model, self.tokenizer, notes = build(config, dataset.class_names, dataset.train_texts[train_part])
        encoder = data.Encoder(self.tokenizer, config)
        self.reviews = data.encode_together(encoder, dataset.train_texts[train_part])
        self.labels = torch.from_numpy(dataset.train_labels[train_part])
        self.val_reviews = data.encode_together(encoder, dataset.train_texts[val_part])
        self.val_labels = torch.from_numpy(dataset.train_labels[val_part])
        self.batches = LengthBatches(
            self.reviews.lengths,
            config.global_batch_size,
            config.micro_batch_size,
            self.rank,
            self.world_size,
            config.seed,
            max_tokens=config.max_tokens,
            multiple_of=config.pad_multiple,
            window=config.sort_window,
        )
        self.activation_bytes = self.predict_activations()
        self.model.to(device)
        self.optimizer = build_optimizer(self.model, config)
        # [dist] From here on, self.parallel(...) is self.model(...) whose backward pass averages gradients.
        self.parallel = DistributedDataParallel(
            self.model, device_ids=[device.index] if device.type == "cuda" else None, gradient_as_bucket_view=True
        )
        torch.manual_seed(config.seed * 1_000_003 + self.rank)  # [dist] each process drops out other units

        # Where the run is: epoch, reviews of it used by all processes together, optimizer steps so far.
        self.epoch, self.used, self.step = 0, 0, 0
        self.best: dict[str, Any] = {"accuracy": -1.0, "epoch": 0, "weights": None}
        self.notes = [*dataset.notes, *notes]
        self.total_reviews = config.epochs * len(self.reviews)
        self.start_up_s = launch.seconds_since_command()
        # For the throughput: of this process's loop, without evaluation. Tokens of all processes, without padding.
        self.train_s, self.trained_reviews, self.trained_tokens, self.padded_tokens = 0.0, 0, 0, 0

        # [dist] All processes agree on one run folder; if it holds checkpoints, this run goes on from the newest.
        path = launch.run_dir(config.out_dir, PACKAGE, parsed.config_name, parsed.resume)
        self.folder = results.RunFolder(path)
        self.checkpoints = CheckpointFolder(self.folder.checkpoints)
        self.resume()

    # ------------------------------------------------------------------------------------------------ the loop itself

    def train_epoch(self, progress: console.TrainingProgress) -> None:
        """Train on what is left of the current epoch."""
        config = self.config
        self.parallel.train()
        sums = Sums(self.device)
        since = time.perf_counter()
        for num_reviews, micro_batches in self.batches.epoch(self.epoch, self.used):
            factor = schedule((self.used_before_epoch() + self.used) / self.total_reviews, config.warmup_fraction)
            for group in self.optimizer.param_groups:
                group["lr"] = group["peak_learning_rate"] * factor

            self.optimizer.zero_grad(set_to_none=False)  # keeps gradients as views into DDP's buckets
            for micro_step, (index, weight) in enumerate(micro_batches):
                ids, mask = self.reviews.padded(
                    index, self.tokenizer.pad_token_id, self.device, multiple_of=config.pad_multiple
                )
                labels = self.labels[index].to(self.device, non_blocking=True)
                last = micro_step == len(micro_batches) - 1
                # [dist] Gradients of all but the last micro-batch only add up locally: one all-reduce a step, not k.
                with contextlib.nullcontext() if last else self.parallel.no_sync():
                    with evaluate.autocast(self.device, config):
                        logits = self.parallel(input_ids=ids, attention_mask=mask).logits
                    loss = weight * F.cross_entropy(
                        logits.float(), labels, reduction="sum", label_smoothing=config.label_smoothing
                    )
                    # [dist] The mean over all reviews of the step, whoever computes how many of them: divided by their
                    # number, and multiplied by that of the processes, by which DDP is going to divide.
                    (loss * self.world_size / num_reviews).backward()
                sums.add(
                    loss.detach(), weight * len(index), weight * int(self.reviews.lengths[index].sum()), ids.numel()
                )
            if config.max_grad_norm is not None:
                nn.utils.clip_grad_norm_(self.model.parameters(), config.max_grad_norm)
            self.optimizer.step()

            self.step += 1
            self.used += num_reviews
            if self.step % config.log_every == 0:
                # [dist] One small all-reduce for everything. Reading it waits for the device, hence not every step.
                loss_sum, reviews, tokens, padded, stop = sums.of_all(float(launch.stop_request().requested))
                now = time.perf_counter()
                self.train_s += now - since
                self.trained_reviews += int(reviews)
                self.trained_tokens += int(tokens)
                self.padded_tokens += int(padded)
                self.log(progress, loss_sum / reviews, tokens / (now - since))
                since, sums = now, Sums(self.device)
                if stop:
                    self.save()
                    raise launch.Interrupted
            if config.checkpoint_every and self.step % config.checkpoint_every == 0:
                self.save()
                since = time.perf_counter()

    def validate(self, progress: console.TrainingProgress) -> None:
        """Measure the accuracy on the held-out reviews and remember the weights if they are the best so far."""
        if not self.config.num_val:
            return
        scores = evaluate.predict(self.model, self.val_reviews, self.tokenizer.pad_token_id, self.config, self.device)
        loss = F.cross_entropy(scores.logits, self.val_labels).item()
        correct = (scores.logits.argmax(dim=1) == self.val_labels).float().mean().item()
        if self.rank == 0:
            self.folder.log("val", step=self.step, epoch=self.epoch + 1, loss=loss, accuracy=correct)
        progress.say(f"epoch {self.epoch + 1}/{self.config.epochs}: val loss {loss:.3f}, val accuracy {correct:.2%}")
        if correct >= self.best["accuracy"]:
            weights = {name: tensor.detach().cpu().clone() for name, tensor in self.model.state_dict().items()}
            self.best = {"accuracy": correct, "epoch": self.epoch + 1, "weights": weights}

    # ------------------------------------------------------------------------------------------ checkpoints and resume

    def save(self) -> None:
        """Write a checkpoint. All processes call it: each has a random state of its own to contribute."""
        random_state = {"cpu": torch.get_rng_state()}
        if self.device.type == "cuda":
            random_state["cuda"] = torch.cuda.get_rng_state(self.device)
        random_states: list | None = [None] * self.world_size if self.rank == 0 else None
        dist.gather_object(random_state, random_states, dst=0)
        if self.rank == 0:
            facts = {"epoch": self.epoch, "used": self.used, "world_size": self.world_size}
            with self.checkpoints.write(self.step, **facts, global_batch_size=self.config.global_batch_size) as path:
                state = {
                    "model": self.model.state_dict(),
                    "optimizer": self.optimizer.state_dict(),
                    "random_states": random_states,
                    "best": self.best,
                }
                torch.save(state, path / "state.pt")
        # [dist] Nobody trains on, and nobody is told that the run may end, before the checkpoint is on the disk.
        dist.barrier()

    def resume(self) -> None:
        """Go on from the newest intact checkpoint, if there is one; also with another number of processes."""
        newest = newest_for_all(self.checkpoints, self.warn)
        if newest is None:
            if self.rank == 0:
                self.folder.forget_after(0)  # what a run that was killed before its first checkpoint has logged
            return
        facts = manifest(newest)
        # weights_only: a checkpoint is data, and must not be able to run code.
        state = torch.load(newest / "state.pt", map_location=self.device, weights_only=True)
        self.model.load_state_dict(state["model"])
        settings = [(group["peak_learning_rate"], group["weight_decay"]) for group in self.optimizer.param_groups]
        self.optimizer.load_state_dict(state["optimizer"])
        # Its state comes from the checkpoint, its settings from the config, which flags may have changed.
        for group, (peak, decay) in zip(self.optimizer.param_groups, settings, strict=True):
            group["peak_learning_rate"], group["weight_decay"] = peak, decay
        self.best = state["best"]
        self.step, self.epoch, self.used = facts["step"], facts["epoch"], facts["used"]
        if facts["world_size"] == self.world_size:
            own = state["random_states"][self.rank]
            torch.set_rng_state(own["cpu"].cpu())
            if "cuda" in own and self.device.type == "cuda":
                torch.cuda.set_rng_state(own["cuda"].cpu(), self.device)
        else:
            self.warn(
                f"resumed with {self.world_size} processes; before: {facts['world_size']}. The run goes on with the "
                "same batches; only dropout falls on other units"
            )
        if facts["global_batch_size"] != self.config.global_batch_size:
            self.warn(
                f"resumed with a global batch of {self.config.global_batch_size}; before: "
                f"{facts['global_batch_size']}. In this epoch some reviews may be seen twice and some not at all"
            )
        if self.rank == 0:
            self.folder.forget_after(self.step)
            console.say(f"resuming {self.folder.path} at epoch {self.epoch + 1}, step {self.step}")

    # ------------------------------------------------------------------------------------------------------- reporting

    def used_before_epoch(self) -> int:
        """Reviews that all processes have used in the epochs before this one."""
        return self.epoch * len(self.reviews)

    def warn(self, message: str) -> None:
        """Say something on rank 0 and put it into the report."""
        self.notes.append(message)
        if self.rank == 0:
            console.say(f"note: {message}")

    def log(self, progress: console.TrainingProgress, loss: float, tokens_per_second: float) -> None:
        """Record and show the mean training loss since the last record; stop if it is no number any more."""
        position = (self.used_before_epoch() + self.used) / self.total_reviews * self.config.epochs
        learning_rate = max(group["lr"] for group in self.optimizer.param_groups)
        if self.rank == 0:
            self.folder.log(
                "train",
                step=self.step,
                epoch=round(position, 4),
                loss=loss,
                learning_rate=learning_rate,
                tokens_per_second=round(tokens_per_second, 1),
            )
        progress.update(
            self.used_before_epoch() + self.used,
            {"epoch": f"{position:.1f}", "loss": f"{loss:.3f}", "tokens/s": f"{tokens_per_second:,.0f}"},
        )
        if not math.isfinite(loss):
            raise TrainyardError(
                f"error: the training loss is {loss} at step {self.step} (epoch {self.epoch + 1}, before review "
                f"{self.used}): try a lower --learning-rate or --precision fp32; the last checkpoint is kept"
            )

    def announce(self) -> None:
        """Pre-flight: say what is about to happen, and write it down."""
        config, dataset, lengths = self.config, self.dataset, self.reviews.lengths
        if self.device.type == "cpu" and config.device == "auto" and torch.cuda.is_available():
            gpus = torch.cuda.device_count()
            self.notes.append(
                f"on the CPU, because {launch.local_world_size()} processes cannot share {gpus} GPU(s); "
                f"--nproc {gpus} uses them"
            )
        predicted = self.predicted_bytes()
        total = sum(predicted.values())
        parts = ", ".join(f"{name} {console.bytes_text(count)}" for name, count in predicted.items())
        trained = sum(p.numel() for p in self.model.parameters() if p.requires_grad)
        every = sum(p.numel() for p in self.model.parameters())
        at_most = f", at most {config.max_tokens:,} tokens" if config.max_tokens is not None else ""
        cut = int((lengths == config.max_length).sum()) / len(lengths)
        facts = [
            (
                "model",
                f"{config.model}: {type(self.model).__name__}, {every:,} parameters, {trained:,} of them trained",
            ),
            ("device", f"{describe(self.device)}, {config.precision}, {torch.get_num_threads()} threads a process"),
            ("processes", f"{self.world_size} ({dist.get_backend()})"),
            (
                "batch",
                f"{config.global_batch_size} reviews a step, shared by {self.world_size} processes; a pass takes at "
                f"most {config.micro_batch_size}{at_most}",
            ),
            ("data", f"{dataset.source}: {len(lengths):,} train, {len(self.val_reviews):,} val"),
            ("lengths", f"{lengths.float().mean():.0f} tokens on average; {cut:.0%} are cut to {config.max_length}"),
            ("steps", f"{config.epochs} epochs of {self.batches.num_steps()}"),
            ("memory", f"{console.bytes_text(total)} predicted for each process: {parts}"),
            ("results", str(self.folder.path)),
        ]
        console.preflight(f"{PACKAGE}: training '{self.parsed.config_name}'", facts, self.notes)
        if not (self.folder.path / "config.yaml").exists():
            results.write_atomically(self.folder.path / "config.yaml", to_yaml(config))
        self.folder.write_summary(self.summary("running") | ({} if self.step else {"started_at": results.now()}))

    def predict_activations(self) -> int:
        """Predict the bytes of activations of the longest micro-batch."""
        longest = int(self.reviews.lengths.max())
        most = self.config.micro_batch_size
        if self.config.max_tokens is not None:
            most = max(1, min(most, self.config.max_tokens // longest))
        ids, mask = torch.full((3, longest), self.tokenizer.pad_token_id), torch.ones(3, longest, dtype=torch.bool)
        mask[:, -1] = False  # as in a batch that is padded
        dtype = torch.bfloat16 if self.config.precision == "bf16" else None
        return memory.activation_bytes(self.model, ids, mask, batch_size=most, autocast=dtype)

    def predicted_bytes(self) -> dict[str, int]:
        """Predict what each process holds on its device during a step."""
        trained = memory.tensor_bytes(p for p in self.model.parameters() if p.requires_grad)
        return {
            "parameters": memory.tensor_bytes(self.model.parameters()),
            "gradients": trained,
            "optimizer": 2 * trained,  # AdamW: two moments for each trained parameter
            "activations": self.activation_bytes,
        }

    def measured_bytes(self) -> dict[str, int]:
        """Measure what this process holds of what `predicted_bytes` predicts."""
        gradients = [p.grad for p in self.model.parameters() if p.grad is not None]
        return {
            "parameters": memory.tensor_bytes(self.model.parameters()),
            "gradients": memory.tensor_bytes(gradients),
            "optimizer": memory.tensor_bytes(memory.optimizer_tensors(self.optimizer)),
        }

    def summary(self, state: str) -> dict[str, Any]:
        """What summary.json says of the run so far."""
        dataset = self.dataset
        return {
            "package": PACKAGE,
            "config": self.parsed.config_name,
            "config_changed": list(self.parsed.changed),
            "state": state,
            "data": {
                "kind": dataset.kind,
                "name": dataset.name,
                "source": dataset.source,
                "num_train": len(self.reviews),
                "num_val": len(self.val_reviews),
                "num_test": len(dataset.test_texts),
            },
            "model": self.config.model,
            "seed": self.config.seed,
            "world_size": self.world_size,
            "threads_per_process": torch.get_num_threads(),
            "global_batch_size": self.config.global_batch_size,
            "device": describe(self.device),
            "precision": self.config.precision,
            "restarts": launch.num_restarts(),
            "steps": self.step,
            "notes": list(dict.fromkeys(self.notes)),
            **results.provenance((PACKAGE, "trainyard-shared", "torch", "transformers", "tokenizers", "numpy")),
        }

    def finish(self) -> None:
        """Save the chosen weights, test them once on the whole test set, and write what came out."""
        train_end_s = launch.seconds_since_command()
        # [dist] Bytes held on each rank, collected on rank 0.
        bytes_per_rank: list = [None] * self.world_size
        dist.all_gather_object(bytes_per_rank, {**self.measured_bytes(), **memory.peak_memory(self.device)})
        if self.best["weights"] is not None:
            self.model.load_state_dict(self.best["weights"])
        if self.rank == 0:
            evaluate.save_model(self.model, self.tokenizer, self.folder.path)
        summary = self.summary("finished")
        seconds = self.train_s or float("nan")
        summary |= {
            "start_up_s": self.start_up_s,
            "throughput": {
                "tokens_per_second": round(self.trained_tokens / seconds, 1),
                "reviews_per_second": round(self.trained_reviews / seconds, 2),
            },
            "share_of_padding": f"{1 - self.trained_tokens / max(self.padded_tokens, 1):.1%} of the computed tokens",
            "memory": {
                "peak_bytes": bytes_per_rank[0].pop("peak_bytes"),
                "peak_of": bytes_per_rank[0].pop("peak_of"),
                "predicted_bytes": self.predicted_bytes(),
                "measured_bytes": bytes_per_rank[0],
                "measured_bytes_per_rank": bytes_per_rank,
            },
            "chosen_epoch": self.best["epoch"] or self.config.epochs,
            "val_accuracy": self.best["accuracy"] if self.config.num_val else None,
        }
        evaluate.test_and_report(
            self.model, self.tokenizer, self.dataset, self.config, self.device, self.folder, summary, train_end_s
        )


class Sums:
    """What a process adds up between two records of the log."""

    def __init__(self, device: torch.device) -> None:
        self.loss = torch.zeros((), device=device)
        self.counts = [0.0, 0.0, 0.0]

    def add(self, loss: torch.Tensor, *counts: float) -> None:
        """Add the loss of a micro-batch and its numbers of reviews, of tokens, and of tokens with padding."""
        self.loss += loss
        self.counts = [total + count for total, count in zip(self.counts, counts, strict=True)]

    def of_all(self, stop_here: float) -> list[float]:
        """[dist] Return the sums over all processes, and of `stop_here`: more than 0 if any is to stop."""
        sums = torch.stack([self.loss.double(), *self.loss.new_tensor([*self.counts, stop_here], dtype=torch.double)])
        dist.all_reduce(sums)
        return sums.tolist()


@contextlib.contextmanager
def rank_0_first() -> Iterator[None]:
    """[dist] Let rank 0 run the block alone, then the others."""
    if dist.get_rank() != 0:
        dist.barrier()
    yield
    if dist.get_rank() == 0:
        dist.barrier()


def build_optimizer(model: nn.Module, config: TrainConfig) -> torch.optim.Optimizer:
    """AdamW; matrices decay, biases and layer norms do not; lower layers learn more slowly (arXiv 1905.05583)."""
    layers = layers_of(model)
    depth = {id(p): len(layers) - i for i, layer in enumerate(layers) for p in layer.parameters()}
    groups: dict[tuple[int, bool], list[nn.Parameter]] = {}
    for parameter in model.parameters():
        if parameter.requires_grad:
            groups.setdefault((depth.get(id(parameter), 0), parameter.ndim > 1), []).append(parameter)
    settings = [
        {
            "params": parameters,
            "peak_learning_rate": config.learning_rate * config.layer_decay**below,
            "weight_decay": config.weight_decay if decays else 0.0,
        }
        for (below, decays), parameters in groups.items()
    ]
    # fused: one pass over the memory of each parameter, also on a CPU.
    return torch.optim.AdamW(settings, lr=config.learning_rate, fused=True)


def schedule(progress: float, warmup: float) -> float:
    """Return the learning rate as a share of its peak, for the share of the run that is done."""
    if progress < warmup:
        # Never exactly 0: a first step that changes nothing would be wasted.
        return max(progress / warmup, 0.01)
    return (1 - progress) / (1 - warmup) if warmup < 1 else 1.0


def describe(device: torch.device) -> str:
    """Name a device for people."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU"


if __name__ == "__main__":
    from torchdist_imdb import cli

    sys.exit(cli.train())
