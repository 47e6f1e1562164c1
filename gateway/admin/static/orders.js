// What operators order: asked for first when somebody else would notice.

import { get, post } from "./api.js";
import { ask, h, tell } from "./dom.js";
import { plural, seconds } from "./format.js";

async function carried(button, words, run) {
  if (button) button.disabled = true;
  try {
    await run();
    tell(words);
  } catch (error) {
    tell(error.message, true);
  } finally {
    if (button) button.disabled = false;
  }
}

/** What the gateway expects of a load, in sentences. */
export function outlook(view, backend) {
  const told = [];
  if (!view.possible) told.push(`It does not fit on ${backend}, or failed a moment ago.`);
  if (view.state === "ready") told.push("It is running: nothing has to be switched.");
  if (view.state === "loading") told.push("It is being loaded already.");
  if (view.stops.length) told.push(`${view.stops.join(", ")} will be stopped on ${backend}.`);
  else if (view.state === "cold" && view.possible) told.push(`Nothing has to go for it on ${backend}.`);
  if (view.answers) told.push(`${plural(view.answers, "answer")} in progress will be finished first.`);
  if (view.displaced) told.push(`${plural(view.displaced, "request")} for what is stopped will then wait for a switch back.`);
  if (view.ahead) told.push(`${plural(view.ahead, "other request")} in line may be served before.`);
  if (view.possible && view.state !== "ready") told.push(`Loading takes about ${seconds(view.load_s)}; an answer could begin in about ${seconds(view.ready_s)}.`);
  return told;
}

/** Load a model; when another one has to go for it, what that means is shown before. */
export async function load(model, button, { always = false } = {}) {
  let forecast;
  try {
    forecast = await get(`/admin/forecast?model=${encodeURIComponent(model)}`);
  } catch (error) {
    tell(error.message, true);
    return;
  }
  const [backend, view] = Object.entries(forecast.hosts)[0];
  if (always || view.stops.length || !view.possible) {
    const body = h("ul", {}, ...outlook(view, backend).map((sentence) => h("li", {}, sentence)));
    const word = view.stops.length ? "Switch now" : "Load now";
    const choices = view.state === "ready" ? [["", "Close"]] : [["go", word, "main"], ["", "Not now"]];
    if ((await ask(`If ${model} is asked for now`, body, choices)) !== "go") return;
  }
  tell(`${model} is being loaded …`);
  await carried(button, `${model} is loaded.`, () => post("/admin/load", { model }));
}

/** Stop a model; answers in progress are asked about. */
export async function unload(model, running, button) {
  let force = true;
  if (running) {
    const body = h("p", {}, `${plural(running, "answer")} of ${model} in progress.`);
    const choice = await ask(`Unload ${model}?`, body, [["end", "Let them end first", "main"], ["cut", "Cut them off", "danger"], ["", "Not now"]]);
    if (!choice) return;
    force = choice === "cut";
  }
  await carried(button, force ? `${model} is unloaded.` : `${model} ends when its answers have.`, () => post("/admin/unload", { model, force }));
}

/** Have a model stay loaded on a host, or let it go again. */
export async function pin(model, backend, pinned, exclusive, button) {
  if (pinned && exclusive) {
    const body = h("p", {}, `${backend} runs one model at a time. A pinned model stays beside the others, so that its memory must be enough for both.`);
    if ((await ask(`Pin ${model}?`, body, [["go", "Pin it", "main"], ["", "Not now"]])) !== "go") return;
  }
  await carried(button, pinned ? `${model} is pinned: it stays loaded.` : `${model} is pinned no more.`, async () => {
    const answer = await post("/admin/pin", { model, pinned, backend });
    if (!answer.remembered) tell("The supervisor could not write this down: it is forgotten when it restarts.", true);
  });
}

/** End a request. */
export async function cancel(id, button) {
  await carried(button, "The request was cancelled.", () => post("/admin/cancel", { id }));
}
