"""`judge=[tone]`: counts over the form of an answer, and how far they spread across paraphrases of a prompt.

Own syllable count: textstat counts syllables of English by a dictionary that it downloads.
"""

from __future__ import annotations

import hashlib
import re
import statistics
from collections.abc import Iterator, Sequence
from pathlib import Path

from dpo.config.judges import ToneJudge
from dpo.evaluation.judges.interface import Figure, Item, Judge, Judged, Verdict, mean_of

# A list of our own, of words and set phrases that seldom mean anything else. "May" is taken for the month.
HEDGES = (
    "perhaps", "maybe", "possibly", "probably", "likely", "unlikely", "apparently", "seemingly", "presumably",
    "might", "could", "may", "seem", "seems", "appear to", "appears to", "suggest", "suggests", "i think",
    "i believe", "i guess", "i suppose", "i'm not sure", "i am not sure", "in my opinion", "sort of", "kind of",
    "somewhat", "generally", "usually", "often", "sometimes", "tend to", "tends to", "it depends",
)  # fmt: skip
HEDGE = re.compile(r"\b(?:" + "|".join(sorted(map(re.escape, HEDGES), key=len, reverse=True)) + r")\b", re.IGNORECASE)
WORD = re.compile(r"[^\W\d_]+(?:['\u2019-][^\W\d_]+)*|\d+(?:[.,]\d+)*")
FENCE = re.compile(r"^[ ]{0,3}(```+|~~~+).*?(?:^[ ]{0,3}\1|\Z)", re.MULTILINE | re.DOTALL)
HEADING = re.compile(r"^[ ]{0,3}#{1,6}[ \t]+\S", re.MULTILINE)
LIST_LINE = re.compile(r"^[ \t]*(?:[-*+]|\d{1,9}[.)])[ \t]+\S", re.MULTILINE)
BOLD = re.compile(r"(\*\*|__)(?=\S)[^\n]+?(?<=\S)\1")
MARKS = re.compile(r"^[ \t]*(?:#{1,6}|[-*+]|\d{1,9}[.)])[ \t]+", re.MULTILINE)
HEADING_LINE = re.compile(r"^([ ]{0,3}#{1,6}[ \t].*)$", re.MULTILINE)
SENTENCE_END = re.compile(r"[.!?]+(?=[\s\"')\]*_]|$)|\n\s*\n")

DEFINITION = (
    "counts, no judgement of tone. Words of a sentence: runs of letters or a number. Hedges: words of a fixed English "
    f"list ({len(HEDGES)} such as perhaps, might, i think) for 100 words. Reading ease: Flesch 1948, 206.835 - 1.015 "
    "words/sentences - 84.6 syllables/words, vowel groups for syllables, without code; English only. Format: Markdown "
    "headings, list lines, fenced code, bold. Spread: standard deviation within a group of paraphrases (rows of one "
    "`group`, or samples of one prompt), averaged over groups with at least two answers"
)


def syllables(word: str) -> int:
    """Vowel groups of an English word, without a silent final e; at least 1."""
    word = word.lower()
    groups = len(re.findall(r"[aeiouy]+", word))
    silent = word.endswith("e") and not re.search(r"(?:[^aeiouy]l|[aeiouy])e$", word)
    return max(1, groups - silent)


def measure(answer: str) -> dict[str, float | None]:
    """The counts of one answer; reading ease and hedges are None without a word of prose."""
    prose = FENCE.sub("\n\n", answer)
    # A heading and a list line are sentences of their own, and the dot of "1." ends none.
    plain = MARKS.sub("\n\n", HEADING_LINE.sub(r"\1\n\n", prose))
    words = WORD.findall(plain)
    sentences = [part for part in SENTENCE_END.split(plain) if WORD.search(part)]
    found: dict[str, float | None] = {
        # As everywhere: what stands between spaces.
        "words": float(len(answer.split())),
        "sentence_words": None,
        "reading_ease": None,
        "hedges": None,
        "headings": float(len(HEADING.findall(prose))),
        "list_lines": float(len(LIST_LINE.findall(prose))),
        "code": float(FENCE.search(answer) is not None),
        "bold": float(len(BOLD.findall(prose))),
    }
    if words and sentences:
        found["sentence_words"] = length = len(words) / len(sentences)
        found["reading_ease"] = 206.835 - 1.015 * length - 84.6 * sum(map(syllables, words)) / len(words)
        hedged = [m.group() for m in HEDGE.finditer(plain.replace("\u2019", "'")) if m.group() != "May"]
        found["hedges"] = 100 * len(hedged) / len(words)
    return found


def _spread(key: str, label: str) -> Figure:
    """The mean over groups of the standard deviation of `details[key]` within the group."""

    def parts(judged: Judged) -> tuple[float, float]:
        values = [v.details[key] for _, v in judged if v.details[key] is not None]
        return (statistics.stdev(values), 1.0) if len(values) > 1 else (0.0, 0.0)

    return Figure(f"{key}_spread", f"  {label}, spread in a group", False, parts)


MEASURED = (
    ("sentence_words", "words a sentence"),
    ("reading_ease", "reading ease (Flesch, English)"),
    ("hedges", "hedges in 100 words"),
    ("headings", "headings"),
    ("list_lines", "list lines"),
    ("bold", "bold passages"),
)


class ToneStatistics(Judge):
    """Describes; `score` is the number of words and ranks nothing."""

    name = "tone"
    label = "words"
    ranks = False
    definition = DEFINITION
    # The measure is its code: any change of it makes verdicts anew.
    fingerprint = hashlib.sha256(Path(__file__).read_bytes()).hexdigest()[:16]
    figures = (
        # Their mean is the row "answer length", which every evaluation has.
        _spread("words", "words"),
        *(figure for key, label in MEASURED for figure in (mean_of(key, label), _spread(key, label))),
        mean_of("code", "answers with fenced code", share=True),
    )

    def judge(self, items: Sequence[Item]) -> Iterator[list[Verdict]]:
        """See Judge."""
        verdicts = []
        for item in items:
            found = measure(item.answer)
            verdicts.append(Verdict(item.id, found["words"], None, "", 0.0, "dpo.evaluation.judges.tone", found))
        yield verdicts


def build(settings: ToneJudge) -> ToneStatistics:
    """There is nothing to set."""
    return ToneStatistics()
