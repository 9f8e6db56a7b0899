// Conversations as files: JSON with everything, Markdown with the path that is shown.
// In: conversations, or the text of a file. Out: the text of a file, or conversations with new ids. Pure.
// Does not know: where conversations are kept. What a file holds is checked: it may come from anywhere.

import { t } from "./i18n.js";
import { add, newConversation, newId, path, titleOf } from "./tree.js";

const FORMAT = "deepfast-conversations", VERSION = 1;
const MARK = /^<!-- deepfast:(system|user|assistant|thought|title)(?: model="([^"]*)")? -->$/;

export function toJson(conversations) {
  const kept = (name, value) => (name === "live" ? undefined : value);
  return JSON.stringify({ format: FORMAT, version: VERSION, conversations }, kept, 2);
}

/** Readable anywhere; the comments tell `fromText` what is what. */
export function toMarkdown(conversation) {
  const lines = ["<!-- deepfast:title -->", `# ${conversation.title || t("newChat")}`];
  const part = (mark, heading, text) => lines.push("", `<!-- deepfast:${mark} -->`, ...(heading ? [`## ${heading}`, ""] : []), escape(text));
  if (conversation.system) part("system", "System", conversation.system);
  for (const turn of path(conversation)) {
    if (turn.role === "user") part("user", "User", turn.content);
    else {
      if (turn.reasoning) part("thought", null, `<details><summary>Thought</summary>\n\n${turn.reasoning}\n\n</details>`);
      part(`assistant model="${(turn.model ?? "").replace(/["\n]/g, "")}"`, "Assistant", turn.content);
    }
  }
  return lines.join("\n") + "\n";
}

// A line of a text that looks like one of our marks gets a backslash, as does one that has backslashes before it.
const escape = (text) => (text ?? "").replace(/^(\\*<!-- deepfast:)/gm, "\\$1");
const unescape = (text) => text.replace(/^\\(\\*<!-- deepfast:)/gm, "$1");

/** Conversations out of a file that `toJson` or `toMarkdown` made. Throws an Error that says what is wrong. */
export function fromText(text, model = "") {
  return text.trimStart().startsWith("{") ? fromJson(text) : [fromMarkdown(text, model)];
}

function fromJson(text) {
  let data;
  try {
    data = JSON.parse(text);
  } catch {
    throw new Error(t("badFile"));
  }
  if (data?.format !== FORMAT || data.version !== VERSION || !Array.isArray(data.conversations)) throw new Error(t("badFile"));
  return data.conversations.map(checked);
}

/** A conversation that holds what it must and nothing else, with ids of its own. */
function checked(raw) {
  const made = { ...newConversation(string(raw?.system)), title: string(raw?.title) };
  if (Number.isFinite(raw?.created)) made.created = raw.created;
  if (Number.isFinite(raw?.updated)) made.updated = raw.updated;
  const turns = raw?.turns && typeof raw.turns === "object" ? raw.turns : {};
  const ids = new Map(Object.keys(turns).map((id) => [id, newId()]));
  const seen = new Set();
  const list = (value) => (Array.isArray(value) ? value : []).filter((id) => ids.has(id) && !seen.has(id) && seen.add(id));
  const walk = [[null, list(raw?.first)]];
  made.first = walk[0][1].map((id) => ids.get(id));
  made.shown = index(raw?.shown, made.first);
  while (walk.length) {
    const [parent, children] = walk.pop();
    for (const id of children) {
      const turn = turns[id], next = list(turn?.next);
      made.turns[ids.get(id)] = { ...turnOf(turn), id: ids.get(id), parent, next: next.map((one) => ids.get(one)), shown: index(turn?.shown, next) };
      walk.push([ids.get(id), next]);
    }
  }
  if (!made.first.length) throw new Error(t("badFile"));
  return made;
}

const string = (value) => (typeof value === "string" ? value : "");
const finite = (value) => (Number.isFinite(value) ? value : undefined);
const index = (value, list) => (Number.isInteger(value) && value >= 0 && value < list.length ? value : 0);

function turnOf(raw) {
  if (raw?.role !== "user" && raw?.role !== "assistant") throw new Error(t("badFile"));
  const made = { role: raw.role, content: string(raw.content), created: finite(raw.created) ?? Date.now() };
  if (raw.role === "user") return made;
  const tokens = raw.tokens && typeof raw.tokens === "object" ? raw.tokens : null;
  const counts = tokens && Object.fromEntries(["prompt", "completion", "reasoning", "cached"].map((name) => [name, finite(tokens[name]) ?? 0]));
  return {
    ...made,
    reasoning: string(raw.reasoning), model: string(raw.model), label: string(raw.label), finish: string(raw.finish) || "stop",
    stop: string(raw.stop) || null, options: {}, error: null, thoughtSeconds: finite(raw.thoughtSeconds),
    firstToken: finite(raw.firstToken), total: finite(raw.total), tokens: counts && { ...counts, estimated: Boolean(tokens.estimated) },
  };
}

function fromMarkdown(text, model) {
  const parts = [];
  for (const line of text.replace(/\r\n/g, "\n").split("\n")) {
    const mark = MARK.exec(line);
    if (mark) parts.push({ kind: mark[1], model: mark[2], lines: [] });
    else parts.at(-1)?.lines.push(line);
  }
  const body = ({ kind, lines }) => {
    let whole = lines.join("\n");
    if (kind === "thought") whole = whole.replace(/^<details><summary>Thought<\/summary>\n\n/, "").replace(/\n\n<\/details>\s*$/, "");
    else whole = whole.replace(/^## \w+\n\n/, "").replace(/\n$/, "");
    return unescape(whole);
  };
  const made = newConversation();
  let parent = null, thought = "";
  for (const part of parts) {
    if (part.kind === "title") made.title = part.lines.join(" ").replace(/^# /, "").trim();
    else if (part.kind === "system") made.system = body(part);
    else if (part.kind === "thought") thought = body(part);
    else {
      const turn = { role: part.kind, content: body(part) };
      if (part.kind === "assistant") Object.assign(turn, { reasoning: thought, model: part.model || model, finish: "stop", stop: null, options: {}, error: null, tokens: null });
      thought = "";
      parent = add(made, parent, turn).id;
    }
  }
  if (!made.first.length) throw new Error(t("badFile"));
  made.title ||= titleOf(path(made)[0].content);
  return made;
}
