"""What holds in this process, for the report of a run."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from seamfast.isolation.limits import Limits


@dataclass
class Isolation:
    """How far a process is isolated.

    Attributes:
        isolated: whether it is one of the gate's own, with a reduced environment and search path.
        landlock_abi: version of the kernel's interface under which writing is confined; ``None`` where it is not.
        seccomp: whether system calls are filtered.
        limits: on what the process may take; ``None`` where there are none.
        missing: what should hold and does not, one sentence each.
    """

    isolated: bool = False
    landlock_abi: int | None = None
    seccomp: bool = False
    limits: Limits | None = None
    missing: list[str] = field(default_factory=list)

    def to_dict(self) -> dict[str, Any]:
        """The part ``"isolation"`` of the gate report."""
        return {
            "isolated": self.isolated,
            "landlock_abi": self.landlock_abi,
            "seccomp": self.seccomp,
            "limits": None if self.limits is None else self.limits.to_dict(),
        }


current = Isolation()
"""Of this process."""


def explained(error: BaseException) -> str:
    """The type and the message of ``error``, and the limit that it came of, if it did of one."""
    text = f"{type(error).__name__}: {error}"
    reached = None if current.limits is None else current.limits.reached(error)
    return text if reached is None else f"{text} ({reached})"
