"""`/mcp`: the gateway as an MCP server (streamable HTTP), with the official SDK, which is imported at the first request."""

from __future__ import annotations

import importlib.util
import logging
from typing import TYPE_CHECKING, Any

import anyio
import anyio.to_thread
import msgspec

from hostler.adapters.errors import BadRequest, GatewayError, ModelUnavailable, NotFound
from hostler.gateway.admin.http import error_response
from hostler.gateway.admin.internal_call import InternalCalls
from hostler.gateway.admin.mcp_tools import TOOLS, AgentTool
from hostler.gateway.asgi import CLIENT_KEY, Receive, RouteMatch, Scope, Send
from hostler.gateway.auth.scopes import has_scope
from hostler.gateway.context import Client
from hostler.gateway.routing import Router, gateway_route

if TYPE_CHECKING:
    from mcp.server.lowlevel.server import Server as SDKServer
    from mcp.server.streamable_http_manager import StreamableHTTPSessionManager

logger = logging.getLogger(__name__)

#: The time in which the SDK must be ready, in seconds: it is imported at the first request.
_START_S = 20.0

_INSTRUCTIONS = (
    "Hostler is a gateway for language models. The tools show its models and its state, and let you use them."
)


class MCPRoutes:
    """The route `/mcp`, and its background task `run`. Sessions are not kept: each request stands for itself.

    A client sees the tools that the scopes of its key allow; `use` sets the routes that tools call.
    """

    def __init__(self, version: str) -> None:
        self._version = version
        self._router: Router | None = None
        self._wanted = anyio.Event()
        self._ready = anyio.Event()
        self._manager: StreamableHTTPSessionManager | None = None
        self._streams: set[anyio.CancelScope] = set()

    def routes(self) -> list[RouteMatch]:
        methods = ("GET", "POST", "DELETE")
        return [
            gateway_route("mcp", path, self._serve, scope="read", methods=methods, writes=True)
            for path in ("/mcp", "/mcp/")
        ]

    def use(self, router: Router) -> None:
        """Set the routes."""
        self._router = router

    async def run(self) -> None:
        """Serve from the first request on, until cancelled."""
        await self._wanted.wait()
        try:
            manager = self._manager = await anyio.to_thread.run_sync(self._build)
        except Exception:
            logger.exception("the MCP SDK cannot be used")
            self._ready.set()
            return
        async with manager.run():
            self._ready.set()
            await anyio.sleep_forever()

    async def _serve(self, scope: Scope, receive: Receive, send: Send) -> None:
        if importlib.util.find_spec("mcp") is None:
            error: GatewayError = NotFound("the MCP server requires an extra; run `pip install 'hostler[mcp]'`")
            await error_response(error)(scope, receive, send)
            return
        self._wanted.set()
        with anyio.move_on_after(_START_S):
            await self._ready.wait()
        if self._manager is None:
            await error_response(ModelUnavailable("the MCP server is not ready; see the log"))(scope, receive, send)
            return
        with anyio.CancelScope() as cancel_scope:
            if scope["method"] == "GET":
                self._streams.add(cancel_scope)
            try:
                await self._manager.handle_request(scope, receive, send)
            finally:
                self._streams.discard(cancel_scope)

    def close(self) -> None:
        """End all streams, which else would last until the gateway's drain time is over."""
        for cancel_scope in list(self._streams):
            cancel_scope.cancel()

    def _build(self) -> StreamableHTTPSessionManager:
        logging.getLogger("mcp").setLevel(logging.WARNING)  # it logs each request
        from mcp.server.lowlevel.server import Server
        from mcp.server.streamable_http_manager import StreamableHTTPSessionManager

        server: SDKServer[Any] = Server(
            "hostler",
            version=self._version,
            instructions=_INSTRUCTIONS,
            on_list_tools=self._list_tools,
            on_call_tool=self._call_tool,
        )
        return StreamableHTTPSessionManager(server, json_response=True, stateless=True)

    async def _list_tools(self, context: Any, params: Any) -> Any:
        from mcp_types import ListToolsResult, Tool, ToolAnnotations

        client = _client(context)
        return ListToolsResult(
            tools=[
                Tool(
                    name=tool.name,
                    description=tool.description,
                    input_schema={
                        "type": "object",
                        "properties": dict(tool.parameters),
                        "required": list(tool.required),
                        "additionalProperties": False,
                    },
                    annotations=ToolAnnotations(read_only_hint=tool.scope == "read", destructive_hint=False),
                )
                for tool in TOOLS
                if has_scope(client, tool.scope)
            ]
        )

    async def _call_tool(self, context: Any, params: Any) -> Any:
        from mcp_types import CallToolResult, TextContent

        try:
            text, failed = await self._run(_client(context), params.name, params.arguments or {}), False
        except GatewayError as error:
            text, failed = error.message, True
        return CallToolResult(content=[TextContent(type="text", text=text)], is_error=failed)

    async def _run(self, client: Client, name: str, arguments: dict[str, Any]) -> str:
        assert self._router is not None, "there are no requests before the routes"
        tool = next((each for each in TOOLS if each.name == name and has_scope(client, each.scope)), None)
        if tool is None:
            raise NotFound("there is no tool of this name, or the key lacks its scope")
        _check(tool, arguments)
        value = await tool.run(InternalCalls(self._router, client), arguments)
        return value if isinstance(value, str) else msgspec.json.encode(value).decode()


def _client(context: Any) -> Client:
    client: Client = context.request.scope[CLIENT_KEY]
    return client


def _check(tool: AgentTool, arguments: dict[str, Any]) -> None:
    """Raise `BadRequest` for arguments that the tool's schema does not allow."""
    kinds = {"string": str, "integer": int}
    unknown = arguments.keys() - tool.parameters.keys()
    missing = [name for name in tool.required if not arguments.get(name)]
    if unknown or missing:
        raise BadRequest(f"{tool.name} takes {', '.join(tool.parameters) or 'no arguments'}")
    for name, value in arguments.items():
        kind = tool.parameters[name]["type"]
        if value is not None and (not isinstance(value, kinds[kind]) or isinstance(value, bool)):
            raise BadRequest(f"{name} must be of the type {kind}", param=name)
