// The parameters beside the messages: from fields to the body of a request, and back.

const part = (id) => document.getElementById(id);
const OWN = ["model", "messages", "stream", "stream_options", "temperature", "max_tokens", "enable_thinking", "tools"];

export function showModels(models, wanted) {
  const select = part("model");
  const chosen = wanted || select.value;
  const ids = models.map((model) => model.id);
  select.replaceChildren(...ids.map((id) => new Option(id, id, false, id === chosen)));
  if (chosen && !ids.includes(chosen)) select.prepend(new Option(`${chosen} (not listed)`, chosen, false, true));
  select.disabled = !select.options.length;
}

// Null where a field cannot be sent; the field says why.
export function parameters() {
  const tools = read("tools", toolsProblem);
  const others = read("others", othersProblem);
  const numbers = ["temperature", "max-tokens"].map(part);
  const wrong = numbers.find((field) => !field.reportValidity());
  if (tools === null || others === null || wrong) return null;
  const [temperature, maxTokens] = numbers.map((field) => field.value);
  const thinking = part("thinking").value;
  const isStream = part("stream").checked;
  return {
    ...others,
    ...(part("model").value && { model: part("model").value }),
    ...(temperature && { temperature: Number(temperature) }),
    ...(maxTokens && { max_tokens: Number(maxTokens) }),
    ...(thinking && { enable_thinking: thinking === "true" }),
    ...(tools && tools.length && { tools }),
    stream: isStream,
    ...(isStream && { stream_options: { include_usage: true } }),
  };
}

export function fill(body) {
  part("temperature").value = body.temperature ?? "";
  part("max-tokens").value = body.max_tokens ?? "";
  part("thinking").value = typeof body.enable_thinking === "boolean" ? String(body.enable_thinking) : "";
  part("stream").checked = Boolean(body.stream);
  part("tools").value = body.tools ? JSON.stringify(body.tools, null, 2) : "";
  const others = Object.fromEntries(Object.entries(body).filter(([name]) => !OWN.includes(name)));
  part("others").value = Object.keys(others).length ? JSON.stringify(others, null, 2) : "";
  part("more").open = Boolean(part("tools").value || part("others").value);
}

function read(id, problemOf) {
  const field = part(id);
  const text = field.value.trim();
  let value;
  let problem = "";
  if (text) {
    try {
      value = JSON.parse(text);
      problem = problemOf(value);
    } catch (error) {
      problem = `not JSON: ${error.message}`;
    }
  }
  part(`${id}-problem`).textContent = problem && `${id === "tools" ? "Tools" : "Other parameters"}: ${problem}`;
  field.setAttribute("aria-invalid", String(Boolean(problem)));
  if (problem) {
    part("more").open = true;
    field.focus();
  }
  return problem ? null : value;
}

function toolsProblem(tools) {
  if (!Array.isArray(tools)) return "a list is needed, in square brackets.";
  const index = tools.findIndex((tool) => !tool?.function?.name);
  return index < 0 ? "" : `number ${index + 1} has no function.name.`;
}

function othersProblem(others) {
  if (typeof others !== "object" || others === null || Array.isArray(others)) return "an object is needed, in braces.";
  const own = OWN.find((name) => name in others);
  return own ? `${own} has a place of its own.` : "";
}
