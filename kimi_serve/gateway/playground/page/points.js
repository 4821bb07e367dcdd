/* Places that an answer points to, and marks on a picture. Knows the words of pyautogui. */

import { make, makeSvg } from "./dom.js";

const CALL = /pyautogui\.(\w+)\(\s*x\s*=\s*(\d*\.?\d+)\s*,\s*y\s*=\s*(\d*\.?\d+)/g;

/** {action, x, y} of every call, in the order of the text. */
export function pointsIn(text) {
  return [...text.matchAll(CALL)].map(([, action, x, y]) => ({ action, x: Number(x), y: Number(y) }));
}

/** The picture with a mark at every point: shares of its width and height, or, where one is over 1, pixels. */
export function marked(attachment, points) {
  const picture = make("img", { src: attachment.preview, alt: attachment.name });
  const frame = make("div", { class: "marked" }, picture);
  const drawn = () => frame.append(overlay(points.map((point) => share(point, picture))));
  picture.addEventListener("load", drawn, { once: true });
  const said = points.map(({ action, x, y }) => `${action} at ${x}, ${y}`).join("; ");
  return make("figure", { class: "pointing" }, frame, make("figcaption", {}, `${said}, on ${attachment.name}`));
}

function share({ x, y }, picture) {
  return x <= 1 && y <= 1 ? { x, y } : { x: x / picture.naturalWidth, y: y / picture.naturalHeight };
}

const percent = (value) => `${(value * 100).toFixed(2)}%`;

function overlay(places) {
  const where = places.map(({ x, y }) => `${Math.round(x * 100)} % from the left and ${Math.round(y * 100)} % from the top`);
  const label = `Marked ${where.join("; ")}`;
  return makeSvg("svg", { role: "img", "aria-label": label }, ...places.flatMap((place, index) => mark(place, index, places.length)));
}

function mark({ x, y }, index, of) {
  const at = { cx: percent(x), cy: percent(y) };
  const rings = [
    makeSvg("circle", { ...at, r: 13, class: "halo" }),
    makeSvg("circle", { ...at, r: 13, class: "ring" }),
    makeSvg("circle", { ...at, r: 3.5, class: "dot" }),
  ];
  if (of === 1) return rings;
  return [...rings, makeSvg("text", { x: percent(x), y: percent(y), dx: 18, dy: 5 }, String(index + 1))];
}
