// Starts the page: settings, models, conversations, shortcuts, and what to say when the server is away.
// In: nothing. Out: a page that works. Does not know: details, which are in the modules that it wires up.

import { connect, health } from "./api.js";
import * as chat from "./chat.js";
import * as compare from "./compare.js";
import * as composer from "./composer.js";
import * as dialogs from "./dialogs.js";
import { $, announce, h } from "./dom.js";
import { setLanguage, t } from "./i18n.js";
import { loadModels, modelOf, models } from "./models.js";
import { change, settings } from "./settings.js";
import * as sidebar from "./sidebar.js";
import { lasting } from "./store.js";

const AGAIN = 1500; // milliseconds between two looks whether the server is back

let loaded = false, down = false, steering = 0;

function fillModels() {
  $("model").replaceChildren(...models.map(({ id, remote }) => h("option", { value: id }, remote ? `${id} (${t("remote")})` : id)));
  if (!models.some((model) => model.id === settings.model)) change({ model: models[0]?.id ?? "" });
  $("model").value = settings.model;
  fitModes();
}

/** A model that always thinks, or never does, has one mode less. */
function fitModes() {
  for (const mode of ["on", "off"]) $(`mode-${mode}`).disabled = modelOf(settings.model)?.modes.includes(mode) === false;
}

/** The models, or a banner until there are any. */
async function load() {
  setState("loading");
  for (;;) {
    try {
      await loadModels();
      break;
    } catch (error) {
      if (error.status && error.status !== 503) {
        setState("failed", error.message);
        $("banner-again").onclick = load;
        return;
      }
      setState(error.status === 503 ? "loading" : "down");
      await pause();
    }
  }
  loaded = true;
  fillModels();
  if (compare.isOpen()) compare.open();
  setState("up");
}

/** Until the next look, or until the user asks for it. */
const pause = () => new Promise((resolve) => {
  const timer = setTimeout(resolve, AGAIN);
  $("banner-again").onclick = () => (clearTimeout(timer), resolve());
});

function setState(state, text = "") {
  const words = { loading: t("loadingModel"), down: t("serverDown"), failed: text };
  document.body.dataset.state = state;
  const banner = $("banner");
  if (state === "up" && !banner.hidden && !$("banner").classList.contains("calm")) announce(t("serverBack"));
  banner.hidden = state === "up";
  banner.classList.toggle("calm", state === "loading");
  $("banner-text").textContent = words[state] ?? "";
  $("banner-again").hidden = state === "loading";
}

async function watch(state) {
  if (state !== "down" || down || !loaded) return;
  down = true;
  setState("down");
  while ((await health()) !== 200) await pause();
  down = false;
  setState("up");
}

/** Mode and budget also act on the thought that is being thought. */
function steerLater(control) {
  clearTimeout(steering);
  const meant = chat.running(); // not an answer that is asked for while the slider comes to rest
  if (meant) steering = setTimeout(() => meant === chat.running() && chat.steerAll(control), 200);
}

function start() {
  setLanguage(settings.language);
  connect({ askForKey: dialogs.askForKey, onState: watch });
  dialogs.start(() => {
    chat.draw(true);
    composer.showBudget();
    sidebar.draw();
    compare.redraw();
    if (models.length) fillModels();
  });
  compare.start();
  chat.start((conversation) => sidebar.saved(conversation));
  chat.onRunning(() => composer.setRunning(Boolean(chat.running())));
  composer.start({
    send: (text) => {
      if (!loaded) return false;
      return compare.isOpen() ? compare.send(text) : chat.send(text);
    },
    stop: () => chat.running()?.stop(),
    mode: (mode) => mode === "off" && chat.steerAll({ action: "end" }),
    budget: (budget) => steerLater({ action: "budget", budget }),
    editLast: () => !compare.isOpen() && chat.editLast(),
  });
  $("model").addEventListener("change", () => (change({ model: $("model").value }), fitModes()));
  $("compare-toggle").addEventListener("click", () => (compare.isOpen() ? compare.close() : compare.open()));
  $("toggle-sidebar").addEventListener("click", () => toggleSidebar());
  $("scrim").addEventListener("click", () => toggleSidebar(false));
  for (const example of document.querySelectorAll(".example")) {
    example.addEventListener("click", () => composer.fill(example.textContent));
  }
  document.addEventListener("keydown", shortcut);
  document.addEventListener("click", (event) => {
    for (const menu of document.querySelectorAll("details.menu[open]")) if (!menu.contains(event.target)) menu.open = false;
  });
  sidebar.start(() => {
    compare.close();
    if (matchMedia("(max-width: 800px)").matches) toggleSidebar(false);
    $("input").focus();
  }).then(() => {
    $("not-lasting").hidden = lasting();
    document.body.dataset.ready = "true";
  });
  chat.draw();
  load();
  $("input").focus();
}

/** On a narrow screen the list lies over the page; on a wide one it makes room. */
function toggleSidebar(wanted) {
  const narrow = matchMedia("(max-width: 800px)").matches, { classList } = document.body;
  const visible = narrow ? classList.contains("sidebar-over") : !classList.contains("sidebar-off");
  const show = wanted ?? !visible;
  if (narrow) classList.toggle("sidebar-over", show);
  else classList.toggle("sidebar-off", !show);
  $("toggle-sidebar").setAttribute("aria-expanded", String(show));
  if (show && narrow) $("search").focus();
}

function shortcut(event) {
  const command = event.ctrlKey || event.metaKey, typing = event.target.closest("input, textarea, select");
  if (document.querySelector("dialog[open]")) return;
  const act = (work) => {
    event.preventDefault();
    work();
  };
  if (event.key === "Escape") {
    const menu = document.querySelector("details.menu[open]");
    if (menu) return act(() => ((menu.open = false), menu.querySelector("summary").focus()));
    if (document.body.classList.contains("sidebar-over")) return act(() => toggleSidebar(false));
    if (chat.running()) return act(() => chat.running().stop());
  }
  if (event.altKey && event.key === "Enter") return act(() => chat.steerAll({ action: "end" }));
  if (event.altKey && event.code === "KeyM") return act(() => chat.steerAll({ action: "extend", tokens: settings.more }));
  if (event.altKey && event.code === "KeyT") return act(composer.cycleMode);
  if (event.altKey && event.code === "KeyN") return act(sidebar.fresh);
  if (event.altKey && event.code === "KeyC") return act(() => $("compare-toggle").click());
  if (command && event.key.toLowerCase() === "k") return act(() => (toggleSidebar(true), $("search").focus()));
  if (command && event.key === ",") return act(dialogs.openSettings);
  if (!typing && event.key === "/") return act(() => $("input").focus());
  if (!typing && event.key === "?") return act(dialogs.openHelp);
}

start();
