"""Let a model continue a text, at several temperatures side by side."""

import sys
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from rich.text import Text
from torch import Tensor
from trainyard_shared import launch
from trainyard_shared.errors import DataError, UsageError
from trainyard_shared.tensors.quick_start import postpone_dynamo

postpone_dynamo()  # before transformers is imported: nothing here is compiled

from fairscale_gpt2_accumulation.config import GenerateConfig  # noqa: E402
from fairscale_gpt2_accumulation.model import LanguageModel, load_pretrained  # noqa: E402

DEFAULT_PROMPT = " \n = "
"""how an article begins"""
RUN_MODEL = "model"  # folder within that of the run, in the form of transformers


@torch.inference_mode()
def continuations(
    model: LanguageModel,
    prompts: Tensor,
    num_new: int,
    *,
    temperature: float,
    top_k: int = 0,
    top_p: float = 1.0,
    seed: int = 0,
) -> Tensor:
    """Return the tokens with which the model continues prompts.

    Args:
        model: on the device of the prompts.
        prompts: (B, P) token ids.
        num_new: N, tokens to add; the end-of-text token does not end it.
        temperature: the logits are divided by it; 0 takes the likeliest token always.
        top_k: draw among this many likeliest tokens only; 0 for all.
        top_p: draw among the likeliest tokens that together have this probability.
        seed: of the draws; torch's global random state stays as it is.

    Returns:
        (B, N)

    Raises:
        UsageError: prompt and continuation are more than the model can see.
    """
    limit = model.gpt2.config.n_positions
    if prompts.shape[1] + num_new > limit:
        raise UsageError(
            f"error: the prompt has {prompts.shape[1]} tokens and {num_new} are to follow, but this model sees at most "
            f"{limit} tokens: shorten one of them"
        )
    sampled: dict[str, Any] = {"do_sample": False}
    if temperature > 0:
        sampled = {"do_sample": True, "temperature": temperature, "top_k": top_k, "top_p": top_p}
    was_training = model.training
    model.eval()
    with torch.random.fork_rng(devices=[prompts.device] if prompts.device.type == "cuda" else []):
        torch.manual_seed(seed)
        whole = model.gpt2.generate(
            prompts,
            attention_mask=torch.ones_like(prompts),
            min_new_tokens=num_new,
            max_new_tokens=num_new,
            pad_token_id=model.gpt2.config.eos_token_id,
            **sampled,
        )
    model.train(was_training)
    return whole[:, prompts.shape[1] :]


def generate(run: Path | None, config: GenerateConfig) -> None:
    """Print the continuations of a text, one column for each temperature.

    Raises:
        DataError: the model or the file with the prompt cannot be had.
        UsageError: the prompt is too long for the model.
    """
    if config.num_threads != "auto":
        torch.set_num_threads(config.num_threads)
    prompt = read(config.file) if config.file is not None else config.prompt or DEFAULT_PROMPT
    if run is not None and not (run / RUN_MODEL / "config.json").is_file():
        raise DataError(
            f"error: {run}: no {RUN_MODEL}/: the run has not finished; continue it with train --resume {run}"
        )
    device = launch.choose_device(config.device)
    model, tokenizer = load_pretrained(config.model or str(run and run / RUN_MODEL), config.tokenizer)
    model.to(device)
    ids = torch.tensor([[tokenizer.bos_token_id, *tokenizer(prompt, verbose=False)["input_ids"]]], device=device)
    columns = [
        tokenizer.decode(
            continuations(
                model,
                ids,
                config.max_new_tokens,
                temperature=temperature,
                top_k=config.top_k,
                top_p=config.top_p,
                seed=config.seed,
            )[0]
        )
        for temperature in config.temperatures
    ]
    table = Table(title=Text(f"continues: {prompt.strip()}", overflow="fold"), show_lines=True, expand=True)
    for temperature in config.temperatures:
        table.add_column(f"temperature {temperature:g}", ratio=1)
    table.add_row(*map(Text, columns))
    Console().print(table)


def read(path: Path) -> str:
    """Return the text of a file; raises DataError if it cannot be read or is empty."""
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"error: --file {path}: cannot be read: {error}") from error
    if not text.strip():
        raise DataError(f"error: --file {path}: is empty")
    return text


if __name__ == "__main__":
    from fairscale_gpt2_accumulation import cli

    sys.exit(cli.generate())
