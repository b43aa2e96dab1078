"""Which process holds what; and what cannot be shared out like this."""

import math
from typing import Any

import pytest
import transformers
from colossal_bert_agnews import layout
from colossal_bert_agnews.config import TrainConfig
from colossal_bert_agnews.layout import Layout, Place
from colossal_bert_agnews.quick_import import without_compiler
from trainyard_shared.errors import UsageError


def test_neighbours_share_layers_and_copies_are_furthest_apart() -> None:
    shape = Layout(dp=2, pp=2, tp=2)
    assert shape.world_size == 8
    places = [shape.place(rank) for rank in range(8)]
    assert [place.tp for place in places] == [0, 1] * 4
    assert [place.pp for place in places] == [0, 0, 1, 1] * 2
    assert [place.dp for place in places] == [0] * 4 + [1] * 4
    assert str(shape) == "tensor 2 x pipeline 2 x data 2"


@pytest.mark.parametrize(("num_layers", "pp"), [(2, 2), (6, 2), (12, 4), (7, 2), (7, 3), (13, 4), (3, 3)])
def test_layers_are_dealt_out_as_colossal_ai_does(num_layers: int, pp: int) -> None:
    with without_compiler():
        from colossalai.pipeline.stage_manager import PipelineStageManager

    class Manager(PipelineStageManager):
        def __init__(self) -> None:
            self.num_layers_per_stage, self.num_model_chunks = None, 1

        num_stages = property(lambda self: pp)  # type: ignore[assignment]

    shape = Layout(dp=1, pp=pp, tp=1)
    stages = [shape.layers(num_layers, stage) for stage in range(pp)]
    assert [len(stage) for stage in stages] == Manager().distribute_layers(num_layers)
    assert [layer for stage in stages for layer in stage] == list(range(num_layers))


def shapes_of(**settings: Any) -> tuple[Any, dict[str, tuple[int, ...]]]:
    config = transformers.BertConfig(
        vocab_size=512, hidden_size=32, intermediate_size=64, num_attention_heads=4, num_labels=4, **settings
    )
    model = transformers.BertForSequenceClassification(config)
    return config, {name: tuple(p.shape) for name, p in model.named_parameters()}


def test_held_parameters() -> None:
    _, shapes = shapes_of(num_hidden_layers=3)
    total = sum(math.prod(shape) for shape in shapes.values())
    whole = Layout(dp=2, pp=1, tp=1)
    assert layout.held_parameters(whole, Place(1, 0, 0), shapes, 3) == total
    stages = Layout(dp=1, pp=2, tp=1)
    assert sum(layout.held_parameters(stages, Place(0, stage, 0), shapes, 3) for stage in (0, 1)) == total
    shared = Layout(dp=1, pp=1, tp=2)
    attention, feed_forward = 3 * (32 * 32 + 32) + 32 * 32, (32 * 64 + 64) + 64 * 32
    cut = 512 * 32 + 3 * (attention + feed_forward)
    assert layout.held_parameters(shared, Place(0, 0, 1), shapes, 3) == total - cut // 2


def test_table() -> None:
    config, shapes = shapes_of(num_hidden_layers=3)
    table = layout.table(Layout(dp=2, pp=2, tp=2), config, shapes)
    assert len(table["rows"]) == 8
    assert table["rows"][3][:6] == ["3", "0", "1", "1", "layers 1 to 2, head", "2 to 3"]
    assert table["rows"][0][:6] == ["0", "0", "0", "0", "words 0 to 255, layer 0", "0 to 1"]
    assert table["rows"][4][-1] == "2 of 2"


def test_data_parallelism_takes_what_is_left() -> None:
    assert layout.find(TrainConfig(tp_size=2), 8) == Layout(dp=4, pp=1, tp=2)
    config = TrainConfig(tp_size=2, pp_size=2, dp_size=3, gradient_accumulation_steps=2)
    assert layout.find(config, 12) == Layout(dp=3, pp=2, tp=2)


@pytest.mark.parametrize(
    ("fields", "world_size", "words"),
    [
        ({"tp_size": 4}, 2, "--tp-size 4 x --pp-size 1 = 4 does not divide the number of processes, 2"),
        ({"dp_size": 2}, 3, "--tp-size 1 x --pp-size 1 x --dp-size 2 = 2, but there are 3 processes"),
        ({"pp_size": 2}, 2, "--pp-size 2 needs --gradient-accumulation-steps 2 or more, found 1"),
        ({"zero_stage": 2}, 2, "--zero-stage 2 needs --precision bf16 or fp16"),
        (
            {"zero_stage": 2, "precision": "bf16", "pp_size": 2, "gradient_accumulation_steps": 2},
            2,
            "--zero-stage 2 does not go with --pp-size above 1",
        ),
    ],
)
def test_what_does_not_fit(fields: dict[str, Any], world_size: int, words: str) -> None:
    with pytest.raises(UsageError) as caught:
        layout.find(TrainConfig(**fields), world_size)
    assert words in str(caught.value)


@pytest.mark.parametrize(
    ("shape", "facts", "words"),
    [
        (Layout(1, 1, 2), ("roberta", 12, 6), "no policy that cuts up a model of type roberta; use --tp-size 1"),
        (Layout(1, 2, 1), ("distilbert", 12, 6), "no policy that cuts up a model of type distilbert"),
        (Layout(1, 1, 5), ("bert", 12, 6), "--tp-size 5: does not divide the 12 attention heads of --model some/model"),
        (Layout(1, 7, 1), ("bert", 12, 6), "--pp-size 7: --model some/model has 6 layers"),
    ],
)
def test_models_that_cannot_be_cut_up(shape: Layout, facts: tuple[str, int, int], words: str) -> None:
    with pytest.raises(UsageError) as caught:
        layout.check_model(shape, "some/model", *facts)
    assert words in str(caught.value)


def test_every_model_can_be_copied() -> None:
    layout.check_model(Layout(3, 1, 1), "some/model", "roberta", 12, 6)
