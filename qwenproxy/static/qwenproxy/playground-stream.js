// Reads server-sent events whose data is JSON; hands on the text as it came as well.

export async function readEvents(stream, onText, onEvent) {
  const reader = stream.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  let data = [];
  for (;;) {
    const { done, value } = await reader.read();
    if (done) break;
    onText(value);
    const lines = (rest + value).split("\n");
    rest = lines.pop();
    for (const line of lines) data = readLine(line.replace(/\r$/, ""), data, onEvent);
  }
}

function readLine(line, data, onEvent) {
  if (line.startsWith("data:")) return [...data, line.slice(5).trimStart()];
  if (line !== "" || !data.length) return data;
  const text = data.join("\n");
  if (text !== "[DONE]") onEvent(JSON.parse(text));
  return [];
}
