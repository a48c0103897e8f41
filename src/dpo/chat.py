"""`python -m dpo.chat run=DIR`: talk to a trained policy and its unaligned baseline, side by side."""

from __future__ import annotations

from contextlib import nullcontext

from dpo.config.entry import main as app
from dpo.config.evaluation import check_ranges
from dpo.config.export import Chat


def chat(config: Chat) -> None:
    """Load both sides of a run and talk until /quit or the end of the input."""
    check_ranges(config)
    from dpo.config.read import read_config
    from dpo.modeling.reward_head import check_writes
    from dpo.records.naming import run_folder
    from dpo.records.run import read_record

    run = run_folder(config.run)
    read_record(run)
    check_writes(run, read_config(run / "config.yaml"))
    from dpo.modeling.device import pin_one_gpu
    from dpo.records.quiet import quiet

    pin_one_gpu()
    quiet()
    from dpo.records.terminal import terminal

    console = terminal()
    # Importing takes as long as loading.
    with console.status(f"loading {run.name}") if console.is_terminal else nullcontext():
        from dpo.conversation.sides import Conversation
        from dpo.conversation.terminal import talk
        from dpo.evaluation.sides import load_sides

        sides = load_sides(run)
    talk(Conversation(sides, config, run.resolve().name), console)


def main() -> None:
    """Compose, parse and talk; exits with the code of the outcome."""
    app("chat", Chat, chat, positional="run")


if __name__ == "__main__":
    main()
