// The list of conversations: search, open, rename, delete, export, import.
// In: all conversations, once, and each that changed. Out: the list; what was chosen.
// Does not know: turns, answers, the server.

import * as chat from "./chat.js";
import { $, announce, button, download, h, icon, iconButton, toast } from "./dom.js";
import { language, t } from "./i18n.js";
import { settings } from "./settings.js";
import * as store from "./store.js";
import * as transfer from "./transfer.js";
import { holds } from "./tree.js";

const known = new Map(); // id -> conversation
let opened = () => {};

export async function start(onOpen) {
  opened = onOpen;
  for (const conversation of await store.open(foreign)) known.set(conversation.id, conversation);
  $("search").addEventListener("input", draw);
  $("new-chat").addEventListener("click", fresh);
  $("export-all").addEventListener("click", () => download(`deepfast-${day()}.json`, transfer.toJson([...known.values()]), "application/json"));
  $("import").addEventListener("click", () => $("import-file").click());
  $("import-file").addEventListener("change", load);
  draw();
}

export function fresh() {
  chat.open(null);
  opened();
  draw();
}

/** A conversation was stored: show it, at the top. */
export function saved(conversation) {
  known.set(conversation.id, conversation);
  drawLater();
}

const day = () => new Date().toISOString().slice(0, 10);
const fileName = (conversation) => (conversation.title || t("newChat")).replace(/[^\p{L}\p{N}]+/gu, "-").slice(0, 50).replace(/^-|-$/g, "") || "conversation";

async function foreign({ changed, removed }) {
  if (removed) known.delete(removed);
  if (changed && changed !== chat.conversation.id && !chat.runOf(changed)) {
    const stored = await store.get(changed);
    if (stored) known.set(changed, stored); // it may be gone again
  }
  drawLater();
}

let stale = false;
/** An answer that is being written is stored every few seconds: that must not close an open menu. */
function drawLater() {
  stale = document.querySelector("#conversations .menu[open]") !== null;
  if (!stale) draw();
}

export function draw() {
  stale = false;
  const wanted = $("search").value.trim();
  const found = [...known.values()].filter((one) => !wanted || holds(one, wanted)).sort((a, b) => b.updated - a.updated);
  const active = document.activeElement, focused = active?.closest?.("#conversations li")?.dataset.id;
  const part = active?.closest?.(".menu") ? "summary" : "button";
  let group = "";
  const items = [];
  for (const conversation of found) {
    const next = age(conversation.updated);
    if (next !== group) items.push(h("li", { class: "group", "aria-hidden": "true" }, (group = next)));
    items.push(item(conversation));
  }
  $("conversations").replaceChildren(...items);
  $("no-conversations").hidden = found.length > 0;
  $("no-conversations").textContent = wanted ? t("nothingFound") : t("noConversations");
  if (focused) document.querySelector(`#conversations li[data-id="${focused}"] ${part}`)?.focus();
}

function age(time) {
  const days = Math.floor((new Date().setHours(24, 0, 0, 0) - time) / 864e5);
  if (days < 1) return t("today");
  if (days < 2) return t("yesterday");
  if (days < 7) return t("thisWeek");
  return new Intl.DateTimeFormat(language(), { month: "long", year: "numeric" }).format(time);
}

function item(conversation) {
  const current = conversation.id === chat.conversation.id;
  const title = conversation.title || t("newChat");
  const openIt = h("button", { type: "button", class: "open", "aria-current": current ? "true" : null, title, onclick: () => choose(conversation) },
    chat.runOf(conversation.id) ? h("span", { class: "dots", "aria-hidden": "true" }) : null, h("span", {}, title));
  const menu = h("details", { class: "menu" },
    h("summary", { class: "icon-button", "aria-label": t("actionsFor", { title }), title: t("more") }, icon("more")),
    h("div", { class: "menu-items" },
      button(t("rename"), () => rename(conversation), { icon: "edit", class: "button menu-item" }),
      button(t("exportJson"), () => download(`${fileName(conversation)}.json`, transfer.toJson([conversation]), "application/json"), { icon: "download", class: "button menu-item" }),
      button(t("exportMarkdown"), () => download(`${fileName(conversation)}.md`, transfer.toMarkdown(conversation), "text/markdown"), { icon: "download", class: "button menu-item" }),
      button(t("delete"), () => remove(conversation), { icon: "trash", class: "button menu-item danger" })));
  menu.addEventListener("click", (event) => event.target.closest(".menu-item") && (menu.open = false));
  menu.addEventListener("toggle", () => (menu.open ? place(menu) : stale && draw()));
  return h("li", { "data-id": conversation.id, class: current ? "current" : "" }, openIt, menu);
}

/** The menu stays inside the window, above the list that would cut it off. */
function place(menu) {
  const { right, bottom, top } = menu.getBoundingClientRect(), box = menu.lastElementChild;
  const high = box.offsetHeight;
  box.style.left = `${Math.max(8, right - box.offsetWidth)}px`;
  box.style.top = `${bottom + high > window.innerHeight ? top - high : bottom}px`;
}

function choose(conversation) {
  chat.open(conversation);
  opened();
  draw();
}

async function rename(conversation) {
  const dialog = $("rename-dialog");
  $("rename-input").value = conversation.title;
  dialog.returnValue = "";
  dialog.showModal();
  $("rename-input").select();
  await new Promise((resolve) => dialog.addEventListener("close", resolve, { once: true }));
  const title = $("rename-input").value.trim();
  if (dialog.returnValue !== "ok" || !title) return;
  conversation.title = title;
  await store.put(conversation);
  if (conversation.id === chat.conversation.id) chat.draw();
  draw();
}

async function remove(conversation) {
  const dialog = $("delete-dialog");
  $("delete-name").textContent = conversation.title || t("newChat");
  dialog.returnValue = "";
  dialog.showModal();
  await new Promise((resolve) => dialog.addEventListener("close", resolve, { once: true }));
  if (dialog.returnValue !== "ok") return;
  const run = chat.runOf(conversation.id);
  run?.stop();
  await run?.finished; // it stores what there is, which must not come after the deletion
  if (conversation.id === chat.conversation.id) fresh();
  known.delete(conversation.id);
  await store.remove(conversation.id);
  draw();
  announce(t("deleted"));
  $("new-chat").focus();
}

async function load() {
  const input = $("import-file");
  let count = 0;
  for (const file of input.files) {
    try {
      for (const conversation of transfer.fromText(await file.text(), settings.model)) {
        known.set(conversation.id, conversation);
        await store.put(conversation);
        count += 1;
      }
    } catch (error) {
      toast(`${file.name}: ${error.message}`);
      input.value = "";
      draw();
      return;
    }
  }
  input.value = "";
  draw();
  toast(t("imported", { n: count }));
}

export const newest = () => [...known.values()].sort((a, b) => b.updated - a.updated)[0];
