"""The tests mirror the packages: a module's tests stand in `test_MODULE.py`, or `test_MODULE_ASPECT.py`, at its place."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
TESTS = ROOT / "tests"
PACKAGES = ("adapters", "gateway", "profiles", "supervisor")
MAX_LINES = 600

#: Modules without a test file of their own, and what tests them.
TESTED_ELSEWHERE = {
    "adapters/anthropic/operations.py": ["adapters/test_transcripts.py", "adapters/test_compatibility.py"],
    "adapters/anthropic/schema.py": ["adapters/anthropic/test_response_parser.py"],
    "adapters/lmstudio/operations.py": ["adapters/lmstudio/test_adapter.py"],
    "adapters/canonical.py": ["adapters/test_transcripts.py"],
    "adapters/stored_response.py": ["adapters/openai/test_stored.py", "gateway/test_response_store.py"],
    "gateway/__main__.py": ["system/test_startup.py"],
    "gateway/admin/backends.py": ["system/test_discovery.py"],
    "gateway/admin/app.py": ["system/test_admin_routes.py", "system/test_login.py"],
    "gateway/admin/drain.py": ["system/test_drain.py"],
    "gateway/admin/dry_run.py": ["system/test_chain.py"],
    "gateway/admin/key_list.py": ["system/test_key_limits.py", "gateway/cli/test_keys.py"],
    "gateway/admin/logs.py": ["system/test_admin_events.py"],
    "gateway/setting_rules.py": ["gateway/test_config.py"],
    "gateway/settings.py": ["gateway/test_config.py", "test_docs.py"],
    "gateway/server/cycle.py": ["gateway/server/test_http_protocol.py", "gateway/server/test_http_protocol_reuse.py"],
    "gateway/worker.py": ["system/test_workers.py"],
    "gateway/workers/pool.py": ["gateway/workers/test_process.py"],
    "gateway/in_flight.py": ["gateway/admin/test_status.py", "system/test_admin_routes.py"],
    "gateway/target_request.py": ["gateway/test_proxy.py", "system/test_request_rewriting.py"],
    "gateway/middleware/resumable_streams.py": ["system/test_resumable_streams.py"],
    "gateway/admin/internal_call.py": ["system/test_mcp.py"],
    "gateway/admin/mcp_server.py": ["system/test_mcp.py"],
    "gateway/admin/mcp_tools.py": ["system/test_mcp.py"],
    "gateway/admin/model_leases.py": ["system/test_model_leases.py"],
    "gateway/cli/leases.py": ["system/test_model_leases.py"],
    "gateway/admin/routes.py": ["system/test_admin_routes.py", "system/test_admin_events.py"],
    "gateway/admin/transcripts.py": ["system/test_recording.py"],
    "gateway/cluster/cluster.py": ["system/test_cluster.py"],
    "gateway/cluster/budget_books.py": ["gateway/cluster/test_key_budgets.py"],
    "gateway/cluster/ledger.py": ["gateway/cluster/test_key_budgets.py", "gateway/cluster/test_spending.py"],
    "gateway/importing/litellm_models.py": ["gateway/importing/test_litellm.py"],
    "gateway/importing/litellm_providers.py": ["gateway/importing/test_litellm.py"],
    "gateway/importing/llama_swap_macros.py": ["gateway/importing/test_llama_swap.py"],
    "gateway/importing/llama_swap_models.py": ["gateway/importing/test_llama_swap.py"],
    "gateway/importing/request_filters.py": ["gateway/importing/test_llama_swap.py"],
    "gateway/importing/sampling_parameters.py": ["gateway/importing/test_ollama.py"],
    "gateway/importing/yaml_source.py": ["gateway/importing/test_llama_swap.py"],
    "gateway/asgi.py": ["gateway/test_app_servers.py"],
    "gateway/batch_turns.py": ["system/test_batches.py"],
    "gateway/lazy_registries.py": ["system/test_registries.py"],
    "gateway/hosted_models.py": ["gateway/test_model_catalog.py"],
    "gateway/placements.py": ["gateway/test_model_catalog.py"],
    "gateway/batches/anthropic_api.py": ["system/test_batches.py"],
    "gateway/batches/api.py": ["system/test_batches.py"],
    "gateway/batches/openai_api.py": ["system/test_batches.py"],
    "gateway/batches/records.py": ["gateway/batches/test_store.py"],
    "gateway/batches/service.py": ["system/test_batches.py", "system/test_batches_restart.py"],
    "gateway/internal_request.py": ["system/test_mcp.py", "system/test_batches.py"],
    "gateway/auth/middleware.py": ["system/test_security.py"],
    "gateway/backends/preview.py": ["system/test_request_rewriting.py"],
    "gateway/backends/addressing.py": ["gateway/test_proxy.py", "system/test_engines.py"],
    "gateway/server/upgrade.py": ["system/test_websockets.py"],
    "gateway/backends/request_waits.py": ["gateway/middleware/test_fallback.py"],
    "gateway/backends/skip_rules.py": ["gateway/middleware/test_fallback.py"],
    "gateway/backends/hop.py": ["gateway/middleware/test_fallback.py", "system/test_discovery.py"],
    "gateway/backends/chain.py": ["gateway/middleware/test_fallback.py", "system/test_chain.py"],
    "gateway/cluster/ledger_layout.py": ["gateway/cluster/test_key_budgets_damage.py"],
    "gateway/cluster/ledger_records.py": ["gateway/cluster/test_key_budgets.py"],
    "gateway/cluster/ledger_restore.py": ["gateway/cluster/test_key_budgets.py"],
    "gateway/cluster/ledger_steps.py": ["gateway/cluster/test_key_budgets.py"],
    "gateway/cluster/ledger_wants.py": ["gateway/cluster/test_key_budgets.py"],
    "gateway/cli/launch.py": ["system/test_cli_terminal.py", "system/test_startup.py"],
    "gateway/cli/models.py": ["system/test_cli_commands.py"],
    "gateway/model_offer.py": ["gateway/test_offered_models.py", "gateway/admin/test_model_downloads.py"],
    "gateway/cli/options.py": ["system/test_cli_errors.py", "system/test_cli_completion.py"],
    "gateway/cli/run.py": ["system/test_cli_terminal.py", "system/test_cli_errors.py"],
    "gateway/cli/status.py": ["system/test_cli_commands.py"],
    "gateway/middleware/stored_responses.py": ["system/test_stored_responses.py"],
    "gateway/events.py": ["system/test_behaviours_events.py"],
    "profiles/schema.py": ["profiles/test_resolution.py"],
    "profiles/yaml_nodes.py": ["profiles/test_profile_edits.py", "profiles/test_setting_edits.py"],
    "supervisor/scheduling/model.py": ["supervisor/scheduling/test_scheduler.py"],
    "gateway/supervisor_app.py": ["supervisor/test_standalone.py"],
    "gateway/telemetry/history_schema.py": ["gateway/telemetry/test_history.py"],
    "gateway/uploads.py": ["gateway/test_model_admin.py", "system/test_model_admin.py"],
    "supervisor/other_releases.py": ["supervisor/test_api.py", "supervisor/test_remote_host.py"],
    "supervisor/config.py": ["supervisor/test_machine_sleep.py", "gateway/test_config.py"],
    "supervisor/contract.py": ["supervisor/test_client.py", "supervisor/test_manager.py"],
    "supervisor/devices/reading.py": ["supervisor/devices/test_discovery.py"],
    "supervisor/scheduling/decision_executor.py": ["supervisor/scheduling/test_orchestrator.py"],
    "supervisor/scheduling/hanging_engines.py": ["supervisor/scheduling/test_orchestrator_recovery.py"],
    "supervisor/scheduling/model_leasing.py": [
        "supervisor/scheduling/test_orchestrator.py",
        "system/test_model_leases.py",
    ],
    "supervisor/scheduling/first_answers.py": ["supervisor/scheduling/test_orchestrator.py"],
    "supervisor/scheduling/queue_events.py": ["supervisor/scheduling/test_orchestrator.py"],
    "supervisor/scheduling/plans.py": ["supervisor/scheduling/test_scheduler.py"],
    "supervisor/scheduling/steps.py": ["supervisor/scheduling/test_scheduler.py"],
    "supervisor/scheduling/schedule.py": ["supervisor/scheduling/test_scheduler.py"],
    "supervisor/scheduling/scheduled_host.py": ["supervisor/scheduling/test_orchestrator.py"],
    "supervisor/scheduling/host.py": ["supervisor/scheduling/test_orchestrator.py", "supervisor/test_remote_host.py"],
    "supervisor/first_starts.py": ["supervisor/test_placement.py", "supervisor/test_manager.py"],
    "supervisor/model_descriptions.py": ["supervisor/test_manager.py", "supervisor/test_model_files.py"],
    "supervisor/process_limits.py": ["supervisor/test_engine_process.py", "supervisor/test_manager.py"],
    "supervisor/slot_requests.py": ["supervisor/test_slot_cache.py"],
    "supervisor/engine_port.py": ["supervisor/test_engine_process.py"],
    "supervisor/engine_sleep.py": ["supervisor/test_sleeping_models.py"],
    "supervisor/process_state.py": ["supervisor/test_engine_process.py"],
    "supervisor/generation.py": ["supervisor/test_engine_process.py"],
    "supervisor/llama_arguments.py": ["supervisor/test_engine_command.py", "supervisor/test_memory.py"],
    "supervisor/followed_host.py": ["supervisor/test_remote_host.py"],
    "supervisor/remote_operations.py": ["supervisor/test_remote_host.py"],
    "supervisor/kept_models.py": ["supervisor/test_manager.py", "system/test_drain.py", "system/test_model_leases.py"],
    "supervisor/managed_models.py": ["supervisor/test_manager.py"],
    "supervisor/lease_link.py": ["supervisor/test_remote_host.py"],
    "supervisor/instruments.py": ["supervisor/test_metrics.py", "gateway/telemetry/test_metrics.py"],
}

#: Test files of several modules of their package.
ACROSS_MODULES = {
    "adapters/anthropic/test_details.py",
    "adapters/anthropic/test_sdk.py",
    "adapters/ollama/test_embeddings.py",
    "adapters/openai/test_heartbeat.py",
    "adapters/openai/test_sdk.py",
    "adapters/test_compatibility.py",
    "adapters/test_conversions.py",
    "adapters/test_forwarding.py",
    "adapters/test_pairs.py",
    "adapters/test_third_party.py",
    "adapters/test_transcripts.py",
    "supervisor/test_standalone.py",
}


def defines_functions(module: str) -> bool:
    """False for modules that only declare types and constants."""
    tree = ast.parse((ROOT / module).read_text())
    return any(isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) for node in ast.walk(tree))


MODULES = sorted(
    str(path.relative_to(ROOT))
    for package in PACKAGES
    for path in (ROOT / package).rglob("*.py")
    if path.name != "__init__.py" and defines_functions(str(path.relative_to(ROOT)))
)
UNIT_TESTS = sorted(
    str(path.relative_to(TESTS)) for package in PACKAGES for path in (TESTS / package).rglob("test_*.py")
)


def own_tests(module: str) -> list[str]:
    """The test files at the mirrored place of a module."""
    folder, stem = (TESTS / module).parent, Path(module).stem
    others = {f"test_{path.stem}.py" for path in (ROOT / module).parent.glob(f"{stem}_*.py")}
    found = (*folder.glob(f"test_{stem}.py"), *folder.glob(f"test_{stem}_*.py"))
    return [str(path.relative_to(TESTS)) for path in found if path.name not in others]


@pytest.mark.parametrize("module", MODULES)
def test_a_module_has_its_test_file(module: str) -> None:
    assert own_tests(module) or module in TESTED_ELSEWHERE


def test_a_unit_test_file_has_its_module() -> None:
    mirrored = {file for module in MODULES for file in own_tests(module)}
    assert set(UNIT_TESTS) - mirrored == ACROSS_MODULES


def test_the_exceptions_are_needed_and_exist() -> None:
    assert [module for module in TESTED_ELSEWHERE if module not in MODULES or own_tests(module)] == []
    assert [file for files in TESTED_ELSEWHERE.values() for file in files if not (TESTS / file).exists()] == []


def test_no_test_file_is_too_long() -> None:
    lines = {str(path): len(path.read_text().splitlines()) for path in TESTS.rglob("*.py")}
    assert {path: count for path, count in lines.items() if count > MAX_LINES} == {}
