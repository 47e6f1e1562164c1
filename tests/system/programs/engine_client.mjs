// The packages of today against a real engine: the same words streamed and whole, and an object that follows a schema.
// Arguments: the gateway's URL, a model.
import Anthropic from '@anthropic-ai/sdk'
import { createOpenAI } from '@ai-sdk/openai'
import { createOpenAICompatible } from '@ai-sdk/openai-compatible'
import { generateText, jsonSchema, Output, streamText } from 'ai'
import { Ollama } from 'ollama'
import OpenAI from 'openai'

const [url, name] = process.argv.slice(2)
const prompt = 'What is the capital of France?'
const messages = [{ role: 'user', content: prompt }]
const limits = { temperature: 0, maxOutputTokens: 12, maxRetries: 0 }
const key = { apiKey: 'unused', maxRetries: 0 }
const found = {}

const openai = createOpenAI({ baseURL: `${url}/v1`, apiKey: 'unused' })
const settings = { name: 'gateway', baseURL: `${url}/v1`, includeUsage: true, supportsStructuredOutputs: true }
const models = {
  responses: openai(name),
  chat: openai.chat(name),
  compatible: createOpenAICompatible(settings)(name),
}
const schema = jsonSchema({
  type: 'object', properties: { n: { enum: [7] } }, required: ['n'], additionalProperties: false,
})
for (const [kind, model] of Object.entries(models)) {
  const whole = await generateText({ model, prompt, ...limits })
  let streamed = ''
  for await (const piece of streamText({ model, prompt, ...limits }).textStream) streamed += piece
  const wanted = { ...limits, maxOutputTokens: 30, output: Output.object({ schema }) }
  const { output } = await generateText({ model, prompt: 'Seven as JSON', ...wanted })
  found[kind] = { whole: whole.text, streamed, object: output, usage: whole.usage.outputTokens }
}

const their = new OpenAI({ baseURL: `${url}/v1`, ...key })
const asked = { model: name, input: prompt, temperature: 0, max_output_tokens: 12 }
let streamed = ''
for await (const event of await their.responses.create({ ...asked, stream: true })) {
  if (event.type === 'response.output_text.delta') streamed += event.delta
}
const whole = await their.responses.create(asked)
found.openai = { whole: whole.output_text, streamed, usage: whole.usage.output_tokens }

const claude = new Anthropic({ baseURL: url, ...key })
const message = { model: name, messages, max_tokens: 12, temperature: 0 }
const answer = await claude.messages.create(message)
const final = await claude.messages.stream(message).finalMessage()
found.anthropic = {
  whole: answer.content[0].text, streamed: final.content[0].text, usage: answer.usage.output_tokens,
}

const ollama = new Ollama({ host: url })
const options = { model: name, messages, options: { temperature: 0, num_predict: 12 } }
streamed = ''
for await (const part of await ollama.chat({ ...options, stream: true })) streamed += part.message.content
const said = await ollama.chat(options)
found.ollama = { whole: said.message.content, streamed, usage: said.eval_count }
console.log(JSON.stringify(found))
