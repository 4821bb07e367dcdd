/* Elements of the page. Knows attributes and text; a string is always text, never markup. */

export const byId = (id) => document.getElementById(id);

export function make(tag, given = {}, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(given)) set(node, name, value);
  node.append(...children);
  return node;
}

export function makeSvg(tag, given = {}, ...children) {
  const node = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [name, value] of Object.entries(given)) set(node, name, value);
  node.append(...children);
  return node;
}

function set(node, name, value) {
  if (typeof value === "function") node.addEventListener(name, value);
  else if (value === true) node.setAttribute(name, "");
  else if (value !== false && value !== null && value !== undefined) node.setAttribute(name, value);
}

const whole = new Intl.NumberFormat("en-US");
export const number = (value) => whole.format(value);
export const counted = (count, one) => `${number(count)} ${one}${count === 1 ? "" : "s"}`;
export const seconds = (ms) => (ms < 1000 ? `${Math.round(ms)} ms` : `${(ms / 1000).toFixed(ms < 10000 ? 2 : 1)} s`);
