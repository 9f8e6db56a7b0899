// The box at the bottom: the question, the mode switch, the budget slider, send and stop.
// In: keys and clicks. Out: calls of `send`, `stop`, `mode` and `budget`. Does not know: conversations.

import { $, announce, number } from "./dom.js";
import { t } from "./i18n.js";
import { change, settings } from "./settings.js";

/** Positions of the slider; beyond the last there is no limit. */
export const BUDGETS = [0, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384, 32768];
const MODES = ["auto", "on", "off"];

let handlers = {};
const input = $("input");

/** handlers: send(text), stop(), mode(mode), budget(tokens or null), editLast(). */
export function start(given) {
  handlers = given;
  const slider = $("budget");
  slider.max = BUDGETS.length;
  const place = BUDGETS.findLastIndex((budget) => settings.budget !== null && budget <= settings.budget);
  slider.value = settings.budget === null ? BUDGETS.length : Math.max(0, place);
  for (const mode of MODES) {
    const radio = $(`mode-${mode}`);
    radio.checked = settings.mode === mode;
    radio.addEventListener("change", () => setMode(mode));
  }
  slider.addEventListener("input", () => {
    showBudget();
    change({ budget: BUDGETS[Number(slider.value)] ?? null });
    handlers.budget(settings.budget);
  });
  input.addEventListener("input", fit);
  input.addEventListener("keydown", (event) => {
    if (event.key === "Enter" && !event.shiftKey && !event.altKey && !event.isComposing) {
      event.preventDefault();
      send();
    } else if (event.key === "ArrowUp" && !input.value) {
      if (handlers.editLast()) event.preventDefault();
    }
  });
  $("composer").addEventListener("submit", (event) => {
    event.preventDefault();
    send();
  });
  $("stop").addEventListener("click", () => handlers.stop());
  showBudget();
  fit();
}

function setMode(mode) {
  change({ mode });
  $(`mode-${mode}`).checked = true;
  showBudget();
  handlers.mode(mode);
}

/** The next mode, for a shortcut. */
export function cycleMode() {
  setMode(MODES[(MODES.indexOf(settings.mode) + 1) % MODES.length]);
  announce(t("modeIs", { mode: t(`mode_${settings.mode}`) }));
}

export function showBudget() {
  const slider = $("budget"), tokens = BUDGETS[Number(slider.value)] ?? null;
  const text = tokens === null ? t("noLimit") : t("tokens", { n: number(tokens) });
  $("budget-value").textContent = text;
  slider.setAttribute("aria-valuetext", text);
  slider.disabled = settings.mode === "off";
  slider.closest(".budget").classList.toggle("off", slider.disabled);
  slider.style.setProperty("--part", `${(100 * Number(slider.value)) / BUDGETS.length}%`);
}

function send() {
  const text = input.value;
  if (!text.trim()) return input.focus();
  if (handlers.send(text) === false) return;
  input.value = "";
  fit();
}

/** As high as its text, within limits. */
function fit() {
  input.style.height = "auto";
  input.style.height = `${Math.min(input.scrollHeight + 2, window.innerHeight * 0.4)}px`;
}

export function fill(text) {
  input.value = text;
  fit();
  input.focus();
}

/** While something runs, stop takes the place of send. */
export function setRunning(running) {
  const focused = document.activeElement === $("stop");
  $("send").hidden = running;
  $("stop").hidden = !running;
  if (focused && !running) input.focus();
}
