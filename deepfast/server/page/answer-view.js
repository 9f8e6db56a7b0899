// One answer on the page: the thought in its fold, the answer, what is wrong, and the line of numbers.
// In: a turn of role "assistant", as often as it changes. Out: an element; the user's wishes as calls.
// Does not know: how turns are asked for, kept or branched.

import { $, button, copy, h, icon, iconButton, money, number, seconds, setText } from "./dom.js";
import { t } from "./i18n.js";
import { show } from "./render.js";
import { cost, settings } from "./settings.js";

/** actions: {steer(turn, control), again(turn), stop(turn), retry(turn) or none}; footer(turn): more buttons, made anew. */
export class AnswerView {
  constructor(turn, actions, { label = "", footer = () => [] } = {}) {
    Object.assign(this, { turn, actions, footer, touched: false, phase: null });
    this.thoughtText = h("div", { class: "thought-text" });
    this.summaryText = h("span", { class: "thought-title" });
    this.summaryFacts = h("span", { class: "thought-facts" });
    const summary = h("summary", {}, icon("thought"), this.summaryText, this.summaryFacts, icon("down"));
    summary.addEventListener("click", () => (this.touched = true));
    this.thought = h("details", { class: "thought" }, summary, this.thoughtText);
    this.steering = h("div", { class: "steering", role: "group", "aria-label": t("steerThought") },
      button(t("answerNow"), () => actions.steer(turn, { action: "end" }), { icon: "answer", class: "button small answer-now" }),
      button(t("thinkMore"), () => actions.steer(turn, { action: "extend", tokens: settings.more }), { icon: "plus", class: "button small think-more", title: t("thinkMoreHint", { n: settings.more }) }));
    this.waiting = h("p", { class: "waiting" }, h("span", { class: "dots", "aria-hidden": "true" }), h("span", {}, t("waiting")));
    this.content = h("div", { class: "markdown" });
    this.notice = h("div", { class: "notice", hidden: true });
    this.facts = h("p", { class: "facts" });
    this.buttons = h("div", { class: "turn-buttons" });
    this.element = h("article", { class: "turn answer", "aria-label": t("answerOf", { model: turn.model || "" }), "data-id": turn.id },
      label ? h("p", { class: "turn-label" }, label) : null,
      this.waiting, this.thought, this.steering, this.content, this.notice,
      h("footer", { class: "turn-foot" }, this.facts, this.buttons));
    this.update();
  }

  update() {
    const { turn } = this, phase = turn.live?.phase ?? "done";
    const live = phase !== "done" && phase !== "ended";
    this.element.classList.toggle("live", live);
    this.element.setAttribute("aria-busy", String(live));
    this.waiting.hidden = phase !== "waiting";
    this.#thought(phase);
    this.steering.hidden = phase !== "thinking";
    this.content.hidden = !turn.content;
    if (turn.content) show(this.content, turn.content, live);
    this.#notice(phase);
    setText(this.facts, facts(turn));
    if (phase !== this.phase) {
      this.phase = phase;
      this.buttons.replaceChildren(...(phase === "done" ? this.#doneButtons() : []));
    }
  }

  /** As `update`, with the buttons made anew: there may be another branch. */
  redraw() {
    this.phase = null;
    this.update();
  }

  #thought(phase) {
    const { turn, thought } = this, thinking = phase === "thinking";
    thought.hidden = !turn.reasoning;
    if (!turn.reasoning) return;
    thought.classList.toggle("thinking", thinking);
    setText(this.summaryText, thinking ? t("thinking") : t("thought"));
    setText(this.summaryFacts, thoughtFacts(turn, thinking));
    if (!this.touched) {
      const wanted = settings.fold === "open" || (settings.fold === "auto" && thinking);
      if (thought.open !== wanted) thought.open = wanted;
    }
    if (thinking) {
      const box = this.thoughtText, low = box.scrollHeight - box.scrollTop - box.clientHeight < 40;
      grow(box, turn.reasoning);
      if (low) box.scrollTop = box.scrollHeight;
    } else if (this.shownThought !== turn.reasoning || this.thoughtPhase !== "done") {
      this.shownThought = turn.reasoning;
      this.thoughtPhase = "done";
      grow(this.thoughtText, turn.reasoning);
    }
  }

  #notice(phase) {
    const { turn, notice, actions } = this;
    const key = phase === "busy" ? "busy" : turn.error ? turn.error.text : turn.finish === "length" ? "length" : turn.finish === "abort" ? "abort" : "";
    if (key !== this.noticeKey) {
      this.noticeKey = key;
      this.countdown = h("span", {});
      notice.hidden = !key;
      notice.className = `notice ${turn.error || phase === "busy" ? (phase === "busy" ? "busy" : "error") : "quiet"}`;
      if (turn.error) notice.setAttribute("role", "alert");
      else notice.removeAttribute("role");
      if (phase === "busy") {
        notice.replaceChildren(icon("clock"), this.countdown,
          button(t("tryNow"), () => actions.again(turn), { class: "button small" }),
          button(t("cancel"), () => actions.stop(turn), { class: "button small" }));
      } else if (turn.error) {
        notice.replaceChildren(icon("warning"), h("span", {}, turn.error.text));
        if (actions.retry) notice.append(button(t("retry"), () => actions.retry(turn), { icon: "retry", class: "button small" }));
      } else notice.replaceChildren(h("span", {}, key === "length" ? t("endedLength") : key === "abort" ? t("endedAbort") : ""));
    }
    if (phase === "busy") {
      setText(this.countdown, t("busy", { n: Math.max(0, Math.ceil((turn.live.until - performance.now()) / 1000)) }));
    }
  }

  #doneButtons() {
    const { turn, actions } = this;
    return [
      turn.content ? iconButton("copy", t("copyAnswer"), () => copy(turn.content)) : null,
      actions.retry ? iconButton("retry", t("retry"), () => actions.retry(turn)) : null,
      ...this.footer(turn),
    ].filter(Boolean);
  }
}

/** Text that only grows is appended: what is selected in it stays selected. */
function grow(box, text) {
  const shown = box.textContent;
  if (shown === text) return;
  if (shown && text.startsWith(shown)) box.append(text.slice(shown.length));
  else box.textContent = text;
}

/** "212 tokens · 4.1 s · ended by itself" */
export function thoughtFacts(turn, thinking) {
  const count = thinking ? turn.live.counts.reasoning : turn.tokens?.reasoning ?? turn.live?.counts.reasoning ?? 0;
  const about = thinking || !turn.tokens || turn.tokens.estimated ? "~" : "";
  const parts = [t("tokens", { n: about + number(count) })];
  const took = thinking ? (performance.now() - turn.live.thoughtBegan) / 1000 : turn.thoughtSeconds;
  if (took) parts.push(seconds(took));
  if (!thinking && turn.stop && turn.stop !== "none") parts.push(t(`stop_${turn.stop}`));
  return parts.join(" · ");
}

const speed = (value) => number(Number(value.toFixed(value < 100 ? 1 : 0)));

/** "340 tokens · 38.2 tokens/s · first after 0.31 s · prompt 412 (380 from the cache) · $0.0002" */
export function facts(turn) {
  const { live, tokens } = turn;
  if (live && live.phase !== "ended") {
    const count = live.counts.reasoning + live.counts.content;
    const since = turn.firstToken === undefined ? 0 : (performance.now() - live.began) / 1000 - turn.firstToken;
    if (!count) return "";
    return [t("tokens", { n: `~${number(count)}` }), since > 0.5 ? t("perSecond", { n: `~${speed(count / since)}` }) : ""].filter(Boolean).join(" · ");
  }
  if (!tokens || !tokens.completion) return "";
  const about = tokens.estimated ? "~" : "";
  const parts = [t("tokens", { n: about + number(tokens.completion) })];
  const span = turn.total - (turn.firstToken ?? 0);
  if (span > 0 && tokens.completion > 1) parts.push(t("perSecond", { n: about + speed((tokens.completion - 1) / span) }));
  if (turn.firstToken !== undefined) parts.push(t("firstToken", { s: seconds(turn.firstToken) }));
  if (turn.total) parts.push(t("inAll", { s: seconds(turn.total) }));
  if (tokens.prompt) parts.push(tokens.cached ? t("promptCached", { n: number(tokens.prompt), c: number(tokens.cached) }) : t("prompt", { n: number(tokens.prompt) }));
  const paid = cost(turn);
  if (paid !== null) parts.push(money(paid));
  return parts.join(" · ");
}

/** Keep the end of a scrolled box in sight while it grows, unless the user has scrolled away. */
export class Follow {
  constructor(box) {
    Object.assign(this, { box, following: true });
    box.addEventListener("scroll", () => {
      this.following = box.scrollHeight - box.scrollTop - box.clientHeight < 60;
      $("to-end").hidden = this.following;
    }, { passive: true });
  }

  keep() {
    if (this.following) this.box.scrollTop = this.box.scrollHeight;
  }

  toEnd() {
    this.following = true;
    this.keep();
    $("to-end").hidden = true;
  }
}
