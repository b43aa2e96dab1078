"""Let models go on from prompts: temperature, top-k, top-p; several prompts and several models side by side."""

from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer
from trainyard_shared import launch
from trainyard_shared.config import load_preset
from trainyard_shared.console import say
from trainyard_shared.datasets import pile
from trainyard_shared.datasets.tables import read_text
from trainyard_shared.errors import DataError, UsageError
from trainyard_shared.results import write_atomically
from trainyard_shared.tensors.quick_start import postpone_dynamo

postpone_dynamo()  # before transformers is imported: nothing here is compiled

from deepspeed_gpt2_pile import data  # noqa: E402
from deepspeed_gpt2_pile.config import GenerateConfig, SamplingConfig, TrainConfig  # noqa: E402
from deepspeed_gpt2_pile.model import load_trained  # noqa: E402

MODEL = "model"
PROMPT_LETTERS = 40
STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 75rem; padding: 0 1rem; color: #222 }
table { border-collapse: collapse; width: 100%; table-layout: fixed }
th, td { border: 1px solid #ccc; padding: .5rem .7rem; text-align: left; vertical-align: top }
th { background: #f3f3f3 }
.text { white-space: pre-wrap; overflow-wrap: anywhere }
.prompt { color: #666 }
p.note { color: #666 }
"""


def generate(runs: Sequence[Path], config: GenerateConfig) -> None:
    """Print, and perhaps write as HTML, how the models of runs go on from prompts.

    Raises:
        DataError: a folder holds no trained model, or the prompts cannot be read.
        UsageError: a prompt is longer than a model reads.
    """
    prompts = find_prompts(config, runs[0])
    texts = {name: written_by(folder, prompts, config) for name, folder in names_of(runs).items()}
    for number, prompt in enumerate(prompts):
        for name, of_model in texts.items():
            for text in of_model[number]:
                say(f"[{name}] {prompt}|{text}\n")
    if config.out is not None:
        write_atomically(config.out, page(prompts, texts, config))
        say(f"side by side: {config.out}")


def find_prompts(config: SamplingConfig, run: Path) -> list[str]:
    """Return the prompts that the config names, else some beginnings of the validation documents of a run."""
    prompts = list(config.prompts)
    if config.prompts_file is not None:
        prompts += [line for line in read_text(config.prompts_file).split("\n") if line.strip()]
    if not prompts:
        if not (run / "config.yaml").is_file():
            raise UsageError("error: no prompts: give --prompts TEXT ... or --prompts-file FILE")
        files = data.load(load_preset(TrainConfig, run / "config.yaml"))
        prompts = list(beginnings(files.val, 4).values())
    if empty := [prompt for prompt in prompts if not prompt]:
        raise UsageError(f"error: --prompts: {empty[0]!r} is empty")
    return prompts


def beginnings(files: Sequence[Path], count: int) -> dict[str, str]:
    """Return the beginning of the first document of each component, for at most `count` components."""
    found: dict[str, str] = {}
    for document in pile.documents(files, limit=50 * count):
        if document.component not in found and len(document.text) > 2 * PROMPT_LETTERS:
            # Whole words: half a word is half a token.
            found[document.component] = (
                document.text[:PROMPT_LETTERS].rpartition(" ")[0] or document.text[:PROMPT_LETTERS]
            )
        if len(found) == count:
            break
    return found


def names_of(runs: Sequence[Path]) -> dict[str, Path]:
    """Return the folders of the models by names that tell the runs apart; raises DataError if one has none."""
    folders = {}
    for run in runs:
        folder = next((path for path in (run / MODEL, run) if (path / "model.safetensors").is_file()), None)
        if folder is None:
            raise DataError(
                f"error: {run}: holds no trained model: neither {MODEL}/model.safetensors nor one of its own"
            )
        name = run.resolve().name
        if name in folders:
            raise UsageError(f"error: --run: two folders are called {name}: the names must differ")
        folders[name] = folder
    return folders


def written_by(folder: Path, prompts: Sequence[str], config: SamplingConfig) -> list[list[str]]:
    """Return what the model in a folder writes after each prompt."""
    if config.num_threads != "auto":
        torch.set_num_threads(config.num_threads)
    device = launch.choose_device(config.device)
    tokenizer, model = data.load_tokenizer(str(folder)), load_trained(folder).to(device)
    return continuations(model, tokenizer, prompts, config, device)


def continuations(
    model: Any, tokenizer: Tokenizer, prompts: Sequence[str], config: SamplingConfig, device: torch.device
) -> list[list[str]]:
    """Return `num_samples` continuations of each prompt, without the prompt.

    Each prompt has a random state of its own, drawn from seed and number: the others do not change its texts.

    Raises:
        UsageError: a prompt leaves no room in the model's context.
    """
    from transformers import GenerationConfig

    end = data.end_of_text(tokenizer)
    random_state = torch.get_rng_state()
    was_training = model.training
    model.eval()
    texts = []
    for number, prompt in enumerate(prompts):
        ids = [end, *tokenizer.encode(prompt, add_special_tokens=False).ids]
        room = model.config.n_positions - len(ids)
        if room < 1:
            raise UsageError(
                f"error: prompt {number + 1} has {len(ids) - 1} tokens; the model reads {model.config.n_positions}, of "
                "which one marks the beginning and one has to be left to write"
            )
        sampled = config.temperature > 0
        how = GenerationConfig(
            do_sample=sampled,
            max_new_tokens=min(config.max_new_tokens, room),
            num_return_sequences=config.num_samples if sampled else 1,
            bos_token_id=end,
            eos_token_id=end,
            pad_token_id=end,
            **({"temperature": config.temperature, "top_k": config.top_k, "top_p": config.top_p} if sampled else {}),
        )
        torch.manual_seed(config.seed * 1_000_003 + number)
        tokens = torch.tensor([ids], device=device)
        with torch.inference_mode():
            written = model.generate(
                tokens, attention_mask=torch.ones_like(tokens), generation_config=how, use_cache=True
            )
        texts.append([_until_end(tokenizer, row[len(ids) :].tolist(), end) for row in written])
    model.train(was_training)
    torch.set_rng_state(random_state)
    return texts


def page(prompts: Sequence[str], texts: dict[str, list[list[str]]], config: SamplingConfig) -> str:
    """Return an HTML page: a row for each prompt, a column for each model."""
    head = "".join(f"<th>{escape(name)}</th>" for name in texts)
    rows = ""
    for number, prompt in enumerate(prompts):
        cells = ""
        for of_model in texts.values():
            parts = (f'<span class="prompt">{escape(prompt)}</span>{escape(text)}' for text in of_model[number])
            cells += f'<td class="text">{"<hr>".join(parts)}</td>'
        rows += f"<tr>{cells}</tr>\n"
    how = f"temperature {config.temperature}, top-k {config.top_k}, top-p {config.top_p}, seed {config.seed}"
    return (
        f'<!doctype html>\n<html lang="en"><meta charset="utf-8"><title>Texts side by side</title>\n'
        f"<style>{STYLE}</style>\n<h1>Texts side by side</h1>\n"
        f'<p class="note">Prompts in grey; drawn with {how}; not selected.</p>\n'
        f"<table><tr>{head}</tr>\n{rows}</table></html>\n"
    )


def _until_end(tokenizer: Tokenizer, ids: list[int], end: int) -> str:
    return tokenizer.decode(ids[: ids.index(end)] if end in ids else ids)
