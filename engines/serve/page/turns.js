// What a conversation looks like: what was asked, what came back, what went wrong.

import { Markdown, Plain, copyButton, element } from "./markdown.js";

const FINISH = {
  length: "cut at max tokens",
  abort: "ended by the server",
  stopped: "stopped",
};

function turn(kind, who) {
  const made = element("article", `turn ${kind}`);
  made.append(element("h3", "unseen", who));
  return made;
}

/** What the user wrote. */
export function userTurn(text) {
  const made = turn("user", "You");
  made.append(element("div", "said", text));
  return made;
}

/** An error in words, with what can be done about it: a list of [text of a button, function]. */
export function failureTurn(failure, choices) {
  const made = turn("failure", "Error");
  made.setAttribute("role", "alert");
  made.append(element("strong", "", failure.title));
  if (failure.detail) made.append(element("p", "", failure.detail));
  const row = element("div", "choices");
  for (const [text, choose] of choices) {
    const button = element("button", "quiet", text);
    button.type = "button";
    button.addEventListener("click", choose);
    row.append(button);
  }
  made.append(row);
  return made;
}

/** An answer that grows. What comes is drawn once a frame, however many tokens that is. */
export class AnswerTurn {
  calls = [];
  text = "";
  reasoning = "";
  #pending = [];
  #frame = 0;
  #drawn;
  #content = null;
  #thought = null;
  #sent = performance.now();
  #first;
  #last;
  #deltas = 0;
  #reasoned; // when reasoning began and ended
  #told = 0;

  /** drawn: called after each change of the page. */
  constructor(drawn) {
    this.#drawn = drawn;
    this.root = turn("answer", "Model");
    this.root.setAttribute("aria-busy", "true");
    this.body = element("div", "body");
    this.waiting = element("p", "waiting");
    this.waiting.setAttribute("aria-label", "Waiting for the first token");
    this.waiting.append(element("i"), element("i"), element("i"));
    this.footer = element("footer", "meta");
    this.facts = element("ul", "facts");
    this.footer.append(this.facts);
    this.root.append(this.waiting, this.body, this.footer);
  }

  /** The request is sent: times count from here. */
  sent() {
    this.#sent = performance.now();
  }

  /** One delta of a stream. */
  add(delta) {
    const before = this.#pending.length;
    if (delta.reasoning_content) this.#push("reasoning", delta.reasoning_content);
    if (delta.content) this.#push("content", delta.content);
    for (const call of delta.tool_calls ?? []) this.#push("call", call);
    if (this.#pending.length === before) return;
    this.#last = performance.now();
    this.#first ??= this.#last;
    this.#deltas += 1;
    this.#frame ||= requestAnimationFrame(() => this.flush());
  }

  #push(kind, value) {
    this.#pending.push([kind, value]);
    const now = performance.now();
    if (kind === "reasoning") this.#reasoned ??= [now];
    else if (this.#reasoned) this.#reasoned[1] ??= now;
    if (kind === "reasoning") this.reasoning += value;
    if (kind === "content") this.text += value;
  }

  /** Draw what has come. A hidden tab has no frames: it is drawn at the end. */
  flush() {
    cancelAnimationFrame(this.#frame);
    this.#frame = 0;
    const pending = this.#pending.splice(0);
    if (pending.length) this.waiting.remove();
    for (const [kind, value] of pending) {
      if (kind === "reasoning") this.#addReasoning(value);
      else this.#fold();
      if (kind === "content") {
        if (this.#content === null) {
          const place = element("div", "content");
          this.body.append(place);
          this.#content = new Markdown(place);
        }
        this.#content.feed(value);
      }
      if (kind === "call") this.#addCall(value);
    }
    if (performance.now() - this.#told > 250) {
      this.#told = performance.now();
      this.#tell([], this.#deltas, "about ");
    }
    this.#drawn();
  }

  #addReasoning(text) {
    if (this.#thought === null) {
      const details = element("details", "reasoning");
      details.open = true;
      const summary = element("summary", "", "Reasoning");
      const place = element("div", "thoughts");
      place.tabIndex = 0;
      place.setAttribute("role", "region");
      place.setAttribute("aria-label", "Reasoning");
      details.append(summary, place);
      this.body.append(details);
      this.#thought = { details, summary, place, plain: new Plain(place) };
      summary.addEventListener("click", () => (this.#thought.touched = true));
    }
    const { place, plain } = this.#thought;
    const follows = place.scrollHeight - place.scrollTop - place.clientHeight < 40;
    plain.feed(text);
    if (follows) place.scrollTop = place.scrollHeight;
  }

  // Reasoning is over: folded, unless the reader has taken it in hand.
  #fold() {
    const thought = this.#thought;
    if (thought === null || thought.ended) return;
    thought.ended = true;
    const [began, ended = performance.now()] = this.#reasoned;
    thought.summary.textContent = `Reasoned for ${seconds(ended - began)}`;
    if (!thought.touched) thought.details.open = false;
  }

  #addCall({ index, id, function: of }) {
    let call = this.calls[index];
    if (call === undefined) {
      this.#content?.end();
      this.#content = null;
      const card = element("section", "call");
      const head = element("header");
      head.append(element("span", "badge", "call"), element("code", "name", of.name));
      const shown = element("pre", "arguments");
      shown.tabIndex = 0;
      card.append(head, shown);
      this.body.append(card);
      call = this.calls[index] = { id, name: of.name, arguments: "", card, shown };
      card.setAttribute("aria-label", `Call of ${of.name}`);
    }
    if (of.arguments) {
      call.arguments += of.arguments;
      call.shown.append(of.arguments);
    }
  }

  /** Whether nothing has come. */
  get empty() {
    return !this.text && !this.reasoning && !this.calls.length;
  }

  /** The message for the next request: calls that were cut are left out. */
  message() {
    const whole = this.calls.filter((call) => call.whole);
    return {
      role: "assistant",
      content: this.text,
      ...(this.reasoning && { reasoning_content: this.reasoning }),
      ...(whole.length && {
        tool_calls: whole.map((call) => ({
          id: call.id,
          type: "function",
          function: { name: call.name, arguments: call.arguments },
        })),
      }),
    };
  }

  // Facts in a line; a delta is about a token.
  #tell(others, tokens, about = "") {
    const [sent, first, last] = [this.#sent, this.#first, this.#last];
    const facts = [
      ...others,
      tokens !== undefined && `${about}${tokens.toLocaleString("en")} token${tokens === 1 ? "" : "s"}`,
      tokens > 1 && last - first > 20 && `${rate(((tokens - 1) * 1000) / (last - first))} tokens/s`,
      first !== undefined && `first after ${seconds(first - sent)}`,
    ].filter(Boolean);
    this.facts.replaceChildren(...facts.map((fact) => element("li", "", fact)));
  }

  /** No more comes. finish: the reason, if there is one; usage: tokens, if they were counted. */
  end(finish, usage) {
    this.flush();
    this.#fold();
    this.#content?.end();
    this.waiting.remove();
    for (const call of this.calls) this.#endCall(call);
    if (usage) this.#tell([FINISH[finish]], usage.completion_tokens);
    else this.#tell([FINISH[finish]], this.#deltas || undefined, "about ");
    if (this.text) this.footer.append(copyButton(() => this.text));
    else if (this.empty && finish !== "failed" && finish !== "stopped") {
      this.body.append(element("p", "nothing", "No text: the answer ended here."));
    }
    this.root.removeAttribute("aria-busy");
    this.#drawn();
  }

  #endCall(call) {
    try {
      const found = JSON.parse(call.arguments || "{}");
      call.arguments ||= "{}";
      call.whole = true;
      const empty = Object.keys(found).length === 0;
      call.shown.textContent = empty ? "no arguments" : JSON.stringify(found, null, 2);
    } catch {
      call.card.append(element("p", "note", "Cut before the call was whole."));
    }
  }

  /** Fields for the results of its calls; `answered` gets the messages, and says whether
   * they are on their way. */
  ask(answered) {
    const open = this.calls.filter((call) => call.whole);
    const form = element("form", "results");
    open.forEach((call, i) => {
      const field = element("textarea", "code");
      field.rows = 2;
      field.placeholder = "What the function gives, for example JSON";
      const label = element("label", "", "Result");
      label.append(field);
      field.setAttribute("aria-label", `Result of ${call.name}, call ${i + 1}`);
      field.addEventListener("keydown", (event) => {
        if (event.key === "Enter" && !event.shiftKey && !event.isComposing) {
          event.preventDefault();
          if (i + 1 < open.length) open[i + 1].field.focus();
          else form.requestSubmit();
        }
      });
      call.field = field;
      call.label = label;
      call.card.append(label);
    });
    const button = element("button", "primary", open.length > 1 ? "Send results" : "Send result");
    form.append(button);
    form.addEventListener("submit", (event) => {
      event.preventDefault();
      const results = open.map((call) => ({
        role: "tool",
        tool_call_id: call.id,
        content: call.field.value,
      }));
      if (answered(results)) this.close(true);
    });
    this.results = form;
    this.open = open;
    this.body.append(form);
    return open[0].field;
  }

  /** The fields become text: what was answered, or that nothing was. */
  close(sent = false) {
    if (!this.results) return;
    this.results.remove();
    this.results = null;
    for (const call of this.open) {
      call.label.remove();
      const result = element("div", "result");
      result.append(element("span", "badge", sent ? "result" : "not answered"));
      if (sent) result.append(element("pre", "", call.field.value || "(empty)"));
      call.card.append(result);
    }
  }
}

const seconds = (ms) => (ms < 9950 ? `${(ms / 1000).toFixed(2)} s` : `${(ms / 1000).toFixed(1)} s`);
const rate = (value) => (value < 99.5 ? value.toFixed(1) : Math.round(value).toLocaleString("en"));
