// The buttons over a transcript: they hide calls of tools and open folds. Without scripts they stay
// hidden, and folds open one by one.
"use strict";

const transcript = document.querySelector(".transcript");

function press(button) {
  const isOn = button.getAttribute("aria-pressed") !== "true";
  button.setAttribute("aria-pressed", String(isOn));
  return isOn;
}

for (const button of transcript.querySelectorAll("button[data-toggle]")) {
  button.hidden = false;
  button.addEventListener("click", () => {
    transcript.classList.toggle(button.dataset.toggle, press(button));
  });
}

for (const button of transcript.querySelectorAll("button[data-open]")) {
  const kind = button.dataset.open;
  const folds = transcript.querySelectorAll(kind ? `details.fold-${kind}` : "details.fold");
  // Nothing to open.
  button.hidden = folds.length === 0;
  button.addEventListener("click", () => {
    const isOn = press(button);
    for (const fold of folds) fold.open = isOn;
  });
}
