/* Turns and settings become a request. Knows the API's fields; no element and no network. */

/** A turn is {role, text, attachments}; an attachment has {kind, name, url}, its url being all of its bytes. */
export function request(settings, turns) {
  return { ...counted(settings, turns), ...sampling(settings), stream: true, stream_options: { include_usage: true } };
}

/** What of it decides how many tokens the prompt has. */
export function counted(settings, turns) {
  const body = { model: settings.model, messages: messages(settings, turns) };
  if (settings.maxTokens !== null) body.max_tokens = settings.maxTokens;
  if (settings.fit !== "error") body.fit = settings.fit;
  return body;
}

/** In the order in which the API counts them. */
export const attachmentsOf = (turns) => turns.flatMap((turn) => turn.attachments ?? []);

/** The attachment that a refusal names by its place, such as messages[1].content[0]. */
export function named(sentence, settings, turns) {
  const place = /messages\[(\d+)\]\.content\[(\d+)\]/.exec(sentence);
  if (!place) return null;
  const turn = sent(turns)[Number(place[1]) - (settings.system ? 1 : 0)];
  const upTo = (turn?.attachments ?? []).slice(0, Number(place[2]) + 1);
  const isMoved = upTo.slice(0, -1).some((one) => one.kind !== "image"); // by the pages and frames before it
  return isMoved ? null : (upTo[Number(place[2])] ?? null);
}

export function part(attachment, detail) {
  const { kind, name, url } = attachment;
  if (kind === "video") return { type: "video_url", video_url: { url } };
  if (kind === "file") return { type: "file", file: { filename: name, file_data: url } };
  return { type: "image_url", image_url: detail === "auto" ? { url } : { url, detail } };
}

function messages(settings, turns) {
  const opening = settings.system ? [{ role: "system", content: settings.system }] : [];
  return [...opening, ...sent(turns).map((turn) => ({ role: turn.role, content: content(turn, settings.detail) }))];
}

/** An answer that was stopped in its thought said nothing. */
const sent = (turns) => turns.filter((turn) => turn.role === "user" || turn.text);

function content(turn, detail) {
  const attachments = turn.attachments ?? [];
  if (!attachments.length) return turn.text;
  const text = turn.text ? [{ type: "text", text: turn.text }] : [];
  return [...attachments.map((one) => part(one, detail)), ...text];
}

const sampling = ({ temperature }) => (temperature === null ? {} : { temperature });
