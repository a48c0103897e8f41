"""Run directories written by hand, with text in every place a model or a stranger can reach."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

from dpo.records.files import write_sealed

HOSTILE = [
    "<script>document.title='owned'</script>",
    "</script><script>document.title='owned'</script>",
    "</textarea></style><img src=http://127.0.0.1:{port}/img onerror=\"document.title='owned'\">",
    "<!--<script>document.title='owned'//",
    "\"><svg onload=document.title='owned'>",
    "{{{{ 7*7 }}}} {{% raw %}} <a href=\"javascript:document.title='owned'\">x</a>",
    "<iframe src=http://127.0.0.1:{port}/frame></iframe><link rel=stylesheet href=http://127.0.0.1:{port}/css>",
    "<style>@import url(http://127.0.0.1:{port}/import);body{{display:none}}</style>",
    "<meta http-equiv=refresh content='0;url=http://127.0.0.1:{port}/refresh'>",
    "\x1b[31m\x1b]0;owned\x07 \u202egpj.exe",
]


def hostile(port: int) -> list[str]:
    """The strings, aimed at a local port."""
    return [text.format(port=port) for text in HOSTILE]


def estimate(value: float, half: float = 0.1, n: int = 40) -> dict[str, Any]:
    """An Estimate as in summary.json."""
    return {"value": value, "low": value - half, "high": value + half, "n": n}


def write_run(folder: Path, port: int = 9, gain: float = 0.2, kl: float = 1.0, seed: int = 0, **summary: Any) -> Path:
    """A complete run with an evaluation named test: metrics, ledger, data, samples; its texts are hostile."""
    texts = hostile(port)
    evaluation = folder / "evaluation" / "test"
    evaluation.mkdir(parents=True)
    draw = random.Random(seed)

    def write(path: str, data: Any) -> None:
        (folder / path).write_text(json.dumps(data))

    write(
        "run.json",
        {
            "status": "complete",
            "reason": texts[0],
            "command": f"python -m dpo.train name={texts[1]}",
            "device": texts[2],
            "host": "h",
            "step": 20,
            "max_steps": 20,
            "seed": 0,
            "reference_identity": 0.0,
            "fingerprints": {"base": "b" * 16, "config": texts[3]},
            "versions": {"torch": "2"},
            "attempts": [{"started": 1.0, "ended": 61.0, "status": "complete", "from_step": -1}],
            "git": {"commit": texts[4], "dirty": True},
        },
    )
    subject = {"model": {"path": texts[5]}, "dataset": {"source": texts[6], "judges": ["rules"]}, "name": texts[7]}
    (folder / "config.yaml").write_text(json.dumps({"dpo": {"beta": 0.2}, **subject}))
    rows: list[dict[str, Any]] = [
        {"kind": kind, "step": step, "time": float(step), "loss": 0.69 - step / 100,
         "rewards/accuracies": 0.5 + step / 50, "rewards/margins": step / 20,
         "rewards/chosen": step / 40, "rewards/rejected": -step / 40, "grad_norm": 1.0,
         "learning_rate": 1e-4, "pairs_per_second": 2.0}
        for step in range(0, 21)
        for kind in (["eval"] if step == 0 else ["train", "eval"] if step % 5 == 0 else ["train"])
    ]  # fmt: skip
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    phases = {"load": {"seconds": 3.0, "peak_memory_mb": 500.0}, texts[0]: {"seconds": 60.0, "pairs": 80}}
    write("ledger.json", {"phases": phases, "seconds": 63.0, "gpu_seconds": 0, "hourly_rate": 2.0, "cost": 0.035})
    write(
        "data.json",
        {
            "source": texts[6],
            "origin": texts[7],
            "kept": {"train": 80, "dev": 10, "test": 40},
            "max_length": 64,
            "refused": {"tie": {"count": 2, "ids": [texts[8], "b"]}},
            "noted": {},
            "lengths": {"train": {"prompt": {"0.05": 1, "0.5": 2, "0.95": 3, "1": 4}}},
            "length_bias": {"train": None},
            "truncation": {"prompt": {"pairs": 1, "tokens": 5}},
        },
    )
    _write_evaluation(evaluation, texts, draw, gain, kl, summary)
    return folder


def _write_evaluation(
    folder: Path, texts: list[str], draw: random.Random, gain: float, kl: float, changes: dict[str, Any]
) -> None:
    samples, outcomes = [], []
    for number in range(40):
        sides = {}
        for side, chance in (("baseline", 0.4), ("policy", 0.4 + gain)):
            passed = random.Random(f"{side}{number}{chance}").random() < chance
            verdict = {"score": 0.5, "passed": passed, "reason": "" if passed else texts[3], "outcome": float(passed)}
            answer = texts[number % len(texts)]
            sides[side] = {"answer": answer, "tokens": 9, "finished": number % 7 != 0, "verdicts": {"rules": verdict}}
        outcomes.append(
            sides["policy"]["verdicts"]["rules"]["outcome"] - sides["baseline"]["verdicts"]["rules"]["outcome"]
        )
        messages = [{"role": texts[0], "content": texts[4]}, {"role": "user", "content": texts[number % len(texts)]}]
        samples.append({"prompt": f"p{number:02}", "sample": 0, "messages": messages, **sides})
    (folder / "samples.jsonl").write_text("".join(json.dumps(row) + "\n" for row in samples))
    pairs = [
        {"id": f"q{n:02}", "group": f"g{n // 2}", "chosen_tokens": 5, "rejected_tokens": 7, "strength": 1.0,
         "policy_chosen": -9 + draw.gauss(0, 1), "policy_rejected": -12.0, "reference_chosen": -10.0,
         "reference_rejected": -11.0}
        for n in range(40)
    ]  # fmt: skip
    (folder / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in pairs))
    (folder / "divergence.jsonl").write_text(
        "".join(json.dumps({"prompt": f"p{n:02}", "kl": kl + n / 100}) + "\n" for n in range(40))
    )
    mean = sum(outcomes) / len(outcomes)
    side = {"words": estimate(20, 2), "tokens": estimate(25, 2), "finished": 34, "truncated": 6, "empty": 0}
    keys = [
        "accuracy", "accuracy_gain", "accuracy_per_token", "likelier_before", "likelier", "likelier_gain", "margin",
        "chosen_log_ratio", "rejected_log_ratio", "chosen_tokens", "margin_per_token", "chosen_log_ratio_per_token",
        "rejected_log_ratio_per_token",
    ]  # fmt: skip
    summary = {
        "name": "test", "created": 1.0, "base": "b" * 16, "model": texts[5], "quantization": None, "split": "test",
        "held_out": "h" * 16, "prompts": "p" * 16,
        "settings": {"temperature": 0.9, "top_k": 50, "max_new_tokens": 80, "seed": 1, "samples_per_prompt": 1,
                     "confidence": 0.95},
        "pairs": {"pairs": 40, "prompts": 20, "beta": 0.2, "calibration_error": estimate(0.1, 0.02),
                  "calibration_bins": [{"confidence": 0.6, "accuracy": 0.8, "n": 40}],
                  **{key: estimate(0.6) for key in keys}},
        "answers": {"prompts": 40, "answers": 40, "policy": side, "baseline": side, "words_difference": estimate(0, 1)},
        "judges": {"rules": {
            "label": "answers that meet the rule", "definition": texts[1], "decides": True,
            "policy": estimate(0.4 + mean), "baseline": estimate(0.4), "difference": estimate(mean, 0.15),
            "wins": sum(o > 0 for o in outcomes),
            "ties": sum(o == 0 for o in outcomes), "losses": sum(o < 0 for o in outcomes), "net": estimate(mean, 0.15),
            "win_rate": estimate(0.5 + mean / 2), "length_controlled_win_rate": estimate(0.5 + mean / 2),
            "sign_test_p": 0.01, "cost": 0.0}},
        "figures": {"tone": {"definition": texts[2], "rows": [
            {"key": "words", "label": texts[3], "share": False, "policy": estimate(20), "baseline": estimate(22),
             "difference": estimate(-2)}]}},
        "undecided": {"llm": {"count": 2, "of": 80, "reasons": {texts[4]: 2}}},
        "divergence": {"per_answer": estimate(kl), "per_token": estimate(kl / 20, 0.01), "answers": 40},
    }  # fmt: skip
    write_sealed(folder / "summary.json", summary | changes)


def write_sweep_folder(root: Path, jobs: list[tuple[dict[str, Any], float, float]], port: int = 9) -> Path:
    """A sweep of complete, evaluated jobs: (swept values, gain by the rule, KL) of each."""
    from dpo.sweeps.files import label_of, write_sweep

    listed = []
    for number, (values, gain, kl) in enumerate(jobs):
        write_run(root / f"job{number}", port, gain, kl, seed=number)
        listed.append({"label": label_of(values), "folder": f"job{number}", "values": values})
    write_sweep(root, list(jobs[0][0]), "test", listed)
    return root


def change_run(folder: Path, **values: Any) -> None:
    """Change keys of run.json."""
    record = json.loads((folder / "run.json").read_text())
    write_sealed(folder / "run.json", record | values)
