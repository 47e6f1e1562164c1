// Try it: a chat with any model over the OpenAI protocol.

import { errorMessage, events, sessionExpired, url } from "./api.js";
import { h, setText, set, show, notify } from "./dom.js";
import { count, seconds } from "./format.js";
import { mayInfer } from "./permissions.js";
import { state } from "./store.js";

const NO_MODEL = "No models are available. See Now for how to add one.";

const CLOCK = {
  type: "function",
  function: {
    name: "current_time",
    description: "Returns the current date and time.",
    parameters: { type: "object", properties: { zone: { type: "string", description: "a time zone" } } },
  },
};

let wanted = null;

/** Have this model chosen when the section is shown next. */
export function choose(name) {
  wanted = name;
}

export function build(root) {
  if (!mayInfer) {
    root.append(h("p", {}, "This API key lacks the scope infer, which using models requires."));
    return {};
  }
  const model = h("select", { id: "try-model" });
  const system = h("input", { id: "try-system", autocomplete: "off", placeholder: "none" });
  const limit = h("input", { id: "try-limit", type: "number", min: "1", max: "100000", placeholder: "none", inputmode: "numeric" });
  const tools = h("input", { id: "try-tools", type: "checkbox" });
  const text = h("textarea", { id: "try-text", rows: "2", placeholder: "Type a message" });
  const send = h("button", { type: "submit" }, "Send");
  const stop = h("button", { type: "button", class: "danger", hidden: true }, "Stop");
  const clear = h("button", { type: "button", class: "quiet" }, "New chat");
  const talk = h("ol", { class: "talk", "aria-label": "Conversation" });
  const step = h("p", { class: "small", role: "status" });
  const bar = h("progress", { max: "100", hidden: true, "aria-label": "load progress" });
  const choices = h(
    "div",
    { class: "fields card" },
    h("div", { class: "field wide" }, h("label", { for: "try-model" }, "Model"), model),
    h("div", { class: "field wide" }, h("label", { for: "try-system" }, "System prompt"), system),
    h("div", { class: "field" }, h("label", { for: "try-limit" }, "Max tokens"), limit),
    h("div", { class: "field line" }, tools, h("label", { for: "try-tools" }, "Offer a tool (current time)")),
  );
  // Fixed at the bottom, so that the buttons stay in place while the answer grows.
  const form = h(
    "form",
    { class: "card composer" },
    h("div", { class: "field" }, h("label", { for: "try-text" }, "Message"), text),
    h("div", { class: "actions" }, send, stop, clear),
    step,
    bar,
  );
  const kept = h("p", { class: "soft small" });
  root.append(kept, choices, talk, form);
  // It grows with what it shows: the style sheet needs its height to keep what has the focus above it.
  new ResizeObserver(() => page.style.setProperty("--composer", `${form.offsetHeight}px`)).observe(form);

  let messages = [];
  let abort = null;
  let sendWhenListed = false;

  const options = () => {
    setText(kept, state.recording ? "This chat is not saved by the page, but the gateway records it." : "This chat is saved neither by the page nor by the gateway.");
    const listed = state.models.filter((each) => each.listed);
    const names = listed.map((each) => each.name);
    if (state.version && !names.length && sendWhenListed) {
      sendWhenListed = false;
      setText(step, NO_MODEL);
    }
    const texts = listed.map((each) => (each.state === "unavailable" ? `${each.name} (unavailable)` : each.name));
    if (texts.join("\n") !== model.dataset.texts) {
      const chosen = model.value || state.active || state.default;
      model.dataset.texts = texts.join("\n");
      model.replaceChildren(...names.map((name, index) => h("option", { value: name, selected: name === chosen }, texts[index])));
    }
    if (names.includes(wanted)) {
      model.value = wanted;
      wanted = null;
    }
    if (sendWhenListed && model.value) form.requestSubmit();
  };

  const busy = (working) => {
    send.disabled = working;
    show(stop, working);
    if (!working) show(bar, false);
  };

  const run = async () => {
    const answer = entry("assistant", model.value);
    talk.append(answer.node);
    const mine = (abort = new AbortController());
    busy(true);
    setText(step, "Waiting…");
    const began = performance.now();
    try {
      const body = { model: model.value, stream: true, stream_options: { include_usage: true }, messages: [...(system.value ? [{ role: "system", content: system.value }] : []), ...messages] };
      if (limit.value) body.max_tokens = Number(limit.value);
      if (tools.checked) body.tools = [CLOCK];
      const response = await fetch(url("/v1/chat/completions"), { method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify(body), signal: mine.signal });
      if (!response.ok) {
        if (response.status === 401) sessionExpired();
        throw new Error(errorMessage(await response.json().catch(() => null), response.status));
      }
      answer.via(response.headers);
      await read(response.body, answer, began);
    } catch (error) {
      if (abort !== mine) return; // a new chat was started
      if (error.name === "AbortError") answer.note("stopped");
      else {
        answer.fail(error.message);
        notify(error.message, true);
      }
      setText(step, "");
    }
    if (abort !== mine) return;
    busy(false);
    abort = null;
    const message = answer.message();
    if (message) messages.push(message);
    else messages.pop();
    text.focus();
  };

  const read = async (stream, answer, began) => {
    let first = null;
    let usage = null;
    for await (const { data } of events(stream)) {
      if (data === "[DONE]") break;
      const chunk = JSON.parse(data);
      if (chunk.error) throw new Error(errorMessage(chunk, 0));
      if (chunk.x_hostler) {
        waiting(chunk.x_hostler);
        continue;
      }
      if (chunk.usage) usage = chunk.usage;
      const choice = chunk.choices?.[0];
      if (!choice) continue;
      const follows = atEnd();
      const added = answer.add(choice.delta ?? {});
      if (follows) scrollToEnd();
      if (added && first === null) {
        first = (performance.now() - began) / 1000;
        show(bar, false);
        setText(step, "Generating…");
      }
      if (choice.finish_reason) answer.finish = choice.finish_reason;
    }
    const total = (performance.now() - began) / 1000;
    const summary = [first !== null && `first token after ${seconds(first)}`, `${seconds(total)} total`];
    if (usage) summary.push(`${count(usage.prompt_tokens)} + ${count(usage.completion_tokens)} tokens`);
    if (answer.finish && answer.finish !== "stop") summary.push(answer.finish === "length" ? "stopped at the token limit" : answer.finish.replaceAll("_", " "));
    answer.note(summary.filter(Boolean).join(" · "));
    setText(step, "Done.");
  };

  const waiting = (progress) => {
    const words = [progress.phase === "queued" ? `queued${progress.position ? `, position ${progress.position}` : ""}` : `${progress.phase} ${progress.model}`];
    if (progress.percent !== null && progress.percent !== undefined) words.push(`${Math.round(progress.percent)} %`);
    if (progress.eta_s) words.push(`about ${seconds(progress.eta_s)} left`);
    setText(step, words.join(", "));
    show(bar, true);
    if (progress.percent === null || progress.percent === undefined) bar.removeAttribute("value");
    else bar.value = progress.percent;
  };

  form.addEventListener("submit", (event) => {
    event.preventDefault();
    const content = text.value.trim();
    if (!content || abort) return;
    sendWhenListed = false;
    options();
    if (!model.value) {
      sendWhenListed = !state.version; // sent as soon as the models are listed
      setText(step, sendWhenListed ? "Waiting for the list of models…" : NO_MODEL);
      return;
    }
    text.value = "";
    messages.push({ role: "user", content });
    const mine = entry("user", "You");
    mine.add({ content });
    talk.append(mine.node);
    run();
    scrollToEnd();
  });
  text.addEventListener("keydown", (event) => {
    if (event.key === "Enter" && !event.shiftKey && !event.isComposing) {
      event.preventDefault();
      form.requestSubmit();
    }
  });
  stop.addEventListener("click", () => abort?.abort());
  clear.addEventListener("click", () => {
    abort?.abort();
    abort = null;
    busy(false);
    messages = [];
    talk.replaceChildren();
    setText(step, "");
    text.focus();
  });
  return { update: options };
}

const page = document.documentElement;

/** Whether the page is scrolled to its end; readers further up are not moved. */
const atEnd = () => innerHeight + scrollY >= page.scrollHeight - 80;

const scrollToEnd = () => scrollTo(0, page.scrollHeight);

/** One message of the conversation: thinking, text and tool calls as they arrive. */
function entry(role, name) {
  const thought = h("div");
  const thinking = h("details", { open: true, hidden: true }, h("summary", {}, "Thinking"), thought);
  const body = h("div", { class: "text" });
  const calls = h("div");
  const foot = h("p", { class: "soft small" });
  const from = h("p", { class: "soft small" }, name);
  const node = h("li", { "data-role": role }, from, thinking, body, calls, foot);
  const called = new Map();
  let content = "";
  const result = {
    node,
    finish: "",
    add(delta) {
      const thinks = delta.reasoning_content ?? delta.reasoning;
      if (thinks) {
        show(thinking, true);
        thought.append(thinks);
      }
      if (delta.content) {
        content += delta.content;
        body.append(delta.content);
      }
      for (const call of delta.tool_calls ?? []) {
        let known = called.get(call.index ?? 0);
        if (!known) {
          known = { id: call.id, name: "", arguments: "", node: h("pre", { tabindex: "0", "aria-label": "tool call" }) };
          called.set(call.index ?? 0, known);
          calls.append(h("p", { class: "small" }, "Tool call:"), known.node);
        }
        known.id ??= call.id;
        known.name += call.function?.name ?? "";
        known.arguments += call.function?.arguments ?? "";
        setText(known.node, `${known.name}(${known.arguments})`);
      }
      return Boolean(thinks || delta.content || delta.tool_calls?.length);
    },
    via(headers) {
      const backend = headers.get("x-hostler-backend");
      const served = headers.get("x-hostler-model");
      if (backend) setText(from, `${served ?? name} on ${backend}`);
    },
    note(text) {
      setText(foot, text);
      if (content) thinking.open = false;
    },
    fail(text) {
      set(foot, "class", "bad small");
      setText(foot, text);
    },
    message: () => (content ? { role: "assistant", content } : null),
  };
  return result;
}
