"""`judge=[human]`: blind sheets, ratings checked field by field, verdicts found by content."""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from dpo.config.judges import HumanJudge
from dpo.data.pair import Message
from dpo.errors import DataError
from dpo.evaluation.judges.human.judge import HumanGradeJudge, HumanPairJudge, build
from dpo.evaluation.judges.human.sheet import Sheet, answer_digest, read_sheets, write_sheet
from dpo.evaluation.judges.interface import Item, PairItem, Verdict


def _pairs(count: int) -> list[PairItem]:
    return [
        PairItem(f"p{i}", (Message("user", f"question {i}"),), f"policy says {i}", f"baseline says {i}", f"g{i}")
        for i in range(count)
    ]


def _judges(folder: Path) -> tuple[HumanPairJudge, HumanGradeJudge]:
    pairs, grades = build(HumanJudge(str(folder), 0))
    assert isinstance(pairs, HumanPairJudge)
    assert isinstance(grades, HumanGradeJudge)
    return pairs, grades


def _compared(judge: HumanPairJudge, items: Sequence[PairItem]) -> dict[str, Verdict]:
    return {v.id: v for batch in judge.compare(items) for v in batch}


def _return(sheet: Sheet, rater: str, ratings: list[dict[str, Any]]) -> Path:
    path = sheet.ratings / f"{rater}.json"
    path.write_text(json.dumps({"sheet": sheet.name, "rater": rater, "ratings": ratings}))
    return path


@pytest.fixture
def sheet(tmp_path: Path) -> Sheet:
    """A sheet of four pairs, written by the judge itself."""
    found = _compared(_judges(tmp_path)[0], _pairs(4))
    assert {(v.score, v.reason) for v in found.values()} == {(None, "not rated yet")}
    (made,) = read_sheets(tmp_path)
    return made


def test_what_raters_get_tells_nothing_of_the_sides(sheet: Sheet) -> None:
    page = (sheet.for_raters / "rating.html").read_text()
    table = (sheet.for_raters / "rating.csv").read_text()
    for text in (page, table):
        assert not re.search(r"policy(?! says)|baseline(?! says)|\bp[0-3]\b|\bg[0-3]\b", text)
        assert answer_digest((Message("user", "question 1"),), "policy says 1") not in text
    assert {p.name for p in sheet.for_raters.iterdir()} == {"rating.html", "rating.csv", "README.txt"}


def test_order_and_sides_are_shuffled_by_the_seed_and_leave_no_trace_of_the_input(tmp_path: Path) -> None:
    items = _pairs(200)
    first = write_sheet(tmp_path / "a", items, 0)
    assert write_sheet(tmp_path / "b", items[::-1], 0) == Sheet(tmp_path / "b" / first.name, first.rows)
    assert write_sheet(tmp_path / "c", items, 1).name != first.name
    policy = {answer_digest(i.prompt, i.first) for i in items}
    assert 70 < sum(row.left in policy for row in first.rows) < 130
    groups = [int(row.group[1:]) for row in first.rows]
    assert groups != sorted(groups)
    assert sorted(groups) == list(range(200))


def test_ratings_come_back_to_the_right_side(sheet: Sheet, tmp_path: Path) -> None:
    items = _pairs(4)
    policy = {answer_digest(i.prompt, i.first) for i in items}
    # Ann always prefers the policy, 9 to 4; Bob ties one row and rates no other.
    ratings: list[dict[str, Any]] = []
    for row in sheet.rows:
        left = row.left in policy
        ratings.append({"row": row.row, "preference": "1" if left else "2", "helpfulness_1": 9 if left else 4,
                        "helpfulness_2": 4 if left else 9, "comment": "clear"})  # fmt: skip
    _return(sheet, "Ann", ratings)
    _return(sheet, "Bob", [{"row": sheet.rows[0].row, "preference": "tie", "helpfulness_1": 5}])
    pairs, grades = _judges(tmp_path)
    found = _compared(pairs, items)
    both = sheet.rows[0].group.replace("g", "p")
    assert {name: v.score for name, v in found.items()} == {f"p{i}": 0.75 if f"p{i}" == both else 1.0 for i in range(4)}
    assert {v.reason for v in found.values()} == {"clear"}
    # Asked with the sides turned, the answer turns.
    assert _compared(pairs, [items[1].turned])["p1"].score == 1 - (found["p1"].score or 0)
    answers = [
        Item(f"{side}{i}", item.prompt, getattr(item, side))
        for i, item in enumerate(items)
        for side in ("first", "second")
    ]
    scores = {v.id: v.score for batch in grades.judge(answers) for v in batch}
    shown = sheet.rows[0]
    for i in range(4):
        left = shown.group == f"g{i}" and answer_digest(items[i].prompt, items[i].first) == shown.left
        right = shown.group == f"g{i}" and not left
        assert scores[f"first{i}"] == ((9 + 5) / 2 if left else 9)
        assert scores[f"second{i}"] == ((4 + 5) / 2 if right else 4)


def test_new_ratings_make_new_verdicts_and_new_pairs_a_new_sheet(sheet: Sheet, tmp_path: Path) -> None:
    before = _judges(tmp_path)[0].fingerprint
    _return(sheet, "Ann", [{"row": 1, "preference": "1"}])
    judge = _judges(tmp_path)[0]
    assert judge.fingerprint != before
    found = _compared(judge, _pairs(4))
    assert sum(v.score is not None for v in found.values()) == 1
    assert len(read_sheets(tmp_path)) == 1
    _compared(judge, _pairs(6))
    sizes = sorted(len(s.rows) for s in read_sheets(tmp_path))
    assert sizes == [2, 4]


def test_a_filled_in_csv_is_read_as_spreadsheets_write_it(sheet: Sheet, tmp_path: Path) -> None:
    with (sheet.for_raters / "rating.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 4
    rows[0] |= {"preference": "Tie", "helpfulness_1": "7.0", "helpfulness_2": "7", "comment": "a; b\nc"}
    rows[2] |= {"preference": "2", "rater": "Cy"}
    for delimiter, encoding in ((",", "utf-8"), (";", "utf-8-sig"), ("\t", "utf-8")):
        with (sheet.ratings / "from eve.csv").open("w", encoding=encoding, newline="") as file:
            writer = csv.DictWriter(file, list(rows[0]), delimiter=delimiter)
            writer.writeheader()
            writer.writerows(rows)
        found = _compared(_judges(tmp_path)[0], _pairs(4))
        assert sorted(v.score for v in found.values() if v.score is not None)[-1] >= 0.5
        assert sum(v.score is not None for v in found.values()) == 2
        report = json.loads((sheet.folder / "agreement.json").read_text())
        assert report["raters"] == {"Cy": 1, "from eve": 1}


@pytest.mark.parametrize(
    ("entry", "fault"),
    [
        ({"row": 1, "preference": "3"}, r"ann\.json:row 1/preference: 3 is not 1, 2 or tie"),
        ({"row": 2, "helpfulness_1": 11}, r"ann\.json:row 2/helpfulness_1: 11 is not 1 to 10"),
        ({"row": 2, "helpfulness_2": "many"}, r"ann\.json:row 2/helpfulness_2: many is not a whole number"),
        ({"row": 2, "helpfulness_2": 3.5}, r"row 2/helpfulness_2: 3\.5 is not a whole number"),
        ({"row": 2, "helpfulness_2": True}, r"row 2/helpfulness_2: True is not a whole number"),
        ({"row": 9, "preference": "1"}, r"row 9/row: the sheet has rows 1 to 4"),
        ({"preference": "1"}, r"row None/row: the sheet has rows 1 to 4"),
        ({"row": 1, "preference": "1", "comment": 5}, r"row 1/comment: not text"),
    ],
)
def test_each_bad_field_is_named(sheet: Sheet, tmp_path: Path, entry: dict[str, Any], fault: str) -> None:
    _return(sheet, "ann", [{"row": 3, "preference": "1"}, entry])
    with pytest.raises(DataError, match=fault):
        _judges(tmp_path)


@pytest.mark.parametrize(
    ("name", "data", "fault"),
    [
        ("a.json", b'{"sheet": "0123456789", "rater": "a", "ratings": []}', "belongs to sheet 0123456789"),
        ("a.json", b"[1, 2]", "no list named ratings"),
        ("a.json", b"{", "not JSON"),
        ("a.json", b"[" * 100_000, "not JSON"),
        ("a.csv", b"name,age\n1,2\n", "no column sheet"),
        ("a.csv", b"sheet,row,helpfulness_1,helpfulness_2,preference\nother,1,,,1\n", "row 1 belongs to sheet other"),
        ("a.csv", "sheet,row\nü".encode("cp1252"), "not UTF-8"),
    ],
)
def test_a_file_that_is_not_of_this_sheet_is_named(
    sheet: Sheet, tmp_path: Path, name: str, data: bytes, fault: str
) -> None:
    (sheet.ratings / name).write_bytes(data)
    with pytest.raises(DataError, match=rf"{re.escape(name)}: .*{fault}"):
        _judges(tmp_path)


def test_one_rater_cannot_rate_a_row_twice(sheet: Sheet, tmp_path: Path) -> None:
    rating = [{"row": 2, "preference": "1"}]
    _return(sheet, "ann", rating).rename(sheet.ratings / "ann (1).json")
    _return(sheet, "ann", rating)
    with pytest.raises(DataError, match=r"row 2/rater: ann has rated this row in ann \(1\)\.json too"):
        _judges(tmp_path)


def test_agreement_is_told_with_its_interval(tmp_path: Path) -> None:
    _compared(_judges(tmp_path)[0], _pairs(40))
    (sheet,) = read_sheets(tmp_path)
    for rater, shift in (("ann", 0), ("bob", 1)):
        _return(
            sheet,
            rater,
            [
                {"row": r, "preference": str(1 + (r + (shift if r % 5 == 0 else 0)) % 2), "helpfulness_1": 1 + r % 7}
                for r in range(1, 41)
            ],
        )
    definition = _judges(tmp_path)[0].definition
    found = re.search(
        r"40 of 40 rows rated by 2 raters.*preference (\S+) \[(\S+), (\S+)\], helpfulness 1\.00", definition
    )
    assert found is not None, definition
    value, low, high = map(float, found.groups())
    # One row in five disagrees: about 1 - 0.2 / 0.5.
    assert 0.5 < value < 0.7
    assert low < value < high


def test_one_rater_alone_is_said_to_agree_with_nobody(sheet: Sheet, tmp_path: Path) -> None:
    _return(sheet, "ann", [{"row": 1, "preference": "1"}])
    assert "1 of 4 rows rated by 1 rater; agreement needs two" in _judges(tmp_path)[0].definition
