"""The options of `wasmlet`; each can also be given in the environment and in a config file."""

from __future__ import annotations

import asyncio
import importlib.metadata
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer
import yaml

from wasmlet.api.server import TLS, ListenError
from wasmlet.cli import defaults
from wasmlet.cli.logging import LogFormat, LogLevel, configure
from wasmlet.cli.serve import ServeError, Settings, serve
from wasmlet.pods.node import DEFAULT_TAINTS, Taint

app = typer.Typer(
    no_args_is_help=True,
    context_settings={"auto_envvar_prefix": "WASMLET", "help_option_names": ["-h", "--help"]},
    pretty_exceptions_enable=False,
)


def main() -> None:
    app()


@app.callback()
def _program() -> None:
    """A Kubernetes node whose pods are WebAssembly."""


@app.command()
def version() -> None:
    """Print the version."""
    typer.echo(f"wasmlet {importlib.metadata.version('wasmlet')} (wasmtime {importlib.metadata.version('wasmtime')})")


def _read_config(context: typer.Context, path: Path | None) -> Path | None:
    """Options from a file become defaults, so that the environment and the command line win over them."""
    if path is None:
        return None
    try:
        values = yaml.safe_load(path.read_text()) or {}
    except (OSError, yaml.YAMLError) as error:
        raise typer.BadParameter(f"cannot read {path}: {error}") from error
    if not isinstance(values, dict):
        raise typer.BadParameter(f"{path} must hold options, one `name: value` a line")
    known = {p.name for p in context.command.params} - {"config"}
    options: dict[str, Any] = {str(name).replace("-", "_"): value for name, value in values.items()}
    unknown = sorted(options.keys() - known)
    if unknown:
        raise typer.BadParameter(f"{path} has an option that does not exist: {', '.join(unknown)}")
    context.default_map = {**(context.default_map or {}), **options}
    return path


_ConfigOption = Annotated[
    Path | None,
    typer.Option(
        help="A YAML file with options by their long names, as `max-pods: 500`.",
        is_eager=True,
        callback=_read_config,
    ),
]


@app.command("serve")
def serve_command(
    *,
    config: _ConfigOption = None,
    state_dir: Annotated[
        Path,
        typer.Option(help="Where pods, images, logs and compiled code are kept.", default_factory=defaults.state_dir),
    ],
    listen: Annotated[str, typer.Option(help="unix:///PATH or tcp://HOST:PORT.", default_factory=defaults.listen)],
    tls_cert: Annotated[Path | None, typer.Option(help="The server's certificate (PEM), for TCP.")] = None,
    tls_key: Annotated[Path | None, typer.Option(help="The key of --tls-cert (PEM).")] = None,
    tls_client_ca: Annotated[
        Path | None, typer.Option(help="The CA whose clients are let in (PEM); TLS is always mutual.")
    ] = None,
    insecure: Annotated[bool, typer.Option("--insecure", help="Let TCP on loopback do without TLS.")] = False,
    node_name: Annotated[str, typer.Option(help="Name of the node.", show_default="the machine's")] = "",
    node_ip: Annotated[
        str,
        typer.Option(help="Address of the node and of its pods.", show_default="that of the default route"),
    ] = "",
    node_label: Annotated[list[str], typer.Option(help="A further label, KEY=VALUE; repeatable.")] = [],  # noqa: B006
    node_taint: Annotated[
        list[str], typer.Option(help="A taint, KEY=VALUE:EFFECT, instead of the usual ones; repeatable.")
    ] = list(DEFAULT_TAINTS),  # noqa: B006
    max_pods: Annotated[int, typer.Option(min=1, help="How many pods the node takes.")] = 1000,
    compile_jobs: Annotated[
        int,
        typer.Option(min=0, help="How many modules are compiled at a time; 0: as many as there are processors."),
    ] = 0,
    log_format: Annotated[LogFormat, typer.Option(help="Form of the server's own log.")] = LogFormat.AUTO,
    log_level: Annotated[LogLevel, typer.Option(help="The least important lines to print.")] = LogLevel.INFO,
) -> None:
    """Run the provider until SIGTERM or SIGINT; its containers go on running and are found again at the next start.

    Every option can be given in the environment (WASMLET_SERVE_MAX_PODS=500) and in the config file too; the command
    line wins over the environment, and that over the file.

    Example: wasmlet serve --state-dir ./state --listen unix:///tmp/wasmlet.sock
    """
    configure(log_format, log_level)
    try:
        settings = Settings(
            state_dir=state_dir,
            listen=listen,
            tls=_tls(tls_cert, tls_key, tls_client_ca),
            insecure=insecure,
            node_name=node_name,
            node_ip=node_ip,
            labels=_labels(node_label),
            taints=[Taint.parse(text) for text in node_taint],
            max_pods=max_pods,
            compile_jobs=compile_jobs,
        )
    except ValueError as error:
        raise typer.BadParameter(str(error)) from error
    try:
        asyncio.run(serve(settings))
    except (ListenError, ServeError) as error:
        typer.secho(f"error: {error}", err=True, fg=typer.colors.RED)
        raise typer.Exit(1) from error


def _tls(certificate: Path | None, key: Path | None, client_ca: Path | None) -> TLS | None:
    if certificate and key and client_ca:
        return TLS(certificate, key, client_ca)
    if certificate or key or client_ca:
        raise ValueError("--tls-cert, --tls-key and --tls-client-ca go together")
    return None


def _labels(texts: Sequence[str]) -> dict[str, str]:
    labels = {}
    for text in texts:
        key, separator, value = text.partition("=")
        if not key or not separator:
            raise ValueError(f'"{text}" is not a label: expected KEY=VALUE')
        labels[key] = value
    return labels
