// What the user chose: language, theme, mode, budget, sampling, prices. Kept in localStorage.
// In: changes. Out: `settings`, a plain object; subscribers are told. Does not know: the dialog that shows them.

const KEY = "deepfast.settings";
const DEFAULTS = {
  language: "", // "" is the browser's
  theme: "", // "" is the system's
  fold: "auto", // thoughts: "auto" (open while it thinks), "open", "closed"
  model: "",
  mode: "auto",
  budget: null, // tokens; null is no limit
  more: 256, // tokens that "think more" adds
  system: "", // of new conversations
  sampling: {}, // temperature and so on; absent is the model's own
  prices: {}, // model -> {input, output}, per million tokens
  columns: null, // of the side-by-side view, as last used
};

export const settings = load();
const listeners = new Set();

function load() {
  try {
    return { ...DEFAULTS, ...JSON.parse(localStorage.getItem(KEY) || "{}") };
  } catch {
    return { ...DEFAULTS };
  }
}

/** Change and keep. */
export function change(changes) {
  Object.assign(settings, changes);
  try {
    localStorage.setItem(KEY, JSON.stringify(settings));
  } catch {
    // Storage may be forbidden: the choice then lives as long as the page.
  }
  for (const listener of listeners) listener(settings);
}

export function onChange(listener) {
  listeners.add(listener);
}

/** What a turn's tokens cost at the model's prices, or null where no price is known. */
export function cost(turn) {
  const price = settings.prices[turn.model];
  if (!price || !turn.tokens || (!price.input && !price.output)) return null;
  return (turn.tokens.prompt * (price.input || 0) + turn.tokens.completion * (price.output || 0)) / 1e6;
}
