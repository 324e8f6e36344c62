"""``Live``: bytes of memory that tensors hold, counted where they are made."""

from __future__ import annotations

import weakref
from typing import Any

from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode


class Live(TorchDispatchMode):
    """The most bytes of storage that tensors made within held at a time."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = 0
        self._seen: set[int] = set()

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = function(*args, **(kwargs or {}))
        for one in result if isinstance(result, (tuple, list)) else (result,):
            if isinstance(one, Tensor):
                self._note(one.untyped_storage())
        return result

    def _note(self, storage: Any) -> None:
        try:
            key, n_bytes = storage.data_ptr(), storage.nbytes()
        except RuntimeError:  # a tensor of zeros that has no memory
            return
        if not key or key in self._seen:
            return
        self._seen.add(key)
        self.now += n_bytes
        self.peak = max(self.peak, self.now)

        def gone() -> None:
            self._seen.discard(key)
            self.now -= n_bytes

        weakref.finalize(storage, gone)
