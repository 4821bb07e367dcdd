/* The dialog that shows a request as code, and the way to the clipboard. Knows elements; writes no code. */

import { say } from "./announce.js";
import { byId } from "./dom.js";

/** code(language): what to show, written anew each time. */
export function watch(code) {
  const dialog = byId("code");
  const show = () => (byId("code-text").textContent = code(dialog.querySelector("input:checked").value));
  byId("show-code").addEventListener("click", () => {
    show();
    dialog.showModal();
  });
  for (const choice of dialog.querySelectorAll("input")) choice.addEventListener("change", show);
  byId("code-close").addEventListener("click", () => dialog.close());
  byId("code-copy").addEventListener("click", copy);
}

async function copy() {
  const button = byId("code-copy");
  button.textContent = (await copied(byId("code-text"))) ? "Copied" : "Press Ctrl+C";
  say(button.textContent);
  setTimeout(() => (button.textContent = "Copy"), 2000);
}

/** Over plain HTTP from another machine a browser has no clipboard for pages: the text is selected instead. */
async function copied(element) {
  try {
    await navigator.clipboard.writeText(element.textContent);
    return true;
  } catch {
    getSelection().selectAllChildren(element);
    return false;
  }
}
