// OpenAI's own package for JavaScript. Arguments: the gateway's URL, two models.
import OpenAI from 'openai'

const [url, one, other] = process.argv.slice(2)
const client = new OpenAI({ baseURL: `${url}/v1`, apiKey: 'unused', maxRetries: 0 })
const messages = [{ role: 'user', content: 'Hello' }]

let words = ''
let waited = 0
for await (const part of await client.chat.completions.create({ model: one, messages, stream: true })) {
  words += part.choices[0].delta.content ?? ''
  if (part.x_hostler) waited += 1
}
const helped = await client.chat.completions.stream({ model: other, messages }).finalChatCompletion()
const whole = await client.chat.completions.create({ model: other, messages })
const models = []
for await (const each of client.models.list()) models.push(each.id)
console.log(JSON.stringify({
  words, waited, models, helped: helped.choices[0].message.content, whole: whole.choices[0].message.content,
}))
