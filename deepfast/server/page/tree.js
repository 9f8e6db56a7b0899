// A conversation: a tree of turns, of which one path is shown. Editing and retrying make branches.
// In: a conversation and a turn's id. Out: paths, branches, messages for the API. Pure; stored as it is.
// Does not know: the DOM, the store, the server.
//
// conversation: {id, title, created, updated, system, turns: {id: turn}, first: [ids], shown: index in first}
// turn: {id, parent, role, content, next: [ids], shown: index in next, ...} and of an answer also {reasoning, model,
// options, finish, stop, thoughtSeconds, tokens, firstToken, total, error}

export const newId = () => Array.from(crypto.getRandomValues(new Uint8Array(9)), (byte) => byte.toString(36).padStart(2, "0")).join("");

export function newConversation(system = "") {
  const now = Date.now();
  return { id: newId(), title: "", created: now, updated: now, system, turns: {}, first: [], shown: 0 };
}

const holder = (conversation, parent) => (parent ? conversation.turns[parent] : conversation);
const listOf = (conversation, parent) => (parent ? conversation.turns[parent].next : conversation.first);

/** A new turn below `parent` (null: at the start), which is shown from now on. */
export function add(conversation, parent, turn) {
  const made = { id: newId(), parent, next: [], shown: 0, created: Date.now(), ...turn };
  conversation.turns[made.id] = made;
  const list = listOf(conversation, parent);
  list.push(made.id);
  holder(conversation, parent).shown = list.length - 1;
  conversation.updated = Date.now();
  return made;
}

/** The turns that are shown, first to last. */
export function path(conversation) {
  const found = [];
  let at = conversation.turns[conversation.first[conversation.shown]];
  while (at) {
    found.push(at);
    at = conversation.turns[at.next[at.shown]];
  }
  return found;
}

/** The turns from the start down to this one. */
export function above(conversation, id) {
  const found = [];
  for (let at = conversation.turns[id]; at; at = conversation.turns[at.parent]) found.unshift(at);
  return found;
}

/** {ids, index}: this turn among its branches. */
export function branches(conversation, turn) {
  const ids = listOf(conversation, turn.parent);
  return { ids, index: ids.indexOf(turn.id) };
}

/** Show this turn instead of its branches. */
export function show(conversation, id) {
  const turn = conversation.turns[id];
  holder(conversation, turn.parent).shown = branches(conversation, turn).index;
}

/** What the API is sent for the turns down to `id` (null: none). Thoughts go along; the template decides. */
export function messages(conversation, id, system) {
  const sent = system ? [{ role: "system", content: system }] : [];
  for (const turn of id ? above(conversation, id) : []) {
    if (turn.role === "user") sent.push({ role: "user", content: turn.content });
    else if (turn.content || turn.reasoning) {
      const message = { role: "assistant", content: turn.content };
      if (turn.reasoning) message.reasoning_content = turn.reasoning;
      sent.push(message);
    }
  }
  return sent;
}

/** A title out of the first question. */
export function titleOf(text) {
  const line = text.trim().split("\n")[0].replace(/\s+/g, " ");
  return line.length > 60 ? `${line.slice(0, 57)}…` : line;
}

/** Does any turn, or the title, hold this text? */
export function holds(conversation, wanted) {
  const text = wanted.toLocaleLowerCase();
  const within = (value) => (value ?? "").toLocaleLowerCase().includes(text);
  return within(conversation.title) || Object.values(conversation.turns).some((turn) => within(turn.content) || within(turn.reasoning));
}
