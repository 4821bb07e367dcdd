/* The page: what is said, what is being written, and what happens when. Knows all parts; each does its own work. */

import { say } from "./announce.js";
import { Answer, question } from "./answer.js";
import { Refusal, apiUrl, chat, models } from "./api.js";
import { Attachments, costWords, release } from "./attachments.js";
import { curl, python } from "./code.js";
import { attachmentsOf, named, request } from "./conversation.js";
import { Cost } from "./cost.js";
import * as dialog from "./dialog.js";
import { byId, number } from "./dom.js";
import * as settings from "./settings.js";

const LOOK_AGAIN = 3000; // ms until models are asked for once more, where no engine is ready
const NEAR = 160; // pixels from the end in which a reader counts as one who follows

const message = byId("message");
const attachments = new Attachments(byId("attachments"), changed, notice);
const cost = new Cost(prompt, showCost);
const turns = []; // what was said, and went well enough to be said again
let limits = new Map(); // of the models' contexts, by name
let costs = new Map(); // of attachments, as last counted
let running = null; // the AbortController of the answer that is coming
let lookTimer = 0;
let frame = 0; // in which an answer is drawn
let isNews = false; // whether the next count is told to a screen reader

const isWritten = () => Boolean(message.value.trim() || attachments.all.length);
const draft = () => ({ role: "user", text: message.value.trim() ? message.value : "", attachments: attachments.all });

function prompt() {
  const now = settings.current();
  return isWritten() && now.model ? { key: settings.key(), settings: now, turns: [...turns, draft()] } : null;
}

function notice(sentence) {
  byId("notice").textContent = sentence;
}

/** Attachments came or went. */
function changed() {
  isNews = true;
  edited();
}

/** What was said of the last attempt is no longer about this one. */
function edited() {
  notice("");
  cost.refresh();
}

/* What it will cost */

function showCost(told) {
  const line = byId("cost");
  line.classList.toggle("counting", told.state === "counting");
  line.classList.toggle("refused", told.state === "refused" || isOver(told));
  if (told.state === "counting") return;
  costs = told.each ?? new Map();
  attachments.showCosts(costs);
  const limit = told.limit ?? limits.get(settings.current().model);
  byId("gauge-fill").style.width = told.total ? `${Math.min(100, (100 * told.total) / limit)}%` : "0";
  line.textContent = costSentence(told, limit);
  if (told.state === "refused") attachments.showRefused(named(told.error.message, settings.current(), [...turns, draft()]));
  if (isNews && told.state !== "empty") tell(line.textContent);
}

const isOver = ({ total, limit }) => total + (settings.current().maxTokens ?? 1) > limit;

function costSentence(told, limit) {
  const isSaid = () => told.error.sentence === byId("notice").textContent;
  if (told.state === "refused") return isSaid() ? "" : told.error.sentence;
  if (told.state === "empty") return limit ? `${number(limit)} tokens of context` : "";
  const room = settings.current().maxTokens;
  const asked = room ? ` and ${number(room)} for the answer` : "";
  const shown = [...costs.values()].reduce((sum, one) => sum + one.tokens, 0);
  const pictures = shown ? `, ${number(shown)} of them pictures` : "";
  return `${number(told.total)} of ${number(limit)} tokens${pictures}${asked}${isOver(told) ? ": too many" : ""}`;
}

function tell(sentence) {
  isNews = false;
  const each = attachments.all.filter((one) => costs.has(one)).map((one) => `${one.name}: ${costWords(one, costs.get(one))}`);
  say([...each, sentence].join(". "));
}

/* Asking, and the answer */

async function send() {
  await attachments.settled;
  if (running || !isWritten()) return;
  const turn = { ...draft(), attachments: attachments.take() };
  const answer = new Answer();
  const shown = question(turn, costs);
  const body = request(settings.current(), [...turns, turn]);
  message.value = "";
  notice("");
  cost.refresh();
  byId("welcome").hidden = true;
  byId("log").append(shown, answer.element);
  scrollTo(0, document.documentElement.scrollHeight);
  setRunning(new AbortController());
  const told = await stream(body, answer);
  setRunning(null);
  if (!answer.hasBegun && told.how !== "done") return takeBack(turn, [shown, answer.element], told.how);
  const picture = attachmentsOf([...turns, turn]).filter((one) => one.kind === "image").at(-1);
  following(() => answer.finish(told.how, picture, told.opened));
  turns.push(turn, { role: "assistant", text: answer.text });
  cost.refresh();
}

/** how it ended, and what the headers said. */
async function stream(body, answer) {
  const { signal } = running;
  let opened = {};
  try {
    opened = await chat(settings.key(), body, signal);
    for await (const chunk of opened.chunks) {
      answer.add(chunk);
      drawSoon(answer);
    }
    return { how: "done", opened };
  } catch (error) {
    if (signal.aborted) return { how: "stopped", opened };
    if (!(error instanceof Refusal)) throw error;
    if (error.status === 401) settings.askForKey();
    return { how: error.sentence, opened };
  }
}

/** What was not answered is written again, as it was: nothing of it is lost. */
function takeBack(turn, elements, how) {
  elements.forEach((one) => one.remove());
  message.value = [turn.text, message.value].filter(Boolean).join("\n");
  const since = attachments.take();
  attachments.restore([...turn.attachments, ...since]);
  byId("welcome").hidden = turns.length > 0;
  notice(how === "stopped" ? "Stopped before an answer began." : how);
  cost.refresh();
}

/** Who has scrolled up to read is left there. */
function following(grow) {
  const follows = innerHeight + scrollY > document.documentElement.scrollHeight - NEAR;
  grow();
  if (follows) scrollTo(0, document.documentElement.scrollHeight);
}

function drawSoon(answer) {
  if (frame) return;
  frame = requestAnimationFrame(() => {
    frame = 0;
    following(() => answer.draw());
  });
}

function setRunning(controller) {
  running = controller;
  byId("stop").hidden = !controller;
  byId("send").hidden = Boolean(controller);
}

function stop() {
  running?.abort();
  message.focus();
}

function startOver() {
  stop();
  release(attachmentsOf(turns));
  turns.length = 0;
  byId("log").replaceChildren();
  byId("welcome").hidden = false;
  notice("");
  cost.refresh();
}

/* Models */

async function look() {
  clearTimeout(lookTimer);
  let sentence = "No engine is ready yet. This page keeps looking.";
  try {
    const list = await models(settings.key());
    limits = new Map(list.map((one) => [one.id, one.max_model_len]));
    settings.showModels([...limits.keys()]);
    settings.keyIsGood();
    if (list.length) sentence = "";
  } catch (error) {
    if (!(error instanceof Refusal)) throw error;
    sentence = error.sentence;
    if (error.status === 401) settings.askForKey();
  }
  notice(sentence);
  if (!limits.size && !byId("key").hasAttribute("aria-invalid")) lookTimer = setTimeout(look, LOOK_AGAIN);
  cost.refresh();
}

/* Code */

function code(language) {
  const written = isWritten() ? [...turns, draft()] : turns.slice(0, -1);
  const asked = written.length ? written : [{ role: "user", text: "Hello" }];
  const write = language === "python" ? python : curl;
  return write(apiUrl, request(settings.current(), asked), attachmentsOf(asked), Boolean(settings.key()));
}

/* What a person does */

function onKey(event) {
  if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
  event.preventDefault();
  send();
}

function onEscape(event) {
  if (event.key === "Escape" && running && !byId("code").open) stop();
}

function watchFiles() {
  byId("attach").addEventListener("click", () => byId("files").click());
  byId("files").addEventListener("change", ({ target }) => {
    attachments.add(target.files);
    target.value = ""; // the same file may be chosen again
    message.focus();
  });
  addEventListener("paste", (event) => {
    if (!event.clipboardData.files.length) return;
    event.preventDefault();
    attachments.add(event.clipboardData.files);
  });
  const hasFiles = (event) => event.dataTransfer?.types.includes("Files");
  const dropping = (is) => document.body.classList.toggle("dropping", is);
  addEventListener("dragover", (event) => {
    if (!hasFiles(event)) return;
    event.preventDefault();
    dropping(true);
  });
  addEventListener("dragleave", (event) => event.relatedTarget === null && dropping(false));
  addEventListener("drop", (event) => {
    dropping(false);
    if (!hasFiles(event)) return;
    event.preventDefault();
    attachments.add(event.dataTransfer.files);
  });
}

byId("composer").addEventListener("submit", (event) => {
  event.preventDefault();
  send();
});
message.addEventListener("keydown", onKey);
message.addEventListener("input", edited);
addEventListener("keydown", onEscape);
byId("stop").addEventListener("click", stop);
byId("start-over").addEventListener("click", startOver);
watchFiles();
dialog.watch(code);
settings.watch(edited, look);
message.focus();
look();
