"""`python -m dpo.dashboard`: the W&B workspace of runs and sweeps, saved with a key, else written as JSON."""

from __future__ import annotations

from pathlib import Path

from dpo.config.dashboard import Dashboard
from dpo.config.entry import main as app
from dpo.errors import ConfigError, NetworkError


def dashboard(config: Dashboard) -> Path:
    """Build the workspace, write its JSON, and save it to W&B where a key is present; returns the JSON's path."""
    try:
        from dpo.records.dashboard import as_json, build, save
    except ModuleNotFoundError as error:
        raise ConfigError(f"the package {error.name} is missing: pip install 'dpo-train[dashboard]'") from None
    from dpo.config.roots import outputs_root
    from dpo.config.tracking import WandbMode
    from dpo.records.files import write_json
    from dpo.records.tracking.wandb import why_offline

    why = why_offline(WandbMode.auto)
    entity = config.entity
    refused: Exception | None = None
    if entity is None and why is None:
        try:
            entity = _default_entity()
        except Exception as error:  # noqa: BLE001 - whatever the client raises, the JSON is written
            refused = error
    workspace = build(entity or "ENTITY", config.project, config.title, config.group)
    out = Path(config.out).expanduser() if config.out else outputs_root() / f"dashboard-{config.project}.json"
    out.parent.mkdir(parents=True, exist_ok=True)
    write_json(out, as_json(workspace))
    print(f"workspace of {entity or 'ENTITY'}/{config.project} in {out}", flush=True)
    if why is not None:
        print(f"not saved to W&B: {why}; the same command saves it when there is a key", flush=True)
        return out
    try:
        if refused is not None:
            raise refused
        print(f"saved: {save(workspace)}", flush=True)
    except ConfigError:
        raise
    except Exception as error:
        said = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise NetworkError(f"not saved to W&B: {said}\nits JSON is in {out}") from error
    return out


def _default_entity() -> str:
    import wandb

    entity = wandb.Api().default_entity
    if not entity:
        raise ConfigError("entity: this key has no default entity; name one, as in entity=my-team")
    return str(entity)


def _body(config: Dashboard) -> None:
    dashboard(config)


def main() -> None:
    """Compose, parse and build; exits with the code of the outcome."""
    app("dashboard", Dashboard, _body)


if __name__ == "__main__":
    main()
