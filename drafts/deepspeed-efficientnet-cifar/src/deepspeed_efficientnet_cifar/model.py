"""EfficientNets of timm, with weights that are drawn, fetched or read from a file. Nothing here knows of DeepSpeed.

Shapes: B images, S pixels a side, K classes.
"""

from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn
from trainyard_shared.errors import DataError, UsageError
from trainyard_shared.tensors.quick_start import postpone_dynamo

from deepspeed_efficientnet_cifar.config import TrainConfig
from deepspeed_efficientnet_cifar.data import Preparation

postpone_dynamo()  # before timm imports torchvision: nothing here is compiled

import timm  # noqa: E402
from timm.models._efficientnet_builder import decode_arch_def  # noqa: E402
from timm.models.efficientnet import EfficientNet  # noqa: E402

# Channels and statistics of CIFAR-10, where no pretrained network asks for others; in units of 0..1.
CIFAR10_MEAN, CIFAR10_STD = (0.4914, 0.4822, 0.4465), (0.247, 0.2435, 0.2616)
# The blocks of an EfficientNet (inverted bottlenecks, squeeze and excitation) for 32 pixels a side, in timm's notation:
# ir inverted residual, r repeats, k kernel, s stride, e expansion, c channels, se squeeze and excitation.
TINY = [["ds_r1_k3_s1_e1_c16"], ["ir_r1_k3_s1_e4_c24_se0.25"], ["ir_r1_k3_s2_e4_c40_se0.25"], ["ir_r1_k3_s2_e4_c64"]]
WEIGHT_FILES = ("model.safetensors", "pytorch_model.bin", "*.safetensors", "*.pth", "*.pt", "*.bin")
STATISTICS = ("running_mean", "running_var", "num_batches_tracked")


def make(config: TrainConfig, num_classes: int, *, read_weights: bool = True) -> EfficientNet:
    """Return the network of a config.

    Args:
        config: model, weights, dropout, what is frozen.
        num_classes: K.
        read_weights: leave the initial weights as they are drawn if false, for a network that is to be filled.

    Raises:
        UsageError: no such file of weights.
        DataError: the file holds no weights of this network.
    """
    settings = {"num_classes": num_classes, "drop_rate": config.dropout, "drop_path_rate": config.drop_path}
    if config.model == "tiny":
        if config.weights != "none" and read_weights:
            raise UsageError(f"error: --weights {config.weights}: the model tiny has no pretrained weights")
        network = EfficientNet(decode_arch_def(TINY), stem_size=16, num_features=256, fix_stem=True, **settings)
    else:
        from_hub = config.weights == "hub" and read_weights
        try:
            network = timm.create_model(config.model, pretrained=from_hub, **settings)
        except Exception as error:  # of huggingface_hub, httpx or timm, whatever keeps the weights away
            if not from_hub:
                raise
            raise DataError(
                f"error: --weights hub: the weights of {config.model} cannot be fetched "
                f"({str(error).splitlines()[0][:200]}); give a file or folder with --weights PATH"
            ) from error
        if config.weights not in ("none", "hub") and read_weights:
            load_weights(network, Path(config.weights))
    freeze(network, config.frozen_stages)
    network.set_grad_checkpointing(config.activation_checkpointing)
    return network


def preparation(config: TrainConfig) -> Preparation:
    """Return what the network wants done to its images: pretrained ones were used to ImageNet's statistics."""
    if config.weights == "none":
        return Preparation(config.image_size, CIFAR10_MEAN, CIFAR10_STD)
    pretrained = timm.get_pretrained_cfg(config.model)
    if pretrained is None:
        raise UsageError(f"error: --weights {config.weights}: {config.model} has no pretrained weights")
    return Preparation(config.image_size, tuple(pretrained.mean), tuple(pretrained.std))


def freeze(network: EfficientNet, num_stages: int) -> None:
    """Let the stem and the first stages take no gradients."""
    for part in frozen_parts(network, num_stages):
        part.requires_grad_(False)


def frozen_parts(network: EfficientNet, num_stages: int) -> list[nn.Module]:
    """Return the stem, its normalisation and the first `num_stages` stages; nothing for 0."""
    return [network.conv_stem, network.bn1, *network.blocks[:num_stages]] if num_stages else []


def set_training(network: EfficientNet, config: TrainConfig) -> None:
    """Switch on dropout and batch statistics, but for what is frozen, which uses the statistics it came with."""
    network.train()
    for part in frozen_parts(network, config.frozen_stages):
        part.eval()
    if config.frozen_batchnorm:
        for module in network.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.eval()


def parameter_groups(network: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Return the parameters that take gradients: matrices and filters, which decay, and the rest, which does not."""
    trained = [p for p in network.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in trained if p.ndim > 1], "weight_decay": weight_decay},
        {"params": [p for p in trained if p.ndim <= 1], "weight_decay": 0.0},
    ]
    return [group for group in groups if group["params"]]


def flops_per_image(config: TrainConfig, num_classes: int) -> int:
    """Count the floating-point operations of a forward pass of one image; a multiplication and an addition are two."""
    from torch.utils.flop_counter import FlopCounterMode  # imports Triton, which takes as long as all of timm

    network = make(config, num_classes, read_weights=False).eval()
    counter = FlopCounterMode(display=False)
    with torch.no_grad(), counter:
        network(torch.zeros(1, 3, config.image_size, config.image_size))
    return counter.get_total_flops()


# ------------------------------------------------------------------------------------------------- pretrained weights


def load_weights(network: EfficientNet, path: Path) -> None:
    """Read pretrained weights from a file or a folder; a classifier of other classes is left as it was drawn.

    Raises:
        UsageError: there is no such file, or the folder holds none or several.
        DataError: the file cannot be read, or holds other tensors than the network.
    """
    file = _weights_file(path)
    found = read_weights(file)
    own = network.state_dict()
    found = from_legacy(found, list(own)) if "_conv_stem.weight" in found else found
    missing, unknown = sorted(own.keys() - found.keys()), sorted(found.keys() - own.keys())
    if missing or unknown:
        what = f"no tensor {missing[0]}" if missing else f"a tensor {unknown[0]} that the network does not have"
        raise DataError(f"error: {file}: weights of another network: {what}")
    for name in list(found):
        if found[name].shape != own[name].shape:
            if name.startswith("classifier."):
                found[name] = own[name]
                continue
            raise DataError(
                f"error: {file}: {name} has the shape {tuple(found[name].shape)}, but the network wants "
                f"{tuple(own[name].shape)}"
            )
    network.load_state_dict(found)


def read_weights(file: Path) -> dict[str, Tensor]:
    """Return the tensors of a .safetensors file or of one that torch.save wrote, without running what it may hold."""
    try:
        # weights_only: weights are data, and must not be able to run code.
        content = load_file(file) if file.suffix == ".safetensors" else torch.load(file, "cpu", weights_only=True)
    except (OSError, ValueError, RuntimeError, EOFError, KeyError, SafetensorError) as error:
        raise DataError(f"error: {file}: cannot be read as weights: {str(error).splitlines()[0]}") from error
    except Exception as error:  # pickle.UnpicklingError of several kinds
        raise DataError(f"error: {file}: cannot be read as weights: {str(error).splitlines()[0]}") from error
    if not isinstance(content, dict) or not all(isinstance(value, Tensor) for value in content.values()):
        raise DataError(f"error: {file}: must hold a dictionary of tensors")
    return dict(content)


def from_legacy(found: dict[str, Tensor], names: list[str]) -> dict[str, Tensor]:
    """Give the tensors of an `EfficientNet-PyTorch` state dict the names that timm uses.

    That code numbers the blocks through, and names the layers of a block by what they do; the order of layers is the
    same. timm numbers blocks within stages, and calls the projection `conv_pw` in a block without expansion, `conv_pwl`
    in the others.

    Args:
        found: tensors by legacy names.
        names: of all tensors of the network, in timm's words.

    Returns:
        The same tensors by timm's names; a name that cannot be translated is kept as it is.
    """
    blocks = list(dict.fromkeys(tuple(name.split(".")[1:3]) for name in names if name.startswith("blocks.")))
    translated = {}
    for name, tensor in found.items():
        part, *rest = name.split(".")
        if part == "_blocks" and int(rest[0]) < len(blocks):
            number, layer, *tail = rest
            expands = f"_blocks.{number}._expand_conv.weight" in found
            layers = {
                "_expand_conv": "conv_pw",
                "_bn0": "bn1",
                "_depthwise_conv": "conv_dw",
                "_bn1": "bn2" if expands else "bn1",
                "_project_conv": "conv_pwl" if expands else "conv_pw",
                "_bn2": "bn3" if expands else "bn2",
                "_se_reduce": "se.conv_reduce",
                "_se_expand": "se.conv_expand",
            }
            new = ".".join(["blocks", *blocks[int(number)], layers.get(layer, layer), *tail])
        else:
            outer = {
                "_conv_stem": "conv_stem",
                "_bn0": "bn1",
                "_conv_head": "conv_head",
                "_bn1": "bn2",
                "_fc": "classifier",
            }
            new = ".".join([outer.get(part, part), *rest])
        translated[new] = tensor
    return translated


def _weights_file(path: Path) -> Path:
    if path.is_file():
        return path
    if not path.is_dir():
        raise UsageError(f"error: --weights {path}: no such file or folder; or take none, or hub")
    for pattern in WEIGHT_FILES:
        files = sorted(path.glob(pattern))
        if len(files) > 1:
            raise UsageError(f"error: --weights {path}: several files of weights, e.g. {files[0].name}: name one")
        if files:
            return files[0]
    raise UsageError(f"error: --weights {path}: no file of weights in this folder ({', '.join(WEIGHT_FILES)})")
