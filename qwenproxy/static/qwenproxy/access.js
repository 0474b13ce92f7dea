"use strict";
/* Pages of keys and accounts: copy, ends from now on, only what the chosen kind takes. All work without it. */

async function copyText(element) {
  try {
    await navigator.clipboard.writeText(element.textContent);
    return "Copied";
  } catch {
    // No clipboard, as on a plain http address: at least choose the text.
    getSelection().selectAllChildren(element);
    return "Press Ctrl+C";
  }
}

for (const button of document.querySelectorAll("[data-copy]")) {
  const label = button.textContent;
  button.hidden = false;
  button.addEventListener("click", async () => {
    button.textContent = await copyText(document.getElementById(button.dataset.copy));
    setTimeout(() => { button.textContent = label; }, 2000);
  });
}

const end = document.querySelector("input[name=expires_at][data-now]");
if (end) {
  const presets = document.createElement("span");
  presets.className = "presets";
  for (const [label, days] of [["7 days", 7], ["30 days", 30], ["90 days", 90], ["1 year", 365], ["never", null]]) {
    const button = document.createElement("button");
    button.type = "button";
    button.className = "plain";
    button.textContent = label;
    button.addEventListener("click", () => {
      // As if the zone of the page were UTC: a calendar's days, not the browser's hours.
      const at = new Date(`${end.dataset.now}Z`);
      at.setUTCDate(at.getUTCDate() + days);
      end.value = days === null ? "" : at.toISOString().slice(0, 16);
    });
    presets.append(button);
  }
  end.after(presets);
}

const kind = document.querySelector("select[name=kind]");
if (kind) {
  const groups = document.querySelectorAll("fieldset[class*=kind-]");
  const show = () => {
    for (const group of groups) {
      group.hidden = kind.value !== "" && !group.classList.contains(`kind-${kind.value}`);
    }
  };
  kind.addEventListener("change", show);
  show();
}
