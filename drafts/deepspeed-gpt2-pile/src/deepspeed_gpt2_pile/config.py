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

TopP = Annotated[float, Field(gt=0, le=1)]


@dataclass(frozen=True, kw_only=True, config=CONFIG)
class TrainConfig(RunConfig):
    """Train GPT-2 on The Pile with DeepSpeed."""

    num_sample_documents: Annotated[int, Field(ge=100)] = 4000
    """size of the generated training set; validation and test sets have a tenth of that each (data: sample)"""
    num_train_files: Annotated[int, Field(ge=1, le=30)] = 1
    """training files of The Pile to download, 11 GB each; of --data-dir, all files are used"""
    mixture: tuple[str, ...] = ()
    """weights of components, as "Github=2" "Wikipedia (en)=0.5"; 1 for those not named, 0 leaves a component out"""
    num_shards: PositiveInt = 8
    """parts into which the training data are dealt; a multiple of the processes, and a divisor of the global batch"""
    num_val_documents: PositiveInt = 200
    """documents of the validation set that choose the checkpoint"""
    num_test_documents: PositiveInt | None = None
    """documents of the test set; none: all"""

    tokenizer: str | None = None
    """name on the Hugging Face Hub, or folder with tokenizer.json, vocab.json and merges.txt, or encoder.json and
    vocab.bpe; bytes: each byte is a token; none: that of the model, for a model from scratch: bytes"""
    model: str = "scratch"
    """name on the Hugging Face Hub, or folder, of a pretrained GPT-2; scratch: initial weights, of the sizes below"""
    hidden_size: PositiveInt = 128
    """width of a model from scratch; GPT-2 small has 768"""
    num_layers: PositiveInt = 4
    """layers of a model from scratch; GPT-2 small has 12"""
    num_heads: PositiveInt = 4
    """attention heads of a model from scratch; GPT-2 small has 12"""
    context_length: Annotated[int, Field(ge=8)] = 128
    """tokens that the model sees at once; GPT-2 has 1024"""
    dropout: Fraction = 0.0
    """probability of dropout everywhere in the model"""
    tuning: Literal["full", "last", "lora"] = "full"
    """what is trained; full: all weights, last: the highest layers, lora: low-rank additions (arXiv 2106.09685)"""
    num_tuned_layers: PositiveInt = 2
    """highest layers that `tuning: last` trains, with the final layer norm"""
    lora_rank: PositiveInt = 8
    """rank of the additions of `tuning: lora`"""
    lora_alpha: PositiveFloat = 16.0
    """weight of the additions: they count alpha / rank times"""

    epochs: PositiveInt = 5
    """stretches of training, each followed by a validation; The Pile is larger than any run, and has no end to reach"""
    steps_per_epoch: PositiveInt = 80
    """optimizer steps in a stretch"""
    micro_batch_size: PositiveInt = 8
    """sequences in a forward pass of a process"""
    gradient_accumulation_steps: PositiveInt = 1
    """forward passes before an optimizer step"""
    learning_rate: PositiveFloat = 3e-3
    """peak learning rate of AdamW"""
    min_learning_rate: Fraction = 0.1
    """learning rate at the end, as a share of the peak"""
    weight_decay: NonNegativeFloat = 0.1
    """decay of matrices, decoupled from the gradient; biases and layer norms do not decay"""
    warmup_fraction: Fraction = 0.1
    """share of the run in which the learning rate rises linearly; then it falls along a cosine"""
    max_grad_norm: NonNegativeFloat = 1.0
    """clip the gradient to this L2 norm; 0 does not clip"""
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    """numbers of parameters and gradients; the optimizer keeps fp32"""
    activation_checkpointing: bool = False
    """keep only the inputs of each layer for the backward pass and compute the rest again: less memory, more time"""
    engine: Literal["deepspeed", "ddp"] = "deepspeed"
    """who makes the steps; ddp: PyTorch's DistributedDataParallel, to compare with"""
    deepspeed: str = "zero3"
    """preset (zero0, zero1, zero2, zero3, zero3_offload, zero3_offload_all) or JSON file of DeepSpeed"""

    eval_stride: Annotated[int, Field(ge=1)] | None = None
    """tokens by which the window moves in validation and test; none: half of context_length"""
    eval_batch_size: PositiveInt = 32
    """windows in a forward pass of validation and test"""
    test: bool = True
    """use the test set at the end"""
    log_every: PositiveInt = 10
    """optimizer steps between records of the training loss"""
    checkpoint_every: NonNegativeInt = 0
    """optimizer steps between checkpoints within an epoch; 0 for one at the end of each epoch only"""
    collective_timeout_s: PositiveFloat = 600.0
    """seconds a process waits for the others before it gives up"""

    def __post_init__(self) -> None:
        if self.hidden_size % self.num_heads:
            raise ValueError(f"--hidden-size: {self.hidden_size} is no multiple of num_heads, {self.num_heads}")
        if self.eval_stride is not None and self.eval_stride > self.context_length:
            raise ValueError(
                f"--eval-stride: {self.eval_stride} is more than context_length, {self.context_length}: tokens between "
                "two windows would not be counted"
            )
        if self.tuning != "full" and self.model == "scratch":
            raise ValueError(f"--tuning: {self.tuning} needs a pretrained --model: scratch has learnt nothing to keep")
        weights_of(self.mixture)

    @property
    def tokenizer_name(self) -> str:
        """The tokenizer to take."""
        return self.tokenizer or ("bytes" if self.model == "scratch" else self.model)

    @property
    def stride(self) -> int:
        """Tokens by which the window of an evaluation moves."""
        return self.eval_stride or max(self.context_length // 2, 1)


@dataclass(frozen=True, kw_only=True, config=CONFIG)
class EvaluateConfig:
    """Measure perplexity and bits per byte of a run's model on the test set and write its report again."""

    run: Path | None = None
    """run folder; default: the newest in out_dir"""
    out_dir: Path = Path("results")
    """where to look for the newest run"""
    data_dir: Path | None = None
    """folder that holds the real data, as for train"""
    num_test_documents: PositiveInt | None = None
    """documents of the test set; none: as in the run"""
    eval_stride: PositiveInt | None = None
    """tokens by which the window moves; none: as in the run"""
    nproc: Literal["auto"] | PositiveInt = "auto"
    """processes on this machine"""
    num_threads: Literal["auto"] | PositiveInt = "auto"
    """CPU threads of each process"""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """where to compute"""


@dataclass(frozen=True, kw_only=True, config=CONFIG)
class CompareConfig:
    """Compare DeepSpeed with a plain PyTorch loop, or ways to fine-tune: time, memory, bits per byte."""

    what: Literal["engine", "tuning"] = "engine"
    """engine: plain PyTorch, ZeRO 0 to 3, offload, activation checkpointing; tuning: full, last layers, LoRA"""
    config: str = "sample"
    """preset or YAML file of train that all variants share"""
    model: str | None = None
    """pretrained GPT-2 to start from; `tuning` needs one, such as the folder `model` of a run"""
    data_dir: Path | None = None
    """folder that holds the real data, as for train"""
    nproc: PositiveInt = 2
    """processes of each run"""
    num_threads: PositiveInt = 1
    """CPU threads of each process"""
    seeds: PositiveInt = 3
    """runs of each variant, with seeds 0, 1, ..."""
    epochs: PositiveInt | None = None
    """epochs of each run; default: as in the config"""
    steps_per_epoch: PositiveInt | None = None
    """optimizer steps of an epoch; default: as in the config"""
    out_dir: Path = Path("results")
    """folder for the comparison; runs finished there before are not made again when --resume names it"""
    resume: Path | None = None
    """comparison folder to continue"""


@dataclass(frozen=True, kw_only=True, config=CONFIG)
class SamplingConfig:
    """How text is drawn from a model."""

    prompts: tuple[str, ...] = ()
    """beginnings to go on from; none: those of --prompts-file, or a few of the validation set"""
    prompts_file: Path | None = None
    """text file with one prompt a line"""
    temperature: NonNegativeFloat = 0.8
    """below 1 likely tokens become likelier; 0 always takes the likeliest"""
    top_k: NonNegativeInt = 50
    """draw from this many likeliest tokens; 0: from all"""
    top_p: TopP = 0.95
    """draw from the likeliest tokens that together have this probability (arXiv 1904.09751)"""
    max_new_tokens: PositiveInt = 100
    """tokens to write at most; the end of a document ends it earlier"""
    num_samples: PositiveInt = 1
    """texts for each prompt and model"""
    seed: NonNegativeInt = 0
    """of what is drawn"""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """where to compute"""
    num_threads: Literal["auto"] | PositiveInt = "auto"
    """CPU threads"""


@dataclass(frozen=True, kw_only=True, config=CONFIG)
class GenerateConfig(SamplingConfig):
    """Let the models of one or several runs go on from prompts, side by side."""

    run: tuple[Path, ...] = ()
    """run folders, or folders that export has written; default: the newest run in out_dir"""
    out_dir: Path = Path("results")
    """where to look for the newest run"""
    out: Path | None = None
    """HTML file with the texts side by side; default: only print them"""


@dataclass(frozen=True, kw_only=True, config=CONFIG)
class RateConfig(SamplingConfig):
    """Let people rate texts of several models without knowing whose they are, and put their ratings together."""

    run: tuple[Path, ...] = ()
    """run folders, or folders that export has written, to draw texts from; at least two make a comparison"""
    out: Path = Path("rating")
    """folder for the sheet (sheet.html, sheet.csv) and its key (key.json), which raters must not see"""
    scale: Annotated[int, Field(ge=2, le=10)] = 5
    """highest rating; the lowest is 1"""
    collect: tuple[Path, ...] = ()
    """filled-in sheets (.csv), one for each rater; --out names the folder with the key"""
    level: Literal["nominal", "ordinal", "interval"] = "ordinal"
    """how Krippendorff's alpha takes the scale"""


@dataclass(frozen=True, kw_only=True, config=CONFIG)
class ExportConfig:
    """Write a checkpoint of a run as a plain Hugging Face folder, put together from the shares of all processes."""

    run: Path | None = None
    """run folder, finished or not; default: the newest in out_dir"""
    out_dir: Path = Path("results")
    """where to look for the newest run"""
    step: PositiveInt | None = None
    """checkpoint to take; default: the newest"""
    to: Path = Path("exported")
    """new folder for config.json, model.safetensors and the tokenizer"""


def weights_of(mixture: tuple[str, ...]) -> dict[str, float]:
    """Return the weights of components by name; raises ValueError if one is no `name=weight`."""
    weights: dict[str, float] = {}
    for entry in mixture:
        name, equals, number = entry.rpartition("=")
        try:
            weights[name] = float(number)
        except ValueError:
            equals = ""
        if not equals or not name or not 0 <= weights[name] < float("inf"):
            raise ValueError(f"--mixture: {entry!r} is not allowed: must be NAME=WEIGHT with a weight of 0 or more")
    return weights
