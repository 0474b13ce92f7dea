// The live tail: asks for what is new every two seconds, one call at a time, while its tab is seen.

const FIRST_RETRY_MS = 4000;
const LONGEST_RETRY_MS = 30000;
const TIMEOUT_MS = 15000;
const MAX_WATCHED = 200;

const config = JSON.parse(document.getElementById("live-config").textContent);
const body = document.querySelector("#live-table tbody");
const status = document.getElementById("live-status");
const pause = document.getElementById("live-pause");
const problem = document.getElementById("live-problem");
const gap = document.getElementById("live-gap");
const empty = document.getElementById("live-empty");

// Id -> element of a row that is shown.
const shown = new Map();
// Ids of all that runs and may belong here, shown or not: with a status asked for, what runs is not shown.
let watched = new Set();
// When an id was the newest one; the first is older than what may still be on its way into the record.
let marks = [];
let timer = 0;
let isAsking = false;
let isPaused = false;
let isOver = false;
let failures = 0;

function later(ms) {
  clearTimeout(timer);
  timer = setTimeout(tick, ms);
}

function isWanted() {
  return !isPaused && !isOver && document.visibilityState === "visible";
}

async function tick() {
  clearTimeout(timer);
  if (isAsking || !isWanted()) return;
  isAsking = true;
  const asked = [...watched];
  try {
    const answer = await fetch(address(asked), {
      redirect: "manual",
      cache: "no-store",
      signal: AbortSignal.timeout(TIMEOUT_MS),
    });
    if (answer.type === "opaqueredirect") {
      end("You are signed out. ", "Log in again", config.login);
    } else if (answer.status === 403) {
      end("You may not see requests any more.");
    } else if (!answer.ok) {
      retry(`The server answered ${answer.status}`);
    } else {
      take(await answer.json(), asked);
    }
  } catch {
    retry("The server cannot be reached");
  } finally {
    isAsking = false;
  }
}

function address(asked) {
  const query = new URLSearchParams(config.params);
  if (marks.length) query.set("after", marks[0].id);
  if (asked.length) query.set("ids", asked.join(","));
  return `${config.url}?${query}`;
}

function retry(what) {
  const wait = Math.min(FIRST_RETRY_MS * 2 ** failures, LONGEST_RETRY_MS);
  failures += 1;
  problem.textContent = `${what}, trying again in ${wait / 1000} s.`;
  problem.hidden = false;
  tell("stopped");
  later(wait);
}

function end(text, label, url) {
  isOver = true;
  problem.textContent = text;
  if (url) {
    const link = document.createElement("a");
    link.href = url;
    link.textContent = label;
    problem.append(link);
  }
  problem.hidden = false;
  pause.hidden = true;
  tell("stopped");
}

function take(answer, asked) {
  failures = 0;
  problem.hidden = true;
  const isFirst = marks.length === 0;
  gap.hidden = isFirst || answer.complete_from <= marks.at(-1).id + 1;
  remember(answer.newest);
  const found = new Set(answer.rows.map((row) => row.id));
  // Deleted meanwhile.
  for (const id of asked) if (!found.has(id)) remove(id);
  for (const row of answer.rows.sort((a, b) => a.id - b.id)) show(row, !isFirst);
  for (const id of [...shown.keys()].sort((a, b) => b - a).slice(config.max_rows)) {
    shown.get(id).remove();
    shown.delete(id);
  }
  watched = new Set([...watched].sort((a, b) => b - a).slice(0, MAX_WATCHED));
  empty.hidden = shown.size > 0;
  tell(isPaused ? "paused" : "live");
  later(config.interval_ms);
}

function remove(id) {
  watched.delete(id);
  shown.get(id)?.remove();
  shown.delete(id);
}

function remember(id) {
  const now = performance.now();
  marks.push({ id, at: now });
  while (marks.length > 1 && now - marks[1].at > config.overlap_ms) marks.shift();
}

function show(row, isNew) {
  const isRunning = row.status === "in_progress";
  if (isRunning) watched.add(row.id);
  else watched.delete(row.id);
  const old = shown.get(row.id);
  if (config.params.status && row.status !== config.params.status) {
    old?.remove();
    shown.delete(row.id);
    return;
  }
  if (old && !old.isRunning && !isRunning) return;
  const element = build(row);
  element.isRunning = isRunning;
  if (old) {
    const focused = [...old.querySelectorAll("a")].indexOf(document.activeElement);
    old.replaceWith(element);
    element.querySelectorAll("a")[focused]?.focus();
  } else {
    element.classList.toggle("is-new", isNew);
    place(element, row.id);
  }
  shown.set(row.id, element);
}

function place(element, id) {
  element.rowNumber = id;
  let before = body.firstElementChild;
  while (before && before.rowNumber > id) before = before.nextElementSibling;
  body.insertBefore(element, before);
}

function build(row) {
  const element = document.createElement("tr");
  element.rowNumber = row.id;
  const time = document.createElement("time");
  time.dateTime = row.exact;
  time.title = `${row.full} (${row.exact})`;
  time.textContent = row.time;
  element.append(
    cell(time),
    cell(link(config.request, row.id, row.request)),
    cell(link(config.session, row.session, row.session.slice(0, 8))),
    cell(cut(row.key)),
    cell(cut(row.model)),
    cell(...outcome(row)),
    number(row.first_token),
    number(row.total),
    number(`${row.tokens_in} → ${row.tokens_out}`),
  );
  return element;
}

function cell(...children) {
  const element = document.createElement("td");
  element.append(...children);
  return element;
}

function number(text) {
  const element = cell(text);
  element.className = "number";
  return element;
}

function link(url, id, text) {
  const element = document.createElement("a");
  const code = document.createElement("code");
  element.href = url.replace(config.any, encodeURIComponent(id));
  code.textContent = text;
  element.append(code);
  return element;
}

function cut(text) {
  const element = document.createElement("span");
  element.className = "cut";
  element.title = text;
  element.textContent = text;
  return element;
}

function outcome(row) {
  const pill = document.createElement("span");
  pill.className = `pill pill-${row.status}`;
  pill.textContent = row.status.replace("_", " ");
  if (!row.error) return [pill];
  const code = cut(row.error);
  code.classList.add("quiet");
  return [pill, " ", code];
}

function tell(state) {
  const words = { live: "Live", paused: "Paused", stopped: "Not connected" };
  const running = [...shown.values()].filter((element) => element.isRunning).length;
  const text = `${words[state]} · ${shown.size} shown · ${running} running`;
  status.dataset.state = state;
  // The same text again would be read out again.
  if (status.textContent !== text) status.textContent = text;
}

pause.addEventListener("click", () => {
  isPaused = !isPaused;
  pause.textContent = isPaused ? "Resume" : "Pause";
  pause.setAttribute("aria-pressed", String(isPaused));
  if (isPaused) {
    clearTimeout(timer);
    tell("paused");
  } else {
    tick();
  }
});
document.addEventListener("visibilitychange", () => {
  if (isWanted()) tick();
  else clearTimeout(timer);
});

pause.hidden = false;
tick();
