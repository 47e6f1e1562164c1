// Vercel's AI SDK with its default provider, which refers to earlier items by their ids, and with one for Ollama.
// Arguments: the gateway's URL, two models.
import { createOpenAI } from '@ai-sdk/openai'
import { generateText, streamText } from 'ai'
import { createOllama } from 'ollama-ai-provider-v2'

const [url, one] = process.argv.slice(2)
const model = createOpenAI({ baseURL: `${url}/v1`, apiKey: 'unused' })(one)
const messages = [{ role: 'user', content: 'I am Bob.' }]
const first = await generateText({ model, messages, maxRetries: 0 })
messages.push(...first.response.messages, { role: 'user', content: 'Who am I?' })
let second = ''
for await (const piece of streamText({ model, messages, maxRetries: 0 }).textStream) second += piece
const ollama = []
for (let number = 0; number < 2; number++) {
  const provider = createOllama({ baseURL: `${url}/api` })
  ollama.push((await generateText({ model: provider(one), prompt: 'Hello', maxRetries: 0 })).text)
}
console.log(JSON.stringify({ first: first.text, second, ollama }))
