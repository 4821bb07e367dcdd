/* What the page asks the gateway: its public routes, with the key that was typed in. Knows HTTP and no element. */

import { events } from "./sse.js";

const base = new URL("./", document.baseURI);
export const apiUrl = new URL("v1", base).href;

/** The gateway's own sentence, or ours where there was no gateway to say one. */
export class Refusal extends Error {
  constructor(message, status = 0, retryAfter = null) {
    super(message);
    this.status = status;
    this.retryAfter = retryAfter;
  }

  get sentence() {
    return this.retryAfter ? `${this.message} Try again in ${this.retryAfter} s.` : this.message;
  }
}

export const models = async (key) => (await (await ask("v1/models", key)).json()).data;

export const count = async (key, body, signal) => (await ask("tokenize", key, body, signal)).json();

/** Opens a stream: what the headers say, and the chunks as they come. Breaks off with an AbortError. */
export async function chat(key, body, signal) {
  const response = await ask("v1/chat/completions", key, body, signal);
  return { promptTokens: Number(response.headers.get("x-kimi-serve-prompt-tokens")), fit: fitOf(response), chunks: chunks(response) };
}

function fitOf(response) {
  const told = response.headers.get("x-kimi-serve-fit");
  return told ? JSON.parse(told) : null;
}

async function* chunks(response) {
  let hasEnded = false;
  try {
    for await (const data of events(response.body)) {
      if (data === "[DONE]") {
        hasEnded = true;
        return;
      }
      const chunk = JSON.parse(data);
      if (chunk.error) throw new Refusal(chunk.error.message, response.status);
      yield chunk;
    }
  } catch (error) {
    throw reached(error);
  }
  if (!hasEnded) throw new Refusal("The connection ended before the answer did.");
}

async function ask(path, key, body, signal) {
  const headers = key ? { Authorization: `Bearer ${key}` } : {};
  const asked = { headers, signal };
  if (body) {
    asked.method = "POST";
    asked.body = JSON.stringify(body);
    headers["Content-Type"] = "application/json";
  }
  let response;
  try {
    response = await fetch(new URL(path, base), asked);
  } catch (error) {
    throw reached(error);
  }
  if (!response.ok) throw await refusal(response);
  return response;
}

async function refusal(response) {
  const said = await response.json().catch(() => null);
  const message = said?.error?.message ?? `The server answered ${response.status} ${response.statusText}.`;
  return new Refusal(message, response.status, response.headers.get("retry-after"));
}

/** A browser's own words for a lost connection differ and help nobody. */
function reached(error) {
  return error instanceof TypeError ? new Refusal("The gateway could not be reached, or the connection broke.") : error;
}
