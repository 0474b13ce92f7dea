// Menus of the filter chips: Escape and a click elsewhere close them, and only one is open.
// Opening them is the browser's own (<details>).
"use strict";

const menus = document.querySelectorAll(".chip details");

for (const menu of menus) {
  menu.addEventListener("toggle", () => {
    if (menu.open) {
      for (const other of menus) {
        if (other !== menu) other.open = false;
      }
    }
  });
}

document.addEventListener("keydown", (event) => {
  if (event.key !== "Escape") return;
  for (const menu of menus) {
    if (menu.open) {
      menu.open = false;
      menu.querySelector("summary").focus();
    }
  }
});

document.addEventListener("click", (event) => {
  for (const menu of menus) {
    if (menu.open && !menu.contains(event.target)) menu.open = false;
  }
});
