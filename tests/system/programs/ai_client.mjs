// Vercel's AI SDK with its providers for OpenAI and for whatever resembles it. Arguments: the gateway's URL, two models.
import { createOpenAI } from '@ai-sdk/openai'
import { createOpenAICompatible } from '@ai-sdk/openai-compatible'
import { generateText, streamText } from 'ai'

const [url, one, other] = process.argv.slice(2)
const providers = {
  openai: createOpenAI({ baseURL: `${url}/v1`, apiKey: 'unused' }).chat(one),
  compatible: createOpenAICompatible({ name: 'gateway', baseURL: `${url}/v1`, includeUsage: true })(other),
}
const answers = {}
for (const [name, model] of Object.entries(providers)) {
  const errors = []
  const onError = ({ error }) => errors.push(String(error))
  const streamed = streamText({ model, prompt: 'Hello', maxRetries: 0, onError })
  let words = ''
  for await (const piece of streamed.textStream) words += piece
  const whole = await generateText({ model, prompt: 'Hello', maxRetries: 0 })
  const finish = await streamed.finishReason
  const usage = (await streamed.usage).outputTokens
  answers[name] = { words, errors, finish, usage, whole: whole.text }
}
console.log(JSON.stringify(answers))
