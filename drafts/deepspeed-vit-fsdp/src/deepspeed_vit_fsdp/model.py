"""Vision transformers of the transformers library with a head for these classes. Nothing here knows of sharding.

A pretrained model comes by its name on the Hugging Face Hub or from a folder; `tiny` is a small ViT from scratch whose
patches fit small images. Shapes: B images, S pixels a side, K classes.
"""

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn
from trainyard_shared.console import say
from trainyard_shared.datasets.cifar import ImageDataset
from trainyard_shared.datasets.fetch import is_offline
from trainyard_shared.errors import DataError, UsageError
from trainyard_shared.tensors.quick_start import postpone_dynamo

from deepspeed_vit_fsdp.config import TrainConfig
from deepspeed_vit_fsdp.data import Preparation

postpone_dynamo()  # before transformers is imported: nothing here is compiled

import transformers  # noqa: E402
from transformers import (  # noqa: E402
    AutoConfig,
    AutoModelForImageClassification,
    ViTConfig,
    ViTForImageClassification,
)
from transformers.utils.hub import cached_file  # noqa: E402

HEAD_WIDTH = 32
_DROPOUTS = ("hidden_dropout_prob", "attention_probs_dropout_prob")

# Its bars and reports speak of what is normal here: a new head on an old encoder.
transformers.logging.set_verbosity_error()
transformers.logging.disable_progress_bar()


def settings_and_preparation(config: TrainConfig, dataset: ImageDataset) -> tuple[Any, Preparation]:
    """Return the settings of the model that `config` names, and what it wants done to its images.

    Raises:
        DataError: a pretrained model cannot be had, or is no vision transformer.
        UsageError: `tiny` cannot cut these images into its patches.
    """
    if config.model != "tiny":
        settings = pretrained_settings(config.model, dataset.class_names, config.dropout)
        return settings, Preparation.of_processor(processor_of(config.model), settings.image_size)
    side = dataset.train_images.shape[-1]
    colours: dict[str, Any] = {} if config.data != "folder" else {"mean": (0.5,) * 3, "std": (0.25,) * 3}
    return tiny_settings(config, side, dataset.class_names), Preparation(side, **colours)


def tiny_settings(config: TrainConfig, image_size: int, class_names: Sequence[str]) -> ViTConfig:
    """Return the settings of a small ViT for images of `image_size` pixels a side.

    Raises:
        UsageError: the images cannot be cut into patches of this size.
    """
    if image_size % config.patch_size:
        raise UsageError(
            f"error: patch_size: {config.patch_size} is not allowed: it must divide the {image_size} pixels of a side"
        )
    return ViTConfig(
        hidden_size=config.hidden_size,
        num_hidden_layers=config.num_layers,
        num_attention_heads=config.hidden_size // HEAD_WIDTH,
        intermediate_size=2 * config.hidden_size,
        image_size=image_size,
        patch_size=config.patch_size,
        hidden_dropout_prob=config.dropout,
        attention_probs_dropout_prob=config.dropout,
        **_classes(class_names),
    )


def make_tiny(settings: ViTConfig, initialization: str) -> Any:
    """Return a ViT whose weights are drawn from torch's global generator."""
    model = ViTForImageClassification(settings)
    if initialization == "mimetic":
        _initialize_mimetically(model)
    return model


@torch.no_grad()
def _initialize_mimetically(model: Any) -> None:
    """Give attention the structure that it has in trained models (Trockman and Kolter 2023, arXiv 2305.09828).

    In trained ViTs the product of query and key matrices is close to a multiple of the identity, and that of value and
    output matrices to a negative one; with positions of sines, each token first attends to its neighbours. Both are
    made here by splitting noise + identity into two factors with a singular value decomposition.
    """
    embeddings, dim = model.vit.embeddings, model.config.hidden_size
    side = model.config.image_size // model.config.patch_size
    embeddings.position_embeddings[0, 1:] = _sines(side, dim)
    embeddings.cls_token.zero_()
    for layer in model.vit.layers:
        attention = layer.attention
        for head in range(model.config.num_attention_heads):
            rows = slice(head * HEAD_WIDTH, (head + 1) * HEAD_WIDTH)
            # Of x W_q^T W_k x^T: 0.7 noise + 0.7 identity, cut to the rank of a head.
            product = 0.7 * torch.randn(dim, dim) / math.sqrt(dim) + 0.7 * torch.eye(dim)
            u, s, vt = torch.linalg.svd(product)
            root = s[:HEAD_WIDTH].sqrt()
            attention.q_proj.weight[rows] = (u[:, :HEAD_WIDTH] * root).T
            attention.k_proj.weight[rows] = vt[:HEAD_WIDTH] * root[:, None]
        # Of W_o W_v: 0.4 noise - 0.4 identity.
        product = 0.4 * torch.randn(dim, dim) / math.sqrt(dim) - 0.4 * torch.eye(dim)
        u, s, vt = torch.linalg.svd(product)
        attention.v_proj.weight.copy_(s.sqrt()[:, None] * vt)
        attention.o_proj.weight.copy_(u * s.sqrt())


def _sines(side: int, dim: int) -> torch.Tensor:
    """Return sines and cosines of rows and columns (side * side, dim), as in MoCo v3 (arXiv 2104.02057)."""
    frequencies = 1.0 / 10_000 ** (torch.arange(dim // 4) / (dim // 4))
    angles = torch.arange(side)[:, None] * frequencies  # (side, dim / 4)
    rows = angles[:, None].expand(side, side, -1)
    columns = angles[None].expand(side, side, -1)
    return torch.cat([rows.sin(), rows.cos(), columns.sin(), columns.cos()], dim=-1).view(side * side, dim)


# ------------------------------------------------------------------------------------------------------- pretrained


def pretrained_settings(name: str, class_names: Sequence[str], dropout: float) -> Any:
    """Return the settings of a pretrained model with a head for these classes; raises DataError if it has none."""
    folder = Path(name)
    if folder.is_dir() and not (folder / "config.json").is_file():
        raise DataError(f"error: --model {name}: the folder has no config.json: it holds no model of transformers")
    if not folder.is_dir():
        say(f"looking for {name} in the cache of the Hugging Face Hub{'' if is_offline() else ' and on the Hub'}")
    try:
        settings = AutoConfig.from_pretrained(name, **_classes(class_names), **_where(name))
    except Exception as error:  # of transformers, safetensors or the Hub: each has its own
        raise _cannot_have(name, "config", error) from error
    if type(settings) not in AutoModelForImageClassification._model_mapping:
        raise DataError(f"error: --model {name}: a model of type {settings.model_type} does not classify images")
    for field in ("patch_size", "image_size", "num_hidden_layers"):
        if not isinstance(getattr(settings, field, None), int):
            raise DataError(f"error: --model {name}: a {settings.model_type} without {field} is no vision transformer")
    for field in _DROPOUTS:
        if hasattr(settings, field):
            setattr(settings, field, dropout)
    return settings


def load_pretrained(name: str, settings: Any, seed: int) -> tuple[Any, list[str]]:
    """Return the model with its pretrained weights, and the names of those that are new: the head's.

    The weights are read with the head they come with, which is then replaced. To let transformers drop a head of
    another size itself (`ignore_mismatched_sizes`) does not work under ZeRO-3, where only rank 0 would notice.

    Args:
        name: on the Hub, or a folder.
        settings: of `pretrained_settings`.
        seed: of the new head, the same on every process.

    Raises:
        DataError: the weights cannot be had, or parts of the encoder are missing.
    """
    try:
        as_it_comes = AutoConfig.from_pretrained(name, **_where(name))
        for field in _DROPOUTS:
            if hasattr(as_it_comes, field):
                setattr(as_it_comes, field, getattr(settings, field))
        model, loaded = AutoModelForImageClassification.from_pretrained(
            name,
            config=as_it_comes,
            dtype=torch.float32,
            output_loading_info=True,
            use_safetensors=True,  # never a pickle
            **_where(name),
        )
    except Exception as error:
        raise _cannot_have(name, "weights in safetensors", error) from error
    missing = loaded["missing_keys"]
    inside = [key for key in missing if key.startswith(f"{model.base_model_prefix}.")]
    if inside:
        raise DataError(
            f"error: --model {name}: its weights lack {len(inside)} tensors of the encoder, such as {min(inside)}"
        )
    fresh = []
    if missing or as_it_comes.num_labels != settings.num_labels:
        head = nn.Linear(settings.hidden_size, settings.num_labels)
        generator = torch.Generator().manual_seed(seed)
        nn.init.normal_(head.weight, std=settings.initializer_range, generator=generator)
        nn.init.zeros_(head.bias)
        model.classifier, fresh = head, ["classifier.bias", "classifier.weight"]
    model.config, model.num_labels = settings, settings.num_labels
    return model, fresh


def processor_of(name: str) -> dict[str, Any]:
    """Return the settings of a pretrained model's image processor: sizes, means; raises DataError if it has none."""
    try:
        return json.loads(Path(cached_file(name, "preprocessor_config.json", **_where(name))).read_text("utf-8"))
    except Exception as error:
        raise _cannot_have(name, "preprocessor_config.json", error) from error


def without_weights(settings: Any) -> Any:
    """Return a model of these settings as fast as possible; its weights are to be replaced."""
    with transformers.initialization.no_init_weights():
        return AutoModelForImageClassification.from_config(settings)


def save(folder: Path, settings: Any, weights: dict[str, torch.Tensor], processor: dict[str, Any]) -> None:
    """Write a plain Hugging Face folder, which `from_pretrained` and `pipeline` load."""
    from safetensors.torch import save_file

    folder.mkdir(parents=True, exist_ok=True)
    settings.architectures = [AutoModelForImageClassification._model_mapping[type(settings)].__name__]
    settings.save_pretrained(folder)
    contiguous = {name: tensor.contiguous() for name, tensor in weights.items()}
    save_file(contiguous, folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "preprocessor_config.json").write_text(json.dumps(processor, indent=2) + "\n", encoding="utf-8")


def load_trained(folder: Path) -> Any:
    """Return the model in a folder that `save` wrote; raises DataError if it cannot be read."""
    try:
        return AutoModelForImageClassification.from_pretrained(folder, local_files_only=True, use_safetensors=True)
    except Exception as error:
        raise DataError(f"error: {folder}: cannot be read as a model of transformers: {_first_line(error)}") from error


# ------------------------------------------------------------------------------------------------------------ layers


def layers_of(model: Any) -> nn.ModuleList:
    """Return the transformer layers, lowest first, whatever the class calls them."""
    number = model.config.num_hidden_layers
    return next(m for m in model.modules() if isinstance(m, nn.ModuleList) and len(m) == number)


def parameter_groups(model: Any, weight_decay: float, layer_decay: float) -> list[dict[str, Any]]:
    """Sort the parameters for the optimizer: what decays, and, with layer_decay < 1, how far from the head it is.

    Layer-wise decay is that of BEiT (Bao et al. 2022, arXiv 2106.08254): the head has the whole learning rate, each
    layer below it `layer_decay` times that of the one above, the embeddings the least. The factor is `lr_scale`.
    """
    depth = model.config.num_hidden_layers
    level_of = {id(p): depth + 1 for p in model.parameters()}
    level_of |= {id(p): 0 for p in model.base_model.embeddings.parameters()}
    for index, layer in enumerate(layers_of(model)):
        level_of |= {id(p): index + 1 for p in layer.parameters()}
    groups: dict[tuple[int, bool], dict[str, Any]] = {}
    for name, parameter in model.named_parameters():
        level = level_of[id(parameter)] if layer_decay < 1 else depth + 1
        # Under ZeRO-3 the shape of a parameter that is shared out already is in ds_shape.
        dims = len(getattr(parameter, "ds_shape", parameter.shape))
        decays = dims > 1 and not name.endswith(("cls_token", "position_embeddings"))
        group = groups.setdefault(
            (level, decays),
            {
                "params": [],
                "weight_decay": weight_decay if decays else 0.0,
                "lr_scale": layer_decay ** (depth + 1 - level),
            },
        )
        group["params"].append(parameter)
    return [groups[key] for key in sorted(groups)]


def _classes(names: Sequence[str]) -> dict[str, Any]:
    return {
        "num_labels": len(names),
        "id2label": dict(enumerate(names)),
        "label2id": {n: i for i, n in enumerate(names)},
    }


def _where(name: str) -> dict[str, Any]:
    return {"local_files_only": Path(name).is_dir() or is_offline()}


def _cannot_have(name: str, what: str, error: Exception) -> DataError:
    where = "in this folder" if Path(name).is_dir() else "in the cache or on the Hugging Face Hub"
    return DataError(
        f"error: --model {name}: no {what} to be had {where}: {_first_line(error)} What to do: --model FOLDER with "
        "config.json, preprocessor_config.json and model.safetensors, or --model tiny."
    )


def _first_line(error: Exception) -> str:
    line = (str(error).strip().splitlines() or [type(error).__name__])[0]
    return line if line.endswith(".") else f"{line}."
