// What became of an attempt at a backend, or why it was not even made, in words for people.

const WORDS = {
  answered: "answered",
  unreachable: "could not be reached",
  connect_timeout: "took no connection",
  loading: "was not ready in time",
  not_had: "could not have the model",
  busy: "was busy",
  server_error: "failed",
  rejected: "refused the request",
  key_refused: "refused our key",
  unpaid: "wants to be paid",
  first_byte_timeout: "said nothing in time",
  broken: "broke off its answer",
  client_left: "was given up by the client",
  cancelled: "was given up: cancelled",
  stopped: "was given up: the gateway stopped",
  gateway_failed: "was given up: a mistake in the gateway",
  resting: "is left alone after failures",
  outside: "is outside the house",
  spent: "is left out: the daily limit is spent",
  too_long: "has too small a context",
  not_asked_for: "was not asked for",
  enough_tried: "was not tried any more",
  cannot: "cannot understand such requests",
};

/** The words for a kind; of one that is not known, its own. */
export const words = (kind) => WORDS[kind] ?? kind.replaceAll("_", " ");

/** Why not the hops before, as the gateway says it: `a: busy; b: spent`. */
export function passed(reason) {
  return reason
    .split("; ")
    .map((part) => part.replace(/^(.*): (\w+)$/, (_, backend, kind) => `${backend} ${words(kind)}`))
    .join("; ");
}
