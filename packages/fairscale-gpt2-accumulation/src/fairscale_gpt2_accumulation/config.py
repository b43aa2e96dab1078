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

HeadMultiple = Annotated[int, Field(gt=0, multiple_of=32)]
TopP = Annotated[float, Field(gt=0, le=1)]
ContextLength = Annotated[int, Field(ge=8)]
VocabSize = Annotated[int, Field(ge=300)]
Sharding = Literal["oss", "fairscale_fsdp", "ddp", "zero_redundancy", "fsdp2"]
Form = Literal["raw", "word"]


@dataclass(frozen=True, kw_only=True, config=CONFIG)
class TrainConfig(RunConfig):
    """Train GPT-2 on WikiText-2 with FairScale, accumulating gradients."""

    num_sample_articles: Annotated[int, Field(ge=20)] = 300
    """articles of the generated training text; its validation and test texts have a tenth of that (data: sample)"""
    form: Form = "raw"
    """raw: all words; word: rare words are <unk>, as in published word-level results"""
    train_on: Literal["train", "valid"] = "train"
    """train: validate on the valid text; valid: where the train text is missing, train on the valid text but for some
    of its articles, and validate on these"""
    num_val_articles: PositiveInt = 6
    """articles of the valid text held out for validation (train_on: valid)"""
    detokenize: bool = False
    """undo the tokenisation of the published text (` @-@ `, spaces around punctuation) before GPT-2's own"""
    packing: Literal["article", "stream"] = "article"
    """article: no block holds text of two articles, so that blocks differ in length; stream: all blocks but the last
    are full"""

    model: str = "tiny"
    """name on the Hugging Face Hub, or folder, of a pretrained GPT-2; tiny: a small one from scratch"""
    tokenizer: Path | None = None
    """folder with vocab.json and merges.txt, encoder.json and vocab.bpe, or tokenizer.json; none: that of the
    pretrained model; for `tiny` one made of the most frequent words of the training text"""
    vocab_size: VocabSize = 1000
    """tokens of the tokenizer that is made for `tiny`, bytes included"""
    hidden_size: HeadMultiple = 64
    """width of `tiny`, a multiple of 32, which is the width of its attention heads"""
    num_layers: PositiveInt = 2
    """layers of `tiny`"""
    context_length: ContextLength = 64
    """tokens that the model sees at most, and tokens of a block"""
    dropout: Fraction | None = None
    """probability of dropout everywhere in the model; none: as the model's config has it (0.1)"""

    sharding: Sharding = "oss"
    """oss: FairScale's OSS optimizer and ShardedDataParallel; fairscale_fsdp: its FullyShardedDataParallel; without
    FairScale: ddp (nothing sharded), zero_redundancy and fsdp2 (what PyTorch offers in their place today)"""
    adascale: bool = False
    """multiply the learning rate, which is then meant for one micro-batch of one process, by AdaScale's gain; with
    sharding: ddp"""
    precision: Literal["fp32", "bf16"] = "fp32"
    """numbers in the forward pass; parameters stay fp32"""

    epochs: PositiveInt = 3
    """passes over the training text"""
    micro_batch_size: PositiveInt = 4
    """blocks per process and forward pass"""
    gradient_accumulation_steps: PositiveInt = 4
    """forward and backward passes before each optimizer step"""
    learning_rate: PositiveFloat = 3e-3
    """peak learning rate of AdamW"""
    weight_decay: NonNegativeFloat = 0.01
    """decay of all parameters, decoupled from the gradient"""
    warmup_fraction: Fraction = 0.1
    """share of the run in which the learning rate rises linearly; then it falls linearly to 0"""
    max_grad_norm: PositiveFloat | None = 1.0
    """clip the gradient to this L2 norm"""

    eval_stride: PositiveInt | None = None
    """tokens by which the window of the evaluation moves on; fewer give each token more context; none: as many as
    context_length, which is the quickest"""
    num_prompts: NonNegativeInt = 32
    """beginnings of test paragraphs that the model continues at the end, for BLEU and distinct-n; 0 for none"""
    prompt_tokens: PositiveInt = 16
    """tokens of each beginning"""
    continuation_tokens: PositiveInt = 24
    """tokens of each continuation"""
    temperatures: tuple[NonNegativeFloat, ...] = (0.0, 0.7, 1.0)
    """temperatures of the continuations; 0 takes the likeliest token always"""
    top_k: NonNegativeInt = 0
    """draw among this many likeliest tokens only; 0 for all"""
    top_p: TopP = 0.95
    """draw among the likeliest tokens that together have this probability"""

    log_every: PositiveInt = 10
    """optimizer steps between records of the training loss"""
    checkpoint_every: NonNegativeInt = 0
    """optimizer steps between checkpoints within an epoch; 0 for one at the end of each epoch only"""
    collective_timeout_s: PositiveFloat = 600.0
    """seconds a process waits for the others before it gives up"""

    def __post_init__(self) -> None:
        if self.eval_stride is not None and self.eval_stride > self.context_length:
            raise ValueError(
                f"--eval-stride: {self.eval_stride} is not allowed: must be at most --context-length, "
                f"{self.context_length}, or tokens would be left out"
            )
        if self.num_prompts and self.prompt_tokens + self.continuation_tokens > self.context_length:
            raise ValueError(
                f"--prompt-tokens {self.prompt_tokens} and --continuation-tokens {self.continuation_tokens} are more "
                f"than --context-length, {self.context_length}, together"
            )
        if not self.temperatures:
            raise ValueError("--temperatures: at least one is wanted")
        if self.adascale and self.sharding != "ddp":
            raise ValueError(
                f"--adascale goes with --sharding ddp, not {self.sharding}: it looks at whole gradients on each process"
            )


@dataclass(frozen=True, kw_only=True, config=CONFIG)
class EvaluateConfig:
    """Measure the perplexity of a run's model, or of a pretrained one as it is, on the whole test text."""

    run: Path | None = None
    """run folder; default: the newest in out_dir"""
    model: str | None = None
    """instead of a run: name on the Hugging Face Hub, or folder, of a pretrained GPT-2, evaluated as it is"""
    tokenizer: Path | None = None
    """folder with its tokenizer; default: that of the model"""
    out_dir: Path = Path("results")
    """where to look for the newest run, and where the report on a pretrained model goes"""
    data_dir: Path | None = None
    """folder that holds the real data, as for train"""
    form: Form | None = None
    """raw or word, as for train; default: as the run did, raw for a pretrained model"""
    detokenize: bool | None = None
    """undo the tokenisation of the published text; default: as the run did, no for a pretrained model"""
    context_length: ContextLength | None = None
    """tokens that the model sees at most; default: as the run did, or all that the pretrained model can"""
    eval_stride: PositiveInt | None = None
    """tokens by which the window moves on; default: as the run did, or context_length"""
    nproc: Literal["auto"] | PositiveInt = "auto"
    """processes on this machine"""
    num_threads: Literal["auto"] | PositiveInt = "auto"
    """CPU threads of each process"""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """where to compute"""


@dataclass(frozen=True, kw_only=True, config=CONFIG)
class GenerateConfig:
    """Let the model of a run, or a pretrained one, continue a text at several temperatures side by side."""

    prompt: str | None = None
    """text to continue; default: the beginning of an article"""
    file: Path | None = None
    """file with the text to continue"""
    run: Path | None = None
    """run folder; default: the newest in out_dir"""
    model: str | None = None
    """instead of a run: name on the Hugging Face Hub, or folder, of a pretrained GPT-2"""
    tokenizer: Path | None = None
    """folder with its tokenizer; default: that of the model"""
    out_dir: Path = Path("results")
    """where to look for the newest run"""
    temperatures: tuple[NonNegativeFloat, ...] = (0.0, 0.5, 0.8, 1.0)
    """one continuation for each; 0 takes the likeliest token always"""
    max_new_tokens: PositiveInt = 40
    """tokens of each continuation; with those of the prompt at most what the model can see"""
    top_k: NonNegativeInt = 0
    """draw among this many likeliest tokens only; 0 for all"""
    top_p: TopP = 0.95
    """draw among the likeliest tokens that together have this probability"""
    seed: NonNegativeInt = 0
    """seed of the draws; the same for each temperature"""
    num_threads: Literal["auto"] | PositiveInt = "auto"
    """CPU threads"""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """where to compute"""


@dataclass(frozen=True, kw_only=True, config=CONFIG)
class CompareConfig:
    """Train with one large batch, accumulated, with AdaScale, or sharded in five ways: memory, time, perplexity."""

    config: str = "sample"
    """preset or YAML file of train that all variants share"""
    data_dir: Path | None = None
    """folder that holds the real data, as for train"""
    tokenizer: Path | None = None
    """folder with the tokenizer, as for train; default: as in the config"""
    what: Literal["accumulation", "sharding", "grid"] = "accumulation"
    """accumulation: one large batch, the same accumulated, AdaScale, and small batches; sharding: FairScale's two ways,
    plain DDP, PyTorch's two successors; grid: every micro-batch size with every number of accumulation steps"""
    micro_batch_sizes: tuple[PositiveInt, ...] = (1, 2, 4, 8)
    """of the grid"""
    accumulation_steps: tuple[PositiveInt, ...] = (1, 2, 4, 8)
    """of the grid; the largest is the one that `accumulation` compares"""
    nproc: Literal["auto"] | PositiveInt = "auto"
    """processes on this machine, the same for all variants"""
    num_threads: Literal["auto"] | PositiveInt = "auto"
    """CPU threads of each process, the same for all variants"""
    seeds: PositiveInt = 3
    """runs of each variant, with seeds 0, 1, ...; each cell of the grid has one"""
    epochs: PositiveInt | None = None
    """epochs of each run; default: as in the config"""
    out_dir: Path = Path("results")
    """folder for the comparison; runs finished there before are not made again when --resume names it"""
    resume: Path | None = None
    """comparison folder to continue"""
