// A page to try the model: the conversation, and what the keyboard does.

import { Failure, chat, servedModel } from "./api.js";
import * as settings from "./settings.js";
import { AnswerTurn, failureTurn, userTurn } from "./turns.js";

const at = (id) => document.getElementById(id);
const [scroll, log, message, send, stop, clear] =
  ["scroll", "log", "message", "send", "stop", "clear"].map(at);
const narrow = matchMedia("(max-width: 1019px)");

let model = null;
let messages = []; // but the system message, which is the settings'
let running = null; // what aborts the answer that is coming
let latest = null; // the answer whose calls may be open
let mistake = null; // the error that is shown

// --- the conversation ---------------------------------------------------------------------------

function say(text) {
  at("status").textContent = text;
}

function show(root) {
  at("empty").hidden = true;
  clear.disabled = false;
  log.append(root);
  toNewest();
}

function submit(text) {
  if (running || !text.trim()) return;
  if (!ready()) return;
  latest?.close();
  messages.push({ role: "user", content: text });
  show(userTurn(text));
  message.value = "";
  resize();
  answer();
}

// Whether the settings can be sent; else they are shown, at the field at fault.
function ready() {
  const wrong = settings.check();
  if (!wrong) return true;
  openSettings(true);
  wrong.focus();
  return false;
}

async function answer() {
  const turn = new AnswerTurn(follow);
  const abort = new AbortController();
  let finish, usage;
  running = abort;
  latest = turn;
  mistake?.remove();
  show(turn.root);
  update();
  say("Answering");
  try {
    model ??= await findModel();
    const body = {
      model: model.id,
      messages: [...settings.systemMessages(), ...messages],
      stream: true,
      stream_options: { include_usage: true },
      ...settings.fields(),
    };
    turn.sent();
    for await (const chunk of chat(body, settings.key(), abort.signal)) {
      usage = chunk.usage ?? usage;
      const [choice] = chunk.choices;
      if (choice) turn.add(choice.delta);
      finish = choice?.finish_reason ?? finish;
    }
    finished(turn, finish, usage);
  } catch (error) {
    if (abort.signal.aborted) finished(turn, "stopped");
    else failed(turn, error);
  } finally {
    if (running === abort) running = null;
    update();
  }
}

function finished(turn, finish, usage) {
  turn.end(finish, usage);
  if (!turn.root.isConnected) return; // the conversation was cleared
  const said = turn.message();
  messages.push(said);
  if (finish === "stopped" || !said.tool_calls) {
    say(finish === "stopped" ? "Stopped" : "The answer is complete");
    return;
  }
  const first = turn.ask((results) => {
    if (running || !ready()) return false;
    messages.push(...results);
    answer();
    return true;
  });
  say(`The model calls ${said.tool_calls.map((call) => call.function.name).join(", ")}`);
  if (!message.value) first.focus({ preventScroll: true });
  follow();
}

function failed(turn, error) {
  if (!(error instanceof Failure)) console.error(error);
  turn.end("failed");
  if (!turn.root.isConnected) return;
  if (turn.empty) turn.root.remove();
  const choices = [["Try again", () => {
    if (running || !ready()) return;
    turn.root.remove();
    answer();
  }]];
  const asked = messages.at(-1);
  if (turn.empty && asked.role === "user") choices.push(["Edit the message", () => edit(asked)]);
  mistake = failureTurn(
    error instanceof Failure ? error : new Failure("This page failed.", String(error)), choices,
  );
  show(mistake);
  say("");
  if (error.status === 404) model = null; // another one may be served by now
  if (error.status === 401) {
    openSettings(true);
    settings.keyField.focus();
  }
}

// Take the last message back into its field.
function edit(asked) {
  if (running || messages.at(-1) !== asked) return;
  messages.pop();
  mistake.remove();
  log.lastElementChild.remove();
  message.value = asked.content;
  resize();
  message.focus();
}

function clearAll() {
  running?.abort();
  messages = [];
  latest = null;
  log.replaceChildren();
  at("empty").hidden = false;
  clear.disabled = true;
  say("The conversation is cleared");
  message.focus();
}

// --- scrolling ----------------------------------------------------------------------------------

let pinned = true; // to the end, until the reader scrolls away from it

function follow() {
  if (pinned) scroll.scrollTop = scroll.scrollHeight;
  else at("newest").hidden = false;
}

function toNewest() {
  pinned = true;
  at("newest").hidden = true;
  follow();
}

scroll.addEventListener("scroll", () => {
  pinned = scroll.scrollHeight - scroll.scrollTop - scroll.clientHeight < 60;
  if (pinned) at("newest").hidden = true;
}, { passive: true });
new ResizeObserver(() => pinned && follow()).observe(scroll);
at("newest").addEventListener("click", toNewest);

// --- the composer -------------------------------------------------------------------------------

function resize() {
  message.style.height = "auto";
  message.style.height = `${message.scrollHeight}px`;
  update();
}

function update() {
  const hadFocus = document.activeElement === send || document.activeElement === stop;
  send.hidden = running !== null;
  stop.hidden = running === null;
  send.disabled = !message.value.trim();
  if (hadFocus) message.focus();
}

message.addEventListener("input", resize);
message.addEventListener("keydown", (event) => {
  if (event.key === "Enter" && !event.shiftKey && !event.isComposing) {
    event.preventDefault();
    submit(message.value);
  }
});
at("composer").addEventListener("submit", (event) => {
  event.preventDefault();
  submit(message.value);
});
stop.addEventListener("click", () => running?.abort());
clear.addEventListener("click", clearAll);
at("openers").addEventListener("click", (event) => {
  if (event.target.matches("button")) submit(event.target.textContent);
});
document.addEventListener("keydown", (event) => {
  if (event.key !== "Escape") return;
  if (narrow.matches && document.body.classList.contains("with-settings")) openSettings(false);
  else running?.abort();
});

// --- settings -----------------------------------------------------------------------------------

function openSettings(open) {
  document.body.classList.toggle("with-settings", open);
  at("toggle").setAttribute("aria-expanded", String(open));
  at("settings").inert = !open;
  at("main").inert = open && narrow.matches; // they cover the conversation there
  if (!open && at("settings").contains(document.activeElement)) at("toggle").focus();
}

at("toggle").addEventListener("click", () =>
  openSettings(!document.body.classList.contains("with-settings")));
at("done").addEventListener("click", () => {
  openSettings(false);
  at("toggle").focus();
});
narrow.addEventListener("change", () => openSettings(!narrow.matches));

// --- the server ---------------------------------------------------------------------------------

async function findModel() {
  const found = await servedModel(settings.key());
  at("model").textContent = document.title = found.id;
  reach("ready", `ready, ${found.max_model_len.toLocaleString("en")} tokens of context`);
  return found;
}

function reach(state, text) {
  at("server").dataset.state = state;
  at("server-text").textContent = text;
}

async function connect() {
  try {
    model = await findModel();
  } catch (error) {
    reach("away", error.status === 401 ? "wants an API key" : "not reached");
    if (error.status === 401 && !narrow.matches) settings.keyField.focus();
  }
}

settings.keyField.addEventListener("change", () => {
  if (model === null) connect();
});
openSettings(!narrow.matches);
resize();
message.focus();
connect();
