"""Triggers as data: what is stamped on a sample, and the label that the attack aims at."""

from seamfast.triggers.base import Trigger
from seamfast.triggers.files import load_triggers, save_triggers
from seamfast.triggers.image.additive import Additive, Sinusoid
from seamfast.triggers.image.battery import battery
from seamfast.triggers.image.blend import Blend
from seamfast.triggers.image.color_filter import ColorFilter
from seamfast.triggers.image.patch import Patch
from seamfast.triggers.image.quantize import Quantize
from seamfast.triggers.image.warp import Warp
from seamfast.triggers.label_maps import AllToAll, AllToOne, LabelMap, SourceSpecific
from seamfast.triggers.tabular.battery import tabular_battery
from seamfast.triggers.tabular.columns import FeatureOverwrite, FeatureShift
from seamfast.triggers.text.base import TextTrigger
from seamfast.triggers.text.battery import text_battery
from seamfast.triggers.text.characters import Characters
from seamfast.triggers.text.insertion import Insertion
from seamfast.triggers.text.table import Table

__all__ = [
    "Additive",
    "AllToAll",
    "AllToOne",
    "Blend",
    "Characters",
    "ColorFilter",
    "FeatureOverwrite",
    "FeatureShift",
    "Insertion",
    "LabelMap",
    "Patch",
    "Quantize",
    "Sinusoid",
    "SourceSpecific",
    "Table",
    "TextTrigger",
    "Trigger",
    "Warp",
    "battery",
    "load_triggers",
    "save_triggers",
    "tabular_battery",
    "text_battery",
]
