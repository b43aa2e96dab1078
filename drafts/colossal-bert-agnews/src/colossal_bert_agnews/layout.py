"""Which process holds what: tensor parallel x pipeline parallel x data parallel, without any backend.

Colossal-AI's HybridParallelPlugin numbers processes as in a table of `dp` x `pp` x `tp`: neighbours share a layer,
whose messages are the most frequent; copies, which exchange gradients once a step, are furthest apart.
"""

from dataclasses import dataclass
from typing import Any

from trainyard_shared.errors import UsageError

from colossal_bert_agnews.config import TrainConfig

# The vocabulary is filled up to a multiple of this, and of 64 for each process that shares it: then every layout of 1,
# 2, 4 or 8 tensor-parallel processes has the same shapes, and a checkpoint of one fits all others.
VOCABULARY_MULTIPLE = 512


@dataclass(frozen=True)
class Place:
    """Where a process stands in each direction."""

    dp: int
    pp: int
    tp: int


@dataclass(frozen=True)
class Layout:
    """Sizes of the three directions."""

    dp: int
    pp: int
    tp: int

    @property
    def world_size(self) -> int:
        """All processes."""
        return self.dp * self.pp * self.tp

    def place(self, rank: int) -> Place:
        """Return where process `rank` stands."""
        return Place(rank // (self.pp * self.tp), rank // self.tp % self.pp, rank % self.tp)

    def layers(self, num_layers: int, stage: int) -> range:
        """Return the layers of a stage of the pipeline; those that do not divide go to the stages in the middle."""
        each, rest = divmod(num_layers, self.pp)
        first = self.pp // 2 - rest // 2
        sizes = [each + (first <= number < first + rest) for number in range(self.pp)]
        return range(sum(sizes[:stage]), sum(sizes[: stage + 1]))

    def __str__(self) -> str:
        return f"tensor {self.tp} x pipeline {self.pp} x data {self.dp}"


def find(config: TrainConfig, world_size: int) -> Layout:
    """Return the layout that the config asks for.

    Raises:
        UsageError: it does not go with the number of processes, or with the other settings.
    """
    tp, pp = config.tp_size, config.pp_size
    if config.dp_size == "auto":
        dp, rest = divmod(world_size, tp * pp)
        if rest or not dp:
            raise UsageError(
                f"error: --tp-size {tp} x --pp-size {pp} = {tp * pp} does not divide the number of processes, "
                f"{world_size}; see --nproc"
            )
    else:
        dp = config.dp_size
        if tp * pp * dp != world_size:
            raise UsageError(
                f"error: --tp-size {tp} x --pp-size {pp} x --dp-size {dp} = {tp * pp * dp}, but there are "
                f"{world_size} processes; see --nproc"
            )
    if pp > 1 and config.gradient_accumulation_steps < pp:
        raise UsageError(
            f"error: --pp-size {pp} needs --gradient-accumulation-steps {pp} or more, found "
            f"{config.gradient_accumulation_steps}: with fewer passes than stages, some never have anything to do"
        )
    if config.zero_stage and config.precision == "fp32":
        raise UsageError(
            f"error: --zero-stage {config.zero_stage} needs --precision bf16 or fp16: Colossal-AI shares out the "
            "master copy in fp32 that these have"
        )
    if config.zero_stage == 2 and pp > 1:
        raise UsageError("error: --zero-stage 2 does not go with --pp-size above 1: use --zero-stage 1")
    return Layout(dp, pp, tp)


def check(config: TrainConfig, world_size: int) -> Layout:
    """Return the layout, once it is known to fit what the config says of the model; raises UsageError as the others."""
    layout = find(config, world_size)
    if config.model == "tiny":
        if config.hidden_size % config.num_heads:
            raise UsageError(
                f"error: num_heads: {config.num_heads} is not allowed: does not divide hidden_size {config.hidden_size}"
            )
        check_model(layout, "tiny", "bert", config.num_heads, config.num_layers)
    return layout


def check_model(layout: Layout, name: str, model_type: str, heads: int, layers: int) -> None:
    """Look whether a model can be cut up like this.

    Args:
        layout: what is asked for.
        name: of the model, for messages.
        model_type: as transformers calls it.
        heads: of attention, in each layer.
        layers: of the encoder.

    Raises:
        UsageError: heads or layers are too few, or Colossal-AI has no policy for this kind of model.
    """
    if layout.tp == layout.pp == 1:
        return
    if model_type != "bert":
        raise UsageError(
            f"error: --model {name}: Colossal-AI 0.5.0 has no policy that cuts up a model of type "
            f"{model_type}; use --tp-size 1 --pp-size 1, which leaves data parallelism"
        )
    if heads % layout.tp:
        raise UsageError(f"error: --tp-size {layout.tp}: does not divide the {heads} attention heads of --model {name}")
    if layers < layout.pp:
        raise UsageError(f"error: --pp-size {layout.pp}: --model {name} has {layers} layers, too few for that")


def held_parameters(layout: Layout, place: Place, shapes: dict[str, tuple[int, ...]], num_layers: int) -> int:
    """Predict how many parameters a process holds.

    Of a layer that is shared, query, key, value and the first feed-forward matrix are cut by columns, biases included;
    the two matrices after them by rows, and their biases, as everything else but the words, are whole everywhere.

    Args:
        layout: sizes.
        place: of the process.
        shapes: of all parameters, by their names in transformers.
        num_layers: of the encoder.
    """
    own = layout.layers(num_layers, place.pp)
    total = 0
    for name, shape in shapes.items():
        size = 1
        for side in shape:
            size *= side
        if ".encoder.layer." in name:
            here = int(name.split(".encoder.layer.")[1].split(".")[0]) in own
            by_rows = name.endswith("output.dense.weight")
            by_columns = any(part in name for part in (".query.", ".key.", ".value.", ".intermediate.dense."))
            cut = by_rows or by_columns
        elif ".embeddings." in name:
            here, cut = place.pp == 0, name.endswith("word_embeddings.weight")
        else:
            here, cut = place.pp == layout.pp - 1, False
        if here:
            total += size // layout.tp if cut else size
    return total


def table(layout: Layout, settings: Any, shapes: dict[str, tuple[int, ...]]) -> dict[str, Any]:
    """Return which process holds what, as a table of the report.

    Args:
        layout: sizes.
        settings: the config of transformers.
        shapes: of all parameters, by their names in transformers.
    """
    heads, layers = settings.num_attention_heads, settings.num_hidden_layers
    words = next(shape[0] for name, shape in shapes.items() if name.endswith("word_embeddings.weight"))
    rows = []
    for rank in range(layout.world_size):
        place = layout.place(rank)
        own = layout.layers(layers, place.pp)
        parts = [f"words {_part(words, place.tp, layout.tp)}"] if place.pp == 0 else []
        parts += [f"layers {own.start} to {own.stop - 1}" if len(own) > 1 else f"layer {own.start}"] if own else []
        parts += ["head"] if place.pp == layout.pp - 1 else []
        rows.append(
            [
                str(rank),
                str(place.dp),
                str(place.pp),
                str(place.tp),
                ", ".join(parts),
                _part(heads, place.tp, layout.tp),
                f"{held_parameters(layout, place, shapes, layers):,}",
                f"{place.dp + 1} of {layout.dp}",
            ]
        )
    return {
        "title": "Which process holds what",
        "columns": [
            "rank",
            "dp",
            "pp",
            "tp",
            "parts of the model",
            "heads of each layer",
            "parameters",
            "part of the articles",
        ],
        "rows": rows,
        "note": f"{layout}: processes of the same dp work on the same articles. Those that differ in tp alone share "
        "each layer, those that differ in pp alone hand on its results, those that differ in dp alone average "
        "gradients.",
    }


def _part(total: int, number: int, of: int) -> str:
    first, last = total * number // of, total * (number + 1) // of - 1
    return f"{first:,}" if first == last else f"{first:,} to {last:,}"
