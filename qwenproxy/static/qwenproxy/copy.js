// Buttons with data-copy="id" copy the text of that element, or what data-copy-url answers where the
// page holds only a part. Without scripts they stay hidden.
"use strict";

async function textOf(button) {
  const url = button.dataset.copyUrl;
  if (url) {
    const response = await fetch(url);
    if (!response.ok) throw new Error(response.statusText);
    return response.text();
  }
  const source = document.getElementById(button.dataset.copy);
  return source.dataset.text ?? source.textContent;
}

async function write(text) {
  if (navigator.clipboard) {
    await navigator.clipboard.writeText(text);
    return;
  }
  // Pages over plain HTTP have no clipboard of their own.
  const field = document.createElement("textarea");
  field.value = text;
  field.className = "visually-hidden";
  document.body.append(field);
  field.select();
  document.execCommand("copy");
  field.remove();
}

for (const button of document.querySelectorAll("button[data-copy]")) {
  const label = button.textContent;
  button.hidden = false;
  button.addEventListener("click", async () => {
    let outcome = "Copied";
    try {
      await write(await textOf(button));
    } catch {
      outcome = "Not copied";
    }
    button.textContent = outcome;
    setTimeout(() => {
      button.textContent = label;
    }, 1500);
  });
}
