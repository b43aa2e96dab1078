"""Import torch 2.5, transformers and Colossal-AI in less than half the time: without torch's compiler.

Every process of every command imports them, and most of the time went into parts of the compiler (and SymPy behind it)
that are imported on the way for one function each, which says whether something is just being compiled. Here, nothing
ever is.
"""

import contextlib
import sys
import types
from collections.abc import Iterator
from typing import Any
from unittest import mock

import torch
from trainyard_shared.tensors.quick_start import postpone_dynamo

# Module, the function that is asked of it, and its answer outside the compiler.
ASKED = {
    "torch._functorch._aot_autograd.functional_utils": ("is_fun", lambda tensor: False),
    "torch._dynamo.external_utils": ("is_compiling", lambda: False),
}


@contextlib.contextmanager
def without_compiler() -> Iterator[None]:
    """Keep what is imported in the block from importing torch's compiler; who compiles later gets the real one."""
    if "torch._dynamo" not in sys.modules:
        postpone_dynamo()
        # What Colossal-AI's launch sets, and DistributedDataParallel asks.
        settings = types.SimpleNamespace(_get_optimize_ddp_mode=lambda: "ddp_optimizer")
        sys.modules["torch._dynamo"].config = settings  # type: ignore[attr-defined]
    missing = [name for name in ASKED if name not in sys.modules]
    for name in missing:
        function, answer = ASKED[name]
        sys.modules[name] = types.ModuleType(name)
        setattr(sys.modules[name], function, answer)
    try:
        # bitsandbytes, which Colossal-AI imports for quantised models, has functions compiled as it is imported.
        with mock.patch.object(torch, "compile", _uncompiled):
            yield
    finally:
        for name in missing:
            del sys.modules[name]


def _uncompiled(function: Any = None, **_: Any) -> Any:
    return function if function is not None else lambda later: later
