// The settings: kept for this tab alone, read for each request.

const STORE = "glm-trt settings";
const form = document.getElementById("options");
const wrongOptions = document.getElementById("options-error");
const wrongTools = document.getElementById("tools-error");

const EXAMPLE = [
  {
    type: "function",
    function: {
      name: "get_weather",
      description: "The weather of a city, today",
      parameters: {
        type: "object",
        properties: { city: { type: "string" }, unit: { enum: ["celsius", "fahrenheit"] } },
        required: ["city"],
      },
    },
  },
];

/** What a field holds that cannot be sent. */
export class Wrong extends Error {
  constructor(field, message) {
    super(message);
    this.field = field;
  }
}

/** The API key, or "". */
export const key = () => form.elements.key.value.trim();

/** The field of the API key. */
export const keyField = form.elements.key;

// A list of functions, with or without the envelope {type, function}.
function tools() {
  const text = form.elements.tools.value.trim();
  if (!text) return undefined;
  let found;
  try {
    found = JSON.parse(text);
  } catch (error) {
    throw new Wrong(form.elements.tools, `This is not JSON: ${error.message}.`);
  }
  const list = Array.isArray(found) ? found : [found];
  for (const tool of list) {
    if (typeof (tool?.function?.name ?? tool?.name) !== "string") {
      throw new Wrong(form.elements.tools, "Each tool needs a name.");
    }
  }
  return list.map((tool) => (tool.function ? tool : { type: "function", function: tool }));
}

function number(name) {
  const field = form.elements[name];
  if (!field.value && !field.validity.badInput) return undefined;
  if (!field.validity.valid) {
    const range = field.max ? ` from ${field.min} to ${field.max}` : `, ${field.min} or more`;
    throw new Wrong(field, `${title(field)}: a ${field.step === "1" ? "whole " : ""}number${range}.`);
  }
  return Number(field.value);
}

const title = (field) => field.labels[0].firstChild.data.trim();

function seed() {
  const field = form.elements.seed;
  const text = field.value.trim();
  if (text && !/^-?\d{1,20}$/.test(text)) {
    throw new Wrong(field, `${title(field)}: a whole number.`);
  };
  return text ? BigInt(text).toString() : undefined;
}

/** The fields of a request but its messages.
 *
 * Throws Wrong if a field holds what cannot be sent. */
export function fields() {
  const list = tools();
  const choice = form.elements.tool_choice.value;
  return {
    temperature: number("temperature"),
    top_p: number("top_p"),
    max_tokens: number("max_tokens"),
    seed: seed(),
    thinking: { type: form.elements.thinking.checked ? "enabled" : "disabled" },
    tools: list,
    tool_choice: (list && choice) || undefined,
  };
}

/** The system message as the messages that it is. */
export function systemMessages() {
  const content = form.elements.system.value.trim();
  return content ? [{ role: "system", content }] : [];
}

/** Say what is wrong beside the fields, or nothing; the field at fault, if there is one. */
export function check() {
  let wrong = null;
  try {
    fields();
  } catch (error) {
    wrong = error;
  }
  const ofTools = wrong?.field === form.elements.tools;
  for (const [place, here] of [[wrongTools, ofTools], [wrongOptions, wrong && !ofTools]]) {
    place.hidden = !here;
    place.textContent = here ? wrong.message : "";
  }
  for (const field of form.elements) {
    if (wrong?.field === field) field.setAttribute("aria-invalid", "true");
    else field.removeAttribute("aria-invalid");
  }
  return wrong?.field;
}

function keep() {
  const values = {};
  for (const field of form.elements) {
    if (field.name) values[field.name] = field.type === "checkbox" ? field.checked : field.value;
  }
  sessionStorage.setItem(STORE, JSON.stringify(values));
}

function restore() {
  const values = JSON.parse(sessionStorage.getItem(STORE) ?? "{}");
  for (const [name, value] of Object.entries(values)) {
    const field = form.elements[name];
    if (field?.type === "checkbox") field.checked = value;
    else if (field) field.value = value;
  }
}

restore();
form.addEventListener("submit", (event) => event.preventDefault());
form.addEventListener("input", keep);
form.addEventListener("change", check);
document.getElementById("example").addEventListener("click", () => {
  form.elements.tools.value = JSON.stringify(EXAMPLE, null, 2);
  keep();
  check();
});
check();
