// The actions of operators, with a dialog first where other clients are affected.

import { get, post, remove } from "./api.js";
import { choose, h, notify } from "./dom.js";
import { plural, seconds } from "./format.js";

async function perform(button, message, run) {
  if (button) button.disabled = true;
  try {
    await run();
    notify(message);
  } catch (error) {
    notify(error.message, true);
  } finally {
    if (button) button.disabled = false;
  }
}

/** The forecast of a load, in sentences. */
export function describeForecast(view, backend) {
  const lines = [];
  if (!view.possible) lines.push(`It does not fit on ${backend}, or failed to load a moment ago.`);
  if (view.state === "ready") lines.push("It is loaded: no switch is needed.");
  if (view.state === "loading") lines.push("It is already loading.");
  if (view.stops.length) lines.push(`${view.stops.join(", ")} will be unloaded on ${backend}.`);
  else if (view.state === "cold" && view.possible) lines.push(`No model has to be unloaded on ${backend}.`);
  if (view.answers) lines.push(`${plural(view.answers, "answer")} in progress will finish first.`);
  if (view.displaced) lines.push(`${plural(view.displaced, "request")} for unloaded models will wait for a switch back.`);
  if (view.ahead) lines.push(`${plural(view.ahead, "other request")} may be served before.`);
  if (view.possible && view.state !== "ready") lines.push(`Loading takes about ${seconds(view.load_s)}; ready in about ${seconds(view.ready_s)}.`);
  return lines;
}

/** Load a model; if that unloads another one, show the forecast first. */
export async function load(model, button, { always = false } = {}) {
  let forecast;
  try {
    forecast = await get(`/admin/forecast?model=${encodeURIComponent(model)}`);
  } catch (error) {
    notify(error.message, true);
    return;
  }
  const [backend, view] = Object.entries(forecast.hosts)[0];
  if (always || view.stops.length || !view.possible) {
    const body = h("ul", {}, ...describeForecast(view, backend).map((sentence) => h("li", {}, sentence)));
    const word = view.stops.length ? "Switch now" : "Load now";
    const choices = view.state === "ready" ? [["", "Close"]] : [["go", word, "main"], ["", "Cancel"]];
    if ((await choose(`Load ${model}?`, body, choices)) !== "go") return;
  }
  notify(`Loading ${model}…`);
  await perform(button, `${model} is loaded.`, () => post("/admin/load", { model }));
}

/** Unload a model; with answers in progress, ask whether to wait for them. */
export async function unload(model, running, button) {
  let force = true;
  if (running) {
    const body = h("p", {}, `${plural(running, "answer")} of ${model} in progress.`);
    const choice = await choose(`Unload ${model}?`, body, [["end", "Wait for them", "main"], ["cut", "Stop them", "danger"], ["", "Cancel"]]);
    if (!choice) return;
    force = choice === "cut";
  }
  await perform(button, force ? `${model} is unloaded.` : `${model} will be unloaded after its answers.`, () => post("/admin/unload", { model, force }));
}

/** Pin a model on a host, or unpin it. */
export async function pin(model, backend, pinned, exclusive, button) {
  if (pinned && exclusive) {
    const body = h("p", {}, `${backend} runs one model at a time. A pinned model stays loaded beside the active one, so both must fit in memory.`);
    if ((await choose(`Pin ${model}?`, body, [["go", "Pin it", "main"], ["", "Cancel"]])) !== "go") return;
  }
  await perform(button, pinned ? `${model} is pinned.` : `${model} is unpinned.`, async () => {
    const answer = await post("/admin/pin", { model, pinned, backend });
    if (!answer.remembered) notify("The supervisor could not save this: it is lost when the supervisor restarts.", true);
  });
}

/** Take a host out of service, or back into it. */
export async function drain(host, draining, button) {
  if (draining) {
    const body = h("p", {}, `${host} takes no new requests. What waits goes to other hosts, answers in progress end, then its models are unloaded.`);
    if ((await choose(`Drain ${host}?`, body, [["go", "Drain it", "main"], ["", "Cancel"]])) !== "go") return;
  }
  await perform(button, draining ? `${host} takes no new requests.` : `${host} is in service again.`, async () => {
    const answer = await post("/admin/drain", { host, draining });
    const alone = Object.keys(answer.only_here);
    if (alone.length) notify(`Nothing else serves ${alone.join(", ")}: their requests wait until ${host} is back.`, true);
    if (!answer.remembered) notify("The supervisor could not save this: it is lost when the supervisor restarts.", true);
  });
}

/** End the lease of a model. */
export async function endLease(lease, button) {
  await perform(button, `The lease of ${lease.model} has ended.`, () => remove(`/admin/leases/${encodeURIComponent(lease.id)}`));
}

/** Cancel a request. */
export async function cancel(id, button) {
  await perform(button, "The request was cancelled.", () => post("/admin/cancel", { id }));
}
