"""What the tests of RLHF share: a reward model trained once."""

from __future__ import annotations

from pathlib import Path

import pytest
import tiny


@pytest.fixture(scope="package")
def rewarded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder in which a reward model was trained."""
    root = tmp_path_factory.mktemp("reward")
    model, pairs = tiny.make_model(root / "model"), tiny.make_pairs(root / "pairs.jsonl", 60)
    argv = tiny.arguments(model, pairs, "dpo=reward", "dataset.test_fraction=0.4")
    code, output = tiny.run("train", argv, root)
    assert code == 0, output
    assert "no reference in reward, none computed; its loss before step 1 is 0.6931, 0.6931 by hand" in output
    return root
