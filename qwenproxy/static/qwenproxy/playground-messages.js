// The messages of a conversation as fields: a text is edited as text, parts as JSON; the rest of a message stays.

const MAX_FIELD_ROWS = 14;

export class Conversation {
  constructor(list, system) {
    this.list = list;
    this.system = system;
    this.rows = [];
    this.system.addEventListener("input", () => fit(this.system));
  }

  load(messages) {
    const [first, ...others] = messages;
    const isSystem = first?.role === "system" && typeof first.content === "string";
    this.system.value = isSystem ? first.content : "";
    fit(this.system);
    for (const message of isSystem ? others : messages) this.add(message);
  }

  clear() {
    this.rows = [];
    this.list.replaceChildren();
  }

  add(message, label = "") {
    const row = new Row(message, label, () => {
      this.rows = this.rows.filter((other) => other !== row);
    });
    this.rows.push(row);
    this.list.append(row.element);
    fit(row.field);
    return row.field;
  }

  nextRole() {
    return this.rows.at(-1)?.message.role === "user" ? "assistant" : "user";
  }

  problem() {
    const index = this.rows.findIndex((row) => row.problem());
    if (index >= 0) {
      this.rows[index].field.focus();
      return `Message ${index + 1}: ${this.rows[index].problem()}`;
    }
    if (!this.rows.length || this.rows.at(-1).message.role === "assistant") return "Write a message first.";
    return "";
  }

  body() {
    const system = this.system.value.trim() ? [{ role: "system", content: this.system.value }] : [];
    return [...system, ...this.rows.map((row) => row.body())];
  }
}

class Row {
  constructor(message, label, onRemove) {
    this.message = message;
    this.isText = typeof message.content === "string" || message.content == null;
    this.field = document.createElement("textarea");
    this.field.value = this.isText ? (message.content ?? "") : JSON.stringify(message.content, null, 2);
    this.field.addEventListener("input", () => fit(this.field));
    this.element = document.createElement("li");
    this.element.className = "message";
    this.element.dataset.form = this.isText ? "text" : "json";
    this.element.append(this.head(label, onRemove), this.field, ...this.rest());
    this.name();
  }

  head(label, onRemove) {
    const head = document.createElement("div");
    head.className = "head";
    head.append(this.roles(label));
    const button = document.createElement("button");
    button.type = "button";
    button.className = "light";
    button.textContent = "Remove";
    button.addEventListener("click", () => {
      this.element.remove();
      onRemove();
    });
    head.append(button);
    return head;
  }

  roles(label) {
    const { role } = this.message;
    if (role !== "user" && role !== "assistant") {
      const text = document.createElement("label");
      text.textContent = role === "tool" ? `Result of ${label || this.message.tool_call_id}` : role;
      return text;
    }
    const select = document.createElement("select");
    select.setAttribute("aria-label", "Role");
    for (const name of ["user", "assistant"]) select.add(new Option(name, name, false, name === role));
    select.addEventListener("change", () => {
      this.message = { ...this.message, role: select.value };
      this.name();
    });
    return select;
  }

  // Members that are sent as they are.
  rest() {
    const { role, content, tool_call_id: call, ...others } = this.message;
    if (!Object.keys(others).length) return [];
    const element = document.createElement("p");
    element.className = "more";
    element.textContent = JSON.stringify(others);
    return [element];
  }

  name() {
    this.element.dataset.role = this.message.role;
    const form = this.isText ? "" : ", as JSON";
    this.field.setAttribute("aria-label", `Message of ${this.message.role}${form}`);
  }

  problem() {
    if (this.isText) return "";
    try {
      JSON.parse(this.field.value);
      return "";
    } catch (error) {
      return `not JSON: ${error.message}`;
    }
  }

  body() {
    if (!this.isText) return { ...this.message, content: JSON.parse(this.field.value) };
    const isNull = this.message.content == null && !this.field.value;
    return { ...this.message, content: isNull ? null : this.field.value };
  }
}

// As high as its text, by a guess of how many characters a line takes.
export function fit(field) {
  const lines = field.value.split("\n").map((line) => Math.max(Math.ceil(line.length / 95), 1));
  field.rows = Math.min(lines.reduce((sum, rows) => sum + rows, 0), MAX_FIELD_ROWS);
}
