"""Start seconds earlier: keep torch from importing its compiler where nothing is compiled."""

import importlib
import sys
import types
from typing import Any

import torch

_DYNAMO = "torch._dynamo"
_OF_MASKS = f"{_DYNAMO}._trace_wrapped_higher_order_op"
_UTILS = f"{_DYNAMO}.utils"


class _Postponed(types.ModuleType):
    """Stands in for `torch._dynamo`: answers what eager training asks of it, imports the real one for any other."""

    # init_process_group clears the compiler's caches, and DistributedDataParallel tells it how to treat itself.
    trace_rules = types.SimpleNamespace(
        clear_lru_cache=lambda: None,
        LEGACY_MOD_INLINELIST=set(),
        get_legacy_mod_inlinelist=types.SimpleNamespace(cache_clear=lambda: None),
    )

    @staticmethod
    def graph_break(msg: str = "") -> None:
        """Do what the real one does outside a compiled function: nothing."""

    @staticmethod
    def disable(fn: Any = None, recursive: bool = True, **_: Any) -> Any:
        """Return the function, or a decorator that does: outside a compiled function there is nothing to disable."""
        return fn if fn is not None else lambda function: function

    # Marks that transformers 5.23 puts on functions which somebody might compile.
    allow_in_graph = assume_constant_result = staticmethod(lambda fn: fn)

    def __getattr__(self, name: str) -> Any:
        # __path__ is what the import of a submodule asks for.
        if name.startswith("__") and name != "__path__":
            raise AttributeError(name)
        return getattr(_real(self.__name__), name)


def postpone_dynamo() -> None:
    """Keep `torch.optim`, transformers and torchvision from importing `torch._dynamo` until something is compiled.

    In torch 2.13, making an optimizer and stepping it imports the compiler, only to tell it to stay out: as many
    seconds, in each process, as importing torch itself. transformers 5.23 imports it for a mask that most models do not
    use, torchvision 0.28, which its image models import, for a question that one operator may ask. Call it before the
    first optimizer is made and before transformers is imported, in programs that do not use `torch.compile`.
    """
    if _DYNAMO not in sys.modules:
        sys.modules[_DYNAMO] = torch._dynamo = _Postponed(_DYNAMO)
        of_masks = types.ModuleType(_OF_MASKS)
        of_masks.TransformGetItemToIndex = lambda: _real(_OF_MASKS).TransformGetItemToIndex()  # type: ignore[attr-defined]
        sys.modules[_OF_MASKS] = of_masks
        utils = types.ModuleType(_UTILS)
        utils.get_optimize_ddp_mode = lambda: "ddp_optimizer"  # type: ignore[attr-defined]
        utils.is_compile_supported = lambda device_type: _real(_UTILS).is_compile_supported(device_type)  # type: ignore[attr-defined]
        sys.modules[_UTILS] = torch._dynamo.utils = utils


def _real(name: str) -> Any:
    """Import the real module; the stand-ins go out of the way altogether, since what it imports must not meet them."""
    if isinstance(sys.modules.get(_DYNAMO), _Postponed):
        for stand_in in (_DYNAMO, _OF_MASKS, _UTILS):
            del sys.modules[stand_in]
        del torch._dynamo
    return importlib.import_module(name)
