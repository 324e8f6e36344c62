"""The fixtures of the package's tests, for those of the benches."""

from tests.conftest import _trained, _wire, enlarged, pytest_configure, seeded, tiny_data, tiny_model, tripwire

__all__ = ["_trained", "_wire", "enlarged", "pytest_configure", "seeded", "tiny_data", "tiny_model", "tripwire"]
