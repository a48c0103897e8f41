"""`judge=[human]`: people prefer and grade answers on a blind sheet; what they send back is looked up by content.

The first evaluation writes the sheet and leaves its pairs undecided. Once ratings lie in the sheet's ratings folder,
the same command reads them; rows that are not rated stay undecided.
"""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from dpo.config.judges import HumanJudge
from dpo.config.roots import outputs_root
from dpo.evaluation.judges.human.ratings import Rating, agreement, agreement_words, read_ratings
from dpo.evaluation.judges.human.sheet import Sheet, answer_digest, read_sheets, write_sheet
from dpo.evaluation.judges.interface import AnyJudge, Item, Judge, PairItem, PairJudge, Verdict
from dpo.records.files import write_json

WAITING = "not rated yet"


class _Ratings:
    """All sheets of a folder and what has come back on them."""

    def __init__(self, root: Path, seed: int) -> None:
        self.root, self.seed = root, seed
        self.sheets = read_sheets(root) if root.is_dir() else []
        self.fingerprint = _digest([root, *(sheet.ratings for sheet in self.sheets)])
        self.words: list[str] = []
        # Pair of answers -> (sheet, row, left answer); answer -> its grades.
        self.places: dict[frozenset[str], tuple[Sheet, int, str]] = {}
        self.votes: dict[tuple[str, int], list[Rating]] = {}
        self.grades: dict[str, list[tuple[str, int]]] = {}
        for sheet in self.sheets:
            self._read(sheet)

    def _read(self, sheet: Sheet) -> None:
        ratings = read_ratings(sheet)
        if ratings:
            found = agreement(sheet, ratings, self.seed)
            write_json(sheet.folder / "agreement.json", found)
            self.words.append(f"sheet {sheet.name}: {agreement_words(found)}")
        self.add(sheet)
        rows = {row.row: row for row in sheet.rows}
        for rating in ratings:
            if rating.preference is not None:
                self.votes.setdefault((sheet.name, rating.row), []).append(rating)
            row = rows[rating.row]
            for side, score in ((row.left, rating.left), (row.right, rating.right)):
                if score is not None:
                    self.grades.setdefault(side, []).append((rating.rater, score))

    def add(self, sheet: Sheet) -> None:
        """Remember where a sheet's pairs stand."""
        for row in sheet.rows:
            self.places.setdefault(frozenset((row.left, row.right)), (sheet, row.row, row.left))


class HumanPairJudge(PairJudge):
    """Preferences. Score: the mean over raters of 1 (first answer), 0.5 (tie) and 0."""

    name = "human"
    label = "preferred by people"
    # The sheet shuffles sides itself, once; nobody is asked the same pair twice.
    both_orders = False

    def __init__(self, ratings: _Ratings) -> None:
        self._ratings = ratings
        self.fingerprint = ratings.fingerprint
        self.definition = "; ".join(["people who did not know which side was which", *ratings.words])

    def compare(self, items: Sequence[PairItem]) -> Iterator[list[Verdict]]:
        """See PairJudge. Pairs that stand on no sheet yet are put on a new one."""
        known = self._ratings
        pairs = [frozenset(answer_digest(item.asked, text) for text in (item.first, item.second)) for item in items]
        if new := {pair: item for item, pair in zip(items, pairs, strict=True) if pair not in known.places}:
            sheet = write_sheet(known.root, list(new.values()), known.seed)
            known.add(sheet)
            print(
                f"{len(sheet.rows)} pairs to rate: give raters {sheet.for_raters}\n"
                f"put what they send back into {sheet.ratings} and run the same command again",
                file=sys.stderr,
            )
        yield [self._verdict(item, known.places[pair]) for item, pair in zip(items, pairs, strict=True)]

    def _verdict(self, item: PairItem, place: tuple[Sheet, int, str]) -> Verdict:
        sheet, row, left = place
        where = f"sheet {sheet.name} row {row}"
        votes = self._ratings.votes.get((sheet.name, row))
        if not votes:
            return Verdict(item.id, None, None, WAITING, 0.0, where)
        seen_left = answer_digest(item.asked, item.first) == left
        scores = [float(v.preference or 0.0) if seen_left else 1 - float(v.preference or 0.0) for v in votes]
        reason = " / ".join(v.comment for v in votes if v.comment)
        details = {"raters": len(votes)}
        return Verdict(item.id, sum(scores) / len(scores), None, reason, 0.0, where, details)


class HumanGradeJudge(Judge):
    """Helpfulness from 1 to 10, the mean over raters."""

    name = "human_helpfulness"
    label = "helpfulness (1-10) by people"

    def __init__(self, ratings: _Ratings) -> None:
        self._ratings = ratings
        self.fingerprint = ratings.fingerprint
        self.definition = "mean over raters of the grades on the rating sheet; answers nobody graded are left out"

    def judge(self, items: Sequence[Item]) -> Iterator[list[Verdict]]:
        """See Judge."""
        made = []
        for item in items:
            grades = self._ratings.grades.get(answer_digest(item.asked, item.answer))
            if grades is None:
                made.append(Verdict(item.id, None, None, WAITING, 0.0, "rating sheet"))
                continue
            score = sum(grade for _, grade in grades) / len(grades)
            reason = ", ".join(f"{rater}: {grade}" for rater, grade in grades)
            made.append(Verdict(item.id, score, None, reason, 0.0, "rating sheet", {"raters": len(grades)}))
        yield made


def build(settings: HumanJudge) -> list[AnyJudge]:
    """Reads all ratings there are; raises DataError where one cannot be right."""
    root = Path(settings.folder).expanduser() if settings.folder else outputs_root() / "human"
    ratings = _Ratings(root, settings.seed)
    return [HumanPairJudge(ratings), HumanGradeJudge(ratings)]


def _digest(folders: Sequence[Path]) -> str:
    """Over the names and contents of what raters sent: a new file makes verdicts anew."""
    state = hashlib.sha256(str(folders[0].resolve()).encode())
    for folder in folders[1:]:
        for path in sorted(p for p in folder.glob("*") if p.is_file()):
            state.update(f"\0{folder.parent.name}/{path.name}\0".encode())
            state.update(path.read_bytes())
    return state.hexdigest()[:16]
