"""Gradient accumulation under sharded data parallel training with FairScale: the loop this project is about.

Every process runs this file. What FairScale and accumulation are about is marked [fairscale] and [accumulate]:

    sharding.WAYS      OSS and ShardedDataParallel, or one of four other ways, in the same few operations
    sums of losses     micro-batches differ in their number of tokens: the loss of a step is a sum that is divided once,
                       by the tokens of all micro-batches of all processes
    no_sync            only the last backward pass of a step communicates; under ShardedDataParallel a must
    step               with AdaScale, the learning rate times a gain between 1 and the number of micro-batches
    optimizer_state    each process has its share of the moments: collected for a checkpoint, shared out on resume
"""

import contextlib
import datetime
import math
import sys
import time
from typing import Any

import torch
import torch.distributed as dist
from trainyard_shared import console, launch, results
from trainyard_shared.checkpoints import CheckpointFolder, manifest
from trainyard_shared.config import Parsed, to_yaml
from trainyard_shared.datasets.wikitext import TextDataset
from trainyard_shared.errors import TrainyardError, UsageError
from trainyard_shared.tensors import memory
from trainyard_shared.tensors.quick_start import postpone_dynamo

postpone_dynamo()  # before transformers is imported: nothing here is compiled

from fairscale_gpt2_accumulation import data, evaluate, sharding  # noqa: E402
from fairscale_gpt2_accumulation.config import TrainConfig  # noqa: E402
from fairscale_gpt2_accumulation.model import build  # noqa: E402

PACKAGE = "fairscale-gpt2-accumulation"


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
    # NCCL between GPUs, Gloo between CPUs. A peer that is silent for longer than the time-out is given up.
    timeout = datetime.timedelta(seconds=config.collective_timeout_s)
    dist.init_process_group(launch.backend_for(device.type), timeout=timeout)

    dataset = data.load(config)
    run = Run(parsed, dataset, device)
    if dist.get_rank() == 0:
        run.announce()
    with console.TrainingProgress(
        run.total_blocks, run.used_before_epoch() + run.used, show=dist.get_rank() == 0
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

    def __init__(self, parsed: Parsed[TrainConfig], dataset: TextDataset, device: torch.device) -> None:
        config = self.config = parsed.config
        self.parsed, self.dataset, self.device = parsed, dataset, device
        self.rank, self.world_size = dist.get_rank(), dist.get_world_size()
        if config.adascale and self.world_size * config.gradient_accumulation_steps == 1:
            raise UsageError(
                "error: --adascale compares the gradients of the micro-batches of a step, and one process without "
                "accumulation has one only; use --nproc 2 or --gradient-accumulation-steps 2, or more"
            )

        self.texts = data.split(dataset, config)
        torch.manual_seed(config.seed)
        with rank_0_first():  # one process fetches a model, the others find it in the cache
            model, self.tokenizer = build(config, self.texts.train)
        self.blocks = data.blocks(self.tokenizer, self.texts.train, config)
        self.order = data.Order(self.blocks, config, self.rank, self.world_size)
        self.val_tokens = evaluate.stream(self.tokenizer, self.texts.val, config.detokenize)
        self.predicted_bytes: dict[str, int] = {}
        self.activation_bytes = self.measure_activations(model)

        parameter_bytes = memory.tensor_bytes(model.parameters())
        self.num_parameters = sum(p.numel() for p in model.parameters())
        # [fairscale] From here on, self.sharded.parallel(...) is model(...) whose backward pass communicates.
        self.sharded = sharding.WAYS[config.sharding](model.to(device), config, device)
        self.predicted_bytes = sharding.predicted_bytes(self.sharded, config, parameter_bytes) | self.predicted_bytes
        torch.manual_seed(config.seed * 1_000_003 + self.rank)  # each process drops out other units

        # Where the run is: epoch, blocks of it used by all processes together, optimizer steps so far; and how many
        # steps with the learning rate as it is those were worth.
        self.epoch, self.used, self.step, self.worth = 0, 0, 0, 0.0
        self.best: dict[str, Any] = {"loss": math.inf, "epoch": 0, "weights": None}
        self.notes = list(dataset.notes)
        self.total_blocks = config.epochs * self.order.blocks_per_epoch
        self.start_up_s = launch.seconds_since_command()
        # For the throughput: of this process's loop, without evaluation. Tokens of all processes, without padding.
        self.train_s, self.trained_tokens = 0.0, 0

        # All processes agree on one run folder; if it holds checkpoints, this run goes on from the newest.
        path = launch.run_dir(config.out_dir, PACKAGE, parsed.config_name, parsed.resume)
        self.folder = results.RunFolder(path)
        self.checkpoints = CheckpointFolder(self.folder.checkpoints)
        self.resume()

    # ------------------------------------------------------------------------------------------------ the loop itself

    def train_epoch(self, progress: console.TrainingProgress) -> None:
        """Train on what is left of the current epoch."""
        config, sharded = self.config, self.sharded
        sharded.parallel.train()
        loss_sum, num_tokens_since = torch.zeros((), device=self.device, dtype=torch.double), 0
        since = time.perf_counter()
        for step in self.order.steps(self.epoch, self.used):
            factor = schedule((self.used_before_epoch() + self.used) / self.total_blocks, config.warmup_fraction)
            for group in sharded.optimizer.param_groups:
                group["lr"] = config.learning_rate * factor

            num_tokens = self.order.num_tokens(step)
            micro_batches = list(self.order.batches.share(step))
            sharded.zero_grad()
            for micro_step, (index, weight) in enumerate(micro_batches):
                inputs, targets = data.micro_batch(self.blocks, index, self.tokenizer.eos_token_id, self.device)
                last = micro_step == len(micro_batches) - 1
                # [accumulate] [fairscale] Gradients of all but the last micro-batch only add up on each process. Under
                # DDP that saves time. ShardedDataParallel reduces gradients in place and frees those of others'
                # parameters: without no_sync, the next micro-batch would be added to a sum that is reduced already.
                with contextlib.nullcontext() if last else sharded.no_sync():
                    with evaluate.autocast(self.device, config.precision):
                        loss = weight * sharded.parallel(inputs, targets)
                    # [accumulate] The mean over all tokens of the step, whoever computes how many of them: divided by
                    # their number, and multiplied by that of the processes, by which the reduction is going to divide.
                    (loss * self.world_size / num_tokens).backward()
                loss_sum += loss.detach()
            if config.max_grad_norm is not None:
                sharded.clip_grad_norm(config.max_grad_norm)
            sharded.step()

            self.step += 1
            self.used += len(step)
            self.worth += sharded.gain() or 1.0
            num_tokens_since += num_tokens
            if self.step % config.log_every == 0:
                # One small all-reduce for two things. Reading it waits for the device, hence not every step.
                sums = torch.stack([loss_sum, loss_sum.new_tensor(float(launch.stop_request().requested))])
                dist.all_reduce(sums)
                total, stop = sums.tolist()
                now = time.perf_counter()
                self.train_s, self.trained_tokens = self.train_s + now - since, self.trained_tokens + num_tokens_since
                self.log(progress, total / num_tokens_since, num_tokens_since / (now - since))
                loss_sum, num_tokens_since, since = torch.zeros_like(loss_sum), 0, now
                if stop:
                    self.save()
                    raise launch.Interrupted
            if config.checkpoint_every and self.step % config.checkpoint_every == 0:
                self.save()
                since = time.perf_counter()

    def validate(self, progress: console.TrainingProgress) -> None:
        """Measure the loss on the validation text and remember the weights if they are the best so far."""
        config = self.config
        model, context = self.sharded.whole(), config.context_length
        found = evaluate.likelihood(model, self.val_tokens, context, context, config.precision, self.device)
        loss = found.nll / found.num_tokens
        if self.rank == 0:
            self.folder.log("val", step=self.step, epoch=self.epoch + 1, loss=loss, perplexity=found.perplexity)
        progress.say(f"epoch {self.epoch + 1}/{config.epochs}: val loss {loss:.3f}, perplexity {found.perplexity:.2f}")
        if loss < self.best["loss"]:
            self.best = {"loss": loss, "epoch": self.epoch + 1, "weights": self.gather_weights()}

    def gather_weights(self) -> dict[str, torch.Tensor]:
        """Return the whole weights as copies on the CPU; all processes call it."""
        return {name: tensor.detach().cpu().clone() for name, tensor in self.sharded.weights().items()}

    # ------------------------------------------------------------------------------------------ checkpoints and resume

    def save(self) -> None:
        """Write a checkpoint. All processes call it: each contributes its share, and its random state."""
        weights = self.gather_weights()
        optimizer = self.sharded.optimizer_state()  # [fairscale] whole, on rank 0
        random_state = {"cpu": torch.get_rng_state()}
        if self.device.type == "cuda":
            random_state["cuda"] = torch.cuda.get_rng_state(self.device)
        random_states: list | None = [None] * self.world_size if self.rank == 0 else None
        dist.gather_object(random_state, random_states, dst=0)
        if self.rank == 0:
            facts = {"epoch": self.epoch, "used": self.used, "world_size": self.world_size, "worth": self.worth}
            facts["sharding"] = self.config.sharding
            with self.checkpoints.write(self.step, **facts, global_batch_size=self.order.global_batch_size) as path:
                state = {"model": weights, "optimizer": optimizer, "random_states": random_states, "best": self.best}
                torch.save(state, path / "state.pt")
        # Nobody trains on, and nobody is told that the run may end, before the checkpoint is on the disk.
        dist.barrier()

    def resume(self) -> None:
        """Go on from the newest intact checkpoint, if there is one; also with another number of processes."""
        # Rank 0 looks, all get its answer, or its complaint.
        answer: list[Any] = [None, None]
        if self.rank == 0:
            try:
                answer[0] = self.checkpoints.newest(self.warn)
            except TrainyardError as error:
                answer[1] = error
        dist.broadcast_object_list(answer, src=0)
        if answer[1] is not None:
            raise answer[1]
        if answer[0] is None:
            if self.rank == 0:
                self.folder.forget_after(0)  # what a run that was killed before its first checkpoint has logged
            return
        facts = manifest(answer[0])
        if not sharding.same_optimizer_state(facts["sharding"], self.config.sharding):
            raise UsageError(
                f"error: --sharding {self.config.sharding}: the checkpoint holds the optimizer state of "
                f"{facts['sharding']}, which is kept in another form; continue with --sharding {facts['sharding']}"
            )
        # weights_only: a checkpoint is data, and must not be able to run code.
        state = torch.load(answer[0] / "state.pt", map_location=self.device, weights_only=True)
        self.sharded.load_weights(state["model"])
        self.sharded.load_optimizer_state(state["optimizer"])  # [fairscale] each process keeps its share
        for group in self.sharded.optimizer.param_groups:
            # The moments come from the checkpoint, settings from the config, which flags may have changed.
            group.update(sharding.adamw_settings(self.config))
        self.best = state["best"]
        self.step, self.epoch, self.used, self.worth = (facts[key] for key in ("step", "epoch", "used", "worth"))
        if facts["world_size"] == self.world_size:
            own = state["random_states"][self.rank]
            torch.set_rng_state(own["cpu"].cpu())
            if "cuda" in own and self.device.type == "cuda":
                torch.cuda.set_rng_state(own["cuda"].cpu(), self.device)
        now, before = (self.world_size, self.order.global_batch_size), (facts["world_size"], facts["global_batch_size"])
        if now != before:
            same = "the same batches; only dropout falls on other units"
            other = "other batches: in this epoch some blocks may be seen twice and some not at all"
            self.warn(
                f"resumed with {now[0]} processes and a global batch of {now[1]}; before: {before[0]} and {before[1]}. "
                f"The run goes on with {same if now[1] == before[1] else other}"
            )
        if self.rank == 0:
            self.folder.forget_after(self.step)
            console.say(f"resuming {self.folder.path} at epoch {self.epoch + 1}, step {self.step}")

    # ------------------------------------------------------------------------------------------------------- reporting

    def used_before_epoch(self) -> int:
        """Blocks that all processes have used in the epochs before this one."""
        return self.epoch * self.order.blocks_per_epoch

    def warn(self, message: str) -> None:
        """Say something on rank 0 and put it into the report."""
        self.notes.append(message)
        if self.rank == 0:
            console.say(f"note: {message}")

    def measure_activations(self, model: torch.nn.Module) -> int:
        """Measure what the forward pass of a micro-batch of the longest blocks keeps, beside a prediction of it.

        The prediction comes from 2 and 3 blocks: it shows that activations grow in proportion to the micro-batch.
        """
        config = self.config
        length = int(self.blocks.lengths.max()) - 1
        dtype = torch.bfloat16 if config.precision == "bf16" else None
        few = torch.zeros(3, length, dtype=torch.int64)
        self.predicted_bytes["activations"] = memory.activation_bytes(
            model, few, few, batch_size=config.micro_batch_size, autocast=dtype
        )
        batch = torch.zeros(config.micro_batch_size, length, dtype=torch.int64)
        return memory.saved_bytes(model, batch, batch, autocast=dtype)

    def log(self, progress: console.TrainingProgress, loss: float, tokens_per_second: float) -> None:
        """Record and show the mean training loss since the last record; stop if it is no number any more."""
        position = (self.used_before_epoch() + self.used) / self.total_blocks * self.config.epochs
        gain = self.sharded.gain()
        shown = {"epoch": f"{position:.1f}", "loss": f"{loss:.3f}", "tokens/s": f"{tokens_per_second:,.0f}"}
        if self.rank == 0:
            adascale = {} if gain is None else {"gain": gain, "worth_steps": self.worth}
            self.folder.log(
                "train",
                step=self.step,
                epoch=round(position, 4),
                loss=loss,
                learning_rate=self.sharded.optimizer.param_groups[0]["lr"] * (gain or 1.0),
                tokens_per_second=round(tokens_per_second, 1),
                **adascale,
            )
        if gain is not None:
            shown["gain"] = f"{gain:.2f}"
        progress.update(self.used_before_epoch() + self.used, shown)
        if not math.isfinite(loss):
            raise TrainyardError(
                f"error: the training loss is {loss} at step {self.step} (epoch {self.epoch + 1}, before block "
                f"{self.used}): try a lower --learning-rate or --precision fp32; the last checkpoint is kept"
            )

    def announce(self) -> None:
        """Pre-flight: say what is about to happen, and write it down."""
        config, dataset, order, lengths = self.config, self.dataset, self.order, self.blocks.lengths - 1
        if self.device.type == "cpu" and config.device == "auto" and torch.cuda.is_available():
            gpus = torch.cuda.device_count()
            self.notes.append(
                f"on the CPU, because {launch.local_world_size()} processes cannot share {gpus} GPU(s); "
                f"--nproc {gpus} uses them"
            )
        if config.precision == "bf16" and self.device.type == "cpu" and not cpu_has_bf16_units():
            self.notes.append(
                "this CPU has no bf16 units: it converts every number back and forth, so --precision fp32 is faster"
            )
        if order.whole_steps_only and (rest := len(lengths) - order.blocks_per_epoch):
            self.notes.append(
                f"AdaScale takes the same number of gradients at each step: the {rest} blocks of an epoch that fill no "
                "step are left out, other ones in each epoch"
            )
        predicted = self.predicted_bytes
        total = sum(predicted.values())
        parts = ", ".join(f"{name} {console.bytes_text(count)}" for name, count in predicted.items())
        short = int((lengths < lengths.max()).sum())
        facts = [
            ("model", f"{config.model}: GPT-2 of {self.num_parameters:,} parameters"),
            ("tokenizer", f"{len(self.tokenizer):,} tokens, {self.describe_tokenizer()}"),
            ("sharding", config.sharding + (" with AdaScale" if config.adascale else "")),
            ("device", f"{describe(self.device)}, {config.precision}, {torch.get_num_threads()} threads a process"),
            ("processes", f"{self.world_size} ({dist.get_backend()})"),
            (
                "batch",
                f"micro {config.micro_batch_size} x accumulation {config.gradient_accumulation_steps} x "
                f"{self.world_size} processes = {order.global_batch_size} blocks",
            ),
            ("data", f"{dataset.source}: {int(lengths.sum()):,} tokens train, {len(self.val_tokens) - 1:,} val"),
            ("blocks", f"{len(lengths):,} of at most {lengths.max()} tokens; {short:,} are shorter"),
            ("steps", f"{config.epochs} epochs of {order.steps_per_epoch}"),
            ("memory", f"{console.bytes_text(total)} predicted for each process: {parts}"),
            ("results", str(self.folder.path)),
        ]
        console.preflight(f"{PACKAGE}: training '{self.parsed.config_name}'", facts, self.notes)
        if not (self.folder.path / "config.yaml").exists():
            results.write_atomically(self.folder.path / "config.yaml", to_yaml(config))
        self.folder.write_summary(self.summary("running") | ({} if self.step else {"started_at": results.now()}))

    def describe_tokenizer(self) -> str:
        """Say where the tokenizer comes from."""
        if self.config.tokenizer is not None:
            return f"from {self.config.tokenizer}"
        return "made of the training text" if self.config.model == "tiny" else f"that of {self.config.model}"

    def summary(self, state: str) -> dict[str, Any]:
        """What summary.json says of the run so far."""
        dataset, config = self.dataset, self.config
        return {
            "package": PACKAGE,
            "config": self.parsed.config_name,
            "config_changed": list(self.parsed.changed),
            "state": state,
            "data": {
                "kind": dataset.kind,
                "name": dataset.name,
                "source": dataset.source,
                "train_tokens": int((self.blocks.lengths - 1).sum()),
                "val_tokens": len(self.val_tokens) - 1,
                "trained_on": f"the {config.train_on} text"
                + (f", {config.num_val_articles} articles held out" if config.train_on == "valid" else ""),
            },
            "model": config.model,
            "parameters": self.num_parameters,
            "seed": config.seed,
            "world_size": self.world_size,
            "threads_per_process": torch.get_num_threads(),
            "global_batch_size": self.order.global_batch_size,
            "micro_batch_size": config.micro_batch_size,
            "gradient_accumulation_steps": config.gradient_accumulation_steps,
            "device": describe(self.device),
            "precision": config.precision,
            "sharding": config.sharding,
            "adascale": config.adascale,
            "restarts": launch.num_restarts(),
            "steps": self.step,
            "notes": list(dict.fromkeys(self.notes)),
            **results.provenance(
                (PACKAGE, "trainyard-shared", "torch", "fairscale", "transformers", "tokenizers", "sacrebleu")
            ),
        }

    def finish(self) -> None:
        """Save the chosen weights, test them once on the whole test text, and write what came out."""
        train_end_s = launch.seconds_since_command()
        # Bytes held on each rank, collected on rank 0.
        bytes_per_rank: list = [None] * self.world_size
        held = self.sharded.held_bytes() | {"activations": self.activation_bytes}
        dist.all_gather_object(bytes_per_rank, {**held, **memory.peak_memory(self.device)})
        model = self.sharded.whole()
        model.load_state_dict(self.best["weights"])
        if self.rank == 0:
            evaluate.save_model(model, self.tokenizer, self.folder.path)
        summary = self.summary("finished")
        throughput = self.trained_tokens / self.train_s if self.train_s else float("nan")
        summary |= {
            "start_up_s": self.start_up_s,
            "throughput": {"tokens_per_second": round(throughput, 1)},
            "memory": {
                "peak_bytes": bytes_per_rank[0].pop("peak_bytes"),
                "peak_of": bytes_per_rank[0].pop("peak_of"),
                "predicted_bytes": self.predicted_bytes,
                "measured_bytes": bytes_per_rank[0],
                "measured_bytes_per_rank": bytes_per_rank,
            },
            "chosen_epoch": self.best["epoch"],
            "val_perplexity": evaluate.safe_exp(self.best["loss"]),
        }
        if self.config.adascale:
            summary["mean_gain"] = self.worth / self.step
        evaluate.test_and_report(
            model,
            self.tokenizer,
            self.dataset,
            self.config,
            self.device,
            self.folder,
            summary,
            train_end_s,
            train_text=self.texts.train,
        )


@contextlib.contextmanager
def rank_0_first() -> Any:
    """Let rank 0 run the block alone, then the others."""
    if dist.get_rank() != 0:
        dist.barrier()
    yield
    if dist.get_rank() == 0:
        dist.barrier()


def cpu_has_bf16_units() -> bool:
    """Whether this CPU multiplies bf16 numbers natively, so that mixed precision can gain time."""
    capabilities = torch.cpu.get_capabilities()
    return any(capabilities.get(name) for name in ("avx512_bf16", "amx_bf16", "bf16"))


def schedule(progress: float, warmup: float) -> float:
    """Return the learning rate as a share of its peak, for the share of the run that is done.

    A function of blocks seen, not of steps, so that it means the same for any batch size and number of processes.
    """
    if progress < warmup:
        # Never exactly 0: a first step that changes nothing would be wasted.
        return max(progress / warmup, 0.01)
    return (1 - progress) / (1 - warmup) if warmup < 1 else 1.0


def describe(device: torch.device) -> str:
    """Name a device for people."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU"


if __name__ == "__main__":
    from fairscale_gpt2_accumulation import cli

    sys.exit(cli.train())
