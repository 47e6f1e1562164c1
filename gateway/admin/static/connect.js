// Connect: settings for clients, with this gateway's address, ready to copy.

import { get, url as address } from "./api.js";
import { h, rich, notify } from "./dom.js";
import { count } from "./format.js";
import { state } from "./store.js";

const AGENTS_WANT = 64_000;
const LOOPBACK = ["127.0.0.1", "localhost", "[::1]"].includes(location.hostname);
const KEYED = document.querySelector("form[action='logout']") !== null;

export function build(root) {
  const list = h("div", { class: "recipes" });
  const intro = h(
    "p",
    { class: "soft" },
    ...rich(KEYED ? "Replace `YOUR_KEY` with your API key; `hostler keys add NAME` creates one." : "No API key is needed here; programs that require one accept any value."),
  );
  root.append(intro, list);
  let drawn = "";
  let protocols = new Set();
  get("/openapi.json")
    .then((description) => {
      protocols = new Set(Object.values(description.paths).flatMap((methods) => Object.values(methods).flatMap((each) => each.tags)));
      drawn = "";
      update();
    })
    .catch((error) => notify(error.message, true));
  const update = () => {
    if (!state.version) return; // the models are not known yet
    const model = state.active ?? state.default ?? state.models[0]?.name ?? "MODEL";
    const key = JSON.stringify([model, state.models.find((each) => each.name === model)?.context, [...protocols]]);
    if (key === drawn || !protocols.size) return;
    drawn = key;
    list.replaceChildren(...recipes(model).filter((each) => protocols.has(each.protocol)).map(card));
  };
  return { update };
}

function card({ title, where, text }) {
  const code = h("pre", { tabindex: "0", "aria-label": `Settings for ${title}` }, h("code", {}, text));
  const copy = h("button", { type: "button", class: "quiet", "aria-label": `Copy the settings for ${title}`, on: { click: () => copyText(text, code) } }, "Copy");
  return h("section", { class: "card", "aria-label": title }, h("div", { class: "head" }, h("h3", {}, title), h("span", { class: "end" }, copy)), h("p", { class: "soft small" }, ...rich(where)), code);
}

async function copyText(text, code) {
  try {
    await navigator.clipboard.writeText(text);
    notify("Copied.");
  } catch {
    // Without TLS there is no clipboard: the text is selected instead.
    getSelection().selectAllChildren(code);
    notify(document.execCommand("copy") ? "Copied." : "Selected: press Ctrl+C.");
  }
}

function recipes(model) {
  const url = address("/").replace(/\/$/, "");
  const key = KEYED ? "YOUR_KEY" : "unused";
  const context = state.models.find((each) => each.name === model)?.context ?? 0;
  const small = context && context < AGENTS_WANT ? context : 0;
  const shell = (word) => `'${word.replaceAll("'", "'\\''")}'`;
  return [
    {
      protocol: "openai",
      title: "Hermes Desktop and Hermes Agent",
      where: `In \`~/.hermes/config.yaml\`, or in the app: Settings, Providers, Custom endpoint.${small ? ` Agents need a context of at least 64,000 tokens, and ${model} has ${count(small)}: set \`context: 65536\` in its profile.` : ""}`,
      text: `model:\n  provider: custom\n  base_url: ${url}/v1\n  api_key: ${key}\n  default: ${JSON.stringify(model)}`,
    },
    {
      protocol: "openai",
      title: "OpenAI SDKs",
      where: "In the program's environment, or in its code.",
      text: `export OPENAI_BASE_URL=${url}/v1\nexport OPENAI_API_KEY=${key}\n\n# Python\nfrom openai import OpenAI\nclient = OpenAI(base_url="${url}/v1", api_key="${key}")\nclient.chat.completions.create(model=${JSON.stringify(model)},\n    messages=[{"role": "user", "content": "Hello!"}])`,
    },
    {
      protocol: "openai",
      title: "curl",
      where: "In a terminal.",
      text: `curl ${url}/v1/chat/completions \\\n  -H 'Content-Type: application/json' \\\n${KEYED ? `  -H 'Authorization: Bearer ${key}' \\\n` : ""}  -d ${shell(JSON.stringify({ model, messages: [{ role: "user", content: "Hello!" }] }))}`,
    },
    {
      protocol: "openai",
      title: "Open WebUI",
      where: `In the environment of its container${LOOPBACK ? ", which needs `--network host` to reach this address" : ""}, or in Admin Panel, Settings, Connections, OpenAI API.`,
      text: `ENABLE_OPENAI_API=true\nOPENAI_API_BASE_URL=${url}/v1\nOPENAI_API_KEY=${key}`,
    },
    {
      protocol: "ollama",
      title: "Ollama clients",
      where: "In the environment of `ollama` and of programs that use its library.",
      text: `export OLLAMA_HOST=${url}\nollama run ${shell(model)}${KEYED ? `\n\n# Python\nfrom ollama import Client\nClient(host="${url}", headers={"Authorization": "Bearer ${key}"})` : ""}`,
    },
    {
      protocol: "anthropic",
      title: "Claude Code",
      where: "In the terminal that runs `claude`.",
      text: `export ANTHROPIC_BASE_URL=${url}\nexport ANTHROPIC_AUTH_TOKEN=${key}\nexport ANTHROPIC_MODEL=${shell(model)}\nexport ANTHROPIC_SMALL_FAST_MODEL=${shell(model)}\nclaude`,
    },
    {
      protocol: "lmstudio",
      title: "LM Studio clients",
      where: "Server address.",
      text: `${url}`,
    },
    {
      protocol: "llamacpp",
      title: "llama.cpp's clients",
      where: "Address of llama-server.",
      text: `${url}`,
    },
  ];
}
