// One request to one model, answered in one or several ways at once: from server-sent events to turns.
// In: turns to fill, messages, options. Out: the turns, filled as it comes; `changed(turn)` after every event.
// Does not know: the DOM, where turns are kept.
//
// While it runs, turn.live = {phase, id, index, counts, began, thoughtBegan, run}; the phases are "waiting",
// "thinking", "answering" and "busy" (with turn.live.until, when the server is asked again).

import { ApiError, Disconnected, events, json } from "./api.js";
import { t } from "./i18n.js";

const SAMPLING = ["temperature", "top_p", "top_k", "min_p", "presence_penalty", "max_tokens", "seed"];

/** The fields of a request that these options stand for: mode, budget and what SAMPLING names. */
export function fields(options) {
  const found = {};
  for (const name of SAMPLING) if (options[name] !== undefined && options[name] !== null) found[name] = options[name];
  const thinking = {};
  if (options.mode && options.mode !== "auto") thinking.mode = options.mode;
  if (options.mode !== "off" && options.budget !== null && options.budget !== undefined) thinking.budget = options.budget;
  if (Object.keys(thinking).length) found.thinking = thinking;
  return found;
}

/** Runs until every turn has ended; never throws. `stop()` ends it, `steer()` acts on an open thought. */
export class Run {
  constructor(turns, messages, model, changed) {
    Object.assign(this, { turns, messages, model, changed, id: null });
    this.aborter = new AbortController();
    turns.forEach((turn, index) => {
      Object.assign(turn, { content: "", reasoning: "", finish: null, stop: null, error: null, tokens: null, model });
      turn.live = { phase: "waiting", index, run: this, counts: { reasoning: 0, content: 0 }, began: performance.now() };
    });
    this.finished = this.#answer();
  }

  stop() {
    this.aborter.abort();
  }

  /** {action: "end" | "extend" | "budget", ...} for one turn's thought. Throws ApiError when it cannot be done. */
  async steer(turn, control) {
    if (!this.id || !turn.live) return;
    const variant = this.turns.length > 1 ? { variant: turn.live.index } : {};
    await json(`/v1/chat/completions/${this.id}/control`, { ...control, ...variant });
  }

  /** Ask again now, instead of when the countdown ends. */
  again() {
    this.wake?.();
  }

  async #answer() {
    for (;;) {
      try {
        await this.#stream();
        return this.#end();
      } catch (error) {
        if (error instanceof ApiError && (error.status === 429 || (error.status === 503 && error.retryAfter))) {
          if (await this.#wait(Math.max(1, error.retryAfter))) continue;
          return this.#end("abort");
        }
        if (error.name === "AbortError") return this.#end("abort");
        return this.#end("error", describe(error));
      }
    }
  }

  /** Count down; false when the user stopped meanwhile. */
  async #wait(seconds) {
    for (const turn of this.turns) Object.assign(turn.live, { phase: "busy", until: performance.now() + seconds * 1000 });
    const { signal } = this.aborter;
    while (!signal.aborted && performance.now() < this.turns[0].live.until) {
      this.turns.forEach(this.changed);
      const woken = await new Promise((resolve) => {
        const timer = setTimeout(resolve, 250, false);
        this.wake = () => (clearTimeout(timer), resolve(true));
        signal.addEventListener("abort", this.wake, { once: true });
      });
      if (woken) break;
    }
    for (const turn of this.turns) Object.assign(turn.live, { phase: "waiting", began: performance.now() });
    this.turns.forEach(this.changed);
    return !signal.aborted;
  }

  async #stream() {
    const body = { model: this.model, messages: this.messages, stream: true, stream_options: { include_usage: true } };
    if (this.turns.length === 1) Object.assign(body, fields(this.turns[0].options));
    else body.variants = this.turns.map((turn) => fields(turn.options));
    for await (const chunk of events("/v1/chat/completions", body, this.aborter.signal)) {
      this.id ??= chunk.id;
      for (const choice of chunk.choices ?? []) this.#choice(choice, chunk.timing);
      if (chunk.usage) this.#usage(chunk.usage);
    }
  }

  #choice(choice, timing) {
    const turn = this.turns[choice.index];
    if (!turn?.live) return;
    const { live } = turn, delta = choice.delta ?? {}, now = performance.now();
    const thought = delta.reasoning_content ?? delta.reasoning;
    if (thought) {
      turn.firstToken ??= (now - live.began) / 1000;
      live.thoughtBegan ??= now;
      live.phase = "thinking";
      live.counts.reasoning += 1;
      turn.reasoning += thought;
    }
    if (delta.content) {
      turn.firstToken ??= (now - live.began) / 1000;
      this.#thoughtEnds(turn, now);
      live.phase = "answering";
      live.counts.content += 1;
      turn.content += delta.content;
    }
    for (const call of delta.tool_calls ?? []) turn.content += call.function?.name ? `\n\`${call.function.name}\` ` : call.function?.arguments ?? "";
    if (choice.finish_reason) {
      this.#thoughtEnds(turn, now);
      turn.finish = choice.finish_reason;
      turn.total = (now - live.began) / 1000;
      if (choice.thinking) Object.assign(turn, { stop: choice.thinking.stop, mode: choice.thinking.mode });
      if (choice.thinking?.seconds) turn.thoughtSeconds = choice.thinking.seconds;
      if (timing) Object.assign(turn, { firstToken: timing.first_token_s, total: timing.total_s });
      turn.tokens = choice.usage ? counted(choice.usage) : estimated(live.counts);
      live.phase = "ended";
    }
    this.changed(turn);
  }

  #thoughtEnds(turn, now) {
    const { live } = turn;
    if (live.thoughtBegan && live.phase === "thinking") turn.thoughtSeconds = (now - live.thoughtBegan) / 1000;
  }

  /** The counts of the whole request: exact for one turn; the prompt's for all of them. */
  #usage(usage) {
    const whole = counted(usage);
    for (const turn of this.turns) {
      if (this.turns.length === 1) turn.tokens = whole;
      else if (turn.tokens?.estimated) Object.assign(turn.tokens, { prompt: whole.prompt, cached: whole.cached });
      this.changed(turn);
    }
  }

  #end(finish = "stop", error = null) {
    const now = performance.now();
    for (const turn of this.turns) {
      if (turn.finish === null) {
        this.#thoughtEnds(turn, now);
        Object.assign(turn, { finish, error, total: (now - turn.live.began) / 1000, tokens: estimated(turn.live.counts) });
        if (finish === "abort" && turn.live.phase === "thinking") turn.stop = "user";
      }
      delete turn.live;
      this.changed(turn);
    }
  }
}

function counted(usage) {
  return {
    prompt: usage.prompt_tokens ?? 0,
    completion: usage.completion_tokens ?? 0,
    reasoning: usage.completion_tokens_details?.reasoning_tokens ?? 0,
    cached: usage.prompt_tokens_details?.cached_tokens ?? 0,
  };
}

/** What was counted here, chunk by chunk, where the server did not say. */
function estimated({ reasoning, content }) {
  return { prompt: 0, cached: 0, reasoning, completion: reasoning + content, estimated: true };
}

function describe(error) {
  if (error instanceof Disconnected) return { kind: "disconnected", text: t("lost") };
  return { kind: "error", text: error.message || String(error) };
}
