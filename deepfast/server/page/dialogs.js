// The dialogs: settings, help, and the key that a server may want.
// In: settings and models. Out: changed settings. Does not know: conversations, but for the system prompt of one.

import * as chat from "./chat.js";
import { setKey } from "./api.js";
import { $, h } from "./dom.js";
import { setLanguage, t } from "./i18n.js";
import { modelOf, models } from "./models.js";
import { change, settings } from "./settings.js";

// name -> least, most, step
const SAMPLING = {
  temperature: [0, 100, 0.05],
  top_p: [0.01, 1, 0.01],
  top_k: [0, 1000000, 1],
  min_p: [0, 1, 0.01],
  presence_penalty: [-2, 2, 0.1],
  max_tokens: [1, 1000000, 1],
  seed: [0, 9007199254740991, 1],
};

export function start(onLanguage) {
  for (const dialog of document.querySelectorAll("dialog")) {
    dialog.addEventListener("click", (event) => event.target === dialog && dialog.close());
    for (const closer of dialog.querySelectorAll("[data-close]")) closer.addEventListener("click", () => dialog.close());
  }
  $("open-settings").addEventListener("click", openSettings);
  $("open-help").addEventListener("click", openHelp);
  choice("theme", (theme) => {
    if (theme) document.documentElement.dataset.theme = theme;
    else delete document.documentElement.dataset.theme;
  });
  choice("language", (language) => {
    setLanguage(language);
    onLanguage();
    openSettings();
  });
  choice("fold", () => chat.draw());
  $("set-more").addEventListener("change", () => $("set-more").validity.valid && change({ more: Number($("set-more").value) || 256 }));
  $("set-system").addEventListener("change", () => {
    chat.conversation.system = $("set-system").value.trim();
    chat.draw();
    if (chat.conversation.first.length) chat.save();
  });
  $("set-system-default").addEventListener("change", () => {
    change({ system: $("set-system-default").value.trim() });
    if (!chat.conversation.first.length && !chat.conversation.system) chat.open(null);
  });
  $("reset-sampling").addEventListener("click", () => {
    change({ sampling: {} });
    sampling();
  });
}

function choice(name, then) {
  const select = $(`set-${name}`);
  select.value = settings[name];
  select.addEventListener("change", () => {
    change({ [name]: select.value });
    then(select.value);
  });
}

export function openSettings() {
  $("set-system").value = chat.conversation.system;
  $("set-system-default").value = settings.system;
  $("set-more").value = settings.more;
  sampling();
  prices();
  if (!$("settings").open) $("settings").showModal();
}

/** Empty means the model's own value, which stands there as the hint. */
function sampling() {
  const defaults = modelOf(settings.model)?.defaults ?? {};
  $("sampling").replaceChildren(...Object.entries(SAMPLING).map(([name, [min, max, step]]) => {
    const hint = shownDefault(defaults, name) ?? (name === "seed" ? t("random") : t("byModel"));
    const input = h("input", { type: "number", id: `set-${name}`, min: String(min), max: String(max), step: "any", placeholder: hint, inputmode: "decimal" });
    input.value = settings.sampling[name] ?? "";
    const problem = h("span", { class: "problem", role: "alert" });
    input.addEventListener("change", () => {
      const value = input.value === "" ? undefined : Number(input.value);
      const wrong = input.validity.badInput || !input.validity.valid || (step === 1 && value !== undefined && !Number.isInteger(value));
      problem.textContent = wrong ? t("between", { min, max }) : "";
      input.setAttribute("aria-invalid", String(wrong));
      if (wrong) return;
      const next = { ...settings.sampling, [name]: value };
      if (value === undefined) delete next[name];
      change({ sampling: next });
    });
    return h("label", { class: "field" }, h("span", {}, t(`s_${name}`)), input, problem);
  }));
}

/** The default, or both where it differs between thinking and not. */
function shownDefault(defaults, name) {
  const values = ["on", "off"].map((mode) => defaults[mode]?.[name]).filter((value) => value !== undefined && value !== null);
  return values.length ? [...new Set(values)].join(" / ") : null;
}

function prices() {
  $("prices").replaceChildren(...models.map(({ id }) => {
    const price = settings.prices[id] ?? {};
    const field = (kind) => {
      const input = h("input", { type: "number", min: "0", step: "any", placeholder: "0", "aria-label": t(`price_${kind}`, { model: id }) });
      input.value = price[kind] ?? "";
      input.addEventListener("change", () => {
        if (!input.validity.valid) return;
        change({ prices: { ...settings.prices, [id]: { ...settings.prices[id], [kind]: input.value === "" ? 0 : Number(input.value) } } });
        chat.draw();
      });
      return h("td", {}, input);
    };
    return h("tr", {}, h("th", { scope: "row" }, id), field("input"), field("output"));
  }));
}

export function openHelp() {
  if (!$("help").open) $("help").showModal();
}

let asking = null;
/** Ask for the server's key; true when the user gave one. One dialog for however many requests wait. */
export function askForKey(wasWrong) {
  asking ??= new Promise((resolve) => {
    const dialog = $("key-dialog");
    $("key-problem").hidden = !wasWrong;
    $("key-input").value = "";
    dialog.returnValue = "";
    dialog.addEventListener("close", () => {
      asking = null;
      const given = $("key-input").value.trim();
      if (dialog.returnValue !== "ok" || !given) return resolve(false);
      setKey(given);
      resolve(true);
    }, { once: true });
    dialog.showModal();
    $("key-input").focus();
  });
  return asking;
}
