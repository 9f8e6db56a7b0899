// The conversation on the page: asks, retries, edits, branches; runs go on while another one is shown.
// In: the user's wishes. Out: turns in the conversation, views of them, what is to be stored.
// Does not know: how answers arrive (answer.js), how they look (answer-view.js).

import { AnswerView, Follow } from "./answer-view.js";
import { Run } from "./answer.js";
import { $, announce, button, copy, h, icon, iconButton, number, toast } from "./dom.js";
import { t } from "./i18n.js";
import { prepare } from "./render.js";
import { settings } from "./settings.js";
import * as store from "./store.js";
import * as tree from "./tree.js";

export let conversation = tree.newConversation(settings.system);
const views = new Map(); // id of a shown answer -> its view
const runs = new Map(); // id of a conversation -> the Run that fills it
let onSaved = () => {};
let follow;

export function start(saved) {
  onSaved = saved;
  follow = new Follow($("scroll"));
  $("to-end").addEventListener("click", () => follow.toEnd());
  setInterval(() => { // the seconds of a thought go on between two tokens
    for (const view of views.values()) if (view.turn.live) view.update();
  }, 500);
}

/** The run of the conversation that is shown, if any. */
export const running = () => runs.get(conversation.id);
export const runOf = (id) => runs.get(id);

/** Show another conversation, or a new one. */
export function open(wanted) {
  conversation = wanted ?? tree.newConversation(settings.system);
  for (const turn of Object.values(conversation.turns)) {
    if (turn.role === "assistant" && turn.finish === null && !turn.live) turn.finish = "abort"; // the page was closed
  }
  prepare(tree.path(conversation).filter((turn) => turn.role === "assistant").map((turn) => turn.content));
  draw();
  follow.toEnd();
}

export async function save() {
  conversation.updated = Date.now();
  await keep(conversation);
}

async function keep(changed) {
  try {
    await store.put(changed);
  } catch (error) {
    toast(t("notStored", { why: error.message }));
  }
  onSaved(changed);
}

/** Ask; false when an answer is still being written. */
export function send(text) {
  if (running()) {
    toast(t("stillRunning"));
    return false;
  }
  const last = tree.path(conversation).at(-1);
  ask(last?.id ?? null, text);
  return true;
}

function ask(parent, text) {
  if (!conversation.title) conversation.title = tree.titleOf(text);
  const turn = tree.add(conversation, parent, { role: "user", content: text });
  answer(turn.id);
}

/** The options of the next answer, as they are set now. */
export const currentOptions = () => ({ mode: settings.mode, budget: settings.mode === "off" ? null : settings.budget, ...settings.sampling });

/** A new answer below a question, in one or several ways: [{model, options, label}, ...]. */
export function answer(parent, ways = [{ model: settings.model, options: currentOptions(), follows: true }]) {
  const owner = conversation, sent = tree.messages(owner, parent, owner.system);
  const turns = ways.map((way) => tree.add(owner, parent, { role: "assistant", content: "", reasoning: "", ...way }));
  const made = [];
  for (const model of new Set(ways.map((way) => way.model))) { // one request for each model, whatever is asked of it
    made.push(new Run(turns.filter((turn) => turn.model === model), sent, model, (turn) => changed(owner, turn)));
  }
  const run = { made, turns, stop: () => made.forEach((one) => one.stop()) };
  runs.set(owner.id, run);
  if (owner === conversation) draw();
  follow.toEnd();
  announce(t("waiting"));
  const keeping = setInterval(() => keep(owner), 3000);
  keep(owner);
  run.finished = Promise.all(made.map((one) => one.finished)).then(() => {
    clearInterval(keeping);
    runs.delete(owner.id);
    owner.updated = Date.now();
    keep(owner);
    if (owner === conversation) ended(turns);
  });
  return { turns, run };
}

/** A turn has changed: a new phase is shown at once, more text with the next frame. */
function changed(owner, turn) {
  const phase = turn.live?.phase ?? "done";
  if (turn.live && turn.live.seen !== phase) {
    turn.live.seen = phase;
    if (phase === "thinking") catchUp(owner, turn);
    if (owner === conversation && ["thinking", "answering"].includes(phase)) announce(t(phase));
  }
  const view = owner === conversation ? views.get(turn.id) : null;
  if (!view) return;
  if (view.phase !== phase) refresh(view);
  else if (!view.due) view.due = requestAnimationFrame(() => refresh(view));
}

function refresh(view) {
  view.due = 0;
  view.update();
  if (view.phase === "busy") announce(view.notice.textContent);
  follow.keep();
}

/** The mode or the budget was changed before there was a thought to act on. */
function catchUp(owner, turn) {
  if (owner !== conversation || !turn.follows) return;
  if (settings.mode === "off") actions.steer(turn, { action: "end" });
  else if (settings.budget !== turn.options.budget) actions.steer(turn, { action: "budget", budget: settings.budget });
}

let showRunning = () => {};
export const onRunning = (listener) => (showRunning = listener);

function ended(turns) {
  showRunning();
  const failed = turns.find((turn) => turn.error);
  const total = turns.reduce((sum, turn) => sum + (turn.tokens?.completion ?? 0), 0);
  announce(failed ? failed.error.text : t("answered", { n: number(total) }));
  setTimeout(() => follow.keep(), 300);
}

export const actions = {
  async steer(turn, control) {
    try {
      await turn.live?.run.steer(turn, control);
      announce(t(`did_${control.action}`));
    } catch (error) {
      toast(error.message);
    }
  },
  again: (turn) => turn.live?.run.again(),
  stop: (turn) => turn.live?.run.stop(),
  retry(turn) {
    if (running()) return toast(t("stillRunning"));
    answer(turn.parent);
  },
};

/** Act on every open thought of what is shown: a control's object. */
export function steerAll(control) {
  const open = running()?.turns.filter((turn) => turn.live?.phase === "thinking") ?? [];
  for (const turn of open) actions.steer(turn, control);
  return open.length > 0;
}

let covered = false;
/** While another view covers the conversation, nothing of it is drawn. */
export function setCovered(value) {
  covered = value;
  draw();
}

/** Draw the shown path. Views of answers are kept: what was unfolded stays so. anew: in another language. */
export function draw(anew = false) {
  const turns = covered ? [] : tree.path(conversation), shown = new Set(turns.map((turn) => turn.id));
  for (const id of views.keys()) if (anew || !shown.has(id)) views.delete(id);
  $("turns").replaceChildren(...turns.map((turn) => (turn.role === "user" ? question(turn) : answerView(turn))));
  $("welcome").hidden = turns.length > 0 || covered;
  $("title").textContent = conversation.title || t("newChat");
  document.title = conversation.title ? `${conversation.title} – Deepfast` : "Deepfast";
  $("system-note").hidden = !conversation.system;
  $("system-text").textContent = conversation.system;
  showRunning();
}

function answerView(turn) {
  const known = views.get(turn.id);
  if (known?.turn === turn) {
    known.redraw();
    return known.element;
  }
  const footer = () => [branchButtons(turn)];
  const view = new AnswerView(turn, actions, { label: [turn.model, turn.label].filter(Boolean).join(" · "), footer });
  views.set(turn.id, view);
  return view.element;
}

function question(turn) {
  const text = h("div", { class: "question-text" }, turn.content);
  return h("article", { class: "turn question", "aria-label": t("you"), "data-id": turn.id }, text,
    h("footer", { class: "turn-foot" }, h("div", { class: "turn-buttons" },
      branchButtons(turn),
      iconButton("copy", t("copyQuestion"), () => copy(turn.content)),
      iconButton("edit", t("edit"), (event) => edit(turn, event.currentTarget.closest("article"))))));
}

/** ‹ 2/3 › where a turn has branches. */
function branchButtons(turn) {
  const { ids, index } = tree.branches(conversation, turn);
  if (ids.length < 2) return null;
  const step = (by) => () => {
    tree.show(conversation, ids[index + by]);
    draw();
    save();
    const made = document.querySelector(`[data-id="${ids[index + by]}"]`);
    made?.querySelector(`.branches button:${by < 0 ? "first" : "last"}-of-type:not(:disabled), .branches button:not(:disabled)`)?.focus();
    announce(t("branchOf", { i: index + by + 1, n: ids.length }));
  };
  return h("div", { class: "branches", role: "group", "aria-label": t("branches") },
    iconButton("left", t("branchBefore"), step(-1), { disabled: index === 0 }),
    h("span", {}, `${index + 1}/${ids.length}`),
    iconButton("right", t("branchAfter"), step(1), { disabled: index === ids.length - 1 }));
}

function edit(turn, article) {
  if (running()) return toast(t("stillRunning"));
  const area = h("textarea", { class: "edit-text", "aria-label": t("edit"), rows: "3" });
  area.value = turn.content;
  const done = () => {
    draw();
    $("input").focus();
  };
  const commit = () => {
    if (!area.value.trim()) return;
    ask(turn.parent, area.value);
    $("input").focus();
  };
  area.addEventListener("keydown", (event) => {
    if (event.key === "Escape") {
      event.stopPropagation();
      done();
    } else if (event.key === "Enter" && !event.shiftKey && !event.isComposing) {
      event.preventDefault();
      commit();
    }
  });
  article.classList.add("editing");
  article.replaceChildren(area, h("div", { class: "edit-buttons" },
    button(t("cancel"), done), button(t("saveAndSend"), commit, { class: "button primary", icon: "send" })));
  area.focus();
  area.setSelectionRange(area.value.length, area.value.length);
}

/** Edit the last question; false when there is none. */
export function editLast() {
  const last = tree.path(conversation).findLast((turn) => turn.role === "user");
  if (!last || running()) return false;
  edit(last, document.querySelector(`[data-id="${last.id}"]`));
  return true;
}
