// Conversations in this browser: IndexedDB, and memory alone where that is forbidden.
// In: conversations as plain objects with an id. Out: the same, newest first. They never leave the browser.
// Does not know: what a conversation holds.

const NAME = "deepfast";
let database = null;
const channel = "BroadcastChannel" in window ? new BroadcastChannel(NAME) : null;

/** All conversations. `onForeign` is called when another tab has changed one. */
export async function open(onForeign) {
  if (channel) channel.onmessage = (event) => onForeign(event.data);
  try {
    database = await new Promise((resolve, reject) => {
      const opening = indexedDB.open(NAME, 1);
      opening.onupgradeneeded = () => opening.result.createObjectStore("conversations", { keyPath: "id" });
      opening.onsuccess = () => resolve(opening.result);
      opening.onerror = () => reject(opening.error);
    });
    return await all();
  } catch {
    database = null;
    return [];
  }
}

/** False where nothing outlives the page: a private window, for example. */
export const lasting = () => database !== null;

export async function all() {
  return (await act("readonly", (store) => store.getAll())).sort((a, b) => b.updated - a.updated);
}

export const get = (id) => act("readonly", (store) => store.get(id));

export async function put(conversation) {
  const kept = JSON.parse(JSON.stringify(conversation, (name, value) => (name === "live" ? undefined : value)));
  await act("readwrite", (store) => store.put(kept));
  channel?.postMessage({ changed: conversation.id });
}

export async function remove(id) {
  await act("readwrite", (store) => store.delete(id));
  channel?.postMessage({ removed: id });
}

function act(mode, work) {
  if (!database) return Promise.resolve(undefined);
  return new Promise((resolve, reject) => {
    const request = work(database.transaction("conversations", mode).objectStore("conversations"));
    request.onsuccess = () => resolve(request.result);
    request.onerror = () => reject(request.error);
  });
}
