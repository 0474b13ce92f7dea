// The playground: builds a body, calls the public API with a short-lived key, shows what comes.

import { readEvents } from "./playground-stream.js";
import { Conversation } from "./playground-messages.js";
import { parameters, fill, showModels } from "./playground-parameters.js";

// Asked anew before its end: an answer only has to begin while the key is good.
const KEY_MARGIN_MS = 30000;
const MAX_RAW_CHARS = 500000;

const config = JSON.parse(document.getElementById("playground-config").textContent);
const form = document.getElementById("playground");
const part = (id) => document.getElementById(id);
const prompt = part("prompt");
const conversation = new Conversation(part("messages"), part("system"));

// In memory alone.
let key = "";
let keyEnds = 0;
let running = null;
// What was answered last, until it becomes a message of the conversation.
let answered = null;

class Problem extends Error {}

async function getKey() {
  if (key && performance.now() < keyEnds - KEY_MARGIN_MS) return key;
  const token = form.querySelector("[name=csrfmiddlewaretoken]").value;
  const answer = await fetch(config.key, {
    method: "POST",
    headers: { "X-CSRFToken": token },
    redirect: "manual",
    cache: "no-store",
  });
  if (answer.type === "opaqueredirect") throw signedOut();
  const body = answer.headers.get("content-type")?.startsWith("application/json") ? await answer.json() : {};
  if (!answer.ok) throw new Problem(body.error || `No key was given for the playground (${answer.status}). Reload the page.`);
  key = body.key;
  keyEnds = performance.now() + body.expires_in_s * 1000;
  part("key-note").textContent = `The key is “${body.name}”, good for ${Math.round(body.expires_in_s / 60)} minutes.`;
  return key;
}

function signedOut() {
  const link = document.createElement("a");
  link.href = config.login;
  link.textContent = "Log in again";
  return Object.assign(new Problem("You are signed out. "), { link });
}

// With a new key where this one was replaced by another tab's.
async function call(url, options = {}) {
  for (const isLast of [false, true]) {
    const headers = { ...options.headers, Authorization: `Bearer ${await getKey()}` };
    const answer = await fetch(url, { ...options, headers, credentials: "omit", cache: "no-store" });
    if (answer.status !== 401 || isLast) return answer;
    key = "";
  }
}

async function loadModels() {
  try {
    const answer = await call(config.models);
    const body = await answer.json();
    if (!answer.ok) throw new Problem(words(body, answer));
    showModels(body.data, config.body?.model);
    if (!body.data.length) throw new Problem("No upstream lists a model now: see Upstream accounts.");
  } catch (error) {
    showModels([], config.body?.model);
    tell(part("model-problem"), error);
  }
}

function tell(place, error) {
  place.textContent = error instanceof Problem ? error.message : "The gateway cannot be reached.";
  if (error.link) place.append(error.link);
  place.hidden = false;
}

function words(body, answer) {
  const error = body?.error ?? {};
  const facts = [answer && `HTTP ${answer.status}`, error.type, error.code, error.param && `param ${error.param}`];
  const again = answer?.headers.get("retry-after");
  const text = error.message || "The gateway gave no reason.";
  const known = facts.filter(Boolean).join(" · ");
  return `${text}${known && ` (${known})`}${again ? ` Try again in ${again} s.` : ""}`;
}

async function send() {
  if (running) return;
  part("problem").hidden = true;
  const given = parameters();
  if (!given) return;
  takeAnswer();
  if (prompt.value.trim()) {
    conversation.add({ role: "user", content: prompt.value });
    prompt.value = "";
  }
  const wrong = conversation.problem();
  if (wrong) {
    tell(part("problem"), new Problem(wrong));
    return;
  }
  await run({ ...given, messages: conversation.body() });
}

function takeAnswer() {
  if (!answered) return;
  conversation.add(answered);
  answered = null;
  part("answer").hidden = true;
}

async function run(body) {
  const view = new Answer(body);
  running = new AbortController();
  setRunning(true);
  try {
    // Before the clock runs.
    await getKey();
    view.begin();
    const answer = await call(config.chat, {
      method: "POST",
      headers: { "Content-Type": "application/json" },
      body: JSON.stringify(body),
      signal: running.signal,
    });
    view.link(answer.headers.get("x-request-id"), answer.headers.get("x-session-id"));
    if (answer.headers.get("content-type")?.startsWith("text/event-stream")) {
      await readEvents(answer.body, (text) => view.raw(text), (event) => view.event(event));
    } else {
      const text = await answer.text();
      view.raw(text);
      view.whole(JSON.parse(text), answer);
    }
  } catch (error) {
    if (error.name === "AbortError") view.note("Stopped. What came until then is kept.");
    else if (error instanceof Problem || !view.rawText) tell(part("answer-problem"), error);
    else tell(part("answer-problem"), new Problem("The connection ended before the answer did."));
  } finally {
    running = null;
    view.end();
    setRunning(false);
  }
}

function setRunning(isRunning) {
  part("send").disabled = isRunning;
  part("stop").disabled = !isRunning;
  part("add").disabled = part("clear").disabled = isRunning;
  part("answer-text").setAttribute("aria-busy", String(isRunning));
}

class Answer {
  constructor(body) {
    for (const id of ["answer-text", "reasoning-text", "raw-text", "calls", "figures"]) part(id).replaceChildren();
    for (const id of ["reasoning", "answer-problem", "answer-note", "links"]) part(id).hidden = true;
    part("sent-text").textContent = JSON.stringify(body, null, 2);
    part("answer").hidden = false;
    this.isStream = body.stream;
    this.text = "";
    this.reasoning = "";
    this.calls = [];
    this.rawText = "";
    this.frame = 0;
    this.usage = null;
    this.reason = "";
    this.firstAt = 0;
    this.startedAt = 0;
  }

  begin() {
    this.startedAt = performance.now();
  }

  link(request, session) {
    part("links").hidden = !request || !session;
    if (!request || !session) return;
    part("request-link").href = config.request.replace(config.any, encodeURIComponent(request));
    part("session-link").href = config.session.replace(config.any, encodeURIComponent(session));
  }

  raw(text) {
    this.rawText += text;
  }

  event(event) {
    if (event.error) {
      tell(part("answer-problem"), new Problem(words(event)));
      return;
    }
    if (event.usage) this.usage = event.usage;
    const choice = event.choices?.[0];
    if (!choice) return;
    this.reason = choice.finish_reason || this.reason;
    this.add(choice.delta ?? {});
  }

  whole(body, answer) {
    if (!answer.ok) throw new Problem(words(body, answer));
    const choice = body.choices?.[0] ?? {};
    this.usage = body.usage;
    this.reason = choice.finish_reason;
    this.add(choice.message ?? {});
  }

  add(delta) {
    const reasoning = delta.reasoning_content ?? "";
    if (!this.firstAt && (delta.content || reasoning || delta.tool_calls)) this.firstAt = performance.now();
    this.text += delta.content ?? "";
    this.reasoning += reasoning;
    for (const [place, piece] of (delta.tool_calls ?? []).entries()) this.addCall(piece, piece.index ?? place);
    // As often as the screen can show it.
    this.frame ||= requestAnimationFrame(() => this.draw());
  }

  addCall(piece, index) {
    const call = (this.calls[index] ??= { id: "", type: "function", function: { name: "", arguments: "" } });
    call.id ||= piece.id ?? "";
    call.function.name += piece.function?.name ?? "";
    call.function.arguments += piece.function?.arguments ?? "";
  }

  draw() {
    this.frame = 0;
    grow(part("answer-text"), this.text);
    grow(part("reasoning-text"), this.reasoning);
    part("reasoning").hidden = !this.reasoning;
    part("reasoning-size").textContent = `${this.reasoning.length.toLocaleString("en")} characters`;
    part("calls").replaceChildren(...this.calls.filter(Boolean).map(drawCall));
    part("figures").textContent = this.figures();
  }

  figures() {
    const took = (until) => duration(until - this.startedAt);
    const texts = [];
    if (this.isStream && this.firstAt) texts.push(`first token ${took(this.firstAt)}`);
    if (!this.endedAt) return texts.join(" · ");
    texts.push(`total ${took(this.endedAt)}`);
    const { prompt_tokens: sent, completion_tokens: got } = this.usage ?? {};
    if (got !== undefined) texts.push(`${sent.toLocaleString("en")} → ${got.toLocaleString("en")} tokens`);
    const seconds = (this.endedAt - this.firstAt) / 1000;
    if (got && this.isStream && this.firstAt && seconds > 0) texts.push(`${(got / seconds).toFixed(1)} tok/s`);
    if (this.reason) texts.push(this.reason);
    return texts.join(" · ");
  }

  note(text) {
    part("answer-note").textContent = text;
    part("answer-note").hidden = false;
  }

  end() {
    cancelAnimationFrame(this.frame);
    if (this.startedAt) this.endedAt = performance.now();
    this.draw();
    const cut = this.rawText.length > MAX_RAW_CHARS;
    part("raw-text").textContent = cut ? `${this.rawText.slice(0, MAX_RAW_CHARS)}\n…` : this.rawText;
    part("raw-size").textContent = `${this.rawText.length.toLocaleString("en")} characters${cut ? ", its beginning" : ""}`;
    const calls = this.calls.filter(Boolean);
    if (this.text || calls.length) answered = { role: "assistant", content: this.text || null };
    if (!calls.length) {
      prompt.focus();
      return;
    }
    // Their results are asked for: the conversation goes on with them.
    conversation.add({ ...answered, tool_calls: calls });
    answered = null;
    for (const call of calls) conversation.add({ role: "tool", tool_call_id: call.id, content: "" }, call.function.name);
    this.note("Fill in the results of the calls above, then send.");
  }
}

// Only what is new is put in: a screen reader hears it once, and a long answer stays cheap.
function grow(element, text) {
  const node = element.firstChild ?? element.appendChild(document.createTextNode(""));
  if (text.startsWith(node.data)) node.appendData(text.slice(node.length));
  else node.data = text;
}

function drawCall(call) {
  const element = document.createElement("div");
  const heading = document.createElement("h3");
  const body = document.createElement("pre");
  element.className = "call";
  heading.textContent = `Calls ${call.function.name}`;
  body.textContent = call.function.arguments;
  element.append(heading, body);
  return element;
}

function duration(ms) {
  return ms < 999.5 ? `${ms.toFixed(0)} ms` : `${(ms / 1000).toFixed(1)} s`;
}

function reset() {
  answered = null;
  conversation.clear();
  part("answer").hidden = true;
  prompt.focus();
}

form.addEventListener("submit", (event) => {
  event.preventDefault();
  send();
});
form.addEventListener("keydown", (event) => {
  if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) {
    event.preventDefault();
    send();
  }
});
document.addEventListener("keydown", (event) => {
  if (event.key === "Escape") running?.abort();
});
part("stop").addEventListener("click", () => running?.abort());
part("clear").addEventListener("click", reset);
part("add").addEventListener("click", () => {
  takeAnswer();
  conversation.add({ role: conversation.nextRole(), content: "" }).focus();
});

if (config.body) {
  fill(config.body);
  conversation.load(config.body.messages ?? []);
}
loadModels();
