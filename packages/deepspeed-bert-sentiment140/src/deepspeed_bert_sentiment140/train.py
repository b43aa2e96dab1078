"""Fine-tuning with DeepSpeed: the loop this project is about.

Every process runs this file. What is DeepSpeed's own is marked [deepspeed]:

    start_deepspeed         what has to be set before it is imported, so that a CPU waits for no compiler
    initialize              wraps model and optimizer: the JSON file says which stage of ZeRO shares out what
    boundary                which backward pass is the last of a step: only then do gradients travel and weights change
    backward, step          of the engine, not of torch: they scale, reduce, clip, and update this process's share
    tensor_parallel         AutoTP: all processes compute each layer together, on the same tweets
    PipelineModule          the first layers here, the last there; train_batch is a whole step with all its passes
    save_checkpoint         each process writes its share; load_checkpoint wants the same number of processes
"""

import contextlib
import datetime
import importlib
import logging
import math
import os
import pickle
import sys
import time
import warnings
from collections.abc import Iterator
from importlib.resources import files
from typing import Any
from unittest import mock

import torch
import torch.distributed as dist
from torch import Tensor, nn
from trainyard_shared import console, deepspeed_json, launch, results
from trainyard_shared.checkpoints import CheckpointFolder, manifest
from trainyard_shared.config import Parsed, to_yaml
from trainyard_shared.errors import DataError, TrainyardError, UsageError
from trainyard_shared.tensors import memory, zero
from trainyard_shared.tensors.checkpointing import newest_for_all, written_by_all
from trainyard_shared.tensors.lengths import LengthBatches, MicroBatch
from trainyard_shared.tensors.quick_start import postpone_dynamo

postpone_dynamo()  # before transformers is imported: nothing here is compiled

from deepspeed_bert_sentiment140 import data, evaluate, weights  # noqa: E402
from deepspeed_bert_sentiment140.config import TrainConfig  # noqa: E402
from deepspeed_bert_sentiment140.losses import class_weights, tweet_losses  # noqa: E402
from deepspeed_bert_sentiment140.model import build, get_tokenizer, layers_of, stages  # noqa: E402

PACKAGE = "deepspeed-bert-sentiment140"
STATE = "state"  # DeepSpeed's name (tag) for what it writes into a checkpoint


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
    check(config, device)
    deepspeed = start_deepspeed(device, config.collective_timeout_s)
    run = Run(parsed, deepspeed, device)
    if run.rank == 0:
        run.announce()
    with console.TrainingProgress(run.total_tweets, run.used_before_epoch() + run.used, show=run.rank == 0) as progress:
        while run.epoch < config.epochs:
            run.train_epoch(progress)
            run.validate(progress)
            run.epoch, run.used = run.epoch + 1, 0
            run.save()
    run.finish()
    launch.leave_together()


def start_deepspeed(device: torch.device, timeout_s: float) -> Any:
    """[deepspeed] Import DeepSpeed for this device, join the processes, and return the module.

    On a CPU, DeepSpeed would compile a library for its collectives when the processes meet, which takes longer than the
    whole sample, and gains nothing here.
    """
    if device.type == "cpu":
        os.environ["DS_ACCELERATOR"] = "cpu"
    else:
        os.environ.pop("DS_ACCELERATOR", None)
    # Of what it and torch say at each start, nothing is for the user: torch's plans for its own functions, and what was
    # compiled before. Errors are not silenced.
    warnings.filterwarnings("ignore", category=FutureWarning, module="torch|deepspeed")
    warnings.filterwarnings("ignore", category=UserWarning, module="torch|deepspeed")
    logging.getLogger("DeepSpeed").setLevel(logging.ERROR)
    with quiet_stdout():
        import deepspeed

        deepspeed.utils.logger.setLevel(logging.ERROR)
        read_as_data()
        if device.type == "cpu":
            deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
            # An optimizer that is not used here is marked to be compiled, and would import torch's compiler.
            with mock.patch.object(deepspeed.runtime.compiler, "compile", lambda: lambda function: function):
                importlib.import_module("deepspeed.runtime.zero.muon.original_muon")
        deepspeed.init_distributed(
            launch.backend_for(device.type), timeout=datetime.timedelta(seconds=timeout_s), verbose=False
        )
    return deepspeed


def read_as_data() -> None:
    """[deepspeed] Keep checkpoints from running code when they are read.

    DeepSpeed reads its checkpoints as pickles, which may hold any code. This makes torch.load, whatever it is told,
    accept numbers only, and the few classes that DeepSpeed puts between them.
    """
    from deepspeed.runtime.fp16.loss_scaler import DynamicLossScaler, LossScaler
    from deepspeed.runtime.zero.config import ZeroStageEnum
    from deepspeed.utils.tensor_fragment import fragment_address

    os.environ["TORCH_FORCE_WEIGHTS_ONLY_LOAD"] = "1"
    torch.serialization.add_safe_globals([ZeroStageEnum, LossScaler, DynamicLossScaler, fragment_address])


def check(config: TrainConfig, device: torch.device) -> None:
    """Raise UsageError for what does not go together, before seconds are spent on importing DeepSpeed."""
    world_size = launch.world_size()
    settings = deepspeed_json.read(deepspeed_json.find(config.deepspeed, files(__package__) / "deepspeed"))
    complete(settings, config, world_size, device, largest_parameter=1)
    stage = settings.get("zero_optimization", {}).get("stage", 0)
    if config.parallel != "data" and world_size == 1:
        raise UsageError(f"error: --parallel {config.parallel} needs 2 or more processes, found 1; use --nproc 2")
    if config.parallel != "data" and stage > 1:
        raise UsageError(
            f"error: --parallel {config.parallel} goes with stages 0 and 1 of ZeRO, and --deepspeed {config.deepspeed} "
            f"says {stage}: gradients and parameters are shared out already"
        )
    if config.parallel == "pipeline" and stage == 1 and config.layer_decay < 1:
        # [deepspeed] ZeRO-1 adds up the norm of each group of parameters over all stages; with rates by layer, stages
        # have different numbers of groups, and would wait for each other for ever.
        raise UsageError("error: --layer-decay below 1 in a pipeline needs --deepspeed zero0")
    if config.parallel == "pipeline" and config.num_frozen_layers:
        # [deepspeed] A stage calls backward on what it passed on, also where nothing in it is trained.
        raise UsageError("error: --num-frozen-layers above 0 does not go with --parallel pipeline")
    if config.precision == "fp16" and device.type == "cpu":
        raise UsageError("error: --precision fp16: not on a CPU; use bf16 or fp32")


class Run:
    """The state of a training run, which is what a checkpoint holds, and the steps that change it."""

    def __init__(self, parsed: Parsed[TrainConfig], deepspeed: Any, device: torch.device) -> None:
        config = self.config = parsed.config
        self.parsed, self.deepspeed, self.device = parsed, deepspeed, device
        self.rank, self.world_size = dist.get_rank(), dist.get_world_size()
        # Under tensor and pipeline parallelism all processes work on the same tweets: together they are one.
        self.data_rank: int = self.rank if config.parallel == "data" else 0
        self.data_world_size: int = self.world_size if config.parallel == "data" else 1

        tweet_files = data.find(config)
        with rank_0_first():  # one process fetches a model, the others find it in the cache
            self.tokenizer = get_tokenizer(config, data.training_texts(tweet_files, config))
            torch.manual_seed(config.seed)
            model, notes = build(config, data.class_names(config), self.tokenizer)
        self.tweets = data.load(tweet_files, self.tokenizer, config)
        train_index, self.val_index, self.test_index = self.tweets.index
        self.class_weights = class_weights(self.tweets.labels[train_index], config).to(device)
        if config.imbalance == "oversampling":
            train_index = data.oversampled(train_index, self.tweets.labels, config.seed)
        self.train_index = train_index
        self.batches = LengthBatches(
            self.tweets.sequences.lengths[train_index],
            config.micro_batch_size * config.gradient_accumulation_steps * self.data_world_size,
            config.micro_batch_size,
            self.data_rank,
            self.data_world_size,
            config.seed,
            multiple_of=config.pad_multiple,
            window=config.sort_window,
        )

        if config.activation_checkpointing:
            model.gradient_checkpointing_enable()
        self.activation_bytes = self.predict_activations(model)
        # A whole copy on the CPU for validation and the end: its forward pass waits for nobody.
        self.whole = weights.copy_of(model)
        self.num_parameters = sum(p.numel() for p in model.parameters())
        self.num_trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
        self.names = {id(parameter): name for name, parameter in model.named_parameters()}
        self.engine, self.settings = self.initialize(model)
        self.stage = self.engine.zero_optimization_stage()
        # Each process drops out other units. But where all compute the same activations, the same units: AutoTP does
        # not see to that.
        torch.manual_seed(config.seed * 1_000_003 + (0 if config.parallel == "tensor" else self.rank))

        # Where the run is: epoch, tweets of it used by all processes together, optimizer steps so far.
        self.epoch, self.used, self.step = 0, 0, 0
        self.best: dict[str, Any] = {"accuracy": -1.0, "epoch": 0, "weights": None}
        self.notes = [*self.tweets.notes, *notes]
        self.total_tweets = config.epochs * len(train_index)
        self.start_up_s = launch.seconds_since_command()
        # For the throughput: of this process's loop, without evaluation. Tokens of all processes, without padding.
        self.train_s, self.trained_tweets, self.trained_tokens, self.padded_tokens = 0.0, 0, 0, 0
        self.held: dict[str, int] = {}  # bytes, counted in the first step

        # All processes agree on one run folder; if it holds checkpoints, this run goes on from the newest.
        path = launch.run_dir(config.out_dir, PACKAGE, parsed.config_name, parsed.resume)
        self.folder = results.RunFolder(path)
        self.checkpoints = CheckpointFolder(self.folder.checkpoints)
        self.resume()

    def initialize(self, model: Any) -> tuple[Any, dict[str, Any]]:
        """[deepspeed] Return the engine that trains `model`, and the settings it was given, without any "auto"."""
        config = self.config
        largest = max(p.numel() for p in model.parameters())
        settings = deepspeed_json.read(deepspeed_json.find(config.deepspeed, files(__package__) / "deepspeed"))
        settings = complete(settings, config, self.world_size, self.device, largest)
        module = model
        if config.parallel == "tensor":
            # [deepspeed] AutoTP finds the matrices of attention and feed-forward by itself, and gives each process some
            # of the heads and columns; an all-reduce after each of the two puts the parts together.
            settings["tensor_parallel"] = {"autotp_size": self.world_size}
            # [deepspeed] Its check of the batch algebra would count these processes as if each had tweets of its own.
            del settings[deepspeed_json.GLOBAL]
        elif config.parallel == "pipeline":
            with quiet_stdout():
                module = self.deepspeed.pipe.PipelineModule(
                    stages(model),
                    num_stages=self.world_size,
                    loss_fn=self.pipeline_loss,
                    partition_method="parameters",
                    # Batches are as wide as their longest tweet, so that each is announced before it is sent.
                    dynamic_shape=True,
                    activation_checkpoint_interval=int(config.activation_checkpointing),
                    # Not the embeddings: their inputs have no gradient, and a checkpoint would cut theirs off.
                    checkpointable_layers=["Encode"],
                )
            for parameter in module.parameters():
                # [deepspeed] Without this mark the norm for clipping leaves out all stages but the first, and training
                # goes on with a wrong one, silently.
                parameter.model_parallel = True
        groups = optimizer_groups(model, module, config)
        # Peak learning rate and weight decay of each group, as the config has them.
        self.group_settings = [(group.pop("peak_learning_rate"), group["weight_decay"]) for group in groups]
        self.group_sizes = [[parameter.numel() for parameter in group["params"]] for group in groups]
        with quiet_stdout():
            engine, *_ = self.deepspeed.initialize(model=module, model_parameters=groups, config=settings)
        if config.parallel == "pipeline":
            # Between the last backward pass and the update, which happen within train_batch.
            inner = getattr(engine.optimizer, "optimizer", engine.optimizer)
            inner.register_step_pre_hook(lambda *_: self.count_bytes())
        return engine, settings

    # ------------------------------------------------------------------------------------------------ the loop itself

    def train_epoch(self, progress: console.TrainingProgress) -> None:
        """Train on what is left of the current epoch."""
        config = self.config
        self.engine.train()
        sums = Sums(self.device)
        since = time.perf_counter()
        for num_tweets, micro_batches in self.batches.epoch(self.epoch, self.used):
            factor = schedule((self.used_before_epoch() + self.used) / self.total_tweets, config.warmup_fraction)
            for group, (peak, _) in zip(self.engine.optimizer.param_groups, self.group_settings, strict=True):
                group["lr"] = peak * factor

            if config.parallel == "pipeline":
                self.pipeline_step(num_tweets, micro_batches, sums)
            else:
                self.engine_step(num_tweets, micro_batches, sums)

            self.step += 1
            self.used += num_tweets
            if self.step % config.log_every == 0:
                loss_sum, tweets, tokens, padded, stop = sums.of_all(float(launch.stop_request().requested))
                now = time.perf_counter()
                self.train_s += now - since
                self.trained_tweets += int(tweets)
                self.trained_tokens += int(tokens)
                self.padded_tokens += int(padded)
                self.log(progress, loss_sum / tweets, tokens / (now - since))
                since, sums = now, Sums(self.device)
                if stop:
                    self.save()
                    raise launch.Interrupted
            if config.checkpoint_every and self.step % config.checkpoint_every == 0:
                self.save()
                since = time.perf_counter()

    def engine_step(self, num_tweets: int, micro_batches: list[MicroBatch], sums: "Sums") -> None:
        """Make one optimizer step, with data or tensor parallelism."""
        for micro_step, micro_batch in enumerate(micro_batches):
            ids, mask, labels = self.batch(micro_batch)
            # [deepspeed] Left alone, the engine counts passes, of which the last step of an epoch has fewer.
            self.engine.set_gradient_accumulation_boundary(micro_step == len(micro_batches) - 1)
            logits = self.engine(input_ids=ids, attention_mask=mask).logits
            loss = micro_batch.weight * tweet_losses(logits, labels, self.class_weights, self.config).sum()
            # The mean over all tweets of the step, whoever computes how many of them: divided by their number, and
            # multiplied by that of the processes, by which the engine divides. [deepspeed] It would also divide by the
            # accumulation steps (scale_wrt_gas), which is right only if all passes are equally large.
            self.engine.backward(loss * (self.data_world_size / num_tweets), scale_wrt_gas=False)
            if micro_step == len(micro_batches) - 1:
                self.count_bytes()
            self.engine.step()
            self.count(sums, loss, micro_batch, ids)

    def pipeline_step(self, num_tweets: int, micro_batches: list[MicroBatch], sums: "Sums") -> None:
        """[deepspeed] Make one optimizer step of all stages: train_batch runs all passes, one behind the other."""
        config = self.config
        filled = list(micro_batches)
        while len(filled) < config.gradient_accumulation_steps:
            filled.append(MicroBatch(filled[-1].index[:1], 0.0))  # it insists on its number of passes
        passes = []
        for micro_batch in filled:
            ids, mask, labels = self.batch(micro_batch)
            given = torch.ones_like(ids, dtype=torch.int32) if mask is None else mask.int()
            # [deepspeed] The engine takes the mean over the passes: each tweet has to carry its weight in the sum.
            share = micro_batch.weight * config.gradient_accumulation_steps / num_tweets
            passes.append(((ids, given), (labels, torch.full(labels.shape, share, device=self.device))))
            self.count(sums, torch.zeros((), device=self.device), micro_batch, ids)
        with quiet_stdout():
            loss = self.engine.train_batch(iter(passes))  # the last stage knows it, and tells the others
        if self.rank == 0:
            sums.loss += loss.detach() * num_tweets

    def count_bytes(self) -> None:
        """Count, once, what this process holds: when the optimizer has its moments, and gradients are there still."""
        if self.step and not self.held:
            self.held = zero.held_bytes(self.engine)

    def pipeline_loss(self, logits: Tensor, target: tuple[Tensor, Tensor]) -> Tensor:
        """Loss of one pass on the last stage."""
        labels, shares = target
        return (shares * tweet_losses(logits, labels, self.class_weights, self.config)).sum()

    def batch(self, micro_batch: MicroBatch) -> tuple[Tensor, Tensor | None, Tensor]:
        """Return ids (B, W), mask (B, W) or None if nothing is padded, and labels (B,)."""
        index = self.train_index[micro_batch.index]
        ids, mask = self.tweets.sequences.padded(
            index, self.tokenizer.pad_token_id, self.device, multiple_of=self.config.pad_multiple
        )
        return ids, mask, self.tweets.labels[index].to(self.device, non_blocking=True)

    def count(self, sums: "Sums", loss: Tensor, micro_batch: MicroBatch, ids: Tensor) -> None:
        """Add up what was computed; of processes that compute the same tweets, the first counts."""
        if self.config.parallel == "data" or self.rank == 0:
            lengths = self.batches.lengths[micro_batch.index]
            weight = micro_batch.weight
            sums.add(loss.detach(), weight * len(lengths), weight * int(lengths.sum()), ids.numel())

    def validate(self, progress: console.TrainingProgress) -> None:
        """Measure the accuracy on the held-out tweets and remember the weights if they are the best so far."""
        if not len(self.val_index):
            return
        state = weights.gather(self.engine, self.names, self.config.parallel, self.deepspeed)
        self.whole.load_state_dict(state)
        scores = evaluate.predict(
            self.whole.to(self.device), self.tweets.sequences, self.val_index, self.tokenizer, self.config, self.device
        )
        self.whole.cpu()
        labels = self.tweets.labels[self.val_index]
        loss = nn.functional.cross_entropy(scores.logits, labels).item()
        correct = (scores.logits.argmax(dim=1) == labels).float().mean().item()
        if self.rank == 0:
            self.folder.log("val", step=self.step, epoch=self.epoch + 1, loss=loss, accuracy=correct)
        progress.say(f"epoch {self.epoch + 1}/{self.config.epochs}: val loss {loss:.3f}, val accuracy {correct:.2%}")
        if correct >= self.best["accuracy"]:
            self.best = {"accuracy": correct, "epoch": self.epoch + 1, "weights": state}

    # ------------------------------------------------------------------------------------------ checkpoints and resume

    def save(self) -> None:
        """Write a checkpoint. All processes call it, and each writes its share."""
        facts = {"epoch": self.epoch, "used": self.used, "best": [self.best["accuracy"], self.best["epoch"]]}
        with written_by_all(self.checkpoints, self.step, **facts, **self.form()) as path, quiet_stdout():
            # [deepspeed] Model and optimizer: one file of each process and kind.
            self.engine.save_checkpoint(str(path), tag=STATE)
            torch.save(random_state(self.device), path / f"random-{self.rank}.pt")
            if self.rank == 0 and self.best["weights"] is not None:
                torch.save(self.best["weights"], path / "best.pt")

    def form(self) -> dict[str, Any]:
        """What has to be the same for a checkpoint to fit."""
        return {"world_size": self.world_size, "parallel": self.config.parallel, "stage": self.stage}

    def resume(self) -> None:
        """Go on from the newest intact checkpoint, if there is one."""
        path = newest_for_all(self.checkpoints, self.warn)
        if path is None:
            if self.rank == 0:
                self.folder.forget_after(0)  # what a run that was killed before its first checkpoint has logged
            return
        facts = manifest(path)
        if differing := [f"{name} {facts[name]}, now {now}" for name, now in self.form().items() if facts[name] != now]:
            raise UsageError(
                f"error: {path.name} was written with {'; '.join(differing)}: DeepSpeed's checkpoints go on in the "
                "same form only. The trained model of a finished run can be trained on with --model RUN/model"
            )
        try:
            with quiet_stdout():
                self.engine.load_checkpoint(str(path), tag=STATE)
        except pickle.UnpicklingError as error:
            raise DataError(f"error: {path}: holds something else than numbers, and is not read") from error
        # Its state comes from the checkpoint, its settings from the config, which flags may have changed.
        for group, (_, decay) in zip(self.engine.optimizer.param_groups, self.group_settings, strict=True):
            group["weight_decay"] = decay
        # weights_only: what is ours in a checkpoint is data, and must not be able to run code.
        restore_random_state(torch.load(path / f"random-{self.rank}.pt", weights_only=True), self.device)
        best = path / "best.pt"
        self.best = {
            "accuracy": facts["best"][0],
            "epoch": facts["best"][1],
            "weights": torch.load(best, weights_only=True) if best.is_file() else None,
        }
        self.step, self.epoch, self.used = facts["step"], facts["epoch"], facts["used"]
        if self.rank == 0:
            self.folder.forget_after(self.step)
            console.say(f"resuming {self.folder.path} at epoch {self.epoch + 1}, step {self.step}")

    # ------------------------------------------------------------------------------------------------------- reporting

    def used_before_epoch(self) -> int:
        """Tweets that all processes have used in the epochs before this one."""
        return self.epoch * len(self.train_index)

    def warn(self, message: str) -> None:
        """Say something on rank 0 and put it into the report."""
        self.notes.append(message)
        if self.rank == 0:
            console.say(f"note: {message}")

    def log(self, progress: console.TrainingProgress, loss: float, tokens_per_second: float) -> None:
        """Record and show the mean training loss since the last record; stop if it is no number any more."""
        position = (self.used_before_epoch() + self.used) / self.total_tweets * self.config.epochs
        learning_rate = max(group["lr"] for group in self.engine.optimizer.param_groups)
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
                f"error: the training loss is {loss} at step {self.step} (epoch {self.epoch + 1}, before tweet "
                f"{self.used}): try a lower --learning-rate or --precision fp32; the last checkpoint is kept"
            )

    def announce(self) -> None:
        """Pre-flight: say what is about to happen, and write it down."""
        config, lengths = self.config, self.batches.lengths
        predicted = self.predicted_bytes()
        parts = ", ".join(f"{name} {console.bytes_text(count)}" for name, count in predicted.items())
        sharing = {"data": "data parallel", "tensor": "tensor parallel (AutoTP)", "pipeline": "a pipeline"}
        cut = int((lengths >= config.max_length).sum()) / len(lengths)
        facts = [
            (
                "model",
                f"{config.model}: {type(self.whole).__name__}, {self.num_parameters:,} parameters, "
                f"{self.num_trained:,} of them trained",
            ),
            ("device", f"{describe(self.device)}, {config.precision}, {torch.get_num_threads()} threads a process"),
            ("processes", f"{self.world_size} ({dist.get_backend()}), {sharing[config.parallel]}"),
            ("DeepSpeed", f"{config.deepspeed}: stage {self.stage} of ZeRO"),
            (
                "batch",
                f"{config.micro_batch_size} tweets a pass x {config.gradient_accumulation_steps} passes x "
                f"{self.data_world_size} data-parallel processes = {self.batches.global_batch_size} a step",
            ),
            (
                "data",
                f"{self.tweets.source}: {len(self.train_index):,} train, {len(self.val_index):,} val, "
                f"{len(self.test_index):,} test",
            ),
            (
                "lengths",
                f"{lengths.float().mean():.0f} tokens on average; {cut:.1%} are as long as {config.max_length}",
            ),
            ("steps", f"{config.epochs} epochs of {self.batches.num_steps()}"),
            ("memory", f"{console.bytes_text(sum(predicted.values()))} predicted for each process: {parts}"),
            ("results", str(self.folder.path)),
        ]
        console.preflight(f"{PACKAGE}: training '{self.parsed.config_name}'", facts, self.notes)
        if not (self.folder.path / "config.yaml").exists():
            results.write_atomically(self.folder.path / "config.yaml", to_yaml(config))
        self.folder.write_summary(self.summary("running") | ({} if self.step else {"started_at": results.now()}))

    def predict_activations(self, model: nn.Module) -> int:
        """Predict the bytes of activations of the longest micro-batch, if this process computes all layers of it."""
        longest = int(self.batches.lengths.max())
        ids, mask = torch.full((3, longest), self.tokenizer.pad_token_id), torch.ones(3, longest, dtype=torch.bool)
        mask[:, -1] = False  # as in a batch that is padded
        dtype = None if self.config.precision == "fp32" else torch.bfloat16
        return memory.activation_bytes(model, ids, mask, batch_size=self.config.micro_batch_size, autocast=dtype)

    def predicted_bytes(self) -> dict[str, int]:
        """Predict what this process holds on its device during a step."""
        config = self.config
        every, trained = self.num_parameters, self.num_trained
        if config.parallel == "tensor":
            every, trained = weights.tensor_parallel_sizes(self.whole, self.world_size)
        elif config.parallel == "pipeline":
            own = list(self.engine.module.parameters())
            every, trained = sum(p.numel() for p in own), sum(p.numel() for p in own if p.requires_grad)
        predicted = zero.predicted_bytes(trained, self.stage, self.data_world_size, config.precision)
        frozen = zero.predicted_bytes(every - trained, self.stage, self.data_world_size, config.precision)
        predicted["parameters"] += frozen["parameters"]
        if self.stage in (1, 2) and "offload_optimizer" in self.settings["zero_optimization"]:
            # Copied to the CPU in fp32, cut to the slice.
            predicted["gradients"] = 4 * -(-trained // self.data_world_size)
        elif self.stage in (1, 2):
            held = trained
            if self.data_world_size > 1:
                held = zero.gradients_of_slice(self.group_sizes, self.data_rank, self.data_world_size)
            predicted["gradients"] = zero.BYTES[config.precision] * held
        if self.stage == 1 and config.parallel == "pipeline":
            predicted["gradients"] *= 2  # counted at the update, for which ZeRO-1 has made a copy in one piece
        if config.parallel == "data":
            predicted["activations"] = self.activation_bytes
        return predicted

    def summary(self, state: str) -> dict[str, Any]:
        """What summary.json says of the run so far."""
        tweets = self.tweets
        return {
            "package": PACKAGE,
            "config": self.parsed.config_name,
            "config_changed": list(self.parsed.changed),
            "state": state,
            "data": {
                "kind": tweets.kind,
                "name": "sentiment140",
                "source": tweets.source,
                "num_train": len(self.train_index),
                "num_val": len(self.val_index),
                "num_test": len(self.test_index),
            },
            "model": self.config.model,
            "parallel": self.config.parallel,
            "deepspeed": self.settings,
            "seed": self.config.seed,
            "world_size": self.world_size,
            "threads_per_process": torch.get_num_threads(),
            "global_batch_size": self.batches.global_batch_size,
            "device": describe(self.device),
            "precision": self.config.precision,
            "restarts": launch.num_restarts(),
            "steps": self.step,
            "notes": list(dict.fromkeys(self.notes)),
            **results.provenance(
                (
                    PACKAGE,
                    "trainyard-shared",
                    "deepspeed",
                    "torch",
                    "transformers",
                    "tokenizers",
                    "scikit-learn",
                    "numpy",
                )
            ),
        }

    def finish(self) -> None:
        """Save the chosen weights, test them once on the whole test set, and write what came out."""
        train_end_s = launch.seconds_since_command()
        # Bytes held on each rank, collected on rank 0.
        bytes_per_rank: list = [None] * self.world_size
        dist.all_gather_object(bytes_per_rank, {**self.held, **memory.peak_memory(self.device)})
        chosen = self.best["weights"]
        if chosen is None:
            chosen = weights.gather(self.engine, self.names, self.config.parallel, self.deepspeed)
        self.whole.load_state_dict(chosen)
        if self.rank == 0:
            evaluate.save_model(self.whole, self.tokenizer, self.folder.path)
        summary = self.summary("finished")
        seconds = self.train_s or float("nan")
        summary |= {
            "start_up_s": self.start_up_s,
            "throughput": {
                "tokens_per_second": round(self.trained_tokens / seconds, 1),
                "tweets_per_second": round(self.trained_tweets / seconds, 2),
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
            "val_accuracy": self.best["accuracy"] if len(self.val_index) else None,
        }
        evaluate.test_and_report(
            self.whole.to(self.device),
            self.tokenizer,
            self.tweets,
            self.config,
            self.device,
            self.folder,
            summary,
            train_end_s,
        )


class Sums:
    """What a process adds up between two records of the log."""

    def __init__(self, device: torch.device) -> None:
        self.loss = torch.zeros((), device=device)
        self.counts = [0.0, 0.0, 0.0]

    def add(self, loss: Tensor, *counts: float) -> None:
        """Add the loss of a micro-batch and its numbers of tweets, of tokens, and of tokens with padding."""
        self.loss += loss
        self.counts = [total + count for total, count in zip(self.counts, counts, strict=True)]

    def of_all(self, stop_here: float) -> list[float]:
        """Return the sums over all processes, and of `stop_here`: more than 0 if any is to stop."""
        sums = torch.stack([self.loss.double(), *self.loss.new_tensor([*self.counts, stop_here], dtype=torch.double)])
        dist.all_reduce(sums)
        return sums.tolist()


def complete(
    settings: dict[str, Any], config: TrainConfig, world_size: int, device: torch.device, largest_parameter: int
) -> dict[str, Any]:
    """[deepspeed] Put values in the place of every "auto" of the JSON file; see trainyard_shared.deepspeed_json.

    What depends on the device is filled in where the file asks for it, and nothing is said against another value there:
    on a CPU optimizers of torch, since DeepSpeed's would be compiled first, and buckets of the smallest size that holds
    every parameter, so that memory can be compared with the formulas. On a GPU, DeepSpeed's defaults.
    """
    on_cpu = device.type == "cpu"
    by_device = {
        "optimizer.params.torch_adam": on_cpu,
        "zero_force_ds_cpu_optimizer": not on_cpu,
        "zero_optimization.reduce_bucket_size": largest_parameter if on_cpu else 500_000_000,
        "zero_optimization.allgather_bucket_size": largest_parameter if on_cpu else 500_000_000,
        "zero_optimization.stage3_prefetch_bucket_size": 0 if on_cpu else 50_000_000,
        "zero_optimization.stage3_param_persistence_threshold": 0 if on_cpu else 100_000,
        "zero_optimization.stage3_max_live_parameters": largest_parameter if on_cpu else 1_000_000_000,
    }
    values = {
        "gradient_clipping": config.max_grad_norm or 0.0,
        "optimizer.params.lr": config.learning_rate,
        "optimizer.params.weight_decay": config.weight_decay,
        "bf16.enabled": config.precision == "bf16",
        "fp16.enabled": config.precision == "fp16",
    }
    for name, value in by_device.items():
        *path, last = name.split(".")
        section: Any = settings
        for part in path:
            section = section.get(part, {})
        if section.get(last) == deepspeed_json.AUTO:
            values[name] = value
    return deepspeed_json.complete(
        settings,
        config.deepspeed,
        micro_batch_size=config.micro_batch_size,
        gradient_accumulation_steps=config.gradient_accumulation_steps,
        world_size=world_size if config.parallel == "data" else 1,
        values=values,
    )


def optimizer_groups(model: Any, module: nn.Module, config: TrainConfig) -> list[dict[str, Any]]:
    """Return groups of those of the model's parameters that are in `module`, with weight decay and peak learning rate.

    Matrices decay, biases and layer norms do not; lower layers learn more slowly (Sun et al. 2019, arXiv 1905.05583).
    """
    layers = layers_of(model)
    depth = {id(p): len(layers) - i for i, layer in enumerate(layers) for p in layer.parameters()}
    own = {id(parameter) for parameter in module.parameters()}
    groups: dict[tuple[int, bool], list[nn.Parameter]] = {}
    for parameter in model.parameters():
        if parameter.requires_grad and id(parameter) in own:
            below = depth.get(id(parameter), 0) if config.layer_decay < 1 else 0
            groups.setdefault((below, parameter.ndim > 1), []).append(parameter)
    return [
        {
            "params": parameters,
            "peak_learning_rate": config.learning_rate * config.layer_decay**below,
            "weight_decay": config.weight_decay if decays else 0.0,
        }
        for (below, decays), parameters in groups.items()
    ]


def schedule(progress: float, warmup: float) -> float:
    """Return the learning rate as a share of its peak, for the share of the run that is done."""
    if progress < warmup:
        # Never exactly 0: a first step that changes nothing would be wasted.
        return max(progress / warmup, 0.01)
    return (1 - progress) / (1 - warmup) if warmup < 1 else 1.0


def random_state(device: torch.device) -> dict[str, Tensor]:
    """Return the state of this process's generators."""
    state = {"cpu": torch.get_rng_state()}
    return state | ({"cuda": torch.cuda.get_rng_state(device)} if device.type == "cuda" else {})


def restore_random_state(state: dict[str, Tensor], device: torch.device) -> None:
    """Undo what has happened to the generators since `random_state`."""
    torch.set_rng_state(state["cpu"])
    if "cuda" in state and device.type == "cuda":
        torch.cuda.set_rng_state(state["cuda"], device)


@contextlib.contextmanager
def quiet_stdout() -> Iterator[None]:
    """[deepspeed] Keep what it prints at each start and each checkpoint from mixing with the output of this project."""
    with open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(nowhere):  # noqa: PTH123 - no Path for a device
        yield


@contextlib.contextmanager
def rank_0_first() -> Iterator[None]:
    """Let rank 0 run the block alone, then the others."""
    if dist.get_rank() != 0:
        dist.barrier()
    yield
    if dist.get_rank() == 0:
        dist.barrier()


def describe(device: torch.device) -> str:
    """Name a device for people."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU"


if __name__ == "__main__":
    from deepspeed_bert_sentiment140 import cli

    sys.exit(cli.train())
