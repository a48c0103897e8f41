"""`judge=[instructions]`: IFEval (arXiv:2311.07911) with the checkers of lm-eval, instruction by instruction.

The prompts carry their instructions: `instruction_id_list` and `kwargs` in `Item.meta`, as in IFEval's own files.
Where a checker cannot decide here it is named and its instruction left out, instead of being counted as followed
(which is what the checkers themselves do with text whose language cannot be told) or with arguments made up.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
from collections.abc import Iterator, Mapping, Sequence
from importlib.util import find_spec
from typing import Any

from dpo.config.judges import InstructionsJudge
from dpo.errors import ConfigError
from dpo.evaluation.judges import punkt
from dpo.evaluation.judges.interface import Figure, Item, Judge, Judged, Verdict

BATCH = 50
LETTERS = "keywords:letter_frequency"
NEED_PUNKT = ("length_constraints:number_sentences", "change_case:capital_word_frequency")
NEED_LANGUAGE = ("language:response_language", "change_case:english_capital", "change_case:english_lowercase")


def _share(key: str, label: str) -> Figure:
    """Instructions followed of those decided."""

    def parts(judged: Judged) -> tuple[float, float]:
        values = [v for _, verdict in judged for v in verdict.details[key] if v is not None]
        return float(sum(values)), float(len(values))

    return Figure(key, label, True, parts)


def _loose_prompts(judged: Judged) -> tuple[float, float]:
    found = [v.details["loose"] for _, v in judged if False in v.details["loose"] or None not in v.details["loose"]]
    return float(sum(all(loose) for loose in found)), float(len(found))


class InstructionJudge(Judge):
    """Passes an answer that follows all instructions of its prompt as they stand (strict); `reason` names the failed.

    `score` is the share of decided instructions followed. A prompt without instructions is undecided.
    """

    name = "instructions"
    label = "answers that follow all instructions"
    reads = ("instruction_id_list", "kwargs")
    figures = (
        _share("strict", "  instructions followed"),
        Figure("prompt_loose", "  all followed, loosely", True, _loose_prompts),
        _share("loose", "  instructions followed, loosely"),
    )

    def __init__(self, punkt_there: bool) -> None:
        version = importlib.metadata.version("lm-eval")
        self.punkt_there = punkt_there
        self.provenance = f"lm-eval {version}"
        self.fingerprint = f"1 {self.provenance} punkt={punkt_there}"
        self.definition = (
            f"IFEval (arXiv:2311.07911), checkers of lm-eval {version}: an answer passes when it follows every "
            "instruction of its prompt word for word; loosely: also when it does without its first or last line or "
            "its asterisks. Form only, not whether it answers. Signs to count are counted (lm-eval draws a letter)."
        )
        if not punkt_there:
            self.definition += f" Without nltk's punkt_tab {' and '.join(NEED_PUNKT)} are undecided: {punkt.COMMAND}"

    def judge(self, items: Sequence[Item]) -> Iterator[list[Verdict]]:
        """See Judge."""
        with _no_download():
            from lm_eval.tasks.ifeval import utils
        import langdetect

        langdetect.DetectorFactory.seed = 0
        for start in range(0, len(items), BATCH):
            yield [self._verdict(utils, item) for item in items[start : start + BATCH]]

    def _verdict(self, utils: Any, item: Item) -> Verdict:
        ids = item.meta.get("instruction_id_list")
        arguments = item.meta.get("kwargs")
        if not ids or not isinstance(arguments, Sequence) or len(arguments) != len(ids):
            return self._undecided(item, "the prompt has no instruction_id_list with as many kwargs", {})
        strict: list[bool | None] = []
        loose: list[bool | None] = []
        open_: list[str] = []
        for name, given in zip(ids, arguments, strict=True):
            kwargs = {k: v for k, v in (given or {}).items() if v is not None}
            if why := self._cannot(utils, name, kwargs, item.answer):
                open_.append(f"{name}: {why}")
                strict.append(None)
                loose.append(None)
                continue
            one = utils.InputExample(0, [_checker_of(utils, name)], item.question, [kwargs])
            strict.append(utils.test_instruction_following_strict(one, item.answer).follow_all_instructions)
            loose.append(utils.test_instruction_following_loose(one, item.answer).follow_all_instructions)
        details = {"instructions": list(ids), "strict": strict, "loose": loose, "undecided": open_}
        if open_ and False not in strict:
            return self._undecided(item, ", ".join(open_), details)
        decided = [s for s in strict if s is not None]
        failed = [name for name, followed in zip(ids, strict, strict=True) if followed is False]
        return Verdict(
            item.id, sum(decided) / len(decided), not failed, ", ".join(failed), 0.0, self.provenance, details
        )

    def _undecided(self, item: Item, why: str, details: Mapping[str, Any]) -> Verdict:
        return Verdict(item.id, None, None, why, 0.0, self.provenance, details)

    def _cannot(self, utils: Any, name: str, kwargs: Mapping[str, Any], answer: str) -> str | None:
        """Why this checker cannot decide here; None when it can."""
        checkers = utils.instructions_registry.INSTRUCTION_DICT
        if name not in checkers:
            return "no such checker"
        # A checker draws what it is not told at random.
        missing = set(checkers[name](name).get_instruction_args_keys()) - set(kwargs)
        if missing:
            return f"kwargs lack {', '.join(sorted(missing))}"
        if name in NEED_PUNKT and not self.punkt_there:
            return f"needs nltk's punkt_tab ({punkt.COMMAND})"
        if name in NEED_LANGUAGE and answer.strip():
            import langdetect

            try:
                langdetect.detect(answer)
            except langdetect.LangDetectException:
                return "the language of the answer cannot be told"
        return None


def _checker_of(utils: Any, name: str) -> str:
    """The name of lm-eval's checker; of letters a stricter one of ours: where the "letter" to count is a sign such as
    # or ! (two of IFEval's prompts), lm-eval's draws a letter at random and counts that."""
    if name != LETTERS:
        return name
    checkers = utils.instructions_registry.INSTRUCTION_DICT
    ours = f"{LETTERS} as asked"
    if ours not in checkers:
        base: Any = checkers[LETTERS]

        class AsAsked(base):
            def build_description(self, **kwargs: Any) -> str:
                described = super().build_description(**kwargs)
                self._letter = kwargs["letter"].strip().lower()
                return str(described)

        checkers[ours] = AsAsked
    return ours


@contextlib.contextmanager
def _no_download() -> Iterator[None]:
    """lm-eval fetches punkt_tab over the network while it is imported; what is missing is named instead."""
    import nltk

    download = nltk.download
    nltk.download = lambda *_, **__: False
    try:
        yield
    finally:
        nltk.download = download


def build(settings: InstructionsJudge) -> InstructionJudge:
    """There is nothing to set; raises ConfigError without lm-eval."""
    if any(find_spec(name) is None for name in ("lm_eval", "langdetect", "immutabledict", "nltk")):
        raise ConfigError("judge=[instructions]: needs lm-eval: pip install 'dpo-train[lm_eval]'")
    return InstructionJudge(punkt.available())
