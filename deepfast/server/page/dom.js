// Elements, icons, announcements and numbers: the few things every view needs.
// In: tags, texts, numbers. Out: DOM nodes and strings. Does not know: conversations, the server.

import { language, t } from "./i18n.js";

export const $ = (id) => document.getElementById(id);

/** An element: h("button", {class: "x", onclick: f, "aria-label": "y"}, "text", child, ...). */
export function h(tag, props = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(props)) {
    if (value === null || value === undefined || value === false) continue;
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (name === "class") element.className = value;
    else if (name in element && typeof value !== "string") element[name] = value;
    else element.setAttribute(name, value === true ? "" : value);
  }
  element.append(...children.flat().filter((child) => child !== null && child !== undefined && child !== false));
  return element;
}

/** An icon of the sprite in index.html; it is decoration, its button carries the label. */
export function icon(name) {
  const svg = document.createElementNS("http://www.w3.org/2000/svg", "svg");
  svg.setAttribute("class", "icon");
  svg.setAttribute("aria-hidden", "true");
  const use = document.createElementNS("http://www.w3.org/2000/svg", "use");
  use.setAttribute("href", `#i-${name}`);
  svg.append(use);
  return svg;
}

/** A button that shows an icon; the label is its name and its tooltip. */
export function iconButton(name, label, onclick, props = {}) {
  return h("button", { type: "button", class: "icon-button", "aria-label": label, title: label, onclick, ...props }, icon(name));
}

/** A button with a word, and an icon before it if one is named. */
export function button(label, onclick, { icon: name, ...props } = {}) {
  return h("button", { type: "button", class: "button", onclick, ...props }, name ? icon(name) : null, h("span", {}, label));
}

/** Tell a screen reader, politely. */
export function announce(text) {
  $("announcer").textContent = text;
}

let hiding = 0;
/** A short message at the bottom that goes by itself. */
export function toast(text) {
  const box = $("toast");
  box.textContent = text;
  box.hidden = false;
  clearTimeout(hiding);
  hiding = setTimeout(() => (box.hidden = true), 4000);
}

/** Replace the text of a node only if it differs: a selection in it survives. */
export function setText(node, text) {
  if (node.textContent !== text) node.textContent = text;
}

export const number = (value) => new Intl.NumberFormat(language()).format(value);

/** 84 ms, 0.84 s, 12.3 s, 2 min 5 s. */
export function seconds(value) {
  if (value < 0.1) return `${Math.round(value * 1000)} ms`;
  if (value < 60) return `${value.toFixed(value < 10 ? 2 : 1)} s`;
  return `${Math.floor(value / 60)} min ${Math.round(value % 60)} s`;
}

/** A price; small ones keep two significant digits. */
export function money(value) {
  if (value === 0) return "$0";
  return value < 0.01 ? `$${Number(value.toPrecision(2)).toFixed(Math.min(12, 1 - Math.floor(Math.log10(value))))}` : `$${value.toFixed(2)}`;
}

/** Copy to the clipboard, also where the page is not served over HTTPS. */
export async function copy(text) {
  try {
    await navigator.clipboard.writeText(text);
  } catch {
    const area = h("textarea", { class: "hidden" });
    area.value = text;
    document.body.append(area);
    area.select();
    document.execCommand("copy");
    area.remove();
  }
  toast(t("copied"));
  announce(t("copied"));
}

/** Hand a text to the user as a file. */
export function download(name, text, type) {
  const url = URL.createObjectURL(new Blob([text], { type }));
  const link = h("a", { href: url, download: name });
  link.click();
  setTimeout(() => URL.revokeObjectURL(url), 10_000);
}
