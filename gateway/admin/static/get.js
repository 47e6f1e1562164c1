// Get models: search registries, see what fits this machine, download, and have the profile added. For operators.

import { badge, cells, facts, h, keyed, notify, set, setText, show, table } from "./dom.js";
import { get, post, remove } from "./api.js";
import { bytes, count, plural } from "./format.js";
import { choose } from "./tryit.js";

const FOUND = ["repository", "downloads", "likes", ""];
const OFFERED = ["quantization", "size", "files", "fits", "context", ""];
const RUNNING_MS = 500;
const IDLE_MS = 5000;
const STATES = { downloading: "warn", adding: "warn", done: "good", failed: "bad", cancelled: "" };
const PHASES = { waiting: "waiting for the server", unpacking: "unpacking", verifying: "verifying" };

export function build(root) {
  const disabled = h("p", { class: "bad", role: "alert", hidden: "" });
  const words = h("input", { id: "get-words", type: "search", autocomplete: "off", spellcheck: "false", required: "" });
  const button = h("button", { type: "submit" }, "Search");
  const form = h("form", { role: "search", on: { submit } }, h("div", { class: "fields" }, h("div", { class: "field wide" }, h("label", { for: "get-words" }, "Model"), words), button));
  const hint = h("p", { class: "soft small" }, "Words to search Hugging Face for, or a name: ", h("code", {}, "hf.co/org/repo:Q4_K_M"), " or, from Ollama's registry, ", h("code", {}, "qwen3:8b"), ".");
  const outcome = h("div", { "aria-live": "polite" });
  const downloads = h("ul", { class: "plain downloads", "aria-label": "Downloads" });
  const downloadsCard = h("section", { class: "card", "aria-label": "Downloads", hidden: "" }, h("h3", {}, "Downloads"), downloads);
  root.append(h("div", { class: "card" }, disabled, form, hint), downloadsCard, outcome);
  let timer = null;
  let asked = 0;
  let shown = false;
  let searched = null;

  async function submit(event) {
    event.preventDefault();
    const text = words.value.trim();
    if (!text) return;
    const isName = (/[/:]/.test(text) && !/\s/.test(text)) || text.startsWith("-hf ");
    searched = null;
    await (isName ? ask("/admin/registry/model?name=", text, offerCard) : ask("/admin/registry/search?words=", text, foundCard));
  }

  async function ask(path, text, card) {
    const own = (asked += 1);
    button.disabled = true;
    outcome.replaceChildren(h("p", { class: "soft" }, "Asking…"));
    try {
      const answer = await get(`${path}${encodeURIComponent(text)}`);
      if (own === asked) outcome.replaceChildren(card(answer));
    } catch (error) {
      if (own === asked) outcome.replaceChildren(h("div", { class: "card" }, h("p", { class: "bad", role: "alert" }, error.message)));
    } finally {
      if (own === asked) button.disabled = false;
    }
  }

  function foundCard(answer) {
    searched = answer;
    const { repositories } = answer;
    if (!repositories.length) return h("p", {}, "No repository with GGUF files was found.");
    const rows = h("tbody");
    keyed(rows, repositories, (each) => each.name, foundRow);
    return h("section", { class: "card", "aria-label": "Repositories" }, table("Repositories", FOUND, rows));
  }

  function foundRow(each) {
    const open = h("button", { type: "button", class: "quiet", "aria-label": `Files of ${each.name}`, on: { click: () => ask("/admin/registry/model?name=", `hf.co/${each.name}`, offerCard) } }, "Files");
    const name = h("span", {}, each.name, each.note && [" ", badge(each.note, "warn").node]);
    return { node: h("tr", { role: "row" }, ...cells(FOUND, [name, count(each.downloads), count(each.likes), open], ["free long"])) };
  }

  function offerCard(offer) {
    const fields = facts({ room: "this machine", licence: "licence", projector: "for images or sound", draft: "drafts tokens" });
    const short = offer.licenses.filter((text) => text.length < 80 && !text.includes("\n"));
    fields.update({
      room: offer.room,
      licence: short.join(", ") || (offer.licenses.length ? "" : "not named"),
      projector: offer.projector_size ? `${offer.projector || "a projector"}, ${bytes(offer.projector_size)}` : "",
      draft: offer.draft_size ? `${offer.draft}, ${bytes(offer.draft_size)}` : "",
    });
    const name = h("input", { id: "get-name", maxlength: "128", autocomplete: "off", spellcheck: "false", placeholder: "from the file's name" });
    const rows = h("tbody");
    keyed(rows, offer.models, (each) => each.reference, (each) => offeredRow(each, name));
    const back = searched !== null && h("button", { type: "button", class: "quiet", on: { click: () => outcome.replaceChildren(foundCard(searched)) } }, "Back to the results");
    return h(
      "section",
      { class: "card", "aria-label": offer.repository },
      h("div", { class: "head" }, h("h3", {}, offer.repository), h("span", { class: "end" }, back)),
      fields.node,
      ...offer.licenses.filter((text) => !short.includes(text)).map(licence),
      h("div", { class: "fields" }, h("div", { class: "field wide" }, h("label", { for: "get-name" }, "Name of the profile"), name)),
      table("Files", OFFERED, rows),
    );
  }

  function licence(text) {
    const first = text.trim().split("\n", 1)[0].slice(0, 80);
    return h("details", {}, h("summary", {}, `Licence: ${first}`), h("pre", { tabindex: "0" }, text));
  }

  function offeredRow(each, name) {
    const download = h(
      "button",
      { type: "button", class: each.chosen ? null : "quiet", "aria-label": `Download ${each.quantization}`, on: { click: () => start(each, name.value.trim() || each.name, download) } },
      "Download",
    );
    const fits = badge(each.fits || "unknown", each.fits === "yes" ? "good" : each.fits === "no" ? "bad" : each.fits ? "warn" : "");
    const chosen = each.chosen ? `${each.quantization} (suggested)` : each.quantization;
    const values = [chosen, bytes(each.size), each.files > 1 ? plural(each.files, "file") : "1 file", fits.node, each.context === null ? "–" : count(each.context), download];
    return { node: h("tr", { role: "row" }, ...cells(OFFERED, values, ["free long"])) };
  }

  async function start(each, name, pressed) {
    pressed.disabled = true;
    try {
      await post("/admin/downloads", { model: each.reference, name });
      notify(`Downloading ${name}…`);
      await refresh();
    } catch (error) {
      notify(error.message, true);
    } finally {
      pressed.disabled = false;
    }
  }

  async function refresh() {
    clearTimeout(timer);
    let running = false;
    try {
      const view = await get("/admin/downloads");
      keyed(downloads, view.downloads, (each) => each.id, downloadRow);
      show(downloadsCard, view.downloads.length > 0);
      setText(disabled, view.disabled ?? "");
      show(disabled, view.disabled !== null);
      running = view.downloads.some((each) => each.state in PENDING);
    } catch (error) {
      notify(error.message, true);
    }
    clearTimeout(timer);
    if (shown) timer = setTimeout(refresh, running ? RUNNING_MS : IDLE_MS);
  }

  function downloadRow(item) {
    const state = badge();
    const bar = h("progress", { max: "1", "aria-label": `Progress of ${item.name}` });
    const words = h("p", { class: "small soft" });
    const stop = h("button", { type: "button", class: "quiet", on: { click: cancel } });
    const use = h("a", { href: "./#try", hidden: "", on: { click: () => choose(item.name) } }, "Try it");
    const node = h("li", {}, h("div", { class: "head" }, h("strong", {}, item.name), state.node, use, h("span", { class: "end" }, stop)), bar, words);

    async function cancel() {
      stop.disabled = true;
      try {
        await remove(`/admin/downloads/${encodeURIComponent(item.id)}`);
      } catch (error) {
        notify(error.message, true);
      }
      stop.disabled = false;
      await refresh();
    }

    const update = (view) => {
      const loading = view.state === "downloading";
      state.update(view.state === "done" ? "ready to use" : view.state, STATES[view.state]);
      show(use, view.state === "done");
      show(bar, view.state in PENDING);
      set(bar, "value", loading && view.total ? view.completed / view.total : null);
      setText(words, view.state === "done" && view.message ? `How it runs: ${view.message}` : view.message || progress(view));
      show(stop, view.state !== "adding");
      setText(stop, loading ? "Cancel" : "Dismiss");
      set(stop, "aria-label", `${loading ? "Cancel" : "Dismiss"} ${view.name}`);
    };
    return { node, update };
  }

  return {
    enter() {
      shown = true;
      refresh();
    },
    leave() {
      shown = false;
      clearTimeout(timer);
    },
  };
}

const PENDING = { downloading: true, adding: true };

function progress({ state, file, phase, completed, total }) {
  if (state === "adding") return "adding the profile";
  const done = completed ? `${bytes(completed)}${total ? ` of ${bytes(total)}` : ""}` : "";
  return [file, PHASES[phase] ?? "", done].filter(Boolean).join(", ") || "asking the registry";
}
