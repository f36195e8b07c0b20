"""`pilotlight serve`: the service that KEDA talks to."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def serve(
    config: Annotated[
        Path | None, typer.Option(help="settings file (YAML); else PILOTLIGHT_CONFIG, else defaults")
    ] = None,
    listen: Annotated[str | None, typer.Option(help="host:port for KEDA; port 0 takes a free one")] = None,
    hints_listen: Annotated[str | None, typer.Option(help='host:port for hints and reports, or "off"')] = None,
    metrics_listen: Annotated[str | None, typer.Option(help='host:port for /metrics, or "off"')] = None,
    ready_file: Annotated[Path | None, typer.Option(help="file that gets the addresses as JSON once it serves")] = None,
    *,
    local: Annotated[
        bool, typer.Option("--local", help="let metadata name loopback endpoints: for trying things out on one machine")
    ] = False,
    json: Annotated[bool, typer.Option("--json", help="logs as JSON, also on a terminal")] = False,
) -> None:
    """Serve KEDA's external scaler protocol until SIGTERM."""
    from scaler.__main__ import run  # noqa: PLC0415 - loads gRPC and every source
    from scaler.settings import load_settings, overridden  # noqa: PLC0415 - as above

    settings = overridden(
        load_settings(None if config is None else str(config)),
        listen=listen,
        hints_listen=hints_listen,
        metrics_listen=metrics_listen,
        local=local,
        log_format="json" if json else None,
    )
    run(settings, ready_file=ready_file)
