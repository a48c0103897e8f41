"""Ratings that come back from raters: read, checked field by field, and how far the raters agree."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from dpo.errors import DataError
from dpo.evaluation.judges.human.sheet import RATED, Sheet
from dpo.pages.tables import number
from dpo.statistics.agreement import krippendorff_alpha

LARGEST_FILE = 2**24  # bytes
PREFERENCES = {"1": 1.0, "tie": 0.5, "2": 0.0}
SHOWN_FAULTS = 3


@dataclass(frozen=True)
class Rating:
    """One rater's word on a row. `preference`: 1 the left answer, 0.5 a tie, 0 the right one; None: not given."""

    rater: str
    row: int
    left: int | None
    right: int | None
    preference: float | None
    comment: str


def read_ratings(sheet: Sheet) -> list[Rating]:
    """Every rating in the sheet's ratings folder (.json and .csv); rows nobody filled in are left out.

    Raises:
        DataError: `file:row/field: reason`, at most three, for anything that is not a rating of this sheet.
    """
    found: dict[tuple[str, int], tuple[Rating, Path]] = {}
    faults: list[str] = []
    known = {row.row for row in sheet.rows}
    for path in sorted(p for p in sheet.ratings.glob("*") if p.suffix.lower() in (".json", ".csv")):
        try:
            for place, fields in _rows(path, sheet.name):
                try:
                    rating = _rating(fields, known)
                except ValueError as fault:
                    faults.append(f"{path}:{place}/{fault}")
                    continue
                if rating is None:
                    continue
                _, before = found.get((rating.rater, rating.row), (None, None))
                if before is not None:
                    faults.append(f"{path}:{place}/rater: {rating.rater} has rated this row in {before.name} too")
                found[rating.rater, rating.row] = rating, path
        except ValueError as fault:
            faults.append(f"{path}: {fault}")
    if faults:
        more = f"\nand {len(faults) - SHOWN_FAULTS} more" if len(faults) > SHOWN_FAULTS else ""
        raise DataError("\n".join(faults[:SHOWN_FAULTS]) + more)
    return [rating for rating, _ in found.values()]


def _rows(path: Path, sheet: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """(where, fields) of each entry of a file."""
    if path.stat().st_size > LARGEST_FILE:
        raise ValueError("too large for a file of ratings")
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError:
        raise ValueError("not UTF-8; save it as 'CSV UTF-8'") from None
    yield from _json_rows(text, sheet) if path.suffix.lower() == ".json" else _csv_rows(text, sheet, path.stem)


def _json_rows(text: str, sheet: str) -> Iterator[tuple[str, dict[str, Any]]]:
    try:
        data = json.loads(text)
    except (ValueError, RecursionError) as fault:
        raise ValueError(f"not JSON: {fault}") from None
    if not isinstance(data, dict) or not isinstance(data.get("ratings"), list):
        raise ValueError("not a file of ratings: no list named ratings")
    if data.get("sheet") != sheet:
        raise ValueError(f"belongs to sheet {data.get('sheet')!s:.20}, not {sheet}")
    for index, entry in enumerate(data["ratings"]):
        if not isinstance(entry, dict):
            raise ValueError(f"ratings[{index}]: not an object")
        yield f"row {entry.get('row')!s:.10}", {**entry, "rater": data.get("rater")}


def _csv_rows(text: str, sheet: str, stem: str) -> Iterator[tuple[str, dict[str, Any]]]:
    header = text.split("\n", 1)[0]
    # Spreadsheets write what their country divides lists by.
    delimiter = max(",;\t", key=header.count)
    reader = csv.DictReader(io.StringIO(text, newline=""), delimiter=delimiter)
    missing = [name for name in ("sheet", "row", *RATED[:3]) if name not in (reader.fieldnames or ())]
    if missing:
        raise ValueError(f"not a file of ratings: no column {missing[0]}")
    for line in reader:
        fields = {name: (line.get(name) or "").strip() for name in ("sheet", "row", "rater", *RATED)}
        if not any(fields.values()):
            continue
        if fields["sheet"] != sheet:
            raise ValueError(f"row {fields['row']:.10} belongs to sheet {fields['sheet']:.20}, not {sheet}")
        yield f"row {fields['row']:.10}", {**fields, "rater": fields["rater"] or stem}


def _rating(fields: Mapping[str, Any], known: set[int]) -> Rating | None:
    """The rating, or None where nothing was filled in; ValueError says `field: reason`."""
    row = _whole(fields.get("row"), "row")
    if row is None or row not in known:
        raise ValueError(f"row: the sheet has rows 1 to {len(known)}")
    scores = []
    for name in RATED[:2]:
        value = _whole(fields.get(name), name)
        if value is not None and not 1 <= value <= 10:
            raise ValueError(f"{name}: {value} is not 1 to 10")
        scores.append(value)
    given = fields.get("preference")
    preference = None if given in (None, "") else PREFERENCES.get(str(given).strip().lower().removesuffix(".0"))
    if given not in (None, "") and preference is None:
        raise ValueError(f"preference: {given!s:.20} is not 1, 2 or tie")
    comment = fields.get("comment")
    if comment is not None and not isinstance(comment, str):
        raise ValueError("comment: not text")
    if preference is None and scores == [None, None]:
        return None
    rater = fields.get("rater")
    if not isinstance(rater, str) or not rater.strip():
        raise ValueError("rater: no name")
    return Rating(rater.strip(), row, scores[0], scores[1], preference, (comment or "").strip())


def _whole(value: Any, name: str) -> int | None:
    if value is None or value == "":
        return None
    try:
        found = float(value)
        if isinstance(value, bool) or found != int(found):
            raise ValueError
    except (TypeError, ValueError, OverflowError):
        raise ValueError(f"{name}: {value!s:.20} is not a whole number") from None
    return int(found)


def agreement(sheet: Sheet, ratings: Sequence[Rating], seed: int = 0) -> dict[str, Any]:
    """How many rated what, and Krippendorff's alpha of their preferences (nominal) and helpfulness (interval).

    Intervals are 95% bootstrap over prompts; an alpha is None where no two raters met or nothing varies.
    """
    groups = {row.row: row.group for row in sheet.rows}
    preferred: dict[int, dict[str, float]] = {row: {} for row in groups}
    helpful: dict[tuple[int, str], dict[str, int]] = {(row, side): {} for row in groups for side in ("left", "right")}
    for rating in ratings:
        if rating.preference is not None:
            preferred[rating.row][rating.rater] = rating.preference
        for side, score in (("left", rating.left), ("right", rating.right)):
            if score is not None:
                helpful[rating.row, side][rating.rater] = score
    choices = krippendorff_alpha(list(preferred.values()), "nominal", list(groups.values()), seed=seed)
    scores = krippendorff_alpha(list(helpful.values()), "interval", [groups[row] for row, _ in helpful], seed=seed)
    return {
        "sheet": sheet.name,
        "rows": len(sheet.rows),
        "rated": sum(bool(found) for found in preferred.values()),
        "raters": {name: sum(r.rater == name for r in ratings) for name in sorted({r.rater for r in ratings})},
        "preference_alpha": None if choices is None else asdict(choices),
        "helpfulness_alpha": None if scores is None else asdict(scores),
    }


def agreement_words(found: Mapping[str, Any]) -> str:
    """One sentence of `agreement`."""
    raters = len(found["raters"])
    text = f"{found['rated']} of {found['rows']} rows rated by {raters} rater{'' if raters == 1 else 's'}"
    if raters < 2:
        return f"{text}; agreement needs two"
    alphas = [
        f"{name} {'undefined' if (alpha := found[f'{name}_alpha']) is None else number(alpha)}"
        for name in ("preference", "helpfulness")
    ]
    return f"{text}; Krippendorff's alpha (1 full agreement, 0 chance): {', '.join(alphas)}"
