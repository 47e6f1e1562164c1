// Display text for outcomes of attempts and reasons for skipping a backend.

const TEXT = {
  answered: "answered",
  unreachable: "unreachable",
  connect_timeout: "connect timeout",
  loading: "still loading",
  model_unavailable: "model unavailable",
  busy: "busy",
  server_error: "server error",
  rejected: "request rejected",
  auth_failed: "authentication failed",
  payment_required: "payment required",
  first_byte_timeout: "first byte timeout",
  broken: "answer broken off",
  client_disconnected: "client disconnected",
  moved: "moved to another host",
  cancelled: "cancelled",
  stopped: "gateway stopped",
  gateway_failed: "internal error",
  circuit_open: "circuit open",
  draining: "draining",
  non_local: "not local",
  budget_exhausted: "daily budget exhausted",
  budget_reserved: "daily budget reserved",
  rate_limited: "rate limit reached",
  too_long: "context too small",
  excluded: "excluded by the request",
  max_attempts: "attempt limit reached",
  unsupported: "unsupported request",
};

/** The text for an outcome or reason; unknown ones as they are. */
export const describe = (kind) => TEXT[kind] ?? kind.replaceAll("_", " ");

/** The text for a request's reason: `a: busy; b: budget_exhausted`. */
export function describeReason(reason) {
  return reason
    .split("; ")
    .map((part) => part.replace(/^(.*): (\w+)$/, (_, backend, kind) => `${backend}: ${describe(kind)}`))
    .join("; ");
}
