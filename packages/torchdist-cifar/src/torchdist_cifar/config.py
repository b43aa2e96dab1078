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

Width = Annotated[int, Field(gt=0, multiple_of=8)]


@dataclass(frozen=True, kw_only=True, config=CONFIG)
class TrainConfig(RunConfig):
    """Train a convolutional network on CIFAR-10 with torch.distributed."""

    num_sample_images: Annotated[int, Field(ge=100)] = 10_000
    """size of the generated training set; its test set has a fifth of that (data: sample)"""
    num_val: NonNegativeInt = 1000
    """training images held out to choose the checkpoint; 0 trains on all and keeps the last weights"""

    model: Literal["cnn", "resnet18", "vgg11", "vgg16"] = "cnn"
    """architecture: a small fast network, or one of the classics in its form for 32x32 images"""
    widths: tuple[Width, Width, Width] = (32, 64, 64)
    """channels of the three blocks of `cnn`, multiples of 8"""
    whiten: bool = True
    """start `cnn` with a frozen convolution that decorrelates 2x2 patches"""
    norm: Literal["batch", "sync_batch", "group"] = "batch"
    """batch: statistics of each process's micro-batch; sync_batch: of all processes; group: of each image by itself"""

    epochs: PositiveInt = 6
    """passes over the training set"""
    micro_batch_size: PositiveInt = 64
    """images per process and forward pass"""
    gradient_accumulation_steps: PositiveInt = 1
    """forward and backward passes before each optimizer step"""
    learning_rate: PositiveFloat = 0.1
    """peak learning rate of SGD with Nesterov momentum"""
    bias_learning_rate_factor: PositiveFloat = 8.0
    """learning rate of the normalisation layers' biases, as a multiple of learning_rate"""
    momentum: Fraction = 0.9
    """momentum of SGD"""
    weight_decay: NonNegativeFloat = 5e-4
    """L2 penalty on all trained parameters"""
    warmup_fraction: Fraction = 0.2
    """share of the run in which the learning rate rises linearly; then it falls linearly to 0"""
    label_smoothing: Fraction = 0.1
    """probability mass spread over all classes in the training loss"""
    max_grad_norm: PositiveFloat | None = None
    """clip the gradient to this L2 norm"""

    crop_padding: NonNegativeInt = 2
    """pixels by which a random crop may shift an image"""
    flip: Literal["none", "random", "alternating"] = "alternating"
    """mirror images left-right at random, or each image in every other epoch"""
    cutout: NonNegativeInt = 0
    """side in pixels of a square erased at a random place; 0 for none"""
    loader: Literal["memory", "dataloader"] = "memory"
    """memory: the whole set on the device, batches augmented at once; dataloader: torch DataLoader and torchvision"""
    num_workers: NonNegativeInt = 0
    """loader processes of each training process (loader: dataloader)"""

    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    """numbers in the forward pass; parameters stay fp32, fp16 scales the loss"""
    channels_last: bool = True
    """keep images as (N, H, W, C) in memory, which convolutions are fastest on"""
    compile: bool = False
    """compile the model with torch.compile (takes a minute, pays off in long runs on GPUs)"""

    test_time_flip: bool = False
    """average the outputs for an image and its mirror image when testing"""
    log_every: PositiveInt = 10
    """optimizer steps between records of the training loss"""
    checkpoint_every: NonNegativeInt = 0
    """optimizer steps between checkpoints within an epoch; 0 for one at the end of each epoch only"""
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
    test_time_flip: bool | None = None
    """average the outputs for an image and its mirror image; default: as the run did"""


@dataclass(frozen=True, kw_only=True, config=CONFIG)
class CompareConfig:
    """Train with 1 process and with N at the same global batch: speed-up, efficiency, equal accuracy."""

    config: str = "sample"
    """preset or YAML file of train that all variants share"""
    data_dir: Path | None = None
    """folder that holds the real data, as for train"""
    nproc: tuple[PositiveInt, ...] = (1, 2)
    """numbers of processes to compare"""
    num_threads: PositiveInt = 1
    """CPU threads of each process, the same for all variants, so that only the number of processes differs"""
    seeds: PositiveInt = 3
    """runs of each variant, with seeds 0, 1, ..."""
    epochs: PositiveInt | None = None
    """epochs of each run; default: as in the config"""
    out_dir: Path = Path("results")
    """folder for the comparison; runs finished there before are not made again when --resume names it"""
    resume: Path | None = None
    """comparison folder to continue"""


@dataclass(frozen=True, kw_only=True, config=CONFIG)
class CollectivesConfig:
    """Show what broadcast, scatter, gather, all-gather, all-reduce and reduce-scatter do, and measure them."""

    nproc: Literal["auto"] | Annotated[int, Field(ge=2)] = "auto"
    """processes on this machine; auto: one for each GPU, without a GPU 2"""
    num_threads: Literal["auto"] | PositiveInt = 1
    """CPU threads of each process"""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """where the messages lie"""
    min_bytes: PositiveInt = 1024
    """smallest message that is measured"""
    max_bytes: PositiveInt = 64 * 1024**2
    """largest message that may be measured; sizes grow by a factor of 4"""
    time_per_point_s: PositiveFloat = 0.1
    """seconds to measure each collective with each size of message"""
    out_dir: Path = Path("results")
    """folder for the result folder"""

    def __post_init__(self) -> None:
        if self.min_bytes > self.max_bytes:
            raise ValueError(f"--min-bytes: {self.min_bytes} is more than --max-bytes {self.max_bytes}")
