"""Many models: one command that sanitizes or gates a whole registry, on processes of one machine or on Ray.

No module of this package imports torch but ``work`` and ``clean_data``, which run in the workers.
"""

from seamfast.fleet.run import FleetResult, run
from seamfast.fleet.store import rows

__all__ = ["FleetResult", "rows", "run"]
