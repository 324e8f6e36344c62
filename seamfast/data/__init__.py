"""Clean data: from files, loaders and arrays to batches on the device."""

from seamfast.data.adapters import as_clean_set
from seamfast.data.clean_set import CleanSet
from seamfast.data.poisoned_set import PoisonedSet
from seamfast.data.split import Split, draw_by_class, split_by_class
from seamfast.data.texts import Texts
from seamfast.modalities import Batch

__all__ = ["Batch", "CleanSet", "PoisonedSet", "Split", "Texts", "as_clean_set", "draw_by_class", "split_by_class"]
