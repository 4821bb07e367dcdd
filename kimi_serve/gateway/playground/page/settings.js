/* The settings beside the conversation. Knows the form's fields; the key stays in this tab, for as long as it is open. */

import { byId, make } from "./dom.js";

const KEY = "kimi_serve.playground.key";
const WIDE = "(min-width: 60rem)";

/** What a request is made with; null is the server's own choice. */
export function current() {
  return {
    model: byId("model").value,
    system: byId("system").value.trim(),
    temperature: given("temperature"),
    maxTokens: given("max-tokens"),
    detail: byId("detail").value,
    fit: byId("fit").value,
  };
}

const given = (id) => (byId(id).value === "" ? null : byId(id).valueAsNumber);

export const key = () => byId("key").value.trim();

/** changed() is called after every change of what a prompt costs, keyChanged() after one of the key. */
export function watch(changed, keyChanged) {
  byId("key").value = kept();
  byId("key").addEventListener("change", () => {
    keep(key());
    keyChanged();
  });
  for (const id of ["model", "max-tokens", "detail", "fit"]) byId(id).addEventListener("change", changed);
  byId("system").addEventListener("input", changed);
  const wide = matchMedia(WIDE);
  const unfold = () => (byId("settings").open = wide.matches);
  wide.addEventListener("change", unfold);
  unfold();
}

/** The chosen one stays chosen. */
export function showModels(names) {
  const select = byId("model");
  const chosen = select.value;
  select.replaceChildren(...names.map((name) => make("option", { value: name }, name)));
  if (names.includes(chosen)) select.value = chosen;
}

export function askForKey() {
  byId("settings").open = true;
  byId("key").setAttribute("aria-invalid", "true");
  byId("key").focus();
}

export const keyIsGood = () => byId("key").removeAttribute("aria-invalid");

function kept() {
  try {
    return sessionStorage.getItem(KEY) ?? "";
  } catch {
    return ""; // a browser may forbid storage: then the key lives in its field alone
  }
}

function keep(value) {
  try {
    if (value) sessionStorage.setItem(KEY, value);
    else sessionStorage.removeItem(KEY);
  } catch {
    // as above
  }
}
