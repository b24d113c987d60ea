"""What the README shows works."""

import re
from pathlib import Path
from typing import Any

import pytest

import stokehold

README = Path(__file__).parents[1] / "README.md"


def test_the_examples_run(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("numpy")
    stages = stokehold.Stages()
    monkeypatch.setattr(stokehold, "stage", stages.stage)
    monkeypatch.setattr(stokehold, "serve", lambda: None)
    stage, test = re.findall(r"```python\n(.*?)```", README.read_text(), re.S)
    assert len([line for line in stage.splitlines() if line]) <= 10
    names: dict[str, Any] = {
        "step": lambda x: float(x.mean()),
        "weights": stokehold.Tensor("U8", (1,), b"x"),
        "auc": 0.9,
    }
    exec(stage, names)
    assert stages["train"] is names["train"]
    exec(test, names)
    assert names["result"].progress[0]["values"] == {"loss": 1.5}
