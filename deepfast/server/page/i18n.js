// The words of the page in the chosen language.
// In: a key, values for its {places}. Out: text; elements with data-i18n attributes translated.
// Does not know: where settings are kept.

import { en } from "./words-en.js";
import { zh } from "./words-zh.js";

const tables = { en, zh };
let chosen = "en";

export const language = () => (chosen === "zh" ? "zh-CN" : "en");

/** "en", "zh", or "" for the browser's own. */
export function setLanguage(wanted) {
  chosen = wanted || (navigator.language.toLowerCase().startsWith("zh") ? "zh" : "en");
  document.documentElement.lang = language();
  translate(document);
}

/** The text for a key; English where a language lacks it. */
export function t(key, values = {}) {
  const text = tables[chosen][key] ?? en[key] ?? key;
  return text.replace(/\{(\w+)\}/g, (_, name) => values[name] ?? "");
}

/** data-i18n is the text of an element, data-i18n-label its name and tooltip, data-i18n-hint its placeholder. */
export function translate(root) {
  for (const element of root.querySelectorAll("[data-i18n]")) element.textContent = t(element.dataset.i18n);
  for (const element of root.querySelectorAll("[data-i18n-label]")) {
    element.setAttribute("aria-label", t(element.dataset.i18nLabel));
    if (element.matches("button, a, label")) element.title = t(element.dataset.i18nLabel);
  }
  for (const element of root.querySelectorAll("[data-i18n-hint]")) element.placeholder = t(element.dataset.i18nHint);
}
