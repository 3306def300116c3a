// Vercel's AI SDK: a stream with its reasoning, an object of a schema, a loop over a tool.
import { createOpenAICompatible } from "@ai-sdk/openai-compatible";
import { APICallError, Output, generateText, stepCountIs, streamText, tool } from "ai";
import { z } from "zod";

const baseURL = process.env.OPENAI_BASE_URL ?? "http://127.0.0.1:8000/v1";
const apiKey = process.env.OPENAI_API_KEY ?? "none";
const headers = { Authorization: `Bearer ${apiKey}` };
const { data } = await (await fetch(`${baseURL}/models`, { headers })).json();
const provider = createOpenAICompatible({
  name: "glm",
  baseURL,
  apiKey,
  includeUsage: true,
  supportsStructuredOutputs: true,
});
const model = provider(data[0].id);
const prompt = "What is 17 plus 25?";

console.log("== a stream");
const stream = streamText({ model, prompt, maxOutputTokens: 64 });
for await (const part of stream.fullStream) {
  if (part.type === "reasoning-delta" || part.type === "text-delta") process.stdout.write(part.text);
  if (part.type === "error") throw part.error;
}
console.log(`\n${await stream.finishReason}, tokens: ${(await stream.usage).outputTokens}`);

console.log("== an object");
const { output } = await generateText({
  model,
  prompt: "Is the sky blue?",
  output: Output.object({ schema: z.object({ verdict: z.enum(["yes", "no", "unknown"]) }) }),
  providerOptions: { glm: { thinking: { type: "disabled" } } },
});
console.log(output);

console.log("== a tool");
const add = tool({
  description: "Add two numbers.",
  inputSchema: z.object({ a: z.number().int(), b: z.number().int() }),
  execute: async ({ a, b }) => ({ result: a + b }),
});
try {
  const { steps, text } = await generateText({
    model,
    prompt,
    tools: { add },
    stopWhen: stepCountIs(4),
    temperature: 0,
    maxOutputTokens: 256,
    maxRetries: 0,
  });
  for (const { input, output } of steps.flatMap((step) => step.toolResults)) {
    console.log(`add(${JSON.stringify(input)}) = ${JSON.stringify(output)}`);
  }
  console.log(text);
} catch (error) {
  if (!APICallError.isInstance(error)) throw error;
  console.log(`refused: ${error.message}`); // the model has no tokens for calls
}
