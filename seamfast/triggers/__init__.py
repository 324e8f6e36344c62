"""Triggers: what an attacker stamps on an image, as data, and the label that the attacker then wants."""

from seamfast.triggers.additive import Additive, Sinusoid
from seamfast.triggers.base import Trigger
from seamfast.triggers.blend import Blend
from seamfast.triggers.builtin import battery
from seamfast.triggers.color_filter import ColorFilter
from seamfast.triggers.files import load_triggers, save_triggers
from seamfast.triggers.label_maps import AllToAll, AllToOne, LabelMap, SourceSpecific
from seamfast.triggers.patch import Patch
from seamfast.triggers.quantize import Quantize
from seamfast.triggers.warp import Warp

__all__ = [
    "Additive",
    "AllToAll",
    "AllToOne",
    "Blend",
    "ColorFilter",
    "LabelMap",
    "Patch",
    "Quantize",
    "Sinusoid",
    "SourceSpecific",
    "Trigger",
    "Warp",
    "battery",
    "load_triggers",
    "save_triggers",
]
