"""A run's model as a plain Hugging Face folder, from the finished run or put together from its newest checkpoint."""

import os
import pickle
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from trainyard_shared.checkpoints import CheckpointFolder, manifest
from trainyard_shared.config import load_preset
from trainyard_shared.console import say
from trainyard_shared.errors import DataError, UsageError

from deepspeed_vit_fsdp import data, engines, model
from deepspeed_vit_fsdp.config import TrainConfig
from deepspeed_vit_fsdp.evaluate import MODEL
from deepspeed_vit_fsdp.train import BEST, TAG, quiet_stdout, read_as_data


def export(run: Path, to: Path) -> None:
    """Write the model of `run` to the folder `to`.

    Raises:
        UsageError: `to` exists already.
        DataError: the run has neither a model nor an intact checkpoint, or one that holds more than numbers.
    """
    if to.exists():
        raise UsageError(f"error: --to {to}: exists already")
    if (run / MODEL / "model.safetensors").is_file():
        shutil.copytree(run / MODEL, to)
        say(f"the model of the finished run {run} is in {to}")
    else:
        checkpoint = CheckpointFolder(run / "checkpoints").newest(say)
        if checkpoint is None:
            raise DataError(f"error: {run}: neither a trained model nor a checkpoint")
        facts = manifest(checkpoint)
        if (checkpoint / BEST).is_file():
            weights, what = load_file(checkpoint / BEST), f"the best so far, of epoch {facts['best']['epoch']}"
        else:
            weights, what = read_weights(checkpoint, facts), f"of step {facts['step']}"
        settings, preparation = settings_of(run)
        model.save(to, settings, weights, preparation.processor())
        say(f"the run {run} has not finished: its weights, {what}, are in {to}")
    say(f"to load it: transformers.AutoModelForImageClassification.from_pretrained({str(to)!r})")


def read_weights(checkpoint: Path, facts: dict[str, Any]) -> dict[str, torch.Tensor]:
    """Return the weights of a checkpoint; raises DataError if it holds what could run code."""
    try:
        return weights_of(checkpoint, facts)
    except pickle.UnpicklingError as error:
        raise DataError(f"error: {checkpoint}: holds something else than numbers, and is not read") from error


def weights_of(checkpoint: Path, facts: dict[str, Any]) -> dict[str, torch.Tensor]:
    """Put together the whole weights in fp32 from the shares that the processes have written."""
    if facts["engine"] != "deepspeed":
        return torch.load(checkpoint / engines.STATE, map_location="cpu", weights_only=True)["model"]
    if facts["stage"] == 0:  # nothing is shared out, and there is nothing to put together
        state = torch.load(checkpoint / TAG / "mp_rank_00_model_states.pt", map_location="cpu", weights_only=True)
        return {name: tensor.float() for name, tensor in state["module"].items()}
    os.environ.setdefault("DS_ACCELERATOR", "cpu")  # read when DeepSpeed is imported
    read_as_data()
    from deepspeed.utils.zero_to_fp32 import get_fp32_state_dict_from_zero_checkpoint

    with quiet_stdout():
        return get_fp32_state_dict_from_zero_checkpoint(str(checkpoint), tag=TAG)


def settings_of(run: Path) -> tuple[Any, data.Preparation]:
    """Return the settings of a run's model and what it wants done to its images."""
    config = load_preset(TrainConfig, run / "config.yaml")
    dataset = data.load(config)
    return model.settings_and_preparation(config, dataset)
