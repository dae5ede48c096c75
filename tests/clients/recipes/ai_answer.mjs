// An answer is the same text in a page that is reloaded, in a second tab, and after replicas are killed; a page stops it.

import { once } from 'node:events'
import { setTimeout as sleep } from 'node:timers/promises'
import { publishAnswer } from '../../../examples/recipes/ai-answer/answer.mjs'
import { launchChromium } from '../chromium.mjs'
import { check, within } from '../support.mjs'
import { eventually, examples, sign, startGateway, startSite } from './support.mjs'

const RELOADS = 20
const WORDS = ['the ', 'grün ', '🙂', '<b>', '\n', 'a "quote" ', '  ', 'データ', '\\', '\r\n', 'end. ']

const OPTIONS = ['--retention', 'answer.*=events:10000']
const replicas = [await startGateway(OPTIONS), await startGateway(OPTIONS)]
const gateways = replicas.map(({ url }) => url)
const stored = new Map()
const site = await startSite(`${examples}/recipes`, gateways, {
  '/session': (query) => {
    const room = query.get('room')
    return sign('reader', { subscribe: [room], publish: [`${room}.stop`] }, 4)
  },
  '/answer': (query) => stored.get(query.get('room')) ?? '',
})
const token = sign('server', { publish: ['answer.*'], subscribe: ['answer.*.stop'] })

/** Starts an answer that goes on until `end` is called. */
function begin(room) {
  const model = { made: '', isOver: false }
  async function* pieces(signal) {
    while (!model.isOver && !signal.aborted) {
      const piece = WORDS[Math.floor(Math.random() * WORDS.length)]
      model.made += piece
      yield piece
      await sleep(5)
    }
  }
  model.text = publishAnswer({ gateway: site, token, room, pieces })
  model.end = () => (model.isOver = true)
  return model
}

const browser = await launchChromium()
const shown = (page) => page.evaluate(() => document.querySelector('#answer').textContent)
const isDone = (page) => page.evaluate(() => document.querySelector('#stop').disabled)
const open = async (room) => {
  const page = await browser.newPage()
  await page.goto(`${site}/ai-answer/index.html?room=${room}`)
  return page
}

async function replaceOne() {
  const index = Math.floor(Math.random() * replicas.length)
  replicas[index].child.kill('SIGKILL')
  await once(replicas[index].child, 'exit')
  replicas[index] = await startGateway(OPTIONS)
  gateways[index] = replicas[index].url
}

const answer = begin('answer.1')
const [page, second] = [await open('answer.1'), await open('answer.1')]
let kills = 0
const killing = (async () => {
  while (!answer.isOver) {
    await replaceOne()
    kills++
    await sleep(Math.random() * 1000)
  }
})()
for (let reload = 0; reload < RELOADS; reload++) {
  await sleep(Math.random() * 300)
  await page.reload()
  if (reload % 5 === 4) await eventually('a text after a reload', async () => (await shown(page)).length > 0)
}
await eventually('a killed replica', () => kills >= 3)
answer.end()
const text = await within('the end of the answer', answer.text)
await killing
for (const [name, tab] of [['the reloaded page', page], ['the second tab', second], ['a late tab', await open('answer.1')]]) {
  await eventually(`the end in ${name}`, () => isDone(tab))
  check(`${name} has the text, byte for byte`, await shown(tab), text)
}
check('the text is what the model made', text, answer.made)
console.log(`${RELOADS} reloads, ${kills} replicas killed, ${text.length} characters`)

const stopped = begin('answer.2')
const [reader, other] = [await open('answer.2'), await open('answer.2')]
await eventually('a text', async () => (await shown(other)).length > 20)
await other.click('#stop')
const rest = await within('the stop', stopped.text)
for (const tab of [reader, other]) {
  await eventually('the end after a stop', () => isDone(tab))
  check('each tab has the text up to the stop', await shown(tab), rest)
}

// Where the beginning is gone, a page has what the application keeps.
stored.set('answer.3', 'the whole text')
await fetch(`${site}/v1/rooms/answer.3/events`, {
  method: 'POST',
  headers: { Authorization: `Bearer ${token}`, 'Content-Type': 'application/json' },
  body: JSON.stringify({ event: 'text', data: { at: 7, text: 'rest' }, final: true }),
})
const late = await open('answer.3')
await eventually('the end of a text that has no beginning', () => isDone(late))
check('the page shows what the application keeps', await shown(late), 'the whole text')
process.exit(0)
