"""`python -m dpo.judge`: judges over a file of responses, or over the answers a run's evaluation has drawn."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from dpo.config.entry import main as app
from dpo.config.evaluation import JudgeAnswers, check_ranges, register
from dpo.errors import ConfigError


def judge(config: JudgeAnswers) -> Path:
    """Judge, print the figures, write the verdicts; returns the folder they are in."""
    check_ranges(config)
    if config.responses is not None and config.run is not None:
        raise ConfigError(f"run={config.run}: with responses=FILE no run is judged; give one of them")
    if config.responses is None and config.gold:
        raise ConfigError(f"gold={config.gold}: read with responses=FILE only; a run's answers have no such columns")
    from dpo.records.naming import NEWEST, run_folder
    from dpo.records.quiet import quiet

    run = run_folder(config.run or NEWEST) if config.responses is None else None
    print(f"judging {config.responses if run is None else run}; loading", flush=True)

    quiet()
    from dpo.config.read import read_config
    from dpo.evaluation.judges.asked import judges_asked
    from dpo.evaluation.judges.table import build_judges

    instead = ["rules"] if run is None else read_config(run / "config.yaml").dataset.judges
    judges = build_judges(judges_asked(config.judge, instead))
    if not judges:
        raise ConfigError("judge: nobody named, and dataset.judges of the run names nobody either")
    interval = {"resamples": config.resamples, "confidence": config.confidence, "seed": config.seed}
    if run is not None:
        from dpo.evaluation.judge_run import judge_run
        from dpo.evaluation.show import show
        from dpo.modeling.device import pin_one_gpu
        from dpo.pages.ending import end_evaluation, write_page

        pin_one_gpu()
        folder = judge_run(run, config.name, judges, interval)
        write_page(run, folder.name)
        show(folder, config.show)
        end_evaluation(run, folder.name)
        return folder
    return _judge_file(config, judges, interval)


def _judge_file(config: JudgeAnswers, judges: list[Any], interval: dict[str, Any]) -> Path:
    from dpo.config.roots import outputs_root
    from dpo.evaluation.judge_file import judge_responses
    from dpo.evaluation.responses import read_responses
    from dpo.pages.headline import judged_lines, judged_rows
    from dpo.pages.tables import to_table
    from dpo.records.files import write_json, write_text
    from dpo.records.terminal import terminal
    from dpo.streams import clean

    path = Path(str(config.responses)).expanduser()
    prompts = Path(config.prompts_file).expanduser() if config.prompts_file else None
    asked = read_responses(path, prompts, config.text, config.gold, config.limit)
    named = "\0".join([str(path.resolve()), *(j.name for j in judges)])
    out = outputs_root() / "judgements" / hashlib.sha256(named.encode()).hexdigest()[:10]
    out = Path(config.out).expanduser() if config.out else out
    out.mkdir(parents=True, exist_ok=True)
    console = terminal()
    summaries, rows = {}, []
    for one in judges:
        summaries[one.name], made = judge_responses(one, asked, config.gold_is.name, interval)
        rows += made
        title = f"{one.name}: {summaries[one.name]['count']} verdicts on {path.name}"
        console.print(to_table(["", "value"], judged_rows(summaries[one.name]), title))
        for line in judged_lines(summaries[one.name], config.confidence):
            console.print(clean(line), style="dim", markup=False)
    write_text(out / "verdicts.jsonl", "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
    write_json(out / "summary.json", {"responses": str(path), "judges": summaries})
    console.print(f"verdicts in {out}", markup=False, soft_wrap=True)
    return out


def _body(config: JudgeAnswers) -> None:
    judge(config)


def main() -> None:
    """Compose, parse and judge; exits with the code of the outcome."""
    register()
    app("judge", JudgeAnswers, _body, positional="run")


if __name__ == "__main__":
    main()
