/* One turn as it is shown, and how an answer grows. Knows elements and times; not where the pieces come from. */

import { Sentences, say } from "./announce.js";
import { costWords, thumbnail } from "./attachments.js";
import { counted, make, number, seconds } from "./dom.js";
import { marked, pointsIn } from "./points.js";

/** each: the attachments' costs, where they are known. */
export function question(turn, each) {
  const pictures = turn.attachments.map((one) => {
    const cost = each?.has(one) ? `, ${costWords(one, each.get(one))}` : "";
    return make("li", {}, thumbnail(one), make("span", { class: "caption" }, one.name + cost));
  });
  const parts = pictures.length ? [make("ul", { class: "pictures", "aria-label": "Attachments" }, ...pictures)] : [];
  if (turn.text) parts.push(make("div", { class: "text" }, turn.text));
  return make("article", { class: "turn question", "aria-label": "You" }, ...parts);
}

export class Answer {
  text = "";
  #thought = "";
  #drawn = { thought: 0, text: 0 }; // characters of each that are on the page
  #begun = performance.now();
  #first = 0;
  #last = 0;
  #usage = null;
  #reason = null;
  #isTouched = false; // the thought, by its reader, who then decides
  #sentences = new Sentences();
  #summary = make("summary", {}, "Thinking");
  #thoughtText = document.createTextNode("");
  #answerText = document.createTextNode("");
  #fold = make("details", { class: "thought", open: true, hidden: true }, this.#summary, make("div", { class: "text" }, this.#thoughtText));
  #body = make("div", { class: "text waiting" }, this.#answerText);
  #element = make("article", { class: "turn answer", "aria-label": "Answer", "aria-busy": "true" }, this.#fold, this.#body);

  constructor() {
    this.#summary.addEventListener("click", () => (this.#isTouched = true));
  }

  get element() {
    return this.#element;
  }

  get hasBegun() {
    return Boolean(this.text || this.#thought);
  }

  /** What has come goes on the page, once a frame: tokens come faster than a page is laid out. */
  draw() {
    this.#thoughtText.appendData(this.#thought.slice(this.#drawn.thought));
    this.#answerText.appendData(this.text.slice(this.#drawn.text));
    this.#drawn = { thought: this.#thought.length, text: this.text.length };
  }

  add(chunk) {
    if (chunk.usage) this.#usage = chunk.usage;
    const { delta = {}, finish_reason: reason } = chunk.choices[0] ?? {};
    this.#reason = reason ?? this.#reason;
    this.#think(delta.reasoning_content ?? delta.reasoning ?? "");
    this.#speak(delta.content ?? "");
  }

  /** how: "done", "stopped", or the sentence of what went wrong. picture: what points are drawn on.
      opened: what the headers said of the prompt. */
  finish(how, picture, opened) {
    this.draw();
    this.#element.setAttribute("aria-busy", "false");
    this.#body.classList.remove("waiting");
    if (!this.text) this.#endThought({ folds: false }); // there is nothing else to read
    this.#sentences.finish();
    const points = picture ? pointsIn(this.text) : [];
    if (points.length) this.#element.append(marked(picture, points));
    const note = this.#note(how);
    if (note) this.#element.append(note);
    if (this.hasBegun) this.#element.append(this.#figures(opened));
    if (how === "done") say(`The answer is complete, after ${seconds(performance.now() - this.#begun)}.`);
    if (how === "stopped") say("Stopped.");
  }

  #note(how) {
    if (how === "stopped") return make("p", { class: "note" }, "Stopped.");
    if (how !== "done") return make("p", { class: "note refused", role: "alert" }, how);
    if (this.#reason === "length") return make("p", { class: "note" }, "Cut off: it reached the limit of tokens.");
    return this.text ? null : make("p", { class: "note" }, "The answer is empty.");
  }

  #think(piece) {
    if (!piece) return;
    if (!this.#thought) {
      this.#fold.hidden = false;
      say("The model is thinking.");
    }
    this.#thought += piece;
    this.#arrived();
  }

  #speak(piece) {
    if (!piece) return;
    if (!this.text) this.#endThought({ folds: !this.#isTouched });
    this.text += piece;
    this.#sentences.add(piece);
    this.#arrived();
  }

  #arrived() {
    this.#last = performance.now();
    this.#first ||= this.#last;
  }

  #endThought({ folds }) {
    if (!this.#thought) return;
    this.#summary.textContent = `Thought for ${seconds(performance.now() - this.#first)}`;
    if (folds) this.#fold.open = false;
  }

  #figures({ promptTokens, fit }) {
    const told = [["First token", seconds(this.#first - this.#begun)]];
    const tokens = this.#usage?.completion_tokens;
    const streamed = this.#last - this.#first;
    if (tokens > 1 && streamed > 0) told.push(["Speed", `${number(Math.round(((tokens - 1) / streamed) * 10000) / 10)} tokens/s`]);
    told.push(["Total", seconds(performance.now() - this.#begun)]);
    const prompt = this.#usage?.prompt_tokens ?? promptTokens;
    if (prompt) told.push(["Prompt", counted(prompt, "token")]);
    if (tokens !== undefined) told.push(["Answer", counted(tokens, "token")]);
    if (fit?.images_scaled) told.push(["Scaled down", counted(fit.images_scaled, "picture")]);
    if (fit?.images_left_out) told.push(["Left out", counted(fit.images_left_out, "picture")]);
    const pairs = told.map(([name, value]) => make("div", {}, make("dt", {}, name), make("dd", {}, value)));
    return make("dl", { class: "figures", "aria-label": "Timings and usage" }, ...pairs);
  }
}
