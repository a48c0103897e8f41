"""`python -m dpo.judge` measures a language model judge against the gold labels of LLMBar, in one command."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

pytest.importorskip("openai", reason="the openai client is not installed: pip install 'dpo-train[endpoint]'")


from judge_server import JudgeServer


@pytest.fixture
def server() -> Iterator[JudgeServer]:
    started = JudgeServer()
    yield started
    started.close()


def test_accuracy_kappa_and_position_bias_against_gold(
    server: JudgeServer, real_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from dpo import judge
    from dpo.records.read import json_file

    monkeypatch.setenv("DPO_CACHE", str(tmp_path / "cache"))
    rows = json.loads((real_data / "llmbar" / "natural.json").read_text())[:40]
    data = tmp_path / "natural.json"
    data.write_text(json.dumps(rows))
    arguments = [
        f"responses='{data}'", "gold=[label]", "judge=[llm]", "judge.llm.ask=[pairs]", "judge.llm.server.model=m",
        f"judge.llm.server.base_url='{server.url}'", f"out='{tmp_path / 'out'}'",
    ]  # fmt: skip
    monkeypatch.setattr(sys, "argv", ["dpo.judge", *arguments])
    judge.main()
    assert server.tries == 2 * len(rows)
    # The loopback judge prefers more words, so what it must come to can be counted from the file.
    gaps = [len(r["output_1"].split()) - len(r["output_2"].split()) for r in rows]
    right = [0.5 if g == 0 else float((g > 0) == (r["label"] == 1)) for g, r in zip(gaps, rows, strict=True)]
    found = {f["key"]: f["policy"] for f in json_file(tmp_path / "out" / "summary.json")["judges"]["llm"]["figures"]}
    for key in ("agreement", "agreement_of_orders"):
        assert found[key]["value"] == pytest.approx(sum(right) / len(rows))
        assert found[key]["low"] < found[key]["value"] < found[key]["high"]
    named = [(g > 0) - (g < 0) for g in gaps]
    gold = [1 if r["label"] == 1 else -1 for r in rows]
    observed = sum(a == b for a, b in zip(named, gold, strict=True)) / len(rows)
    chance = sum(named.count(c) * gold.count(c) for c in (-1, 0, 1)) / len(rows) ** 2
    assert found["kappa"]["value"] == pytest.approx((observed - chance) / (1 - chance))
    assert found["kappa"]["low"] < found["kappa"]["value"] < found["kappa"]["high"]
    assert found["first_shown"]["value"] == 0.5
    assert found["consistent"]["value"] == 1
