"""Every setting of the project, with its unit; presets in `configs/` name only what differs from these defaults."""

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field
from pydantic.dataclasses import dataclass
from trainyard_shared.config import (
    CONFIG,
    Fraction,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    RunConfig,
)

Precision = Literal["fp32", "bf16", "fp16"]
Model = Literal[
    "tiny",
    "efficientnet_lite0",
    "efficientnet_b0",
    "efficientnet_b1",
    "efficientnet_b2",
    "efficientnet_b3",
    "efficientnet_b4",
    "efficientnet_b5",
    "efficientnet_b6",
    "efficientnet_b7",
    "tf_efficientnet_lite0",
    "tf_efficientnet_b0",
    "tf_efficientnet_b1",
    "tf_efficientnet_b2",
    "tf_efficientnet_b3",
    "tf_efficientnet_b4",
    "tf_efficientnet_b5",
    "tf_efficientnet_b6",
    "tf_efficientnet_b7",
]
Decay = Annotated[float, Field(ge=0, lt=1)]
ImageSize = Annotated[int, Field(ge=32, le=1024)]


@dataclass(frozen=True, kw_only=True, config=CONFIG)
class TrainConfig(RunConfig):
    """Train an EfficientNet on CIFAR-10 with DeepSpeed."""

    num_sample_images: Annotated[int, Field(ge=100)] = 6000
    """size of the generated training set; its test set has a fifth of that (data: sample)"""
    num_val: NonNegativeInt = 500
    """training images held out to choose the weights; 0 trains on all and keeps the last weights"""
    num_train: NonNegativeInt = 0
    """training images to use, a random part, the same for every seed; 0 for all"""

    model: Model = "efficientnet_b0"
    """EfficientNet of timm (tf_: with the padding of TensorFlow, where its weights came from there), or tiny: the same
    building blocks in a network of 52 thousand parameters"""
    weights: str = "none"
    """pretrained weights: none, hub (those of timm), or a file or folder that holds them"""
    image_size: ImageSize = 224
    """pixels a side of what the network sees; CIFAR's 32 are enlarged"""
    dropout: Decay = 0.0
    """probability of dropping a feature before the classifier"""
    drop_path: Decay = 0.0
    """probability of skipping the last block (stochastic depth), less for the blocks before"""
    frozen_stages: Annotated[int, Field(ge=0, le=7)] = 0
    """stages from the input on that are left as they are, with the stem: no gradients, and statistics stay"""
    frozen_batchnorm: bool = False
    """normalise with the pretrained statistics instead of those of each process's micro-batch"""
    activation_checkpointing: bool = False
    """keep only what enters a block, and compute the rest again in the backward pass"""

    deepspeed: str = "zero2"
    """DeepSpeed's JSON config: zero0, zero1, zero2, zero3, zero2_offload, zero3_offload, or a file"""
    precision: Precision = "bf16"
    """numbers in the forward pass; parameters stay fp32, fp16 (GPUs only) scales the loss"""

    epochs: PositiveInt = 6
    """passes over the training set"""
    micro_batch_size: PositiveInt = 64
    """images per process and forward pass"""
    gradient_accumulation_steps: PositiveInt = 1
    """forward and backward passes before each optimizer step"""
    learning_rate: PositiveFloat = 2e-3
    """peak learning rate of AdamW"""
    weight_decay: NonNegativeFloat = 0.02
    """decoupled decay of the weights of convolutions and of the classifier"""
    max_grad_norm: NonNegativeFloat = 1.0
    """gradients are scaled down to this norm; 0 for never"""
    warmup_fraction: Fraction = 0.1
    """share of the run in which the learning rate rises linearly; then it falls to 0 as half a cosine"""
    label_smoothing: Fraction = 0.1
    """probability mass spread over all classes in the training loss"""
    ema_decay: Decay = 0.99
    """how slowly the exponential moving average of the weights, which is what is tested, follows; 0 for none"""

    crop_padding: NonNegativeInt = 4
    """pixels of the original image by which a random crop may shift it"""
    flip: Literal["none", "random", "alternating"] = "random"
    """mirror images left-right at random, or each image in every other epoch"""
    cutout: NonNegativeInt = 0
    """side in pixels of a square of the original image erased at a random place; 0 for none"""
    randaugment_ops: NonNegativeInt = 0
    """random changes of each image by RandAugment; 0 for none"""
    randaugment_magnitude: Annotated[int, Field(ge=0, le=30)] = 9
    """strength of these changes"""
    mixup_alpha: NonNegativeFloat = 0.0
    """parameter of mixup's Beta distribution; 0 for no mixup"""
    cutmix_alpha: NonNegativeFloat = 0.0
    """parameter of CutMix's Beta distribution; 0 for no CutMix; with mixup, half of the micro-batches each"""

    log_every: PositiveInt = 10
    """optimizer steps between records of the training loss"""
    checkpoint_every: NonNegativeInt = 0
    """optimizer steps between checkpoints within an epoch; 0 for one at the end of each epoch only"""
    test: bool = True
    """touch the test set at the end; a search leaves it alone"""
    collective_timeout_s: PositiveFloat = 600.0
    """seconds a process waits for the others before it gives up"""


@dataclass(frozen=True, kw_only=True, config=CONFIG)
class EvaluateConfig:
    """Test the trained network of a run on the whole test set and write its report again."""

    run: Path | None = None
    """run folder; default: the newest in out_dir"""
    out_dir: Path = Path("results")
    """where to look for the newest run"""
    data_dir: Path | None = None
    """folder that holds the real data, as for train"""
    nproc: Literal["auto"] | PositiveInt = "auto"
    """processes on this machine"""
    num_threads: Literal["auto"] | PositiveInt = "auto"
    """CPU threads of each process"""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """where to compute"""
    precision: Precision | None = None
    """numbers in the forward pass; default: as the run did"""


@dataclass(frozen=True, kw_only=True, config=CONFIG)
class CompareConfig:
    """Train several architectures, or one with each stage of ZeRO: accuracy, size, work, speed, memory."""

    config: str = "sample"
    """preset or YAML file of train that all variants share"""
    data_dir: Path | None = None
    """folder that holds the real data, as for train"""
    what: Literal["models", "zero"] = "models"
    """models: the architectures named by --models; zero: the stages of ZeRO, and offload"""
    models: tuple[Model, ...] = ("tiny", "efficientnet_lite0", "efficientnet_b0")
    """architectures to compare"""
    nproc: Literal["auto"] | PositiveInt = "auto"
    """processes on this machine, the same for all variants"""
    num_threads: Literal["auto"] | PositiveInt = "auto"
    """CPU threads of each process, the same for all variants"""
    seeds: PositiveInt = 3
    """runs of each variant, with seeds 0, 1, ..."""
    epochs: PositiveInt | None = None
    """epochs of each run; default: as in the config"""
    out_dir: Path = Path("results")
    """folder for the comparison; runs finished there before are not made again when --resume names it"""
    resume: Path | None = None
    """comparison folder to continue"""


@dataclass(frozen=True, kw_only=True, config=CONFIG)
class SearchConfig:
    """Search learning rate, weight decay, label smoothing and batch size with Optuna; validation images judge."""

    config: str = "sample"
    """preset or YAML file of train that all trials share"""
    data_dir: Path | None = None
    """folder that holds the real data, as for train"""
    num_trials: PositiveInt = 12
    """trials in all, with those of the search that is continued"""
    epochs: PositiveInt | None = None
    """epochs of each trial; default: as in the config"""
    learning_rate: tuple[PositiveFloat, PositiveFloat] = (3e-4, 1e-2)
    """lowest and highest learning rate, searched on a logarithmic scale"""
    weight_decay: tuple[PositiveFloat, PositiveFloat] = (1e-3, 2e-1)
    """lowest and highest weight decay, searched on a logarithmic scale"""
    label_smoothing: tuple[Fraction, Fraction] = (0.0, 0.2)
    """lowest and highest label smoothing"""
    micro_batch_size: tuple[PositiveInt, ...] = (32, 64, 128)
    """micro-batch sizes to choose from"""
    num_unpruned: NonNegativeInt = 4
    """finished trials before the first may be stopped early, because it is worse than their median at its epoch"""
    seed: NonNegativeInt = 0
    """seed of the search; the trials themselves all have the seed of the config"""
    nproc: Literal["auto"] | PositiveInt = "auto"
    """processes on this machine, the same for all trials"""
    num_threads: Literal["auto"] | PositiveInt = "auto"
    """CPU threads of each process, the same for all trials"""
    out_dir: Path = Path("results")
    """folder for the search"""
    resume: Path | None = None
    """search folder to continue"""

    def __post_init__(self) -> None:
        for name in ("learning_rate", "weight_decay", "label_smoothing"):
            low, high = getattr(self, name)
            if low > high:
                raise ValueError(f"--{name.replace('_', '-')}: {low:g} is more than {high:g}")
