"""`python -m dpo.export run=DIR`: merge into weights anyone can load, certified on held-out pairs, and publish them."""

from __future__ import annotations

import shlex
from pathlib import Path

from dpo.config.entry import main as app
from dpo.config.export import Export, Format, check_export
from dpo.errors import ConfigError


def export(config: Export) -> Path:
    """Make (or find) the export of a run, print its certificate, and push it when asked; returns its folder."""
    check_export(config)
    from dpo.evaluation.folder import file_digest
    from dpo.pages.ending import commands
    from dpo.records.naming import run_folder
    from dpo.records.read import json_file
    from dpo.records.run import read_record
    from dpo.release.certificate import check_certified
    from dpo.release.publish import check_push, push, show_plan

    run = run_folder(config.run)
    read_record(run)
    print(f"exporting {run}; loading", flush=True)
    if config.push is not None and not config.dry_run:
        check_push(config.push)
    name = config.format.name + (f"-{config.gguf_type.name}" if config.format is Format.gguf else "")
    out = Path(config.out).expanduser() if config.out else run / "export" / name
    wanted = {
        "format": config.format.name,
        "gguf_type": config.gguf_type.name if config.format is Format.gguf else None,
        "trained_weights": file_digest((run / "adapter").glob("*.safetensors")),
    }
    certificate = json_file(out / "certificate.json")
    if not config.again and certificate and all(certificate.get(key) == value for key, value in wanted.items()):
        check_certified(out, certificate)
        print(f"{out}: exported before; again=true makes it anew")
    elif not config.again and out.exists():
        raise ConfigError(f"{out}: there already, and not this export of this run\nname another out=, or again=true")
    else:
        certificate = _make(config, run, out)
    _show(out, certificate)
    if config.push is not None:
        if config.dry_run:
            show_plan(out, config.push)
        else:
            print(f"pushed: {push(out, config.push, config.private)}")
    for line in commands([f"audit {shlex.quote(str(out))}"]):
        print(line, flush=True)
    return out


def _make(config: Export, run: Path, out: Path) -> dict[str, object]:
    from dpo.modeling.device import pin_one_gpu
    from dpo.records.quiet import quiet
    from dpo.release.formats import check_format, check_plain

    check_format(config.format)
    check_plain(run)
    pin_one_gpu()
    quiet()
    from dpo.release.export import write_export

    return write_export(config, run, out)


def _show(out: Path, certificate: dict[str, object]) -> None:
    from rich.text import Text

    from dpo.pages.tables import to_table
    from dpo.records.terminal import terminal
    from dpo.release.certificate import DIFFERENCE_COLUMNS, MODEL_COLUMNS, difference_rows, model_rows, verdict

    console = terminal()
    title = f"{certificate['pairs']} held-out pairs ({certificate['split']}), scored in {certificate['scored_in']}"
    console.print(to_table(MODEL_COLUMNS, model_rows(certificate), title))
    console.print(to_table(DIFFERENCE_COLUMNS, difference_rows(certificate)))
    console.print(Text(verdict(certificate)))
    console.print(Text(f"exported to {out}"), soft_wrap=True)


def _body(config: Export) -> None:
    export(config)


def main() -> None:
    """Compose, parse and export; exits with the code of the outcome."""
    app("export", Export, _body, positional="run")


if __name__ == "__main__":
    main()
