// Display text for outcomes of attempts and reasons for skipping a backend.

const TEXT = {
  answered: "answered",
  unreachable: "was unreachable",
  connect_timeout: "timed out connecting",
  loading: "was still loading",
  model_unavailable: "had the model unavailable",
  busy: "was busy",
  server_error: "failed",
  rejected: "rejected the request",
  auth_failed: "rejected the API key",
  payment_required: "requires payment",
  first_byte_timeout: "timed out before the first byte",
  broken: "broke off its answer",
  client_disconnected: "lost its client",
  cancelled: "was cancelled",
  stopped: "was stopped with the gateway",
  gateway_failed: "hit an internal error in the gateway",
  circuit_open: "skipped: circuit open",
  non_local: "skipped: not local",
  budget_exhausted: "skipped: daily budget exhausted",
  too_long: "skipped: context too small",
  excluded: "skipped: another backend was requested",
  max_attempts: "skipped: attempt limit reached",
  unsupported: "does not support this kind of request",
};

/** The text for an outcome or reason; unknown ones as they are. */
export const describe = (kind) => TEXT[kind] ?? kind.replaceAll("_", " ");

/** The text for a request's reason: `a: busy; b: budget_exhausted`. */
export function describeReason(reason) {
  return reason
    .split("; ")
    .map((part) => part.replace(/^(.*): (\w+)$/, (_, backend, kind) => `${backend} ${describe(kind)}`))
    .join("; ");
}
