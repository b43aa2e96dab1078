"""Every setting of the project, with its unit; presets in `configs/` name only what differs from these defaults."""

from pathlib import Path
from typing import Annotated, Literal, NamedTuple

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
Plugin = Literal["ddp", "zero1", "zero2", "gemini"]
Optimizer = Literal["sgd", "adam", "adamw", "hybrid_adam", "lion"]
Precision = Literal["fp32", "bf16", "fp16"]


class Usual(NamedTuple):
    """What an optimizer is usually given for these networks; the scales of the five differ by orders of magnitude."""

    learning_rate: float
    weight_decay: float


USUAL: dict[str, Usual] = {
    "sgd": Usual(0.1, 5e-4),
    "adam": Usual(3e-3, 1e-5),
    "adamw": Usual(3e-3, 0.02),
    "hybrid_adam": Usual(3e-3, 0.02),
    "lion": Usual(3e-4, 0.2),
}


@dataclass(frozen=True, kw_only=True, config=CONFIG)
class TrainConfig(RunConfig):
    """Train a convolutional network on CIFAR-10 with Colossal-AI."""

    num_sample_images: Annotated[int, Field(ge=100)] = 10_000
    """size of the generated training set; its test set has a fifth of that (data: sample)"""
    num_val: NonNegativeInt = 1000
    """training images held out to choose the checkpoint; 0 trains on all and keeps the last weights"""

    model: Literal["cnn", "resnet18"] = "cnn"
    """cnn: a small fast network of this project; resnet18: torchvision's, with its stem fitted to 32x32 images"""
    widths: tuple[Width, Width, Width] = (32, 64, 64)
    """channels of the three blocks of `cnn`, multiples of 8"""
    norm: Literal["group", "batch"] = "group"
    """group: statistics of each image by itself; batch: of each process's micro-batch, of all processes under
    ddp on GPUs, where the plugin synchronises them"""
    pretrained: str | None = None
    """weights of resnet18 to start from: a file (.safetensors or .pth), `torchvision` for its ImageNet weights, or
    hub:OWNER/NAME of the Hugging Face Hub"""

    plugin: Plugin = "zero1"
    """of the Booster; ddp: nothing is shared out; zero1: optimizer state; zero2: and gradients; gemini: and parameters,
    in 16 bits and with hybrid_adam only"""
    precision: Precision = "fp32"
    """numbers in forward and backward pass; zero1, zero2 and gemini keep master weights in fp32 beside 16-bit ones"""

    epochs: PositiveInt = 6
    """passes over the training set"""
    micro_batch_size: PositiveInt = 64
    """images per process and forward pass"""
    gradient_accumulation_steps: PositiveInt = 1
    """forward and backward passes before each optimizer step"""
    global_batch_size: PositiveInt | None = None
    """images of all processes before each optimizer step; given, it sets micro_batch_size"""
    optimizer: Optimizer = "adamw"
    """sgd: with Nesterov momentum; hybrid_adam: Colossal-AI's AdamW, the only one that gemini takes"""
    learning_rate: PositiveFloat | None = None
    """peak learning rate; default: 0.1 for sgd, 3e-3 for the Adams, 3e-4 for lion"""
    momentum: Fraction = 0.9
    """momentum of sgd"""
    weight_decay: NonNegativeFloat | None = None
    """decay of all parameters; default: 5e-4 for sgd, 1e-5 for adam (L2 penalties), 0.02 for adamw and hybrid_adam,
    0.2 for lion (decoupled)"""
    warmup_fraction: Fraction = 0.2
    """share of the run in which the learning rate rises linearly; then it falls linearly to 0"""
    label_smoothing: Fraction = 0.1
    """probability mass spread over all classes in the training loss"""

    rotation: NonNegativeFloat = 0.0
    """largest angle in degrees by which an image is turned at random, either way"""
    crop_padding: NonNegativeInt = 2
    """pixels by which a random crop may shift an image"""
    flip: Literal["none", "random", "alternating"] = "alternating"
    """mirror images left-right at random, or each image in every other epoch"""
    cutout: NonNegativeInt = 0
    """side in pixels of a square erased at a random place; 0 for none"""

    test: bool = True
    """test the chosen weights at the end; a search does not, and reports the validation accuracy alone"""
    log_every: PositiveInt = 10
    """optimizer steps between records of the training loss"""
    checkpoint_every: NonNegativeInt = 0
    """optimizer steps between checkpoints within an epoch; 0 for one at the end of each epoch only"""
    profile_steps: NonNegativeInt = 5
    """steps near the start in which the share of communication is measured; 0 for none"""

    @property
    def peak_learning_rate(self) -> float:
        """The learning rate given, or the usual one of the optimizer."""
        return self.learning_rate if self.learning_rate is not None else USUAL[self.optimizer].learning_rate

    @property
    def decay(self) -> float:
        """The weight decay given, or the usual one of the optimizer."""
        return self.weight_decay if self.weight_decay is not None else USUAL[self.optimizer].weight_decay

    def __post_init__(self) -> None:
        if not self.test and not self.num_val:
            raise ValueError("--no-test: with --num-val 0 nothing is left to judge the network by")
        if self.plugin == "gemini":
            if self.precision == "fp32":
                raise ValueError("--plugin gemini computes in 16 bits only: use --precision bf16 or fp16")
            if self.optimizer != "hybrid_adam":
                raise ValueError(f"--plugin gemini does not take {self.optimizer}: use --optimizer hybrid_adam")
            if self.norm == "batch":
                raise ValueError("--plugin gemini would keep batch statistics in 16 bits: use --norm group")
        if self.pretrained is not None:
            if self.model != "resnet18":
                raise ValueError(
                    f"--pretrained: there are no pretrained weights for {self.model}: use --model resnet18"
                )
            if self.norm != "batch":
                raise ValueError("--pretrained: the pretrained ResNet-18 has batch normalisation: use --norm batch")


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
    """Compare plugins, optimizers with their learning rates, or numbers of processes, at the same global batch."""

    config: str = "sample"
    """preset or YAML file of train that all variants share"""
    data_dir: Path | None = None
    """folder that holds the real data, as for train"""
    what: Literal["plugins", "optimizers", "processes"] = "plugins"
    """plugins: time, communication and memory; optimizers: each at several learning rates; processes: speed-up"""
    optimizers: tuple[Optimizer, ...] = ("sgd", "adam", "adamw", "lion")
    """what: optimizers"""
    learning_rate_factors: tuple[PositiveFloat, ...] = (0.3, 1.0, 3.0)
    """multiples of the usual learning rate of each optimizer (what: optimizers)"""
    nproc: tuple[PositiveInt, ...] = (1, 2)
    """numbers of processes (what: processes); the others are compared with the largest of them"""
    num_threads: PositiveInt = 1
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
    """Search learning rate, weight decay, batch size and label smoothing with Optuna; validation images judge."""

    config: str = "sample"
    """preset or YAML file of train that all trials share, its optimizer included"""
    data_dir: Path | None = None
    """folder that holds the real data, as for train"""
    num_trials: PositiveInt = 12
    """trials in all, with those of the search that is continued"""
    epochs: PositiveInt | None = None
    """epochs of each trial; default: as in the config"""
    learning_rate_factor: tuple[PositiveFloat, PositiveFloat] = (0.1, 5.0)
    """lowest and highest learning rate as multiples of that of the config, searched on a logarithmic scale"""
    weight_decay_factor: tuple[PositiveFloat, PositiveFloat] = (0.1, 10.0)
    """lowest and highest weight decay as multiples of that of the config, searched on a logarithmic scale"""
    global_batch_size: tuple[PositiveInt, ...] = (64, 128, 256)
    """global batch sizes to choose from"""
    label_smoothing: tuple[Fraction, Fraction] = (0.0, 0.2)
    """lowest and highest label smoothing"""
    num_unpruned: PositiveInt = 4
    """trials that are finished in any case before others may be stopped early"""
    nproc: Literal["auto"] | PositiveInt = "auto"
    """processes of each trial"""
    num_threads: Literal["auto"] | PositiveInt = "auto"
    """CPU threads of each process"""
    seed: NonNegativeInt = 0
    """seed of the search"""
    out_dir: Path = Path("results")
    """folder for the search folder"""
    resume: Path | None = None
    """search folder to continue"""

    def __post_init__(self) -> None:
        for name in ("learning_rate_factor", "weight_decay_factor", "label_smoothing"):
            low, high = getattr(self, name)
            if low > high:
                raise ValueError(f"--{name.replace('_', '-')}: {low:g} is more than {high:g}")
