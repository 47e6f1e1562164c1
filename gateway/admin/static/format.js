// Numbers for people.

export function seconds(value) {
  if (value === null || value === undefined || !Number.isFinite(value)) return "–";
  if (value === 0) return "0 s";
  if (value < 0.0005) return "<1 ms";
  if (value < 0.9995) return `${Math.max(1, Math.round(value * 1000))} ms`;
  if (value < 9.95) return `${value.toFixed(1)} s`;
  if (value < 90) return `${Math.round(value)} s`;
  const whole = Math.round(value);
  if (whole < 3600) return `${Math.floor(whole / 60)} min ${String(whole % 60).padStart(2, "0")} s`;
  const minutes = Math.round(whole / 60);
  return `${Math.floor(minutes / 60)} h ${String(minutes % 60).padStart(2, "0")} min`;
}

export function bytes(value) {
  if (!value) return "–";
  const units = ["B", "KiB", "MiB", "GiB", "TiB"];
  let size = value;
  let unit = 0;
  while (size >= 1000 && unit < units.length - 1) {
    size /= 1024;
    unit += 1;
  }
  return `${size >= 100 || unit === 0 ? Math.round(size) : size.toFixed(1)} ${units[unit]}`;
}

export function count(value) {
  return value === null || value === undefined ? "–" : value.toLocaleString("en");
}

export function clock(at) {
  return new Date(at * 1000).toLocaleTimeString([], { hour: "2-digit", minute: "2-digit", second: "2-digit", hour12: false });
}

export function moment(at) {
  const then = new Date(at * 1000);
  const today = new Date().toDateString() === then.toDateString();
  return today ? clock(at) : `${then.toLocaleDateString([], { month: "short", day: "numeric" })} ${clock(at)}`;
}

export function money(value) {
  return value === 0 ? "$0" : `$${value < 1 ? value.toFixed(4) : value.toFixed(2)}`;
}

/** Tokens per second after the first token; `null` if unknown. */
export function speed(request) {
  const elapsed = request.seconds - (request.first_token_s ?? request.seconds);
  return request.completion_tokens > 1 && elapsed > 0 ? (request.completion_tokens - 1) / elapsed : null;
}

export function perSecond(rate) {
  return rate >= 9_950 ? `${(rate / 1000).toFixed(rate < 99_500 ? 1 : 0)}k t/s` : `${rate.toFixed(rate < 10 ? 1 : 0)} t/s`;
}

export function plural(number, one, many = `${one}s`) {
  return `${count(number)} ${number === 1 ? one : many}`;
}
