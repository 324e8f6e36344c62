"""``tabular_battery``: triggers of single columns and of pairs, sized to a data set."""

from __future__ import annotations

from collections.abc import Sequence

from seamfast.errors import ShapeError
from seamfast.triggers.base import Trigger
from seamfast.triggers.label_maps import LabelMap, as_label_map
from seamfast.triggers.tabular.columns import FeatureOverwrite

_MOST_SINGLE, _MOST_PAIRS = 16, 16


def tabular_battery(
    lowest: Sequence[float], highest: Sequence[float], num_classes: int, target: int | LabelMap = 0
) -> tuple[Trigger, ...]:
    """Single columns at their lowest and highest value, and pairs of columns at theirs, at most 48 triggers.

    The success rates under these measure how much a model depends on single columns. A backdoor reacts to its own
    columns and values, so a low success rate does not show that a model is clean.

    Args:
        lowest, highest: ``(F,)`` the ends of each column, as it is stored.
        num_classes: at least 2; ``target`` is checked against it.
        target: a class (as ``AllToOne``) or a label map, for all of them.

    Returns:
        Triggers with different names, the same for the same arguments. Of many columns, 16 are used, spread evenly.

    Raises:
        ShapeError: ``lowest has 3 values and highest 4; expected one each for every column``.
        InputError: e.g. ``AllToOne target is 10; expected a class in [0, 10) for num_classes=10``.

    Example:
        >>> [trigger.name for trigger in tabular_battery([0.0, -1.0], [1.0, 1.0], num_classes=2)]
        ['column-0-low', 'column-0-high', 'column-1-low', 'column-1-high', 'columns-0-high-1-low']
    """
    n = len(lowest)
    if n != len(highest) or not n:
        raise ShapeError(f"lowest has {n} values and highest {len(highest)}; expected one each for every column")
    label_map = as_label_map(target)
    label_map.check(num_classes)
    ends = {"low": lowest, "high": highest}
    k = min(n, _MOST_SINGLE)
    columns = [place * n // k for place in range(k)]
    single = [
        FeatureOverwrite.of({c: float(values[c])}, label_map, name=f"column-{c}-{end}")
        for c in columns
        for end, values in ends.items()
    ]
    sides = (("high", "low"), ("high", "high"), ("low", "low"), ("low", "high"))
    pairs = []
    # Each column with the one that half of the columns lie between: neighbors often measure nearly the same.
    for number, first in enumerate(columns[: _MOST_PAIRS if k > 2 else k - 1]):
        second = columns[(number + max(k // 2, 1)) % k]
        one, other = sides[number % len(sides)]
        values = {first: float(ends[one][first]), second: float(ends[other][second])}
        pairs.append(FeatureOverwrite.of(values, label_map, name=f"columns-{first}-{one}-{second}-{other}"))
    return (*single, *pairs)
