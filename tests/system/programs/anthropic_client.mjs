// Anthropic's own package for JavaScript. Arguments: the gateway's URL, two models.
import Anthropic from '@anthropic-ai/sdk'

const [url, one, other] = process.argv.slice(2)
const client = new Anthropic({ baseURL: url, apiKey: 'unused', maxRetries: 0 })
const messages = [{ role: 'user', content: 'Hello' }]

let words = ''
const streamed = client.messages.stream({ model: one, messages, max_tokens: 100 })
streamed.on('text', (text) => { words += text })
const final = await streamed.finalMessage()
const whole = await client.messages.create({ model: other, messages, max_tokens: 100 })
const models = []
for await (const each of client.models.list()) models.push(each.id)
console.log(JSON.stringify({
  words, finish: final.stop_reason, usage: final.usage.output_tokens, whole: whole.content.at(-1).text, models,
}))
