/* What the prompt will cost, as the gateway itself counts it. Knows when to ask, and whose tokens are whose. */

import { Refusal, count } from "./api.js";
import { attachmentsOf, counted } from "./conversation.js";

const SOONEST = 250; // ms of quiet before it is asked
const LATEST = 3000;

export class Cost {
  #current;
  #show;
  #timer = 0;
  #controller = null;
  #took = 0;

  /** current() is {key, settings, turns}, or null where there is nothing to count; show() is told every state. */
  constructor(current, show) {
    this.#current = current;
    this.#show = show;
  }

  /** A prompt that took long to count, because of its documents, is counted again after a longer quiet. */
  refresh() {
    this.stop();
    const now = this.#current();
    if (!now) return this.#show({ state: "empty" });
    this.#show({ state: "counting" });
    this.#timer = setTimeout(() => this.#count(now), Math.min(LATEST, Math.max(SOONEST, 2 * this.#took)));
  }

  stop() {
    clearTimeout(this.#timer);
    this.#controller?.abort();
  }

  async #count(now) {
    const { signal } = (this.#controller = new AbortController());
    const begun = performance.now();
    try {
      const found = await count(now.key, counted(now.settings, now.turns), signal);
      const attachments = attachmentsOf(now.turns);
      const pictures = tokensOf(found);
      await learn(attachments, pictures.length, now, signal);
      this.#took = performance.now() - begun;
      this.#show({ state: "known", total: found.count, limit: found.max_model_len, each: shared(attachments, pictures) });
    } catch (error) {
      if (!(error instanceof Refusal)) {
        if (signal.aborted) return;
        throw error;
      }
      this.#show({ state: "refused", error });
    }
  }
}

/** Of every picture that came; null where fit leaves it out. */
const tokensOf = (found) => found.kimi_serve?.image_tokens.map((one) => one.after) ?? found.image_tokens;

/** How many pictures each document and video becomes: the rest, where it is the only one, else each counted alone. */
async function learn(attachments, pictures, { key, settings }, signal) {
  const unknown = attachments.filter((one) => one.pictures === null);
  if (unknown.length === 1) {
    unknown[0].pictures = pictures - attachments.reduce((sum, one) => sum + (one.pictures ?? 0), 0);
    return;
  }
  const plain = { ...settings, system: "", fit: "error", maxTokens: null };
  for (const one of unknown) {
    const alone = await count(key, counted(plain, [{ role: "user", text: "", attachments: [one] }]), signal);
    one.pictures = alone.image_tokens.length;
  }
}

function shared(attachments, pictures) {
  const each = new Map();
  let at = 0;
  for (const one of attachments) {
    const own = pictures.slice(at, at + one.pictures);
    at += one.pictures;
    const tokens = own.reduce((sum, tokens) => sum + (tokens ?? 0), 0);
    each.set(one, { tokens, pictures: own.length, leftOut: own.filter((tokens) => tokens === null).length });
  }
  return each;
}
