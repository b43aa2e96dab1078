"""How Colossal-AI cuts up a model: its policy for BERT with one correction, and one that cuts up nothing.

Imported once Colossal-AI is.
"""

from typing import Any

import colossalai.shardformer.layer as col_nn
from colossalai.shardformer.policies.base_policy import Policy
from colossalai.shardformer.policies.bert import BertForSequenceClassificationPolicy


class Bert(BertForSequenceClassificationPolicy):
    """Upstream's policy, with the same dropout wherever tensor-parallel processes hold the same numbers.

    Upstream gives each process of its own a mask for the outputs of attention and feed-forward, and for the head. But
    these have been added up over the processes already, and all go on with the same numbers: different masks make
    weights drift apart that should stay equal (layer norms, biases, the head), and nothing complains. Only within
    attention, where each process has heads of its own, masks may differ.
    """

    def module_policy(self) -> dict[Any, Any]:
        """Return what becomes of each kind of module."""
        policy = super().module_policy()
        for description in policy.values():
            for replacement in description.sub_module_replacement or []:
                parallel = replacement.target_module is col_nn.DropoutForParallelInput
                if parallel and replacement.suffix != "attention.self.dropout":
                    replacement.target_module = col_nn.DropoutForReplicatedInput
        return policy


class Whole(Policy):
    """Leaves the model as it is, for kinds of models that Colossal-AI cannot cut up: data parallelism is left."""

    def config_sanity_check(self) -> None:
        """Nothing to check."""

    def preprocess(self) -> Any:
        """Return the model."""
        return self.model

    def module_policy(self) -> dict[Any, Any]:
        """Replace nothing."""
        return {}

    def postprocess(self) -> Any:
        """Return the model."""
        return self.model

    def get_held_layers(self) -> list[Any]:
        """Hold everything; asked in a pipeline only."""
        return [self.model]

    def get_shared_params(self) -> list[dict[int, Any]]:
        """Nothing is shared between stages, since there are none."""
        return []
