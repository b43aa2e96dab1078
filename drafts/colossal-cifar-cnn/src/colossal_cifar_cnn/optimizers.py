"""The optimizers to choose from. All work on each number by itself, so that ZeRO can share out their state.

(Lamb and LARS, which Colossal-AI also has, scale each step by the norm of a whole layer: on a slice of a layer, as
ZeRO-1 and 2 hold it, they compute something else than on one device.)
"""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

from colossal_cifar_cnn.config import TrainConfig

# Numbers that an optimizer keeps for each parameter.
NUM_STATES = {"sgd": 1, "adam": 2, "adamw": 2, "hybrid_adam": 2, "lion": 1}


class Lion(torch.optim.Optimizer):
    """Steps of equal size in the direction of the sign of a running mean (Chen et al. 2023, arXiv 2302.06675).

    One number of state for each parameter, where Adam keeps two.

    Args:
        params: as for every optimizer.
        lr: size of a step of each parameter.
        betas: share of the mean in the direction of a step, and in the next mean.
        weight_decay: decoupled, as in AdamW.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 3e-4,
        betas: tuple[float, float] = (0.9, 0.99),
        weight_decay: float = 0.0,
    ) -> None:
        super().__init__(params, {"lr": lr, "betas": betas, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:
        """Update all parameters that have a gradient."""
        assert closure is None
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    self._update(parameter, parameter.grad, group)

    def _update(self, parameter: Tensor, gradient: Tensor, group: dict[str, Any]) -> None:
        state = self.state[parameter]
        if not state:
            state["exp_avg"] = torch.zeros_like(parameter)
        mean, (beta1, beta2) = state["exp_avg"], group["betas"]
        parameter.mul_(1 - group["lr"] * group["weight_decay"])
        parameter.add_(mean.lerp(gradient, 1 - beta1).sign_(), alpha=-group["lr"])
        mean.lerp_(gradient, 1 - beta2)


def settings(config: TrainConfig) -> dict[str, Any]:
    """What the config says of an optimizer, by the names of its own arguments."""
    found: dict[str, Any] = {"lr": config.peak_learning_rate, "weight_decay": config.decay}
    if config.optimizer == "sgd":
        found |= {"momentum": config.momentum, "nesterov": config.momentum > 0}
    return found


def build(parameters: Iterable[Tensor], config: TrainConfig) -> torch.optim.Optimizer:
    """Return the optimizer that `config` names."""
    if config.optimizer == "hybrid_adam":
        from colossalai.nn.optimizer import HybridAdam

        return HybridAdam(parameters, **settings(config))
    classes: dict[str, Callable[..., torch.optim.Optimizer]] = {
        "sgd": torch.optim.SGD,
        "adam": torch.optim.Adam,
        "adamw": torch.optim.AdamW,
        "lion": Lion,
    }
    return classes[config.optimizer](parameters, **settings(config))
