// Ollama's own package for JavaScript, as its documentation uses it. Arguments: the gateway's URL, two models.
import { Ollama } from 'ollama'

const [url, one, other] = process.argv.slice(2)
const ollama = new Ollama({ host: url })
const messages = [{ role: 'user', content: 'Hello' }]

const models = (await ollama.list()).models.map((each) => each.name)
const capabilities = (await ollama.show({ model: one })).capabilities
let words = ''
let last
for await (const part of await ollama.chat({ model: one, messages, stream: true })) {
  words += part.message.content
  last = part
}
const whole = (await ollama.chat({ model: other, messages })).message.content
const generated = (await ollama.generate({ model: other, prompt: 'Hello' })).response
const running = (await ollama.ps()).models.map((each) => each.name)
let refused
try {
  await ollama.chat({ model: 'no-such-model', messages })
} catch (error) {
  refused = [error.status_code, error.message]
}
console.log(JSON.stringify({
  models, capabilities, words, finish: [last.done, last.done_reason, last.eval_count], whole, generated, running, refused,
}))
