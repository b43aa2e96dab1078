"""Start seconds earlier: keep torch from importing its compiler where nothing is compiled."""

import importlib
import sys
import types
from typing import Any

import torch


class _Postponed(types.ModuleType):
    """Stands in for `torch._dynamo`: answers what eager training asks of it, imports the real one for any other."""

    # init_process_group clears the compiler's caches, and DistributedDataParallel tells it how to treat itself.
    trace_rules = types.SimpleNamespace(
        clear_lru_cache=lambda: None,
        LEGACY_MOD_INLINELIST=set(),
        get_legacy_mod_inlinelist=types.SimpleNamespace(cache_clear=lambda: None),
    )
    utils = types.SimpleNamespace(get_optimize_ddp_mode=lambda: "ddp_optimizer")

    @staticmethod
    def graph_break(msg: str = "") -> None:
        """Do what the real one does outside a compiled function: nothing."""

    @staticmethod
    def disable(fn: Any, recursive: bool = True, **_: Any) -> Any:
        """Return the function: outside a compiled function there is nothing to disable."""
        return fn

    def __getattr__(self, name: str) -> Any:
        # __path__ is what the import of a submodule asks for.
        if name.startswith("__") and name != "__path__":
            raise AttributeError(name)
        if sys.modules.get(self.__name__) is self:
            # Out of the way altogether: what the real one imports must not meet the stand-in.
            del sys.modules[self.__name__], torch._dynamo
        return getattr(importlib.import_module(self.__name__), name)


def postpone_dynamo() -> None:
    """Keep `torch.optim` from importing `torch._dynamo`, and with it sympy, until something is compiled.

    In torch 2.13, making an optimizer and stepping it imports the compiler, only to tell it to stay out: as many
    seconds, in each process, as importing torch itself. Call it before the first optimizer is made, in programs that
    do not use `torch.compile`.
    """
    if "torch._dynamo" not in sys.modules:
        stand_in = _Postponed("torch._dynamo")
        sys.modules["torch._dynamo"] = torch._dynamo = stand_in
