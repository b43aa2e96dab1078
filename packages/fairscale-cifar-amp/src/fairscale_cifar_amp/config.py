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
Sharding = Literal["oss", "fairscale_fsdp", "ddp", "zero_redundancy", "fsdp2"]
Precision = Literal["fp32", "bf16", "fp16"]


@dataclass(frozen=True, kw_only=True, config=CONFIG)
class TrainConfig(RunConfig):
    """Train a convolutional network on CIFAR-10 with FairScale in mixed precision."""

    num_sample_images: Annotated[int, Field(ge=100)] = 10_000
    """size of the generated training set; its test set has a fifth of that (data: sample)"""
    num_val: NonNegativeInt = 1000
    """training images held out to choose the checkpoint; 0 trains on all and keeps the last weights"""

    widths: tuple[Width, Width, Width] = (32, 64, 64)
    """channels of the three blocks, multiples of 8"""
    norm: Literal["batch", "group"] = "batch"
    """batch: statistics of each process's micro-batch; group: of each image by itself"""

    sharding: Sharding = "oss"
    """oss: FairScale's OSS optimizer and ShardedDataParallel; fairscale_fsdp: its FullyShardedDataParallel; without
    FairScale: ddp (nothing sharded), zero_redundancy and fsdp2 (what PyTorch offers in their place today)"""
    precision: Precision = "bf16"
    """numbers in the forward pass; parameters stay fp32, fp16 scales the loss"""

    epochs: PositiveInt = 6
    """passes over the training set"""
    micro_batch_size: PositiveInt = 64
    """images per process and forward pass"""
    gradient_accumulation_steps: PositiveInt = 1
    """forward and backward passes before each optimizer step"""
    learning_rate: PositiveFloat = 0.1
    """peak learning rate of SGD with Nesterov momentum"""
    momentum: Fraction = 0.9
    """momentum of SGD"""
    weight_decay: NonNegativeFloat = 5e-4
    """L2 penalty on all parameters"""
    warmup_fraction: Fraction = 0.2
    """share of the run in which the learning rate rises linearly; then it falls linearly to 0"""
    label_smoothing: Fraction = 0.1
    """probability mass spread over all classes in the training loss"""

    crop_padding: NonNegativeInt = 2
    """pixels by which a random crop may shift an image"""
    flip: Literal["none", "random", "alternating"] = "alternating"
    """mirror images left-right at random, or each image in every other epoch"""
    cutout: NonNegativeInt = 0
    """side in pixels of a square erased at a random place; 0 for none"""

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
    precision: Precision | None = None
    """numbers in the forward pass; default: as the run did"""


@dataclass(frozen=True, kw_only=True, config=CONFIG)
class CompareConfig:
    """Train in 32 and 16 bits, and sharded in five ways, at the same batch: time, memory, accuracy."""

    config: str = "sample"
    """preset or YAML file of train that all variants share"""
    data_dir: Path | None = None
    """folder that holds the real data, as for train"""
    what: Literal["precision", "sharding"] = "precision"
    """precision: fp32, bf16 and, on GPUs, fp16; sharding: FairScale's two ways, plain DDP, PyTorch's two successors"""
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
