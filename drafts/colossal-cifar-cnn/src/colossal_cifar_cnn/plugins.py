"""Four plugins of Colossal-AI's Booster in the same few operations: boost, accumulate, gather, share out, count bytes.

| plugin | what a process holds only its share of                           | numbers              |
| ------ | ---------------------------------------------------------------- | -------------------- |
| ddp    | nothing                                                          | fp32, autocast       |
| zero1  | optimizer state, fp32 master weights                             | fp32, bf16, fp16     |
| zero2  | and gradients                                                    | fp32, bf16, fp16     |
| gemini | and parameters, in chunks                                        | bf16, fp16           |

Checkpoints are not written by `booster.save_model`: under ZeRO and Gemini that keeps the 16-bit weights and makes the
fp32 masters from them, so that a run which is continued goes on from other weights than it had. Here the masters are
gathered.
"""

import abc
import contextlib
import math
import os
import warnings
from collections.abc import Iterator
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from trainyard_shared.errors import UsageError
from trainyard_shared.tensors.memory import optimizer_tensors, tensor_bytes

from colossal_cifar_cnn import cpu_shims, optimizers
from colossal_cifar_cnn.config import TrainConfig

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
State = dict[str, Any]


def launch(device: torch.device, seed: int) -> None:
    """Join the process group in Colossal-AI's own way: NCCL between GPUs, Gloo between CPUs; Colossal-AI stays quiet.

    Args:
        device: of this process. Colossal-AI would take a GPU wherever it sees one, also if processes share it.
        seed: of all random generators.
    """
    # Gemini asks for the size of storages in a way that torch 2.5 calls outdated.
    warnings.filterwarnings("ignore", message="TypedStorage is deprecated")
    with quiet():
        import colossalai
        from colossalai.accelerator import set_accelerator
        from colossalai.logging import get_dist_logger

        set_accelerator(device.type)
        get_dist_logger().set_level("ERROR")
        # RANK, LOCAL_RANK, WORLD_SIZE, MASTER_ADDR, MASTER_PORT: what torchrun sets, and this project's own launcher.
        os.environ.setdefault("LOCAL_RANK", "0")
        colossalai.launch_from_torch(seed=seed, verbose=False)
        cpu_shims.install()


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Colossal-AI warns of every optional library that is not installed, in each process."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


class Boosted(abc.ABC):
    """A model and its optimizer, boosted by a plugin. Base of the four.

    Args:
        model: plain module on its device, in fp32; the plugin takes it over.
        config: plugin, precision, optimizer.
        device: where to compute.

    Attributes:
        booster: of Colossal-AI.
        model: boosted; its forward pass may communicate.
        optimizer: boosted; its `step` may communicate.
    """

    # Whether `Booster.no_sync` exists for the plugin: without it, every backward pass communicates.
    can_skip_sync = True

    def __init__(self, model: nn.Module, config: TrainConfig, device: torch.device) -> None:
        self.config, self.device, self.plain = config, device, model
        self.names = {id(parameter): name for name, parameter in model.named_parameters()}
        optimizer = optimizers.build(model.parameters(), config)
        with quiet():
            from colossalai.booster import Booster

            self.booster = Booster(plugin=self.plugin(), **self.booster_settings())
            self.model, self.optimizer, *_ = self.booster.boost(model, optimizer)

    @abc.abstractmethod
    def plugin(self) -> Any:
        """Make the plugin."""

    def booster_settings(self) -> dict[str, Any]:
        """Further arguments of the Booster."""
        return {}

    def autocast(self) -> contextlib.AbstractContextManager:
        """Surround the forward pass by this."""
        return contextlib.nullcontext()

    def no_sync(self) -> contextlib.AbstractContextManager:
        """Surround all but the last micro-batch of a step by this."""
        if self.can_skip_sync:
            return self.booster.no_sync(self.model, self.optimizer)
        return contextlib.nullcontext()

    @abc.abstractmethod
    def masters(self) -> dict[str, Tensor]:
        """Gather the parameters in the precision that the optimizer updates; all processes call it."""

    @abc.abstractmethod
    def load_masters(self, weights: dict[str, Tensor]) -> None:
        """Take over whole fp32 parameters: each process keeps its share, and the 16-bit copies follow."""

    @abc.abstractmethod
    def held(self) -> dict[str, list[Any]]:
        """Tensors that this process holds between two steps, by what they are."""

    @abc.abstractmethod
    def predicted_bytes(self, num_parameters: int) -> dict[str, int]:
        """Predict the bytes of what `held` lists.

        Args:
            num_parameters: of the network.
        """

    # ------------------------------------------------------------------------------------ the same for all plugins

    def weights(self) -> State:
        """Return the whole network on the CPU in fp32, with rank 0's batch statistics; all processes call it."""
        found = {name: tensor.detach().float().cpu().clone() for name, tensor in self.masters().items()}
        for name, buffer in self.plain.named_buffers():
            dist.broadcast(buffer, src=0)
            found[name] = buffer.detach().cpu().clone()
        return found

    def load_weights(self, weights: State) -> None:
        """Take over what `weights` returned, with any number of processes."""
        with torch.no_grad():
            self.load_masters(weights)
            for name, buffer in self.plain.named_buffers():
                buffer.copy_(weights[name])

    def optimizer_state(self) -> State:
        """Gather the optimizer state, whole on rank 0; all processes call it. What `booster.save_optimizer` writes."""
        return self.optimizer.state_dict()

    def load_optimizer_state(self, state: State) -> None:
        """Share out what rank 0 gathered; settings are those of the config, which flags may have changed."""
        self.optimizer.load_state_dict(state)
        for group in self.optimizer.param_groups:
            group.update(optimizers.settings(self.config))

    def scaler(self) -> Any:
        """The loss scaler of fp16, None if there is none."""
        mixin = getattr(self.optimizer, "mixed_precision_mixin", None) or getattr(
            self.optimizer, "mix_precision_mixin", None
        )
        return getattr(mixin, "grad_scaler", None)

    def scaler_state(self) -> State:
        """What the loss scaler has learned; Colossal-AI's checkpoints leave it out."""
        scaler = self.scaler()
        return {} if scaler is None else scaler.state_dict() | {name: getattr(scaler, name) for name in _SCALER_COUNTS}

    def load_scaler_state(self, state: State) -> None:
        """Go on with the scale reached."""
        if state and (scaler := self.scaler()) is not None:
            scaler.load_state_dict(state)
            for name in _SCALER_COUNTS:
                setattr(scaler, name, state[name])

    def held_bytes(self) -> dict[str, int]:
        """Count what this process holds between two steps."""
        return {name: tensor_bytes(tensors) for name, tensors in self.held().items()}

    def base_optimizer(self) -> torch.optim.Optimizer:
        """The plain optimizer within the boosted one, which fp16 wraps twice under ddp."""
        optimizer = self.optimizer
        while hasattr(optimizer, "optim"):
            optimizer = optimizer.optim
        return optimizer

    def _state_bytes(self, num_parameters: int) -> int:
        return 4 * optimizers.NUM_STATES[self.config.optimizer] * num_parameters


_SCALER_COUNTS = ("_growth_step", "_hysteresis_step")


class Ddp(Boosted):
    """TorchDDPPlugin: every process holds everything; gradients are averaged while the backward pass still runs."""

    def plugin(self) -> Any:
        """Gradients as views into the buckets: no second copy of them."""
        from colossalai.booster.plugin import TorchDDPPlugin

        return TorchDDPPlugin(gradient_as_bucket_view=True)

    def booster_settings(self) -> dict[str, Any]:
        """The Booster knows fp16 by torch's autocast and loss scaler; for bf16 it has none, see `autocast`."""
        return {"mixed_precision": "fp16"} if self.config.precision == "fp16" else {}

    def autocast(self) -> contextlib.AbstractContextManager:
        """Weights stay in fp32; products of the forward pass are computed in bf16."""
        if self.config.precision == "bf16":
            return torch.autocast(self.device.type, torch.bfloat16)
        return contextlib.nullcontext()

    def _parameters(self) -> dict[str, nn.Parameter]:
        return {self.names[id(p)]: p for group in self.optimizer.param_groups for p in group["params"]}

    def masters(self) -> dict[str, Tensor]:
        """All of them are here."""
        return dict(self._parameters())

    def load_masters(self, weights: dict[str, Tensor]) -> None:
        """Copy."""
        for name, parameter in self._parameters().items():
            parameter.copy_(weights[name])

    def scaler(self) -> Any:
        """Under fp16 torch's own, which has its counts in its state."""
        return None

    def scaler_state(self) -> State:
        """Of torch's GradScaler."""
        scaler = getattr(self.optimizer, "scaler", None)
        return scaler.state_dict() if scaler is not None else {}

    def load_scaler_state(self, state: State) -> None:
        """Go on with the scale reached."""
        if state:
            self.optimizer.scaler.load_state_dict(state)

    def held(self) -> dict[str, list[Any]]:
        """Parameters, gradients, optimizer state."""
        parameters = list(self._parameters().values())
        return {
            "parameters": parameters,
            "masters": [],
            "gradients": [p.grad for p in parameters],
            "optimizer": optimizer_tensors(self.base_optimizer()),
        }

    def predicted_bytes(self, num_parameters: int) -> dict[str, int]:
        """4 bytes for each number."""
        whole = 4 * num_parameters
        return {
            "parameters": whole,
            "masters": 0,
            "gradients": whole,
            "optimizer": self._state_bytes(num_parameters),
        }


class Zero(Boosted):
    """LowLevelZeroPlugin: each process updates its slice of every parameter, then all gather the slices."""

    stage = 1

    def plugin(self) -> Any:
        """Without a second stream there is nothing to overlap communication with, so it is only asked for on GPUs."""
        from colossalai.booster.plugin import LowLevelZeroPlugin

        return LowLevelZeroPlugin(
            stage=self.stage,
            precision=self.config.precision,
            initial_scale=2**16,
            overlap_communication=self.device.type == "cuda",
        )

    def _slices(self) -> Iterator[tuple[str, nn.Parameter, Tensor]]:
        """Name, 16-bit or fp32 parameter of the forward pass, and this process's slice of its master."""
        for working in self.model.module.parameters():
            yield self.names[id(working)], working, self.optimizer.working_to_master_param[id(working)]

    def masters(self) -> dict[str, Tensor]:
        """Gather the slices, which are padded to equal length."""
        found = {}
        for name, working, own in self._slices():
            whole = own.new_empty(own.numel() * dist.get_world_size())
            dist.all_gather_into_tensor(whole, own)
            found[name] = whole[: working.numel()].view(working.shape)
        return found

    def load_masters(self, weights: dict[str, Tensor]) -> None:
        """Cut out the slice."""
        for name, working, own in self._slices():
            whole = weights[name].to(own.device)
            working.copy_(whole)
            padding = own.numel() * dist.get_world_size() - whole.numel()
            own.copy_(nn.functional.pad(whole.flatten(), (0, padding)).chunk(dist.get_world_size())[dist.get_rank()])

    def optimizer_state(self) -> State:
        """Only rank 0 keeps what all have gathered."""
        return self.optimizer.state_dict(only_on_master=True)

    def held(self) -> dict[str, list[Any]]:
        """Gradients lie in stores of the optimizer."""
        stores = self.optimizer.pg_to_grad_store.values()
        by_parameter = [group.values() for store in stores for group in store._grads_of_params.values()]
        return {
            "parameters": list(self.model.module.parameters()),
            "masters": [own for _, _, own in self._slices()],
            "gradients": [gradient for lists in by_parameter for gradients in lists for gradient in gradients],
            "optimizer": optimizer_tensors(self.base_optimizer()),
        }

    def predicted_bytes(self, num_parameters: int) -> dict[str, int]:
        """A share of masters and optimizer state, at stage 2 of the gradients as well."""
        width, share = DTYPES[self.config.precision].itemsize, num_parameters // dist.get_world_size()
        return {
            "parameters": width * num_parameters,
            "masters": 4 * share,
            "gradients": width * (share if self.stage == 2 else num_parameters),
            "optimizer": self._state_bytes(share),
        }


class Zero2(Zero):
    """Gradients are reduced to the process that needs them, not to all, and repeated backward passes add up there."""

    stage = 2
    can_skip_sync = False


class Gemini(Boosted):
    """GeminiPlugin: parameters lie in chunks, shared out, and are gathered when a layer needs them."""

    can_skip_sync = False

    def plugin(self) -> Any:
        """Chunks of a quarter of the network; Gemini's own search would keep so small a network whole on each process.

        Static placement: nothing is offloaded.
        """
        from colossalai.booster.plugin import GeminiPlugin

        sizes, world_size = [parameter.numel() for parameter in self.plain.parameters()], dist.get_world_size()
        chunk_size = math.ceil(max(*sizes, sum(sizes) / 4) / world_size) * world_size
        return GeminiPlugin(
            chunk_config_dict={world_size: {"chunk_size": chunk_size, "keep_gathered": False}},
            precision=self.config.precision,
            placement_policy="static",
            enable_gradient_accumulation=self.config.gradient_accumulation_steps > 1,
            enable_async_reduce=self.device.type == "cuda",
            initial_scale=2**16,
        )

    def _pairs(self) -> Iterator[tuple[str, Tensor]]:
        """Name and fp32 master of each parameter."""
        for working, master in zip(self.model.fp16_params, self.model.fp32_params, strict=True):
            yield self.names[id(working)], master

    def _chunks(self) -> list[Any]:
        return list(self.model.chunk_manager.get_chunks(self.model.fp32_params))

    def masters(self) -> dict[str, Tensor]:
        """Gather the fp32 chunks, and cut the parameters out of them."""
        from colossalai.zero.gemini.utils import get_temp_total_chunk_on_cuda

        names, found = {id(master): name for name, master in self._pairs()}, {}
        for chunk in self._chunks():
            whole = get_temp_total_chunk_on_cuda(chunk, torch.float32)
            for tensor, place in chunk.tensors_info.items():
                found[names[id(tensor)]] = whole[place.offset : place.end].view(tensor.shape)
        return found

    def load_masters(self, weights: dict[str, Tensor]) -> None:
        """Put chunks together, and keep this process's part of each."""
        names = {id(master): name for name, master in self._pairs()}
        for chunk in self._chunks():
            whole = torch.zeros(chunk.chunk_size)
            for tensor, place in chunk.tensors_info.items():
                whole[place.offset : place.end] = weights[names[id(tensor)]].flatten()
            own = whole if chunk.is_gathered else whole[chunk.shard_begin : chunk.shard_end]
            chunk.payload.copy_(own)
            chunk.paired_chunk.payload.copy_(own)

    def held(self) -> dict[str, list[Any]]:
        """Gradients take the place of the 16-bit parameters, but for accumulation, which needs chunks of their own."""
        masters = self._chunks()
        working = [chunk.paired_chunk for chunk in masters]
        return {
            "parameters": [chunk.payload for chunk in working],
            "masters": [chunk.payload for chunk in masters],
            "gradients": [chunk.grad_chunk.payload for chunk in working if chunk.grad_chunk is not None],
            "optimizer": optimizer_tensors(self.base_optimizer()),
        }

    def predicted_bytes(self, num_parameters: int) -> dict[str, int]:
        """A share of all of them; chunks are filled up to their size, which only they know."""
        size = sum(chunk.chunk_size for chunk in self._chunks()) // dist.get_world_size()
        own = sum(end - begin for begin, end in self.optimizer.param_to_range.values())
        accumulates = self.config.gradient_accumulation_steps > 1
        return {
            "parameters": 2 * size,
            "masters": 4 * size,
            "gradients": 2 * size if accumulates else 0,
            "optimizer": self._state_bytes(own),
        }


class Zero1(Zero):
    """Optimizer state and master weights shared out; gradients are summed up on all processes."""


PLUGINS: dict[str, type[Boosted]] = {"ddp": Ddp, "zero1": Zero1, "zero2": Zero2, "gemini": Gemini}


def check_device(config: TrainConfig, device: torch.device) -> None:
    """Say in one line what cannot run without a GPU, and what can.

    Raises:
        UsageError: the combination needs a GPU.
    """
    if device.type == "cpu" and config.plugin == "ddp" and config.precision == "fp16":
        raise UsageError(
            "error: --precision fp16: with --plugin ddp it needs a GPU, because Colossal-AI scales the loss with "
            "CUDA's GradScaler; without one use --precision bf16, or --plugin zero1"
        )
