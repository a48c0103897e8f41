"""The stated, checkable rule that ranks short answers: `judge: [rules]`.

An answer meets the rule when it passes all seven facets. The facets are about form, not about truth: a fluent,
on-topic sentence that is wrong meets the rule. `RULES` holds every threshold, and the evaluation prints it.

- complete: the model ended its turn itself, and the text ends with `.`, `!` or `?` (a closing quote may follow).
- direct: one paragraph that answers at once. No opening such as a greeting, "Sure", "Here is", "I'm sorry", "As an
  AI", "To answer", a speaker label ("Dr. Lee:") or the request repeated; no list, heading or code; the speaker does
  not turn to itself or to the reader ("I can help", "let me know", "your question"); no question for an answer.
- brief: at most `MAX_WORDS` words, and no more sentences than the prompt grants: one for "one sentence", two for
  "two sentences" or "one or two sentences", else `MAX_SENTENCES`.
- substantial: at least `MIN_WORDS` words, `MIN_CONTENT_WORDS` of them different content words. Without this facet
  one-word answers would win.
- on topic: at least half of the subject's content words occur, compared by stem (without a subject: one content
  word of the prompt).
- not repeating: no run of four words occurs twice, nor one of three words of which two are content words; no word
  twice in a row or joined to itself by "and", "or" or a comma; no content word outside the prompt more than
  `MAX_WORD_REPEATS` times; no sentence twice. Words are compared by stem.
- plain: ordinary prose. ASCII apart from typographic quotes, dashes and accented letters; no symbols of code or
  markup; brackets and double quotes in pairs; starts with a capital, digit or quote; no word over `MAX_WORD_LETTERS`
  letters or with letters and capitals mixed up ("ofHETATM"); at most `MAX_NAMES` capitalised words in mid-sentence
  that the prompt does not contain, because small models fill answers with invented names.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from itertools import pairwise

from dpo.data.words import WORD

MAX_WORDS = 60
MAX_SENTENCES = 3
MIN_WORDS = 10
MIN_CONTENT_WORDS = 5
MAX_WORD_REPEATS = 2
MAX_WORD_LETTERS = 18
MAX_NAMES = 3

FACETS = ("complete", "direct", "brief", "substantial", "on_topic", "not_repeating", "plain")

RULES = (
    "ends its own turn with a full stop; answers at once, without preamble, list or talk about itself; "
    f"{MIN_WORDS} to {MAX_WORDS} words ({MIN_CONTENT_WORDS} or more different content words) in as many sentences as "
    f"the prompt grants (else {MAX_SENTENCES}); names the subject; no run of words or sentence twice, no content word "
    f"more than {MAX_WORD_REPEATS} times; plain prose with at most {MAX_NAMES} new names"
)

_FUNCTION_WORDS = """
    a about above after again against all also always am an and any are as at be because been before being below
    between both but by can cannot could did do does doing done down during each either else even ever every few for
    from further get gets getting give gives given goes going had has have having he her here hers him his how however
    i if in into is it its itself just keep keeps know let lets like likely made make makes making many may me might
    more most much must my never no nor not now of off often on once one only or other others our out over own people
    person rather same see shall she should since so some someone something such take takes than that the their them
    then there these they thing things this those through thus to too two under until up upon us use used uses using
    very was way we well were what when where whether which while who whom whose why will with within without would
    yet you your yours yourself"""
_REQUEST_WORDS = """
    answer answers beginner brief briefly common describe explain friendly invites matter mistake sentence sentences
    short story tip write"""

_PREAMBLE = re.compile(
    r"""^["'“‘(*\s]*(?:
    sure\b|certainly|of\ course|absolutely|okay|ok\b|great[!,]|hello|hi\b|hey\b|hmm|ah\b|oh\b|well,|wow|yes\b|no,
    |welcome|dear\b|ladies|thank|here(?:'s|\ is|\ are)\b|sorry|apolog|to\ answer|(?:the\ |in\ )?answer|[aq]:|question
    |response|i(?:'m|\ am)\ (?:sorry|glad|happy|here|an?\b|just|not|unable|ready)
    |i(?:'ll|'d|\ will|\ would)\ (?:be|say|like)|let\ me|allow\ me|to\ (?:sum|put)\b
    |i\ (?:can|could|cannot|can't|think|believe|understand|must|don't|do\ not|apolog)
    |as\ (?:an?\ )?(?:ai|assistant|language|chatbot|we\ discussed)
    |in\ (?:summary|short|conclusion|other\ words|(?:simple|simpler)\ (?:words|terms)),?
    |in\ (?:one|two|a|a\ single)\ sentences?|to\ an?\ (?:\w+\ )?beginner
    |(?:this|the)\ (?:sentence|story|question|prompt)
    |(?:one|a|an?\ \w+)\ sentence\b|sentence|title|tip\ ?(?:\#?\d|:)|step\ \d|note:|example|smollm|assistant
    |you\ (?:asked|want\ me)|while\ we're
    )""",
    re.IGNORECASE | re.VERBOSE,
)
_LABEL = re.compile(r"""^["'“‘]?[A-Z][\w.'’-]*(?:\ [\w.'’-]+){0,4}:(?:\s|$)""")
_LIST_OR_HEADING = re.compile(r"(?:^|[.:;]\s)\d{1,2}[.)]\s|^[-*•#]|[*#]{2}|\s[*•]\s|\n")
_META = re.compile(
    r"""\b(?:(?:one|two|a\ single)[ -]sentences?|in\ a\ sentence|keep\ it\ to|(?:to\ )?answer\ (?:briefly|the\ question)
    |to\ an?\ (?:\w+\ )?beginner|this\ (?:sentence|prompt|conversation)|your\ (?:question|prompt|request)
    |i\ can\ (?:help|show|explain|describe|provide|give|tell|write|suggest|offer)|i'm\ (?:sorry|unable)|as\ an\ ai
    |let\ me\ know|hope\ th(?:is|at)\ helps|feel\ free\ to\ (?:ask|reach|contact)|language\ model|chatbot
    |ai\ assistant|smollm|hugging\ face|we\ discussed)\b""",
    re.IGNORECASE | re.VERBOSE,
)
_GRANTED = re.compile(r"\b(?:(?P<one>one(?:\s\w+)?\ssentence)|(?P<two>two(?:-|\s)sentences?))\b", re.IGNORECASE)
_FULL_STOP = re.compile(r"""[.!?]["'”’)]?$""")
_SENTENCE_END = re.compile(r"""(?<=[.!?])["'”’)]?\s+(?=["'“‘(]?[A-Z0-9])""")
_ABBREVIATION = re.compile(r"\b(?:Mr|Mrs|Ms|Dr|St|Prof|vs|etc|e\.g|i\.e|U\.S)\.", re.IGNORECASE)
_ALLOWED = re.compile(r"""^[A-Za-z0-9À-ÖØ-öø-ÿ\s.,;:!?'"“”‘’()%$°£€&/–—-]+$""")
_GLUED = re.compile(r"[a-z][A-Z]{2,}|[A-Z]{7,}|[A-Za-z]\d{2,}[A-Za-z]|(?i:([a-z])\1\1)|[A-Za-z]{2,}[.!?][A-Za-z]{2,}")
_CAMEL = re.compile(r"\b(?!Mc|Mac)[A-Z]?[a-z]+[A-Z]\w*")
_OPENING = re.compile(r"""^["'“‘(]?[A-Z0-9À-Ö]""")


@dataclass(frozen=True)
class RuleVerdict:
    """Whether every facet is passed, a score that orders candidates, and the names of the failed facets.

    `score` lies in [0, 1.1]: the share of facets passed, plus up to 0.1 for saying more about the subject. The bonus
    never outweighs a facet and never rewards a shorter answer.
    """

    meets: bool
    score: float
    failed: tuple[str, ...]


def check(prompt: str, answer: str, finished: bool, subject: str | None) -> RuleVerdict:
    """Judge one answer to one prompt; `finished` says whether the model ended its turn before the token limit."""
    text = answer.strip()
    words = _words(text)
    asked = _stems(prompt)
    wanted = _content_stems(subject) if subject else _content_stems(prompt)
    content = [s for s in (stem(w) for w in words) if s not in _FUNCTION_STEMS and len(s) > 1]
    hits = sum(any(_same_stem(w, c) for c in content) for w in wanted)
    needed = (len(wanted) + 1) // 2 if subject else min(1, len(wanted))
    passed = {
        "complete": finished and bool(_FULL_STOP.search(text)),
        "direct": _direct(prompt, text),
        "brief": 0 < len(words) <= MAX_WORDS and len(sentences(text)) <= sentences_granted(prompt),
        "substantial": len(words) >= MIN_WORDS and len(set(content)) >= MIN_CONTENT_WORDS,
        "on_topic": hits >= needed,
        "not_repeating": not _repeats(text, words, asked),
        "plain": _plain(prompt, text, words),
    }
    failed = tuple(name for name in FACETS if not passed[name])
    coverage = hits / len(wanted) if wanted else 1.0
    variety = min(len(set(content)), 15) / 15
    score = (len(FACETS) - len(failed)) / len(FACETS) + 0.05 * coverage + 0.05 * variety
    return RuleVerdict(not failed, round(score, 6), failed)


def sentences(text: str) -> list[str]:
    """Split at `.`, `!` or `?` before a capital or digit; common abbreviations do not end a sentence."""
    shielded = _ABBREVIATION.sub(lambda m: m.group().replace(".", "\x00"), text.strip())
    return [s.replace("\x00", ".") for s in _SENTENCE_END.split(shielded) if s.strip()]


def sentences_granted(prompt: str) -> int:
    """How many sentences the prompt asks for at most: "in one sentence" 1, "in two sentences" 2, else the default."""
    found = _GRANTED.search(prompt)
    if not found:
        return MAX_SENTENCES
    return 1 if found["one"] else 2


def stem(word: str) -> str:
    """A crude English stem: enough to match bakes/baking/baked, stories/story, apple/apples."""
    w = word.lower().replace("’", "'").split("'")[0]
    for suffix, put in (("ies", "y"), ("ing", ""), ("ed", ""), ("es", ""), ("s", ""), ("ly", "")):
        if w.endswith(suffix) and len(w) - len(suffix) >= 3 and not (suffix == "s" and w.endswith("ss")):
            w = w[: -len(suffix)] + put
            break
    if len(w) > 3 and w[-1] == w[-2] and w[-1] in "bdgmnprt":
        w = w[:-1]
    return w[:-1] if len(w) > 3 and w.endswith("e") else w


def _words(text: str) -> list[str]:
    return [w.lower().replace("’", "'") for w in WORD.findall(text)]


def _stems(text: str) -> set[str]:
    return {stem(w) for w in _words(text)}


_FUNCTION_STEMS = frozenset(map(stem, _FUNCTION_WORDS.split()))
_REQUEST_STEMS = frozenset(map(stem, _REQUEST_WORDS.split()))


def _content_stems(text: str) -> list[str]:
    found = dict.fromkeys(stem(w) for w in _words(text))
    kept = [s for s in found if s not in _FUNCTION_STEMS and s not in _REQUEST_STEMS]
    return kept or list(found)


def _same_stem(wanted: str, said: str) -> bool:
    """Equal stems, or one begins the other and at most four letters differ (photography, photographer)."""
    if wanted == said:
        return True
    short, long = sorted((wanted, said), key=len)
    return len(short) >= 4 and long.startswith(short) and len(long) - len(short) <= 4


def _direct(prompt: str, text: str) -> bool:
    text = text.replace("’", "'")
    if not text or _PREAMBLE.search(text) or _LABEL.search(text) or _LIST_OR_HEADING.search(text):
        return False
    if _META.search(text) or text.rstrip("\"'”’").endswith("?"):
        return False
    asked, said = _words(prompt), _words(text)
    return said[:5] != asked[:5] and "?" not in sentences(text)[0]


def _repeats(text: str, words: list[str], asked: set[str]) -> bool:
    if any(a == b for a, b in pairwise(words)):
        return True
    stems = [stem(w) for w in words]
    if any(a == c and b in ("and", "or") for a, b, c in zip(words, words[1:], words[2:], strict=False)):
        return True
    threes = [r for r in zip(stems, stems[1:], stems[2:], strict=False) if len(_FUNCTION_STEMS.intersection(r)) < 2]
    fours = list(zip(stems, stems[1:], stems[2:], stems[3:], strict=False))
    runs: list[tuple[str, ...]] = [*threes, *fours]
    if len(set(runs)) < len(runs):
        return True
    parts = [" ".join(_words(s)) for s in sentences(text)]
    if len(set(parts)) < len(parts):
        return True
    counts: dict[str, int] = {}
    for s in stems:
        if s not in _FUNCTION_STEMS and not any(_same_stem(a, s) for a in asked):
            counts[s] = counts.get(s, 0) + 1
    return any(n > MAX_WORD_REPEATS for n in counts.values())


def _plain(prompt: str, text: str, words: list[str]) -> bool:
    if not _ALLOWED.match(text) or _GLUED.search(text) or _CAMEL.search(text) or not _OPENING.search(text):
        return False
    if any(len(w) > MAX_WORD_LETTERS for w in words):
        return False
    if text.count("(") != text.count(")") or text.count('"') % 2 or text.count("“") != text.count("”"):
        return False
    return len(_names(prompt, text)) <= MAX_NAMES


def _names(prompt: str, text: str) -> set[str]:
    """Capitalised words that neither begin a sentence nor occur in the prompt."""
    known = {w.lower() for w in WORD.findall(prompt)} | {"i"}
    found = set()
    for sentence in sentences(text):
        for w in WORD.findall(sentence)[1:]:
            if w[0].isupper() and w.lower().replace("’", "'").split("'")[0] not in known:
                found.add(w)
    return found
