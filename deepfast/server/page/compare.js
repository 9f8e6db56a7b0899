// Side by side: one question, answered in several ways or by several models, in columns.
// In: columns as the user sets them. Out: branches of one question in the conversation; one is continued with.
// Does not know: how answers arrive; models are asked once each, and share the work on the question.

import { AnswerView } from "./answer-view.js";
import * as chat from "./chat.js";
import { $, announce, button, h, icon, iconButton, number, toast } from "./dom.js";
import { t } from "./i18n.js";
import { modelOf, models } from "./models.js";
import { change, settings } from "./settings.js";
import * as tree from "./tree.js";

const MOST = 6;
let columns = []; // {model, mode, budget, temperature}
let shown = []; // {turn, view} of the last question
let parent = null; // the turn that the question follows

export const isOpen = () => document.body.dataset.view === "compare";

export function start() {
  columns = Array.isArray(settings.columns) && settings.columns.length ? settings.columns.slice(0, MOST) : [{ model: "", mode: "on", budget: null, temperature: null }, { model: "", mode: "off", budget: null, temperature: null }];
  $("add-column").addEventListener("click", () => {
    if (columns.length >= MOST) return toast(t("mostColumns", { n: MOST }));
    columns.push({ ...columns.at(-1) });
    change({ columns });
    shown = [];
    draw();
    $("columns").lastElementChild.querySelector("select").focus();
  });
  setInterval(() => shown.forEach(({ turn, view }) => turn.live && view.update()), 500);
}

/** Show the columns for the conversation that is open. */
export function open() {
  document.body.dataset.view = "compare";
  $("compare").hidden = false;
  chat.setCovered(true);
  $("compare-toggle").setAttribute("aria-pressed", "true");
  parent = tree.path(chat.conversation).at(-1)?.id ?? null;
  shown = [];
  draw();
  announce(t("compareOpen"));
  $("input").focus();
}

export function close() {
  if (!isOpen()) return;
  document.body.dataset.view = "chat";
  $("compare").hidden = true;
  $("compare-toggle").setAttribute("aria-pressed", "false");
  shown = [];
  $("columns").replaceChildren();
  chat.setCovered(false);
}

/** Ask in every column; false when answers are still being written. */
export function send(text) {
  if (chat.running()) {
    toast(t("stillRunning"));
    return false;
  }
  const { conversation } = chat;
  if (!conversation.title) conversation.title = tree.titleOf(text);
  const question = tree.add(conversation, parent, { role: "user", content: text });
  const ways = columns.map((column) => {
    const options = { ...settings.sampling, mode: column.mode, budget: column.mode === "off" ? null : column.budget };
    if (column.temperature !== null) options.temperature = column.temperature;
    return { model: modelFor(column), options, label: labelOf(column) };
  });
  const { turns, run } = chat.answer(question.id, ways);
  conversation.turns[question.id].shown = 0;
  shown = turns.map((turn) => ({ turn, view: new AnswerView(turn, actions, { label: `${turn.model} · ${turn.label}`, footer: () => [continueButton(turn)] }) }));
  const before = turns.map(() => null);
  const watch = setInterval(() => shown.forEach(({ turn, view }, i) => {
    const now = `${turn.content.length}/${turn.reasoning.length}/${turn.live?.phase}`;
    if (before[i] !== now) view.update();
    before[i] = now;
  }), 60);
  run.finished.then(() => {
    clearInterval(watch);
    shown.forEach(({ view }) => view.update());
    best();
  });
  draw(text);
  return true;
}

const actions = { ...chat.actions, retry: null }; // the question can be asked again

/** The column's model, or the page's where that one is no longer served. */
const modelFor = (column) => (modelOf(column.model) ? column.model : settings.model);

function continueButton(turn) {
  return button(t("continueWith"), () => {
    tree.show(chat.conversation, turn.id);
    chat.save();
    close();
    $("input").focus();
  }, { icon: "answer", class: "button small" });
}

function labelOf({ mode, budget, temperature }) {
  const parts = [t(`mode_${mode}`)];
  if (mode !== "off" && budget !== null) parts.push(t("budgetIs", { n: number(budget) }));
  if (temperature !== null) parts.push(t("temperatureIs", { n: temperature }));
  return parts.join(" · ");
}

/** As it is, in another language. */
export const redraw = () => isOpen() && draw();

function draw(question = "") {
  const above = tree.path(chat.conversation).length;
  $("compare-context").textContent = shown.length ? question || chat.conversation.turns[shown[0].turn.parent].content
    : above && parent ? t("compareAfter", { title: chat.conversation.title }) : t("compareHint");
  $("compare-context").classList.toggle("question-text", shown.length > 0);
  $("columns").style.setProperty("--count", columns.length);
  $("columns").replaceChildren(...columns.map((column, index) => h("section", { class: "column", "aria-label": t("column", { n: index + 1 }) },
    head(column, index), h("div", { class: "column-body" }, shown[index]?.view.element ?? h("p", { class: "column-empty" }, t("columnEmpty"))))));
}

/** The settings of a column. A change is kept at once and holds for the next question. */
function head(column, index) {
  const field = (label, control) => h("label", { class: "field" }, h("span", {}, label), control);
  const select = (options, value, name) => {
    const made = h("select", { onchange: () => keep(name, made.value) },
      ...options.map(([key, text]) => h("option", { value: key, selected: key === value }, text)));
    return made;
  };
  const amount = (name, props) => {
    const made = h("input", { type: "number", min: "0", ...props, onchange: () => made.validity.valid && keep(name, made.value === "" ? null : Number(made.value)) });
    made.value = column[name] ?? "";
    return made;
  };
  const budget = amount("budget", { step: "1", placeholder: t("noLimit") });
  const temperature = amount("temperature", { step: "any", max: "100" });
  const fit = () => {
    budget.disabled = column.mode === "off";
    const heat = modelOf(modelFor(column))?.defaults[column.mode === "off" ? "off" : "on"]?.temperature;
    temperature.placeholder = heat === undefined ? t("byModel") : String(heat);
  };
  const keep = (name, value) => {
    column[name] = value;
    change({ columns });
    fit();
  };
  const remove = () => {
    columns.splice(index, 1);
    change({ columns });
    shown = [];
    draw();
    $("add-column").focus();
  };
  fit();
  return h("header", { class: "column-head" },
    h("div", { class: "column-title" }, h("strong", {}, `${index + 1}`),
      h("label", {}, h("span", { class: "hidden" }, t("model")),
        select(models.map(({ id, remote }) => [id, remote ? `${id} (${t("remote")})` : id]), modelFor(column), "model")),
      columns.length > 1 ? iconButton("close", t("removeColumn", { n: index + 1 }), remove) : null),
    h("div", { class: "field-row" },
      field(t("mode"), select(["auto", "on", "off"].map((mode) => [mode, t(`mode_${mode}`)]), column.mode, "mode")),
      field(t("budget"), budget),
      field(t("temperature"), temperature)));
}

/** Mark what was fastest and what took fewest tokens, where that says something. */
function best() {
  const done = shown.filter(({ turn }) => turn.finish === "stop" && turn.tokens && turn.total);
  if (done.length < 2) return;
  const mark = (value, word) => {
    const least = Math.min(...done.map(value));
    const winners = done.filter((one) => value(one) === least);
    if (winners.length === 1) winners[0].view.facts.before(h("span", { class: "badge" }, icon("check"), t(word)));
  };
  mark(({ turn }) => turn.total, "fastest");
  mark(({ turn }) => turn.tokens.completion, "shortest");
}
