"""Real rows as each source's repository holds them on the hub, and what they say, read by code that shares nothing."""

from __future__ import annotations

import gzip
import io
import json
import re
from pathlib import Path
from typing import Any

Row = dict[str, Any]


def lines(path: Path) -> list[Row]:
    """The rows of a JSON Lines file, gzipped or not."""
    content = path.read_bytes()
    return [json.loads(line) for line in (gzip.decompress(content) if path.suffix == ".gz" else content).splitlines()]


def jsonl(rows: list[Row]) -> bytes:
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


def parquet(rows: list[Row]) -> bytes:
    import pyarrow
    import pyarrow.parquet

    file = io.BytesIO()
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), file)
    return file.getvalue()


def webgpt(real_data: Path) -> list[Row]:
    """The sample, which is re-keyed, in the schema of the hub: better answers on both sides in turn."""
    rows = []
    for number, row in enumerate(lines(real_data / "webgpt" / "scored.jsonl.gz")):
        sides = [row["pos_answer"], row["neg_answer"]][:: -1 if number % 2 else 1]
        flat: Row = {"question": {"dataset": "eli5", "id": row["id"], "full_text": row["question"]}}
        for i, side in enumerate(sides):
            flat |= {
                f"quotes_{i}": {"title": [f"source {i}"], "extract": ["what it says"]},
                f"answer_{i}": side["answer"],
                f"tokens_{i}": {"prefix": [1, 2], "completion": [3]},
                f"score_{i}": side["score"],
            }
        rows.append(flat)
    return rows


def shp(real_data: Path) -> list[Row]:
    return lines(real_data / "shp" / "askphysics.jsonl")


def _rated(real_data: Path) -> list[Row]:
    return lines(real_data / "ultrafeedback" / "sample.jsonl.gz")


def _talk(prompt: str, answer: str) -> list[Row]:
    return [{"role": "user", "content": prompt}, {"role": "assistant", "content": answer}]


def ultrafeedback(real_data: Path, explicit: bool) -> list[Row]:
    """Rows with their own ratings, in the form of HuggingFaceH4 (explicit prompt) or of trl-lib."""
    rows = []
    for number, row in enumerate(_rated(real_data)):
        chosen, rejected = (_talk(row["prompt"], row[side]) for side in ("chosen", "rejected"))
        scores = {f"score_{side}": row["metadata"][f"rating_{side}"] for side in ("chosen", "rejected")}
        named = {"prompt": row["prompt"], "prompt_id": f"{number:064x}", "messages": chosen} if explicit else {}
        rows.append({**named, "chosen": chosen, "rejected": rejected, **scores})
    return rows


def helpsteer3(real_data: Path) -> list[Row]:
    """Rated rows in the schema of HelpSteer3: the ratings' difference in steps of 1/2, from -3 to 3."""
    rows = []
    for number, row in enumerate(_rated(real_data)):
        rating = row["metadata"]
        steps = max(-3, min(3, round(2 * (rating["rating_chosen"] - rating["rating_rejected"]))))
        first, second = ("chosen", "rejected") if number % 2 else ("rejected", "chosen")
        rows.append(
            {
                "domain": "general",
                "language": "english",
                "context": [{"role": "user", "content": row["prompt"]}],
                "response1": row[first],
                "response2": row[second],
                "overall_preference": -steps if number % 2 else steps,
            }
        )
    return rows


Repositories = dict[tuple[str, str], tuple[dict[str, bytes], str, dict[str, Any]]]


def hub_repositories(real_data: Path) -> Repositories:
    """(repository, revision) -> its files, the option that reads it, and values on top of that option."""
    hh = {part: (real_data / "hh_rlhf" / f"{part}.jsonl.gz").read_bytes() for part in ("harmless_base", "helpful_base")}
    posts, steer = shp(real_data), helpsteer3(real_data)
    explicit, implicit = ultrafeedback(real_data, True), ultrafeedback(real_data, False)
    sft = jsonl([{"prompt": "never read", "chosen": [], "rejected": []}])
    soft = {"soft_labels": True}
    return {
        ("openai/webgpt_comparisons", "refs/convert/parquet"): (
            {"default/train/0000.parquet": parquet(webgpt(real_data))}, "webgpt", {**soft, "test_fraction": 0.0}
        ),
        ("stanfordnlp/SHP", "main"): (
            {"SHP.py": b"raise SystemExit('a loading script')", "askphysics/train.json": jsonl(posts[:20]),
             "askphysics/test.json": jsonl(posts[20:]), "legaladvice/train.json": jsonl(posts[:5])},
            "shp", {**soft, "subreddit": "askphysics"},
        ),
        ("nvidia/HelpSteer3", "main"): (
            {"preference/train.jsonl.gz": gzip.compress(jsonl(steer[:600])),
             "preference/validation.jsonl.gz": gzip.compress(jsonl(steer[600:])),
             "edit/train.jsonl.gz": gzip.compress(sft)},
            "helpsteer3", {**soft, "test_fraction": 0.0},
        ),
        ("HuggingFaceH4/ultrafeedback_binarized", "main"): (
            {"data/train_prefs-00000-of-00001.parquet": parquet(explicit[:650]),
             "data/test_prefs-00000-of-00001.parquet": parquet(explicit[650:]),
             "data/train_sft-00000-of-00001.parquet": parquet(explicit[:3])},
            "ultrafeedback", soft,
        ),
        ("trl-lib/ultrafeedback_binarized", "main"): (
            {"data/train-00000-of-00001.parquet": parquet(implicit[:650]),
             "data/test-00000-of-00001.parquet": parquet(implicit[650:])},
            "ultrafeedback", {**soft, "hub": "trl-lib/ultrafeedback_binarized"},
        ),
        ("Anthropic/hh-rlhf", "main"): (
            {"harmless-base/train.jsonl.gz": hh["harmless_base"], "harmless-base/test.jsonl.gz": hh["helpful_base"]},
            "hh_rlhf", {},
        ),
    }  # fmt: skip


def said(option: str, row: Row) -> list[Any]:
    """[better answer, worse answer, probability that it is better, last question] of one raw row of the hub."""
    if option == "webgpt":
        order = (0, 1) if row["score_0"] >= 0 else (1, 0)
        strength = 0.5 if row["score_0"] == 0 else 1.0
        return [row[f"answer_{order[0]}"], row[f"answer_{order[1]}"], strength, row["question"]["full_text"]]
    if option == "shp":
        order = "AB" if row["labels"] == 1 else "BA"
        # Bradley-Terry on the votes: the share of both answers' votes that the better one has.
        strength = row["score_ratio"] / (1 + row["score_ratio"])
        return [row[f"human_ref_{order[0]}"], row[f"human_ref_{order[1]}"], strength, row["history"]]
    if option == "helpsteer3":
        preference = row["overall_preference"]
        better, worse = (1, 2) if preference <= 0 else (2, 1)
        strength = {0: 1 / 2, 1: 2 / 3, 2: 5 / 6, 3: 1.0}[abs(preference)]
        return [row[f"response{better}"], row[f"response{worse}"], strength, row["context"][-1]["content"]]
    if option == "ultrafeedback":
        tie = row["score_chosen"] == row["score_rejected"]
        answers = [row[side][-1]["content"] for side in ("chosen", "rejected")]
        return [*answers, 0.5 if tie else 1.0, row["chosen"][0]["content"]]
    (*_, asked, chosen), (*_, rejected) = (
        re.split(r"\n\n(?:Human|Assistant):", row[s]) for s in ("chosen", "rejected")
    )
    return [chosen.strip(), rejected.strip(), 1.0, asked.strip()]


def read(name: str, content: bytes) -> list[Row]:
    if name.endswith(".parquet"):
        import pyarrow.parquet

        return pyarrow.parquet.read_table(io.BytesIO(content)).to_pylist()
    return [json.loads(line) for line in (gzip.decompress(content) if name.endswith(".gz") else content).splitlines()]


def rows_of(option: str, files: dict[str, bytes], values: dict[str, Any]) -> dict[str, list[Any]]:
    """Row id -> what the row says, over the files that this option reads."""
    unread = ("legaladvice", "edit/", "_sft-", ".py")
    found = {}
    for name, content in files.items():
        if any(part in name for part in unread):
            continue
        split = "test" if "test" in name else "dev" if "validation" in name else "train"
        for number, row in enumerate(read(name, content)):
            found[f"{option}:{split}:{number}"] = said(option, row)
    return found
