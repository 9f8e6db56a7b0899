// Markdown shown as HTML: the server renders and sanitises, this page only inserts.
// In: an element and a text, which may still grow. Out: the element's content; code blocks with their tools.
// Does not know: where the text came from.

import { json } from "./api.js";
import { addCodeTools } from "./code.js";

const made = new Map(); // text -> HTML, for conversations that are opened again
const BATCH = 50;
const KEPT = 1000;
let preparing = Promise.resolve(); // many texts are on their way: each of them need not be asked for
const busy = new WeakMap(); // element -> {text, live}, what to show next

/** Show `text` in `element`. live: more will come; then it is rendered now and again, as fast as the server can. */
export function show(element, text, live = false) {
  if (element.shownText === text && element.shownLive === live) return;
  const waiting = busy.get(element);
  if (waiting) {
    Object.assign(waiting, { text, live });
    return;
  }
  const known = made.get(text);
  if (known !== undefined) return insert(element, text, known, live);
  const next = { text, live };
  busy.set(element, next);
  work(element, next);
}

async function work(element, next) {
  for (;;) {
    const { text, live } = next, began = performance.now();
    let html = null;
    try {
      await preparing;
      html = made.get(text) ?? (await json("/render", { text })).html;
    } catch {
      // Without a server the text itself is shown: better than nothing.
    }
    insert(element, text, html, live);
    if (html !== null && !live) keep(text, html);
    if (next.text === text && next.live === live) break;
    const pause = next.live ? Math.min(3000, Math.max(80, 6 * (performance.now() - began))) : 0;
    await new Promise((resolve) => setTimeout(resolve, pause));
  }
  busy.delete(element);
}

/** Have the HTML of many texts at once, before they are shown. */
export function prepare(texts) {
  const wanted = [...new Set(texts)].filter((text) => text && !made.has(text)).slice(0, KEPT);
  if (wanted.length > 1) preparing = askFor(wanted);
}

async function askFor(wanted) {
  try {
    for (let at = 0; at < wanted.length; at += BATCH) {
      const texts = wanted.slice(at, at + BATCH), { html } = await json("/render", { texts });
      texts.forEach((text, index) => keep(text, html[index]));
    }
  } catch {
    // Each is asked for again when it is shown.
  }
}

function keep(text, html) {
  made.set(text, html);
  if (made.size > KEPT) made.delete(made.keys().next().value);
}

function insert(element, text, html, live) {
  Object.assign(element, { shownText: text, shownLive: live });
  element.classList.toggle("raw", html === null);
  if (html === null) element.textContent = text;
  else element.innerHTML = html;
  addCodeTools(element, live);
}
