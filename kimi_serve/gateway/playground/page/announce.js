/* What a screen reader is told while things happen. Knows a live region and sentences. */

import { byId, make } from "./dom.js";

const KEPT = 12; // lines that stay, for a reader that is slow to take them
const END = /[.!?…。！？]["')\]]*\s|\n/g;

export function say(text) {
  const region = byId("announcer");
  region.append(make("p", {}, text));
  while (region.children.length > KEPT) region.firstChild.remove();
}

/** A stream read out by whole sentences: single tokens would interrupt each other. */
export class Sentences {
  #kept = "";

  add(text) {
    this.#kept += text;
    const ends = [...this.#kept.matchAll(END)];
    if (!ends.length) return;
    const cut = ends.at(-1).index + ends.at(-1)[0].length;
    if (this.#kept.slice(0, cut).trim()) say(this.#kept.slice(0, cut).trim());
    this.#kept = this.#kept.slice(cut);
  }

  finish() {
    if (this.#kept.trim()) say(this.#kept.trim());
    this.#kept = "";
  }
}
