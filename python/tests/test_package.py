"""What is in the package itself."""

from pathlib import Path

import stokehold


def test_package_is_typed_and_versioned() -> None:
    assert (Path(stokehold.__file__).parent / "py.typed").exists()
    assert stokehold.__version__
