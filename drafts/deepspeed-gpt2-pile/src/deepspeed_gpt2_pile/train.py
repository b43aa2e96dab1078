"""Training GPT-2 with DeepSpeed: the loop this project is about.

Every process runs this file. What DeepSpeed asks for is marked [deepspeed]:

    start                DeepSpeed joins the processes; on a CPU it has to be kept from compiling extensions
    complete             its JSON config, of which the project's config fills in what says "auto"
    from_pretrained      under ZeRO-3 each tensor of a pretrained model is shared out as soon as it is read
    initialize           from here on the engine holds model, optimizer and gradients, each process its share
    engine(...)          ZeRO-3 gathers each layer's parameters before it computes and lets them go after
    engine.backward      divides by the accumulation steps; gradients are reduced to the process that owns them
    engine.step          counts micro-batches by itself and makes an optimizer step after the last
    safe_get_full_fp32_param   the whole of a parameter that no process holds, in the precision of the optimizer
    save_checkpoint      each process writes its share; ds_to_universal re-cuts them for another number of processes
"""

import copy
import datetime
import importlib
import logging
import math
import os
import pickle
import shutil
import sys
import time
import warnings
from importlib.resources import files as package_files
from pathlib import Path
from typing import Any
from unittest import mock

import torch
import torch.distributed as dist
from safetensors.torch import load_file, save_file
from trainyard_shared import console, deepspeed_json, launch, results
from trainyard_shared.checkpoints import CheckpointFolder, manifest
from trainyard_shared.config import Parsed, to_yaml
from trainyard_shared.datasets.pile import PileFiles
from trainyard_shared.errors import DataError, TrainyardError, UsageError
from trainyard_shared.tensors import memory, zero
from trainyard_shared.tensors.checkpointing import newest_for_all, written_by_all
from trainyard_shared.tensors.quick_start import postpone_dynamo

postpone_dynamo()  # before transformers is imported: nothing here is compiled

from deepspeed_gpt2_pile import data, evaluate, model  # noqa: E402
from deepspeed_gpt2_pile.config import TrainConfig  # noqa: E402
from deepspeed_gpt2_pile.plain import PlainEngine  # noqa: E402

PACKAGE = "deepspeed-gpt2-pile"
TAG = "state"  # name of the folder that DeepSpeed makes in a checkpoint
BEST = "best.safetensors"


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
    settings = deepspeed_settings(config, launch.world_size(), device)
    data.check_shards(config, launch.world_size())
    start(device, config.collective_timeout_s)
    run = Run(parsed, data.load(config), device, settings)
    run.check_data()
    if dist.get_rank() == 0:
        run.announce()
    with console.TrainingProgress(run.total_steps, run.step, show=dist.get_rank() == 0) as progress:
        while run.step < run.total_steps:
            try:
                run.train_epoch(progress)
            except DataError as error:
                run.give_up(error)
                raise
            run.validate(progress)
            run.save()
            if run.stopping and run.step < run.total_steps:
                raise launch.Interrupted
    run.finish()
    launch.leave_together()


def start(device: torch.device, timeout_s: float) -> None:
    """[deepspeed] Join the other processes, which the launcher has named in RANK, WORLD_SIZE, MASTER_ADDR and so on."""
    os.environ.setdefault("LOCAL_RANK", "0")
    warnings.filterwarnings("ignore", module=r"deepspeed|torch\.distributed", category=FutureWarning)
    import deepspeed

    if device.type == "cpu":
        # It has chosen a GPU if there is one, whatever --device says.
        from deepspeed.accelerator import cpu_accelerator, set_accelerator

        set_accelerator(cpu_accelerator.CPU_Accelerator())
    logging.getLogger("DeepSpeed").setLevel(logging.ERROR)
    read_as_data()
    if device.type == "cpu":
        # Its shared-memory all-reduce for CPUs would be compiled for most of a minute; Gloo does the same work.
        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
        # An optimizer that is not used here is marked to be compiled, and would import torch's compiler.
        with mock.patch.object(deepspeed.runtime.compiler, "compile", lambda: lambda function: function):
            importlib.import_module("deepspeed.runtime.zero.muon.original_muon")
    timeout = datetime.timedelta(seconds=timeout_s)
    deepspeed.init_distributed(launch.backend_for(device.type), timeout=timeout, verbose=False)


def read_as_data() -> None:
    """[deepspeed] Let torch.load, whatever DeepSpeed tells it, take nothing but numbers and a few classes of DeepSpeed.

    DeepSpeed asks for its checkpoints as pickles, which could run any code. Anything else in one is an error then.
    """
    from deepspeed.runtime.fp16.loss_scaler import DynamicLossScaler, LossScaler
    from deepspeed.runtime.zero.config import ZeroStageEnum
    from deepspeed.utils.tensor_fragment import fragment_address

    os.environ["TORCH_FORCE_WEIGHTS_ONLY_LOAD"] = "1"
    torch.serialization.add_safe_globals([ZeroStageEnum, LossScaler, DynamicLossScaler, fragment_address])


def deepspeed_settings(config: TrainConfig, world_size: int, device: torch.device) -> dict[str, Any]:
    """[deepspeed] Return the JSON config with every "auto" replaced but those of sizes, which need the model.

    Raises:
        UsageError: the file cannot be read, contradicts the config, or batch sizes do not multiply.
    """
    if config.precision == "fp16" and (device.type == "cpu" or config.engine != "deepspeed"):
        raise UsageError("error: precision: fp16 is for DeepSpeed on GPUs: take bf16 or fp32 here")
    if config.engine != "deepspeed":
        return {}
    file = deepspeed_json.find(config.deepspeed, package_files("deepspeed_gpt2_pile") / "deepspeed")
    settings = deepspeed_json.read(file)
    on_cpu = device.type == "cpu"
    values = {
        "optimizer.params.lr": config.learning_rate,
        "optimizer.params.weight_decay": config.weight_decay,
        "gradient_clipping": config.max_grad_norm,
        "bf16.enabled": config.precision == "bf16",
        "fp16.enabled": config.precision == "fp16",
    }
    # Only where the file leaves the choice. On a CPU, DeepSpeed's own Adam would be compiled for four minutes.
    defaults = {
        "optimizer.params.torch_adam": on_cpu,
        "zero_force_ds_cpu_optimizer": not on_cpu,
        "zero_optimization.overlap_comm": not on_cpu,
        "zero_optimization.offload_optimizer.pin_memory": not on_cpu,
        "zero_optimization.offload_param.pin_memory": not on_cpu,
    }
    later = {f"zero_optimization.{name}": deepspeed_json.AUTO for name in sizes(1, 1, 1, on_cpu)}
    return deepspeed_json.complete(
        settings,
        file.name,
        micro_batch_size=config.micro_batch_size,
        gradient_accumulation_steps=config.gradient_accumulation_steps,
        world_size=world_size,
        values=values | {name: value for name, value in (defaults | later).items() if _is_auto(settings, name)},
    )


def sizes(largest: int, largest_trained: int, hidden_size: int, on_cpu: bool) -> dict[str, int]:
    """[deepspeed] Return what "auto" means for the sizes of buckets, in numbers, not bytes.

    On GPUs as the transformers library chooses them, from the width of the model. On a CPU nothing is gained by
    sending much at once: buckets hold the largest parameter, those of gradients the largest that is trained, and
    ZeRO-3 keeps and fetches nothing but what computes.
    """
    if on_cpu:
        reduce, gather = largest_trained, largest
        prefetch, persistence, live = 0, 0, 0
    else:
        reduce = gather = max(largest, hidden_size * hidden_size)
        prefetch, persistence, live = int(0.9 * hidden_size**2), 10 * hidden_size, 10**9
    return {
        "reduce_bucket_size": reduce,
        "allgather_bucket_size": gather,
        "stage3_prefetch_bucket_size": prefetch,
        "stage3_param_persistence_threshold": persistence,
        "stage3_max_live_parameters": live,
        "stage3_max_reuse_distance": live,
    }


class Run:
    """The state of a training run, which is what a checkpoint holds, and the steps that change it."""

    def __init__(
        self, parsed: Parsed[TrainConfig], files: PileFiles, device: torch.device, settings: dict[str, Any]
    ) -> None:
        config = self.config = parsed.config
        self.parsed, self.files, self.device, self.settings = parsed, files, device, settings
        self.rank, self.world_size = dist.get_rank(), dist.get_world_size()
        self.notes = list(files.notes)
        self.stage = settings.get("zero_optimization", {}).get("stage", 0)
        self.tokenizer = data.load_tokenizer(config.tokenizer_name)
        self.global_batch_size = config.micro_batch_size * config.gradient_accumulation_steps * self.world_size
        self.total_steps = config.epochs * config.steps_per_epoch

        torch.manual_seed(config.seed)
        self.make_model()
        self.predicted_bytes = self.predict_bytes()

        self.step, self.stopping = 0, False
        self.best: dict[str, Any] = {"bits_per_byte": math.inf, "epoch": 0}
        self.best_weights: dict[str, torch.Tensor] | None = None  # on rank 0
        self.held: dict[str, int] | None = None
        self.start_up_s = launch.seconds_since_command()
        self.train_s, self.trained_tokens = 0.0, 0  # for the throughput: of this process's loop, without evaluation

        # All processes agree on one run folder; if it holds checkpoints, this run goes on from the newest.
        path = launch.run_dir(config.out_dir, PACKAGE, parsed.config_name, parsed.resume)
        self.folder = results.RunFolder(path)
        self.checkpoints = CheckpointFolder(self.folder.checkpoints)
        newest = newest_for_all(self.checkpoints, self.warn)
        self.make_engine(newest)
        self.group_settings = [
            {name: value for name, value in group.items() if name != "params"}
            for group in self.engine.optimizer.param_groups
        ]
        cursors = self.resume(newest)
        self.batches = data.TrainBatches(files, config, self.tokenizer, cursors, self.rank, self.world_size)

    def make_model(self) -> None:
        """Make the model to train, and `whole`, a plain module of the same form for validation and the end."""
        config = self.config
        wanted = self.model_settings = model.settings_of(
            config, self.tokenizer.get_vocab_size(), data.end_of_text(self.tokenizer)
        )
        if config.model == "scratch":
            # Every process draws the same weights, whole, and `initialize` shares them out. deepspeed.zero.Init()
            # around the class would never hold the whole, but the library's initial weights go amiss there.
            made = model.from_scratch(wanted)
        else:
            made = self.load_pretrained(wanted)
        self.model = model.prepared(made, config)
        # [deepspeed] The forward pass of a sharded module waits for all processes at every layer. Evaluation therefore
        # has a plain module, into which the weights are gathered: documents need not be dealt out evenly.
        self.whole = model.prepared(model.from_scratch(wanted), config).to(self.device)
        self.num_parameters = sum(p.numel() for p in self.whole.parameters())
        self.num_trained = sum(p.numel() for p in self.whole.parameters() if p.requires_grad)

    def load_pretrained(self, wanted: Any) -> Any:
        """Read a pretrained model; under ZeRO-3 no process ever holds the whole of it for training."""
        if self.stage < 3:
            return model.from_pretrained(self.config.model, wanted)
        from transformers.integrations import HfDeepSpeedConfig

        # [deepspeed] While this object lives, from_pretrained shares out each tensor as it reads it.
        alive = HfDeepSpeedConfig(self.settings_for(model.from_scratch(wanted)))
        loaded = model.from_pretrained(self.config.model, wanted)
        del alive
        return loaded

    def settings_for(self, module: Any) -> dict[str, Any]:
        """[deepspeed] Return the JSON config with the sizes that follow from the model."""
        largest = max(p.numel() for p in module.parameters())
        largest_trained = max(p.numel() for p in module.parameters() if p.requires_grad)
        chosen = sizes(largest, largest_trained, self.model_settings.n_embd, self.device.type == "cpu")
        stated = self.settings.get("zero_optimization", {})
        filled = {name: chosen[name] if value == deepspeed_json.AUTO else value for name, value in stated.items()}
        return self.settings | {"zero_optimization": filled}

    def make_engine(self, checkpoint: Path | None) -> None:
        """Wrap the model in the engine that trains it."""
        config = self.config
        groups = model.parameter_groups(self.model, config.weight_decay)
        if config.engine == "ddp":
            self.engine: Any = PlainEngine(self.model.to(self.device), groups, config, self.device)
            return
        import deepspeed

        settings = self.settings_for(self.whole)
        if checkpoint is not None and manifest(checkpoint)["world_size"] != self.world_size and self.stage > 0:
            settings["checkpoint"] = {"load_universal": True}
        # [deepspeed] The engine owns everything from here on: optimizer, clipping, accumulation, 16 bits, sharding.
        self.engine, *_ = deepspeed.initialize(model=self.model, model_parameters=groups, config=settings)

    def check_data(self) -> None:
        """Read the first batch and all documents of validation and test, before anything is written.

        Raises:
            DataError: on every process, what one of them has found.
        """
        error = self.batches.first_error()
        if error is None and self.rank == 0:
            error = data.error_in(self.files, self.config)
        errors: list[DataError | None] = [None] * self.world_size
        dist.all_gather_object(errors, error)
        for found in errors:
            if found is not None:
                raise found

    def give_up(self, error: DataError) -> None:
        """Training documents turned out bad in mid-stream: leave no folder behind that nothing can go on from.

        It is this process's documents that are bad; the others wait for it in the step.
        """
        console.say(f"process {self.rank} of {self.world_size} stops in step {self.step + 1}: {error}")
        if not any(self.checkpoints.path.glob("step-*")):
            time.sleep(1)  # in which rank 0 has logged the step before, if it still was at it
            shutil.rmtree(self.folder.path, ignore_errors=True)

    # ------------------------------------------------------------------------------------------------ the loop itself

    def train_epoch(self, progress: console.TrainingProgress) -> None:
        """Train until the next validation."""
        config, engine = self.config, self.engine
        engine.train()
        loss_sum, loss_count = torch.zeros((), device=self.device), 0
        since, steps_since = time.perf_counter(), 0
        until = (self.step // config.steps_per_epoch + 1) * config.steps_per_epoch
        while self.step < until:
            factor = schedule(self.step / self.total_steps, config.warmup_fraction, config.min_learning_rate)
            for group in engine.optimizer.param_groups:
                group["lr"] = config.learning_rate * factor

            for _ in range(config.gradient_accumulation_steps):
                tokens = self.batches.next().to(self.device, non_blocking=True)  # (B, T + 1)
                # [deepspeed] Under ZeRO-3 each layer's parameters are gathered when its turn comes, here and in
                # backward, and let go again: all processes have to come to the same layers in the same order.
                loss = model.loss_of(engine, tokens)
                # [deepspeed] Not loss.backward(): the engine divides by the accumulation steps, scales the loss in
                # fp16, and sends each gradient to its owner as soon as it is there. All sequences are packed full, so
                # the mean of the micro-batches' means is the mean over all tokens.
                engine.backward(loss)
                if self.held is None and self.step > 0 and engine.is_gradient_accumulation_boundary():
                    self.held = zero.held_bytes(engine) if config.engine == "deepspeed" else engine.held_bytes()
                # [deepspeed] To be called after every micro-batch; the last one clips and updates, and ZeRO-1 and 2
                # then gather the parameters that other processes have updated.
                engine.step()
                loss_sum += loss.detach()
                loss_count += 1

            self.step += 1
            steps_since += 1
            if self.step % config.log_every == 0 or self.step == until:
                # One small all-reduce for three things. Reading it waits for the device, hence not every step.
                stop_here = float(launch.stop_request().requested)
                sums = torch.stack([loss_sum, *loss_sum.new_tensor([loss_count, stop_here])])
                dist.all_reduce(sums)
                total, count, stop = sums.tolist()
                now = time.perf_counter()
                tokens_since = steps_since * self.global_batch_size * config.context_length
                self.train_s, self.trained_tokens = self.train_s + now - since, self.trained_tokens + tokens_since
                self.log(progress, total / count, tokens_since / (now - since))
                since, steps_since = now, 0
                loss_sum, loss_count = torch.zeros_like(loss_sum), 0
                # At the end of an epoch, validation comes first: a continued run would not make up for it.
                self.stopping = bool(stop)
                if stop and self.step < until:
                    self.save()
                    raise launch.Interrupted
            if config.checkpoint_every and self.step % config.checkpoint_every == 0 and self.step < until:
                self.save()
                since = time.perf_counter()

    def validate(self, progress: console.TrainingProgress) -> None:
        """Measure the validation documents and remember the weights if they are the best so far."""
        weights = self.gather_weights()
        model.set_weights(self.whole, weights)
        found = evaluate.measure(
            self.whole, self.tokenizer, self.files.val, self.config.num_val_documents, self.config, self.device
        )
        bits, loss = found.bits_per_byte(), math.log(found.perplexity())
        epoch = self.step // self.config.steps_per_epoch
        if self.rank == 0:
            self.folder.log("val", step=self.step, epoch=epoch, loss=loss, bits_per_byte=bits)
        progress.say(f"epoch {epoch}/{self.config.epochs}: val loss {loss:.3f} nats/token, {bits:.4f} bits/byte")
        if bits < self.best["bits_per_byte"]:
            self.best = {"bits_per_byte": bits, "epoch": epoch}
            self.best_weights = weights if self.rank == 0 else None

    def gather_weights(self) -> dict[str, torch.Tensor]:
        """Return the whole model in fp32 as copies on the CPU; all processes call it."""
        parameters = self.engine.module.named_parameters()
        if self.config.engine == "ddp":
            return {name: p.detach().cpu().clone() for name, p in parameters}
        import deepspeed
        from deepspeed.utils import safe_get_full_fp32_param

        weights = {}
        for name, parameter in parameters:
            # [deepspeed] From the optimizer's copy, which is in fp32 also where training is in 16 bits. Stage 0 has
            # none in fp32, and nobody one of frozen parameters; there the parameter itself is taken.
            full = safe_get_full_fp32_param(parameter) if parameter.requires_grad else None
            if full is None:
                with deepspeed.zero.GatheredParameters([parameter], enabled=hasattr(parameter, "ds_id")):
                    full = parameter.detach().float().cpu().clone()
            weights[name] = full.detach().float().cpu().clone()
        return weights

    # ------------------------------------------------------------------------------------------ checkpoints and resume

    def save(self) -> None:
        """Write a checkpoint. All processes call it: each contributes its share."""
        cursors: list[Any] = [None] * self.world_size
        dist.all_gather_object(cursors, data.cursors_to_json(self.batches.consumed))
        facts = {
            "world_size": self.world_size,
            "global_batch_size": self.global_batch_size,
            "engine": self.config.engine,
            "stage": self.stage,
            "best": self.best if self.best["epoch"] else {"bits_per_byte": None, "epoch": 0},
            "cursors": {shard: cursor for part in cursors for shard, cursor in part.items()},
        }
        with written_by_all(self.checkpoints, self.step, **facts) as folder:
            if self.config.engine == "deepspeed":
                # [deepspeed] Weights from rank 0 (under ZeRO-3 from each), optimizer state from each.
                self.engine.save_checkpoint(str(folder), tag=TAG, save_latest=True)
            else:
                self.engine.save_checkpoint(folder)
            random_state = {"cpu": torch.get_rng_state()}
            if self.device.type == "cuda":
                random_state["cuda"] = torch.cuda.get_rng_state(self.device)
            torch.save(random_state, folder / f"random-{self.rank}.pt")
            if self.best_weights is not None:
                save_file(self.best_weights, folder / BEST)

    def resume(self, checkpoint: Path | None) -> list[data.Cursor]:
        """Go on from a checkpoint, if there is one, also of another number of processes; return where the data are."""
        config = self.config
        if checkpoint is None:
            torch.manual_seed(config.seed * 1_000_003 + self.rank)  # dropout falls elsewhere on each process
            return data.start_cursors(config)
        facts = manifest(checkpoint)
        if (facts["engine"], facts["stage"]) != (config.engine, self.stage):
            raise UsageError(
                f"error: --resume: the checkpoint is one of engine {facts['engine']}, stage {facts['stage']}, and "
                f"holds its state in another form than {config.engine}, stage {self.stage}; continue as it began"
            )
        if len(facts["cursors"]) != config.num_shards:
            raise UsageError(
                f"error: --resume: num_shards is {config.num_shards}, in the checkpoint {len(facts['cursors'])}: the "
                "documents are dealt out to these; continue as it began"
            )
        try:
            if config.engine == "ddp":
                self.engine.load_checkpoint(checkpoint)
            elif facts["world_size"] == self.world_size or self.stage == 0:  # at stage 0 each process has everything
                self.engine.load_checkpoint(str(checkpoint), tag=TAG)
            else:
                self.load_universal(checkpoint)
        except pickle.UnpicklingError as error:
            raise DataError(f"error: {checkpoint}: holds something else than numbers, and is not read") from error
        for group, settings in zip(self.engine.optimizer.param_groups, self.group_settings, strict=True):
            # The moments come from the checkpoint, settings from the config. [deepspeed] A must: the universal
            # checkpoint of ZeRO-3 gives all groups the weight decay of the first.
            group.update(settings)
        self.step = facts["step"]
        if facts["best"]["epoch"]:
            self.best = facts["best"]
        if self.rank == 0 and (checkpoint / BEST).is_file():
            self.best_weights = load_file(checkpoint / BEST)
        if facts["world_size"] == self.world_size:
            # weights_only: this is data, and must not be able to run code.
            own = torch.load(checkpoint / f"random-{self.rank}.pt", weights_only=True)
            torch.set_rng_state(own["cpu"])
            if "cuda" in own and self.device.type == "cuda":
                torch.cuda.set_rng_state(own["cuda"], self.device)
        else:
            torch.manual_seed(config.seed * 1_000_003 + self.rank + self.step)
            self.warn(
                f"resumed with {self.world_size} processes; before: {facts['world_size']}. Every shard of the data "
                "goes on at its token; only dropout falls on other units"
            )
        if facts["global_batch_size"] != self.global_batch_size:
            self.warn(
                f"resumed with a global batch of {self.global_batch_size} sequences; before: "
                f"{facts['global_batch_size']}"
            )
        if self.rank == 0:
            console.say(f"resuming {self.folder.path} at step {self.step}")
        return data.cursors_from_json(facts["cursors"])

    def load_universal(self, checkpoint: Path) -> None:
        """[deepspeed] Take the state of a checkpoint that another number of processes has written.

        Each process wrote its slice of flattened tensors, which fits no other number. `ds_to_universal` puts them
        together to one folder for each parameter, from which each process then takes what is its own.
        """
        if self.config.tuning != "full":
            raise UsageError(
                "error: --resume: with frozen weights a run can go on with its own number of processes only: "
                f"{manifest(checkpoint)['world_size']}"
            )
        universal = self.folder.path / "universal"
        if self.rank == 0:
            convert_to_universal(checkpoint / TAG, universal / TAG, self.stage)
            (universal / "latest_universal").write_text(TAG)
        dist.barrier()
        self.engine.load_checkpoint(str(universal), tag=TAG)
        if self.stage == 3:
            # [deepspeed] It counts the optimizer steps of all groups in one tensor now, which each group then raises
            # at each step: Adam would correct its young moments for too many steps. Each group gets its own again.
            for state in self.engine.optimizer.optimizer.state.values():
                state["step"] = copy.deepcopy(state["step"])
        dist.barrier()
        if self.rank == 0:
            shutil.rmtree(universal)

    # ------------------------------------------------------------------------------------------------------- reporting

    def warn(self, message: str) -> None:
        """Say something on rank 0 and put it into the report."""
        if message not in self.notes:
            self.notes.append(message)
            if self.rank == 0:
                console.say(f"note: {message}")

    def log(self, progress: console.TrainingProgress, loss: float, tokens_per_second: float) -> None:
        """Record and show the mean training loss since the last record; stop if it is no number any more."""
        if self.rank == 0:
            self.folder.log(
                "train",
                step=self.step,
                epoch=round(self.step / self.config.steps_per_epoch, 4),
                loss=loss,
                learning_rate=self.engine.optimizer.param_groups[0]["lr"],
                tokens_per_second=round(tokens_per_second, 1),
            )
        progress.update(
            self.step, {"step": str(self.step), "loss": f"{loss:.3f}", "tokens/s": f"{tokens_per_second:.0f}"}
        )
        if not math.isfinite(loss):
            raise TrainyardError(
                f"error: the training loss is {loss} at step {self.step}: try a lower --learning-rate or --precision "
                "fp32; the last checkpoint is kept"
            )

    def predict_bytes(self) -> dict[str, int]:
        """Predict what a process will hold: the formulas of ZeRO, and activations counted on a smaller model."""
        config = self.config
        if config.engine == "ddp":
            trained = self.num_trained
            predicted = {"parameters": 4 * self.num_parameters, "gradients": 4 * trained, "optimizer": 8 * trained}
        else:
            predicted = zero.predicted_bytes(self.num_trained, self.stage, self.world_size, config.precision)
            held_whole = zero.predicted_bytes(self.num_parameters, self.stage, self.world_size, config.precision)
            predicted["parameters"] = held_whole["parameters"]  # frozen ones, too
            if self.stage in (1, 2):
                groups = model.parameter_groups(self.whole, config.weight_decay)
                group_sizes = [[parameter.numel() for parameter in group["params"]] for group in groups]
                held = zero.gradients_of_slice(group_sizes, self.rank, self.world_size)
                predicted["gradients"] = zero.BYTES[config.precision] * held
        if config.tuning == "full":
            predicted["activations"] = model.predicted_activation_bytes(self.model_settings, config)
        return predicted

    def announce(self) -> None:
        """Pre-flight: say what is about to happen, and write it down."""
        config = self.config
        if config.precision != "fp32" and self.device.type == "cpu" and not cpu_has_bf16_units():
            self.notes.append("this CPU has no bf16 units: bf16 is slower here than --precision fp32; on GPUs faster")
        if self.device.type == "cpu" and config.device == "auto" and torch.cuda.is_available():
            gpus = torch.cuda.device_count()
            self.notes.append(
                f"on the CPU, because {launch.local_world_size()} processes cannot share {gpus} GPU(s); "
                f"--nproc {gpus} uses them"
            )
        predicted = self.predicted_bytes
        parts = ", ".join(f"{name} {console.bytes_text(count)}" for name, count in predicted.items())
        sharding = f"DeepSpeed, {config.deepspeed} (ZeRO stage {self.stage})"
        tokens = self.global_batch_size * config.context_length
        facts = [
            ("model", f"{config.model}: {self.num_parameters:,} parameters, {self.num_trained:,} trained"),
            ("tokenizer", f"{config.tokenizer_name}: {self.tokenizer.get_vocab_size():,} tokens"),
            ("sharding", sharding if config.engine == "deepspeed" else "none: PyTorch's DistributedDataParallel"),
            ("device", f"{describe(self.device)}, {config.precision}, {torch.get_num_threads()} threads a process"),
            ("processes", f"{self.world_size} ({dist.get_backend()})"),
            (
                "batch",
                f"micro {config.micro_batch_size} x accumulation {config.gradient_accumulation_steps} x "
                f"{self.world_size} processes = {self.global_batch_size} sequences of {config.context_length} tokens",
            ),
            ("data", f"{self.files.source}: {len(self.files.train)} training file(s), {config.num_shards} shards"),
            ("mixture", ", ".join(config.mixture) or "as the files have it"),
            ("steps", f"{self.total_steps} of {tokens:,} tokens: {self.total_steps * tokens:,} tokens"),
            ("memory", f"{console.bytes_text(sum(predicted.values()))} predicted for each process: {parts}"),
            ("results", str(self.folder.path)),
        ]
        console.preflight(f"{PACKAGE}: training '{self.parsed.config_name}'", facts, self.notes)
        self.folder.forget_after(self.step)  # what a run that was killed has logged after its last checkpoint
        if not (self.folder.path / "config.yaml").exists():
            results.write_atomically(self.folder.path / "config.yaml", to_yaml(config))
        self.folder.write_summary(self.summary("running") | ({} if self.step else {"started_at": results.now()}))

    def summary(self, state: str) -> dict[str, Any]:
        """What summary.json says of the run so far."""
        config = self.config
        return {
            "package": PACKAGE,
            "config": self.parsed.config_name,
            "config_changed": list(self.parsed.changed),
            "state": state,
            "data": {
                "kind": self.files.kind,
                "name": self.files.name,
                "source": self.files.source,
                "num_train_files": len(self.files.train),
            },
            "seed": config.seed,
            "world_size": self.world_size,
            "threads_per_process": torch.get_num_threads(),
            "global_batch_size": self.global_batch_size,
            "device": describe(self.device),
            "precision": config.precision,
            "engine": config.engine,
            "zero_stage": self.stage if config.engine == "deepspeed" else None,
            "tuning": config.tuning,
            "num_parameters": self.num_parameters,
            "num_trained_parameters": self.num_trained,
            "restarts": launch.num_restarts(),
            "steps": self.step,
            "notes": list(dict.fromkeys(self.notes)),
            **results.provenance(
                (PACKAGE, "trainyard-shared", "torch", "deepspeed", "transformers", "tokenizers", "peft", "numpy")
            ),
        }

    def finish(self) -> None:
        """Save the chosen weights, test them once, and write what came out."""
        train_end_s = launch.seconds_since_command()
        own = {**(self.held or {}), **memory.peak_memory(self.device)}
        if self.config.tuning == "full":
            twin = model.from_scratch(self.model_settings).to(self.device)
            own["activations"] = model.measured_activation_bytes(twin, self.config.micro_batch_size, self.config)
        # Bytes held on each rank, collected on rank 0.
        bytes_per_rank: list = [None] * self.world_size
        dist.all_gather_object(bytes_per_rank, own)
        kept: list = [self.best_weights]  # which only rank 0 has
        dist.broadcast_object_list(kept, src=0)
        model.set_weights(self.whole, kept[0])
        chosen = model.plain(self.whole)
        if self.rank == 0:
            context = self.model_settings.n_positions
            evaluate.save_model(chosen, self.tokenizer, self.folder.path / evaluate.MODEL, context)
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
            "val_bits_per_byte": self.best["bits_per_byte"],
        }
        evaluate.test_and_report(
            chosen, self.tokenizer, self.files, self.config, self.device, self.folder, summary, train_end_s
        )


def convert_to_universal(folder: Path, to: Path, stage: int) -> None:
    """[deepspeed] Write the universal form of a checkpoint of stage 1, 2 or 3; one process calls it."""
    import argparse
    import contextlib

    from deepspeed.checkpoint import ds_to_universal

    shutil.rmtree(to, ignore_errors=True)
    arguments = argparse.Namespace(
        input_folder=str(folder),
        output_folder=str(to),
        num_extract_workers=1,
        num_merge_workers=1,
        keep_temp_folder=False,
        strict=True,
        inject_missing_state=stage < 3,  # what the stages below 3 do not write, since Megatron would
    )
    with (
        Path(os.devnull).open("w") as nowhere,
        contextlib.redirect_stdout(nowhere),
        contextlib.redirect_stderr(nowhere),
    ):
        ds_to_universal.main(arguments)


def cpu_has_bf16_units() -> bool:
    """Whether this CPU multiplies bf16 numbers natively."""
    capabilities = torch.cpu.get_capabilities()
    return any(capabilities.get(name) for name in ("avx512_bf16", "amx_bf16", "bf16"))


def schedule(progress: float, warmup: float, lowest: float) -> float:
    """Return the learning rate as a share of its peak: linear up, then half a cosine down to `lowest`."""
    if progress < warmup:
        # Never exactly 0: a first step that changes nothing would be wasted.
        return max(progress / warmup, 0.01)
    share = 0.5 * (1 + math.cos(math.pi * (progress - warmup) / (1 - warmup))) if warmup < 1 else 1.0
    return lowest + (1 - lowest) * share


def describe(device: torch.device) -> str:
    """Name a device for people."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU"


def _is_auto(settings: dict[str, Any], name: str) -> bool:
    """Whether a setting of a dotted name is "auto"."""
    found: Any = settings
    for key in name.split("."):
        found = found.get(key) if isinstance(found, dict) else None
    return found == deepspeed_json.AUTO


if __name__ == "__main__":
    from deepspeed_gpt2_pile import cli

    sys.exit(cli.train())
