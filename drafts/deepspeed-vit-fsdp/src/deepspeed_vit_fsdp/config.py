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


@dataclass(frozen=True, kw_only=True, config=CONFIG)
class TrainConfig(RunConfig):
    """Train a vision transformer on CIFAR-100 with DeepSpeed."""

    data: Literal["sample", "real", "folder"] = "sample"  # type: ignore[assignment]
    """sample: generated pictures; real: CIFAR-100; folder: images in --data-dir, a subfolder for each class"""
    num_sample_images: Annotated[int, Field(ge=200)] = 10_000
    """size of the generated training set; its test set has a fifth of that (data: sample)"""
    folder_image_size: Annotated[int, Field(ge=8)] = 224
    """side in pixels to which images of a folder are scaled and cropped when read (data: folder)"""
    num_val: NonNegativeInt = 1000
    """training images held out to choose the checkpoint; 0 trains on all and keeps the last weights"""

    model: str = "tiny"
    """tiny: a small ViT from scratch; or a name on the Hugging Face Hub, or a folder with config.json and weights"""
    patch_size: PositiveInt = 4
    """side in pixels of the squares that tiny makes one token each"""
    hidden_size: Annotated[int, Field(gt=0, multiple_of=32)] = 128
    """width of tiny, a multiple of 32: heads are 32 wide"""
    num_layers: PositiveInt = 4
    """transformer layers of tiny"""
    initialization: Literal["mimetic", "standard"] = "mimetic"
    """of tiny. mimetic: sines as positions, attention begins as in trained models; standard: small random numbers"""
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """probability with which units are dropped"""

    engine: Literal["deepspeed", "ddp", "fsdp2"] = "deepspeed"
    """what shares out the work; the two of PyTorch are there to compare with"""
    deepspeed: str = "zero3"
    """DeepSpeed's JSON config: zero0, zero1, zero2, zero3, zero3_offload, zero3_offload_all or a file of your own"""
    precision: Precision = "fp32"
    """numbers of parameters and gradients; the optimizer keeps a copy in fp32. fp16 on GPUs only"""
    activation_checkpointing: bool = False
    """keep only the inputs of each layer for the backward pass, and compute the rest again"""

    epochs: PositiveInt = 8
    """passes over the training set"""
    micro_batch_size: PositiveInt = 32
    """images per process and forward pass"""
    gradient_accumulation_steps: PositiveInt = 1
    """forward and backward passes before each optimizer step"""
    learning_rate: PositiveFloat = 1e-3
    """peak learning rate of AdamW"""
    layer_decay: Annotated[float, Field(gt=0, le=1)] = 1.0
    """factor on the learning rate for each layer further from the head; 1 trains all layers alike"""
    weight_decay: NonNegativeFloat = 0.05
    """decoupled penalty on matrices; biases, norms, class token and positions have none"""
    warmup_fraction: Fraction = 0.1
    """share of the run in which the learning rate rises linearly; then it falls along a cosine to 0"""
    max_grad_norm: NonNegativeFloat = 1.0
    """longest gradient; longer ones are scaled down; 0 for no limit"""
    label_smoothing: Fraction = 0.1
    """probability mass spread over all classes in the training loss"""
    early_stopping_epochs: NonNegativeInt = 0
    """stop after so many epochs without a better validation accuracy; 0 never stops early"""

    crop_padding: NonNegativeInt = 4
    """pixels by which a random crop may shift an image"""
    flip: Literal["none", "random", "alternating"] = "random"
    """mirror images left-right at random, or each image in every other epoch"""
    randaugment_ops: NonNegativeInt = 0
    """random operations of RandAugment on each image; 0 for none"""
    randaugment_magnitude: Annotated[int, Field(ge=0, le=30)] = 9
    """strength of the operations of RandAugment, of 30"""
    mixup_alpha: NonNegativeFloat = 0.0
    """mix each image with another, by a share drawn from Beta(alpha, alpha); 0 for never"""
    cutmix_alpha: NonNegativeFloat = 0.0
    """replace a box in each image, whose area is drawn likewise; with mixup, each image gets one of the two"""

    teacher: Path | None = None
    """run folder or folder of a trained model whose outputs the model learns as well (knowledge distillation)"""
    teacher_weight: Fraction = 0.5
    """share of the loss that compares with the teacher"""
    teacher_temperature: PositiveFloat = 2.0
    """divisor of the outputs of both when they are compared"""

    log_every: PositiveInt = 10
    """optimizer steps between records of the training loss"""
    checkpoint_every: NonNegativeInt = 0
    """optimizer steps between checkpoints within an epoch; 0 for one at the end of each epoch only"""
    count_communication: bool = False
    """count the bytes that the third step of the run communicates"""
    collective_timeout_s: PositiveFloat = 600.0
    """seconds a process waits for the others before it gives up"""


@dataclass(frozen=True, kw_only=True, config=CONFIG)
class EvaluateConfig:
    """Test the trained model of a run on the whole test set and write its report again."""

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
    """Train alone, with DDP, ZeRO-1, 2, 3, offload, checkpointing and FSDP2: time, memory, communication, accuracy."""

    config: str = "sample"
    """preset or YAML file of train that all variants share"""
    data_dir: Path | None = None
    """folder that holds the real data, as for train"""
    what: Literal["sharding", "scaling"] = "sharding"
    """sharding: the same training shared out in nine ways; scaling: ZeRO-3 and DDP on 1, 2, ... processes"""
    nproc: Literal["auto"] | PositiveInt = "auto"
    """processes on this machine; for scaling the largest number"""
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
class PlanConfig:
    """Predict the memory that each GPU needs to train a model, for every way of sharing it out."""

    model: str = "base"
    """tiny, small, base, large, huge (ViTs of these sizes, 16 pixels a patch), a name on the Hub or a folder"""
    num_classes: PositiveInt = 100
    """outputs of the new head"""
    image_size: PositiveInt = 224
    """side of the images in pixels, for tiny to huge"""
    world_size: PositiveInt = 8
    """GPUs that share out the training state"""
    micro_batch_size: PositiveInt = 64
    """images per GPU and forward pass"""
    precision: Precision = "bf16"
    """numbers of parameters, gradients and activations"""
    memory_gib: PositiveFloat = 80.0
    """memory of a GPU in GiB, to say what fits"""


@dataclass(frozen=True, kw_only=True, config=CONFIG)
class ExportConfig:
    """Write a run's model as a plain Hugging Face folder, from the finished run or from its newest checkpoint."""

    run: Path | None = None
    """run folder; default: the newest in out_dir"""
    to: Path = Path("exported")
    """folder to write; it must not exist yet"""
    out_dir: Path = Path("results")
    """where to look for the newest run"""
