// Folds JSON: every <pre data-json> becomes a tree of <details>, made by DOM calls from its text.
// What is folded is built when it is opened first. Without scripts the text stays as it is.
"use strict";

const LONG = 400;
const OPEN_LEVELS = 4;

// A number that JavaScript cannot hold is shown with the digits it was written with.
class Digits {
  constructor(source) {
    this.source = source;
  }
}

function parse(text) {
  return JSON.parse(text, (key, value, context) =>
    typeof value === "number" && context && String(value) !== context.source
      ? new Digits(context.source)
      : value,
  );
}

function span(kind, text) {
  const element = document.createElement("span");
  element.className = `json-${kind}`;
  element.textContent = text;
  return element;
}

function isFold(value) {
  return value !== null && typeof value === "object" && !(value instanceof Digits);
}

function leaf(value) {
  if (value instanceof Digits) return span("number", value.source);
  if (typeof value === "string") {
    // Lines as lines: texts are there to be read. Copy and Download give the JSON.
    const text = value.includes("\n") ? `"${value}"` : JSON.stringify(value);
    return span("string", text);
  }
  return span(typeof value === "number" ? "number" : "word", String(value));
}

function size(value) {
  return Array.isArray(value) ? `[${value.length}]` : `{${Object.keys(value).length}}`;
}

function hint(value) {
  for (const name of ["role", "type", "name", "id"]) {
    if (typeof value[name] === "string") return ` ${value[name].slice(0, 40)}`;
  }
  return "";
}

function fill(parent, value, level) {
  for (const [name, child] of Object.entries(value)) {
    parent.append(node(name, child, level));
  }
}

function fold(name, value, level) {
  const details = document.createElement("details");
  const summary = document.createElement("summary");
  if (name !== null) summary.append(span("name", name), ": ");
  summary.append(span("size", size(value) + (Array.isArray(value) ? "" : hint(value))));
  details.append(summary);
  const build = () => {
    if (details.childElementCount === 1) fill(details, value, level + 1);
  };
  details.addEventListener("toggle", build);
  const children = Object.values(value);
  const isLarge = children.length > 30 && level > 0;
  if (level < OPEN_LEVELS && !isLarge && name !== "tools") {
    build();
    details.open = true;
  }
  return details;
}

function node(name, value, level) {
  if (isFold(value) && Object.keys(value).length) return fold(name, value, level);
  const line = document.createElement("div");
  if (name !== null) line.append(span("name", name), ": ");
  const shown = isFold(value) ? span("size", Array.isArray(value) ? "[]" : "{}") : leaf(value);
  if (typeof value === "string" && value.length > LONG) {
    const details = document.createElement("details");
    details.className = "json-long";
    const summary = document.createElement("summary");
    summary.append(...line.childNodes, span("string", `"${value.slice(0, 160)}…`));
    summary.append(span("size", ` ${value.length.toLocaleString("en")} characters`));
    details.append(summary, shown);
    return details;
  }
  line.append(shown);
  return line;
}

for (const pre of document.querySelectorAll("pre[data-json]")) {
  let value;
  try {
    value = parse(pre.textContent);
  } catch {
    continue;
  }
  const tree = document.createElement("div");
  tree.className = "json";
  tree.id = pre.id;
  tree.tabIndex = 0;
  tree.setAttribute("role", "region");
  tree.setAttribute("aria-labelledby", `${pre.id}-heading`);
  tree.dataset.text = pre.textContent;
  tree.append(node(null, value, 0));
  pre.replaceWith(tree);
}
