// EventSources in Node and in Chromium through an outage of Redis, behind the balancer. When this script prints
// `take Redis away`, its caller stops Redis and writes the line `gone`. When Redis is back, the caller writes
// `back`.

import { createInterface } from 'node:readline'
import { EventSource } from 'eventsource'
import { launchChromium, openPage } from './chromium.mjs'
import { check, EVENT_TYPES, gateway, idsByRoom, Inbox, opening, tick, unique } from './support.mjs'

const input = createInterface({ input: process.stdin })[Symbol.asyncIterator]()
const outage = Number(process.env.ROOMCAST_OUTAGE ?? 5)

async function until(word) {
  const { value } = await input.next()
  check(`Redis is ${word}`, value, word)
}

function listenInNode(path) {
  const source = new EventSource(gateway + path)
  const inbox = new Inbox()
  for (const type of EVENT_TYPES) {
    source.addEventListener(type, ({ lastEventId, data }) => inbox.push({ type, id: lastEventId, data }))
  }
  source.addEventListener('error', () => {
    if (source.readyState === EventSource.CLOSED) inbox.push({ type: 'closed' })
  })
  return inbox
}

/** Collects events. Ends of streams have to allow a reconnect, and new streams have to resume completely. */
async function takeEvents(inbox, count, what) {
  const events = []
  while (events.length < count) {
    const [item] = await inbox.take(1, what)
    if (item.type === 'stream.end') check(`${what}: may reconnect`, JSON.parse(item.data).reconnect !== 'never')
    else if (item.type === 'stream.open') {
      const resumes = Object.values(JSON.parse(item.data).rooms).map((room) => room.resume)
      check(`${what}: resumes at its position`, resumes.every((resume) => resume === 'complete'))
    } else events.push(item)
  }
  return events
}

/** Waits for the first `stream.open`. Until then each stream ends with `reconnect: later`. */
async function firstOpening(inbox, what) {
  for (;;) {
    const [{ type, data }] = await inbox.take(1, what)
    if (type === 'stream.open') return
    check(`${what}: is told to reconnect later`, [type, JSON.parse(data).reconnect], ['stream.end', 'later'])
  }
}

const [a, b] = ['a', 'b'].map(unique)
const one = `/v1/rooms/${a}/stream`
const both = `/v1/stream?room=${a}&room=${b}`
const browser = await launchChromium()
const page = await openPage(browser, `${gateway}/livez`)

const listeners = {
  'one room in Node': [listenInNode(one), 1],
  'two rooms in Node': [listenInNode(both), 2],
  'one room in Chromium': [await page.listen(one), 1],
  'two rooms in Chromium': [await page.listen(both), 2],
}
for (const [inbox] of Object.values(listeners)) await opening(inbox)

const expected = [[], []]
const publish = async (data) => {
  for (const [index, room] of [a, b].entries()) expected[index].push((await tick(room, data)).id)
}
for (let n = 0; n < 5; n++) await publish(n)

console.log('take Redis away')
await until('gone')
const latecomers = {
  'late in Node': listenInNode(one),
  'late in Chromium': await page.listen(`${one}?event=tick`),
}
await until('back')
for (const [what, inbox] of Object.entries(latecomers)) await firstOpening(inbox, what)
for (let n = 5; n < 25; n++) await publish(n)

for (const [what, [inbox, rooms]] of Object.entries(listeners)) {
  const events = await takeEvents(inbox, 25 * rooms, what)
  const ids = rooms === 1 ? [events.map((event) => event.id)] : idsByRoom(events, [a, b])
  check(`${what}: all events, once and in order`, ids, expected.slice(0, rooms))
}
for (const [what, inbox] of Object.entries(latecomers)) {
  const events = await takeEvents(inbox, 20, what)
  check(`${what}: all events since it joined`, events.map((event) => event.id), expected[0].slice(5))
}
console.log(`recovered from an outage of ${outage} s`)
await browser.close()
process.exit(0)
