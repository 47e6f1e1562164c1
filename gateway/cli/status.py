"""The commands that show state: `ps`, `status`, `models`, `route` and `doctor`."""

from __future__ import annotations

from typing import Annotated

import typer

from hostler.gateway.cli.options import (
    ConfigOption,
    JsonOption,
    KeyFileOption,
    ModelArgument,
    OptionalModelArgument,
    UrlOption,
    connect,
    fail,
    failing_calls,
    print_json,
    read_configuration,
)
from hostler.gateway.cli.start_options import FAILED, UNAUTHORIZED, UNREACHABLE


def ps(
    config: ConfigOption = None, url: UrlOption = None, key_file: KeyFileOption = None, as_json: JsonOption = False
) -> None:
    """Show loaded models and requests in flight."""
    from hostler.gateway.cli import views
    from hostler.gateway.cli.formatting import Column, print_parts, print_table

    with failing_calls():
        target = connect(config, url, key_file)
    running = list(views.processes(target.status))
    requests = views.requests(target.status)
    if as_json:
        print_json({"models": running, "requests": requests})
        return
    if running:
        print_table(
            [
                Column("MODEL", named=True),
                Column("HOST", drop=2, named=True, least=12),
                Column("STATE", least=20),
                Column("SINCE", drop=4),
                Column("MEMORY", right=True, drop=1),
                Column("BUSY", right=True),
                Column("UNLOADS", drop=3),
            ],
            views.process_rows(running),
        )
    else:
        print_parts("No model is loaded. The first request for a model loads it; so does `hostler load MODEL`.")
    if target.kind == "supervisor":
        return
    print_parts("")
    if requests:
        print_table(
            [
                Column("REQUEST"),
                Column("CLIENT", drop=2, named=True, least=12),
                Column("MODEL", drop=1, named=True),
                Column("BACKEND", drop=3, named=True, least=12),
                Column("PHASE"),
                Column("FOR", right=True),
            ],
            views.request_rows(requests),
        )
    else:
        print_parts("No requests in flight.")


def status(
    config: ConfigOption = None, url: UrlOption = None, key_file: KeyFileOption = None, as_json: JsonOption = False
) -> None:
    """Show hosts, models and backends of the running gateway."""
    from hostler.gateway.cli import cluster_views, host_views, views
    from hostler.gateway.cli.formatting import Column, make_console, print_parts, print_table

    with failing_calls():
        target = connect(config, url, key_file)
    if as_json:
        print_json(target.own_status)
        return
    state = target.status
    product = f"hostler {state['version']}" if target.kind == "gateway" else "hostler supervisor"
    print_parts(f"{product} at {target.client.url}", views.active_model(state, make_console().width), "")
    if errors := views.config_errors(state):
        print_parts(*errors, "")
    if cluster := cluster_views.cluster(state):
        print_parts(*cluster, "")
    print_table(
        [
            Column("HOST", named=True),
            Column("SUPERVISOR"),
            Column("SERVING", right=True),
            Column("WAITING", right=True),
            Column("MEMORY", right=True),
        ],
        host_views.host_rows(state),
    )
    print_parts("")
    if devices := host_views.device_rows(state):
        print_table(
            [
                Column("GPU"),
                Column("HOST", drop=1, named=True),
                Column("DEVICE", drop=2, named=True),
                Column("MEMORY", right=True),
                Column("OTHERS", right=True, drop=3),
                Column("FOR MODELS", right=True),
                Column("LOAD", right=True),
            ],
            devices,
        )
        print_parts("")
    print_table(
        [
            Column("MODEL", named=True),
            Column("STATE", least=20),
            Column("CONTEXT", right=True),
            Column("SLOTS", right=True, drop=1),
            Column("NOTE", wraps=True, least=24),
        ],
        views.status_rows(state),
    )
    if hops := views.chain_rows(state):
        print_parts("")
        print_table(
            [
                Column("BACKEND", named=True),
                Column("KIND", drop=2),
                Column("WHERE", drop=3),
                Column("STATE", wraps=True),
                Column("COST TODAY", drop=1),
            ],
            hops,
        )


def models(
    config: ConfigOption = None, url: UrlOption = None, key_file: KeyFileOption = None, as_json: JsonOption = False
) -> None:
    """List models, their state and their files."""
    from hostler.gateway.cli import client, views
    from hostler.gateway.cli.formatting import Column, print_table

    configuration = read_configuration(config)
    state, unknown_since = None, ""
    try:
        state = client.connect(configuration, url, key_file).status
    except client.CallFailed as error:
        if url or key_file or error.exit_code not in (UNREACHABLE, UNAUTHORIZED):
            fail(str(error), error.exit_code)
        unknown_since = (
            "no gateway answers" if error.exit_code == UNREACHABLE else "the gateway requires a key in HOSTLER_API_KEY"
        )
    found = views.models(configuration, state)
    if as_json:
        print_json(found)
        return
    print_table(
        [
            Column("MODEL", named=True),
            Column("STATE", least=20),
            Column("CONTEXT", right=True),
            Column("SLOTS", right=True, drop=2),
            Column("ALIASES", drop=1, wraps=True),
            Column("FILE", drop=3, named=True, least=28),
        ],
        views.model_rows(found),
    )
    if unknown_since:
        typer.echo(f"(from the configuration only: {unknown_since}, so states are unknown)", err=True)


def route(
    model: ModelArgument,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Send no test request.")] = False,
    local_only: Annotated[bool, typer.Option("--local-only", help="Route as a local-only request.")] = False,
    client: Annotated[
        str | None, typer.Option("--client", metavar="NAME", help="Show changes for this key or address.")
    ] = None,
    config: ConfigOption = None,
    url: UrlOption = None,
    key_file: KeyFileOption = None,
    as_json: JsonOption = False,
) -> None:
    """Show which backend would serve a model, and why not others.

    Then sends a test request, unless --dry-run. Fails if no backend answers or would answer.
    """
    from hostler.gateway.cli import cluster_views
    from hostler.gateway.cli.doctor import Doctor, change_lines, route_rows
    from hostler.gateway.cli.formatting import Column, print_parts, print_table

    with failing_calls():
        target = connect(config, url, key_file)
        target.require_gateway("only gateways route requests")
        examiner = Doctor(target.client)
        found = examiner.route(target.model_name(model), local_only=local_only, client=client)
        if not dry_run:
            found["answer"] = examiner.ask(model, found["model"])
    elsewhere = list(cluster_views.elsewhere_with(target.status, found["model"]))
    failed = found["first"] is None if dry_run else found["answer"]["status"] != 200
    if as_json:
        print_json(found)
        if failed:
            raise typer.Exit(FAILED)
        return
    print_table(
        [
            Column("HOP", right=True, drop=3),
            Column("BACKEND", named=True),
            Column("NAME THERE", drop=1, named=True),
            Column("WHERE", drop=2),
            Column("STATE", wraps=True),
        ],
        route_rows(found),
    )
    print_parts(*change_lines(found))
    print_parts(*elsewhere)
    if found["first"] is None:
        print_parts("No backend would answer.")
    if not dry_run:
        answer = found["answer"]
        if failed:
            fail(
                f"the test request failed with status {answer['status']} "
                f"({answer['backend'] or 'no backend'}): {answer['reason']}",
                FAILED,
            )
        print_parts(f"{answer['backend']} answered the test request. {answer['reason']}".rstrip())
    elif failed:
        raise typer.Exit(FAILED)


def doctor(
    model: OptionalModelArgument = None,
    config: ConfigOption = None,
    url: UrlOption = None,
    key_file: KeyFileOption = None,
    as_json: JsonOption = False,
) -> None:
    """Send a test request through each backend and report problems."""
    from hostler.gateway.cli import cluster_views
    from hostler.gateway.cli.doctor import Doctor, device_rows, finding_rows, program_rows
    from hostler.gateway.cli.formatting import Column, print_parts, print_table
    from hostler.gateway.cli.speed import speed_rows

    with failing_calls():
        target = connect(config, url, key_file)
        target.require_gateway("only gateways have backends")
        examiner = Doctor(target.client)
        if model is None:
            tested, findings = examiner.examine_all()
        else:
            tested, findings = examiner.examine_model(target.model_name(model))
        notes = examiner.notes()
        machines = examiner.machines()
        store, problems = cluster_views.store_problem(target.status), cluster_views.cluster_problems(target.status)
    if as_json:
        print_json(
            {
                "model": tested,
                "hops": findings,
                "backends": notes,
                "devices": machines.devices,
                "programs": machines.programs,
                "speeds": machines.speeds,
                "store": store,
                "cluster": problems,
                "installation": target.status.get("cluster"),
            }
        )
    else:
        print_table(
            [
                Column("BACKEND", named=True),
                Column("MODEL", named=True, drop=2),
                Column("RESULT"),
                Column("TOOK", right=True),
                Column("SWITCHING", right=True, drop=1),
                Column("ADVICE", wraps=True),
            ],
            finding_rows(findings),
        )
        print_parts(*(f"{name}: {note}" for name, note in notes.items()))
        if machines.devices:
            columns = [
                Column("HOST", named=True),
                Column("GPU"),
                Column("CARD"),
                Column("DRIVER"),
                Column("MEMORY", right=True),
            ]
            print_table(columns, device_rows(machines.devices))
        if machines.programs:
            columns = [
                Column("HOST", named=True),
                Column("ENGINE", named=True),
                Column("BUILD"),
                Column("DEVICES", wraps=True),
                Column("LACKS", wraps=True, drop=1),
            ]
            print_table(columns, program_rows(machines.programs))
        if machines.speeds:
            columns = [
                Column("HOST", named=True),
                Column("MODEL", named=True),
                Column("GPU"),
                Column("ON THE GPU"),
                Column("MEASURED", right=True),
                Column("EXPECTED", right=True),
                Column("NOTE", wraps=True),
            ]
            print_table(columns, speed_rows(machines.speeds))
        if cluster := cluster_views.cluster(target.status):
            print_parts("", *cluster)
    if not findings or not all(finding.ok for finding in findings):
        raise typer.Exit(FAILED)
