// What can be done with a code block: copy it, and look at SVG and HTML in a frame that can do no harm.
// In: an element with rendered Markdown. Out: a bar above each block. Does not know: conversations, the server.
//
// The frame has no origin and its policy (it comes with preview.html) allows no request: it cannot read this page,
// its storage or its key. Scripts run only when the user asks for them; without them it sends nothing anywhere.

import { copy, h, iconButton } from "./dom.js";
import { t } from "./i18n.js";

export function addCodeTools(element, live) {
  for (const block of element.querySelectorAll("pre.code")) {
    const source = block.textContent, language = block.dataset.lang || "";
    const bar = h("div", { class: "code-bar" }, h("span", { class: "code-lang" }, language || t("code")));
    const box = h("div", { class: "code-box" }, bar);
    block.replaceWith(box);
    block.tabIndex = 0; // it scrolls, so the keyboard must reach it
    block.setAttribute("aria-label", language || t("code"));
    block.setAttribute("role", "region");
    box.append(block);
    if (!live && document_(language, source)) addPreview(box, bar, block, language, source);
    bar.append(iconButton("copy", t("copyCode"), () => copy(source)));
  }
}

/** The document to preview, or null for what is no picture and no page. */
export function document_(language, source) {
  const text = source.trimStart();
  if (/^(<\?xml[^>]*>\s*)?(<!--[\s\S]*?-->\s*)?<svg[\s>]/i.test(text) && ["svg", "xml", "html", ""].includes(language)) {
    return `<!doctype html><style>body{margin:0;min-height:100vh;display:grid;place-items:center;background:#fff}svg{max-width:100%;max-height:100vh}</style>${text.replace(/^<\?xml[^>]*>/, "")}`;
  }
  return language === "html" ? source : null;
}

function addPreview(box, bar, block, language, source) {
  const holder = h("div", { class: "preview" });
  let scripts = false;
  const frame = () => {
    const made = h("iframe", {
      title: t("preview"),
      sandbox: "allow-scripts",
      referrerpolicy: "no-referrer",
      src: scripts ? "/page/preview-scripts.html" : "/page/preview.html",
    });
    made.addEventListener("load", () => made.contentWindow.postMessage(document_(language, source), "*"), { once: true });
    holder.replaceChildren(made);
  };
  const look = (wanted) => {
    block.hidden = wanted;
    holder.hidden = !wanted;
    run.hidden = !wanted || !canRun;
    tabs[0].setAttribute("aria-pressed", String(wanted));
    tabs[1].setAttribute("aria-pressed", String(!wanted));
    if (wanted && !holder.firstChild) frame();
  };
  const tabs = [
    h("button", { type: "button", class: "tab", onclick: () => look(true) }, t("preview")),
    h("button", { type: "button", class: "tab", onclick: () => look(false) }, t("source")),
  ];
  const canRun = /<script|\son\w+\s*=/i.test(source);
  const run = h("button", {
    type: "button",
    class: "tab",
    title: t("runScriptsHint"),
    onclick: () => {
      scripts = true;
      frame();
      run.remove();
    },
  }, t("runScripts"));
  bar.append(h("div", { class: "tabs", role: "group", "aria-label": t("preview") }, ...tabs), run);
  box.append(holder);
  look(true);
}
