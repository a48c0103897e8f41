"""One evaluation, start to end: pairs, answers, verdicts, divergence, summary. Reads the run directory only."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

import dpo
from dpo.caches.folder import cache_folder
from dpo.caches.reference import ReferenceCache
from dpo.config.datasets import Local
from dpo.config.evaluation import Evaluate, Evaluation, Split
from dpo.config.parse import plain
from dpo.config.read import read_config
from dpo.config.schema import Config
from dpo.data.pair import Message, Pair, TokenPair
from dpo.data.prepare import prepare
from dpo.data.tokens import Encoder
from dpo.errors import DataError
from dpo.evaluation.answers import Drawer, Prompt, batch_size, draw_answers, local_drawer, prompts_of
from dpo.evaluation.baseline import BaselineAnswers, baseline_context
from dpo.evaluation.divergence import answer_divergence
from dpo.evaluation.folder import EvaluationFolder, digest, file_digest
from dpo.evaluation.judges.asked import judges_asked, settings_asked
from dpo.evaluation.judges.table import build_judges
from dpo.evaluation.judging import judge_all, measure_all, summarise_judges, write_samples
from dpo.evaluation.pairs import PairRow, score_pairs, summarise_pairs
from dpo.evaluation.sides import POLICY, Sides, load_sides
from dpo.evaluation.summary.mixed import of_parts
from dpo.evaluation.verdicts import interval, summarise_answers
from dpo.modeling.facts import check_print
from dpo.modeling.reward_head import is_reward
from dpo.records.files import write_sealed
from dpo.records.ledger import Ledger
from dpo.records.progress import StageProgress
from dpo.records.run import read_record
from dpo.statistics.intervals import bootstrap_mean, bootstrap_ratio

Row = dict[str, Any]
SCORING_TOKENS = 4096


def measure(config: Evaluate) -> Path:
    """Evaluate `config.run` and write `<run>/evaluation/<name>/`; returns that folder. Safe to repeat and to resume."""
    run = Path(config.run).expanduser()
    record = read_record(run)
    trained = read_config(run / "config.yaml")
    dataset, reward = trained.dataset, is_reward(trained)
    # A reward model writes no answers that could be judged.
    judges = [] if reward else build_judges(judges_asked(config.judge, dataset.judges))
    settings = settings_asked(config.evaluation, dataset)
    if not reward:
        who = ", ".join(judge.name for judge in judges) or "nobody: judge= and dataset.judges name none"
        print(f"judged by {who}; answers of at most {settings.max_new_tokens} tokens", flush=True)
    sides = load_sides(run)
    pairs, tokens = held_out(sides.config, sides.tokenizer, settings.split, settings.pairs, run)
    prompts = [] if reward else _prompts(settings, sides, pairs, tokens)
    marks = {
        "weights": file_digest((run / "adapter").glob("*.safetensors")),
        "pairs": digest(str(t.content) for t in tokens),
        "prompts": digest(str(p.ids) for p in prompts),
    }
    folder = EvaluationFolder.open(run, settings, marks)
    ledger = Ledger(run, sides.config.hardware.hourly_rate)
    _watch_device(ledger, sides)
    began = time.monotonic()
    with folder.locked(), ledger.phase("evaluate"):
        folder.check()
        context = baseline_context(sides)
        before = {"pairs": len(folder.rows("pairs")), "tokens": _tokens(folder.rows("answers"))}
        rows = _pair_rows(folder, sides, pairs, tokens, context)
        answers = draw_answers(folder, prompts, settings, _drawer(sides, settings, prompts, context))
        by_id = {p.id: p for p in prompts}
        judged = judge_all(folder, judges, by_id, answers)
        measured = measure_all(folder, judges, sides)
        divergence = _divergence_rows(folder, sides, prompts, answers, settings)
        # What an earlier attempt made stands in the ledger already.
        ledger.count("evaluate", pairs=len(rows) - before["pairs"], tokens=_tokens(answers) - before["tokens"])
        write_samples(folder, by_id, answers, judged)
    summary: Row = {
        "name": settings.name,
        "created": time.time(),
        "seconds": time.monotonic() - began,
        "version": dpo.__version__,
        "run": record.get("id"),
        "base": record["fingerprints"].get("base"),
        "model": sides.config.model.path,
        "reward_model": reward,
        "quantization": plain(sides.config.lora.quantization),
        "split": settings.split.name,
        "held_out": marks["pairs"],
        "prompts": marks["prompts"],
        "weights": marks["weights"],
        "settings": plain(settings),
        "pairs": summarise_pairs(rows, sides.config.dpo.beta, settings.resamples, settings.confidence, settings.seed),
        "answers": summarise_answers(answers, settings),
        **summarise_judges(answers, judged, measured, by_id, interval(settings)),
        "divergence": _summarise_divergence(divergence, settings),
        "parts": of_parts(rows, answers, judged, by_id, sides.config.dpo.beta, settings),
    }
    write_sealed(folder.path / "summary.json", summary | {"rows": folder.marks()})
    return folder.path


def _tokens(answers: Sequence[Row]) -> int:
    return sum(row["tokens"] for row in answers)


def held_out(
    config: Config, tokenizer: Any, split: Split, limit: int | None, run: Path
) -> tuple[list[Pair], list[TokenPair]]:
    """The held-out pairs of the run's own dataset, as text and tokens; raises DataError when there are none."""
    dataset = config.dataset
    data = prepare(dataset, tokenizer, cache_folder("tokens"))
    check_print(run, "data", data.fingerprint, dataset.path or data.report["origin"])
    tokens: Sequence[TokenPair] = data.test if split is Split.test else data.dev
    if not len(tokens):
        own = ", or dataset.test_path=FILE" if isinstance(dataset, Local) and split is Split.test else ""
        there = f"{own}; evaluation.split=dev measures the {len(data.dev)} dev pairs" if len(data.dev) else own
        raise DataError(
            f"{run}: its dataset holds out no {split.name} pairs\ntrain with dataset.{split.name}_fraction=0.1{there}"
        )
    count = len(tokens) if limit is None else min(limit, len(tokens))
    return list(data.pairs[split.name][:count]), list(tokens[:count])


def _prompts(config: Evaluation, sides: Sides, pairs: Sequence[Pair], tokens: Sequence[TokenPair]) -> list[Prompt]:
    if config.prompts_file is None:
        return prompts_of(pairs, tokens, config.prompts)
    from dpo.data.synthetic.prompts import from_file

    encoder = Encoder(sides.tokenizer, 2**20, chat_template_kwargs=sides.config.dataset.chat_template_kwargs)
    found = []
    for number, prompt in enumerate(from_file(Path(config.prompts_file).expanduser())[: config.prompts]):
        message = Message("user", prompt.text)
        ids = encoder.encode_prompt([message])
        subject = prompt.subject if prompt.subject != prompt.text else None
        found.append(Prompt(f"prompt:{number}", (message,), ids, subject, prompt.group, prompt.meta))
    return found


def _drawer(sides: Sides, config: Evaluation, prompts: Sequence[Prompt], context: str) -> Drawer:
    if config.endpoint.base_url is None:
        assert config.max_new_tokens is not None, "settled by asked.settings_asked"
        longest = max((len(prompt.ids) for prompt in prompts), default=0)
        most = config.batch_size or batch_size(sides, longest + config.max_new_tokens)
        settings = {key: getattr(config, key) for key in ("temperature", "top_k", "max_new_tokens", "seed")}
        store = BaselineAnswers(cache_folder("answers") / "baseline.sqlite")
        return store.remembering(
            local_drawer(sides, config, most), context, {**settings, "batch": most, "stops": sorted(sides.stop_ids)}
        )
    from dpo.evaluation.drawing.endpoint import endpoint_drawer

    stops = sides.stop_ids
    return endpoint_drawer(config.endpoint, config, {i: str(sides.tokenizer.convert_ids_to_tokens(i)) for i in stops})


def _watch_device(ledger: Ledger, sides: Sides) -> None:
    if sides.device.type == "cuda":
        import torch

        from dpo.modeling.device import card_uuid

        ledger.devices = 1
        ledger.device_peak_mb = lambda: torch.cuda.max_memory_allocated() / 2**20
        ledger.count_energy_of([card_uuid()])


def _pair_rows(
    folder: EvaluationFolder, sides: Sides, pairs: Sequence[Pair], tokens: Sequence[TokenPair], context: str
) -> list[PairRow]:
    from dpo.engine.log_probs import sequence_log_probs
    from dpo.engine.rewards import rewards_of

    rows = {row["id"]: PairRow(**row) for row in folder.rows("pairs")}
    missing = [i for i, pair in enumerate(tokens) if pair.id not in rows]
    budget = sides.config.hardware.token_budget or SCORING_TOKENS
    cache = ReferenceCache(cache_folder("reference") / "log_probs.sqlite")

    def compute(side: str, part: list[TokenPair]) -> list[tuple[float, float]]:
        if is_reward(sides.config):
            # Its head begins at zero: so are all rewards of the baseline.
            return rewards_of(sides.policy, part, budget) if side == POLICY else [(0.0, 0.0)] * len(part)
        with sides.use(side) as model:
            return sequence_log_probs(model, part, budget)

    def score(side: str, part: list[TokenPair]) -> list[tuple[float, float]]:
        if side == POLICY or is_reward(sides.config):
            return compute(side, part)
        # Rounding hangs on the budget, which is the user's.
        known = cache.fill(part, f"{context}-{budget}", lambda missing: compute(side, missing))
        return [known[pair.id] for pair in part]

    if missing:
        with StageProgress("held-out pairs", len(tokens), len(tokens) - len(missing)) as progress:

            def done(made: list[PairRow]) -> None:
                folder.append("pairs", [asdict(row) for row in made])
                rows.update({row.id: row for row in made})
                progress.advance(len(made))

            score_pairs([tokens[i] for i in missing], [pairs[i].group for i in missing], score, done)
    return [rows[pair.id] for pair in tokens]


def _divergence_rows(
    folder: EvaluationFolder, sides: Sides, prompts: Sequence[Prompt], answers: Sequence[Row], config: Evaluation
) -> list[Row]:
    by_id = {prompt.id: prompt for prompt in prompts[: config.divergence_prompts]}
    wanted = [
        row
        for row in answers
        if row["side"] == POLICY and row["sample"] == 0 and row["prompt"] in by_id and row["ids"] is not None
    ]
    rows = {row["prompt"]: row for row in folder.rows("divergence")}
    missing = [row for row in wanted if row["prompt"] not in rows]
    stop = sides.turn_end
    if missing:
        missing.sort(key=lambda row: len(row["ids"]))
        with StageProgress("KL from the reference", len(wanted), len(wanted) - len(missing)) as progress:
            for start in range(0, len(missing), 16):
                part = missing[start : start + 16]
                ids = [row["ids"] + ([stop] if row["finished"] else []) for row in part]
                kept = [i for i, answer in enumerate(ids) if answer]
                found = answer_divergence(sides, [by_id[part[i]["prompt"]].ids for i in kept], [ids[i] for i in kept])
                made = [
                    {"prompt": part[i]["prompt"], "tokens": len(ids[i]), "kl": value}
                    for i, value in zip(kept, found, strict=True)
                ]
                folder.append("divergence", made)
                rows |= {row["prompt"]: row for row in made}
                progress.advance(len(part))
    return [rows[row["prompt"]] for row in wanted if row["prompt"] in rows]


def _summarise_divergence(rows: Sequence[Row], config: Evaluation) -> Row | None:
    if not rows:
        return None
    per_answer = bootstrap_mean([row["kl"] for row in rows], **interval(config))
    per_token = bootstrap_ratio(np.array([[row["kl"], row["tokens"]] for row in rows]), **interval(config))
    return {"per_answer": asdict(per_answer), "per_token": asdict(per_token), "answers": len(rows)}
