"""A checkpoint as a plain Hugging Face folder: the shares of all processes put together, by one, without a GPU."""

from pathlib import Path
from typing import Any

import torch
from trainyard_shared.checkpoints import CheckpointFolder, manifest
from trainyard_shared.config import load_preset
from trainyard_shared.console import say
from trainyard_shared.errors import DataError, UsageError
from trainyard_shared.tensors.quick_start import postpone_dynamo

postpone_dynamo()  # before transformers is imported: nothing here is compiled

from deepspeed_gpt2_pile import data, evaluate, model  # noqa: E402
from deepspeed_gpt2_pile.config import ExportConfig, TrainConfig  # noqa: E402
from deepspeed_gpt2_pile.plain import STATE  # noqa: E402
from deepspeed_gpt2_pile.train import TAG, read_as_data  # noqa: E402


def export(run: Path, config: ExportConfig) -> None:
    """Write the model of a checkpoint, with low-rank additions added to its weights, and its tokenizer.

    Raises:
        DataError: the run has no such checkpoint, or it is damaged.
        UsageError: the folder exists.
    """
    if config.to.exists():
        raise UsageError(f"error: --to {config.to}: exists already: choose another folder")
    if not (run / "config.yaml").is_file():
        raise DataError(f"error: {run}: no run folder: it has no config.yaml")
    trained = load_preset(TrainConfig, run / "config.yaml")
    checkpoint = find(run, config.step)
    tokenizer = data.load_tokenizer(trained.tokenizer_name)
    settings = model.settings_of(trained, tokenizer.get_vocab_size(), data.end_of_text(tokenizer))
    whole = model.prepared(model.from_scratch(settings), trained)
    model.set_weights(whole, weights_in(checkpoint))
    evaluate.save_model(model.plain(whole), tokenizer, config.to, settings.n_positions)
    say(f"step {manifest(checkpoint)['step']} of {run} is in {config.to}")


def find(run: Path, step: int | None) -> Path:
    """Return the newest checkpoint of a run, or that of a step; raises DataError if there is none that is intact."""
    checkpoints = CheckpointFolder(run / "checkpoints")
    if step is None:
        newest = checkpoints.newest(say)
        if newest is None:
            raise DataError(f"error: {run}: no checkpoint yet")
        return newest
    folder = run / "checkpoints" / f"step-{step:08d}"
    if not folder.is_dir():
        there = ", ".join(str(int(path.name[5:])) for path in sorted((run / "checkpoints").glob("step-*")))
        raise DataError(f"error: --step {step}: {run} has checkpoints of the steps {there or 'none'}")
    if damage := checkpoints.damage(folder):
        raise DataError(f"error: {folder}: damaged: {damage}")
    return folder


def weights_in(checkpoint: Path) -> dict[str, Any]:
    """Return the whole weights in fp32 by name, from the shares of all processes."""
    read_as_data()
    facts = manifest(checkpoint)
    if facts["engine"] == "ddp":
        return torch.load(checkpoint / STATE, map_location="cpu", weights_only=True)["model"]
    if facts["stage"] == 0:
        # [deepspeed] Stage 0 shares nothing out: rank 0 has written the whole module.
        state = torch.load(checkpoint / TAG / "mp_rank_00_model_states.pt", map_location="cpu", weights_only=True)
        return {name: tensor.float() for name, tensor in state["module"].items()}
    from deepspeed.utils.zero_to_fp32 import get_fp32_state_dict_from_zero_checkpoint

    # [deepspeed] Puts the slices of the optimizer's fp32 copies together, whatever the precision of training was.
    return get_fp32_state_dict_from_zero_checkpoint(str(checkpoint), tag=TAG)
