/* The files of the message that is being written. Knows how they are read and shown; not what they cost. */

import { counted, make, number } from "./dom.js";

const PREFIX = { image: "image/", video: "video/" };

/** The gateway looks at the bytes: the browser's type only chooses the field that they travel in. */
const kindOf = (file) => Object.keys(PREFIX).find((kind) => file.type.startsWith(PREFIX[kind])) ?? "file";

function read(file) {
  return new Promise((resolve, reject) => {
    const reader = new FileReader();
    reader.addEventListener("load", () => resolve(reader.result));
    reader.addEventListener("error", () => reject(reader.error));
    reader.readAsDataURL(file);
  });
}

/** {kind, name, type, url, preview, pictures}: pictures is how many the prompt shows of it, null where unknown. */
async function attachment(file) {
  const kind = kindOf(file);
  const type = file.type || "application/octet-stream";
  const named = { kind, name: file.name || "file", type, pictures: kind === "image" ? 1 : null };
  return { ...named, url: await read(file), preview: URL.createObjectURL(file) };
}

export const release = (attachments) => attachments.forEach((one) => URL.revokeObjectURL(one.preview));

export function thumbnail({ kind, name, preview }) {
  if (kind === "image") return make("img", { class: "thumbnail", src: preview, alt: "", error: ({ target }) => target.replaceWith(label(name)) });
  if (kind === "video") return make("video", { class: "thumbnail", src: preview, muted: true, preload: "metadata", tabindex: -1, "aria-hidden": "true" });
  return label(name);
}

function label(name) {
  const ending = name.includes(".") ? name.split(".").pop().slice(0, 4).toUpperCase() : "FILE";
  return make("span", { class: "thumbnail", "aria-hidden": "true" }, ending);
}

export class Attachments {
  #list;
  #changed;
  #refused;
  #chips = new Map();
  #reading = Promise.resolve();

  constructor(list, changed, refused) {
    this.#list = list;
    this.#changed = changed;
    this.#refused = refused;
  }

  get all() {
    return [...this.#chips.keys()];
  }

  /** Done when all that was added is read. */
  get settled() {
    return this.#reading;
  }

  add(files) {
    const added = [...files]; // a list of the browser's is emptied behind its event
    this.#reading = this.#reading.then(() => this.#read(added));
  }

  async #read(files) {
    const unread = [];
    for (const file of files) {
      try {
        this.#show(await attachment(file));
      } catch {
        unread.push(file.name);
      }
    }
    this.#changed();
    if (unread.length) this.#refused(`${unread.join(", ")}: could not be read.`);
  }

  /** Hands them over, to the conversation. */
  take() {
    const taken = this.all;
    this.#chips.clear();
    this.#list.replaceChildren();
    return taken;
  }

  restore(attachments) {
    attachments.forEach((one) => this.#show(one));
  }

  /** each: attachment -> {tokens, pictures, leftOut}; an attachment that is not in it has no known cost. */
  showCosts(each) {
    for (const [one, chip] of this.#chips) {
      chip.classList.remove("refused");
      chip.querySelector(".chip-cost").textContent = each.has(one) ? costWords(one, each.get(one)) : "…";
    }
  }

  showRefused(refused) {
    const chip = this.#chips.get(refused);
    if (!chip) return;
    chip.classList.add("refused");
    chip.querySelector(".chip-cost").textContent = "refused";
  }

  #show(one) {
    const remove = make("button", { type: "button", class: "remove", "aria-label": `Remove ${one.name}`, click: () => this.#remove(one) }, "×");
    const words = make("span", { class: "chip-words" }, make("span", { class: "chip-name" }, one.name), make("span", { class: "chip-cost" }, "…"));
    const chip = make("li", { class: "chip" }, thumbnail(one), words, remove);
    this.#chips.set(one, chip);
    this.#list.append(chip);
  }

  #remove(one) {
    const after = this.#chips.get(one).nextElementSibling ?? this.#chips.get(one).previousElementSibling;
    this.#chips.get(one).remove();
    this.#chips.delete(one);
    release([one]);
    (after?.querySelector("button") ?? document.getElementById("attach")).focus();
    this.#changed();
  }
}

export function costWords({ kind, name }, { tokens, pictures, leftOut }) {
  if (leftOut && leftOut === pictures) return "left out";
  const said = `${number(tokens)} tokens`;
  if (kind === "image") return said;
  const one = kind === "video" ? "frame" : name.toLowerCase().endsWith(".pdf") ? "page" : "picture";
  return `${counted(pictures, one)}, ${said}`;
}
