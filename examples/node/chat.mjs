// OpenAI's client for Node: a stream, a tool that must be called, an error.
import OpenAI from "openai";

const client = new OpenAI({
  baseURL: process.env.OPENAI_BASE_URL ?? "http://127.0.0.1:8000/v1",
  apiKey: process.env.OPENAI_API_KEY ?? "none",
  maxRetries: 0,
});
const model = (await client.models.list()).data[0].id;
const messages = [{ role: "user", content: "What is 17 plus 25?" }];

console.log("== a stream");
const stream = await client.chat.completions.create({
  model,
  messages,
  max_tokens: 64,
  stream: true,
  stream_options: { include_usage: true },
});
let tokens = 0;
for await (const chunk of stream) {
  const delta = chunk.choices[0]?.delta;
  process.stdout.write(delta?.reasoning_content ?? delta?.content ?? "");
  tokens = chunk.usage?.completion_tokens ?? tokens;
}
console.log(`\ntokens: ${tokens}`);

console.log("== a call");
const add = {
  type: "function",
  function: {
    name: "add",
    description: "Add two numbers.",
    parameters: {
      type: "object",
      properties: { a: { type: "integer" }, b: { type: "integer" } },
      required: ["a", "b"],
    },
  },
};
try {
  const answer = await client.chat.completions.create({
    model,
    messages,
    tools: [add],
    tool_choice: "required",
    temperature: 0,
    max_tokens: 256,
  });
  const calls = answer.choices[0].message.tool_calls ?? [];
  for (const call of calls) console.log(`${call.function.name}(${call.function.arguments})`);
  if (!calls.length) console.log(`none: ${answer.choices[0].finish_reason}`);
} catch (error) {
  if (!(error instanceof OpenAI.APIError)) throw error;
  console.log(`refused: ${error.message}`); // the model has no tokens for calls
}

console.log("== a field that does not exist");
try {
  await client.chat.completions.create({ model, messages, temprature: 1 });
} catch (error) {
  if (!(error instanceof OpenAI.APIError)) throw error;
  console.log(`${error.status}: ${error.message}`);
}
