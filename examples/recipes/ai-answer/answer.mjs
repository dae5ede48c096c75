// Publishes the answer of a model as it is made, from any server.

import { setTimeout as sleep } from 'node:timers/promises'

const BATCH_MS = 100

/** Publishes the pieces of a text to the room of the answer, until it ends or a reader stops it. Returns the text. */
export async function publishAnswer({ gateway, token, room, pieces }) {
  const headers = { Authorization: `Bearer ${token}` }
  const stop = new AbortController()
  const done = new AbortController()
  waitForStop(gateway, `${room}.stop`, headers, done.signal).then((is) => is && stop.abort())
  const send = (event) => publish(gateway, room, headers, event)
  let text = ''
  let at = 0
  let sentAt = 0
  for await (const piece of pieces(stop.signal)) {
    if (stop.signal.aborted) break
    text += piece
    if (Date.now() - sentAt < BATCH_MS) continue
    await send({ event: 'text', data: { at, text: text.slice(at) } })
    at = text.length
    sentAt = Date.now()
  }
  await send({ event: 'text', data: { at, text: text.slice(at) }, final: true })
  done.abort()
  return text
}

/** Sends the same event with the same key until it is stored: it is stored once. */
async function publish(gateway, room, headers, event) {
  const url = `${gateway}/v1/rooms/${room}/events`
  headers = { ...headers, 'Content-Type': 'application/json', 'Idempotency-Key': `${room}-${event.data.at}` }
  if (event.final) headers['Idempotency-Key'] += '-final'
  for (let attempt = 0; ; attempt++) {
    const signal = AbortSignal.timeout(5000)
    const request = { method: 'POST', headers, body: JSON.stringify(event), signal }
    const response = await fetch(url, request).catch(() => undefined)
    if (response?.ok) return
    const isRefused = response?.status < 500 && response.status !== 429
    if (isRefused || attempt === 30) throw new Error(`no publish: ${(await response?.text()) ?? 'no answer'}`)
    await sleep(Math.min(100 * 2 ** attempt, 2000))
  }
}

/** Resolves to true once a reader has published to the room. */
async function waitForStop(gateway, room, headers, signal) {
  const url = `${gateway}/v1/rooms/${room}/stream?from=earliest&event=stop`
  while (!signal.aborted) {
    try {
      const response = await fetch(url, { headers, signal })
      let read = ''
      for await (const text of response.body.pipeThrough(new TextDecoderStream())) {
        read = (read + text).slice(-1000)
        if (/^event: stop$/m.test(read)) return true
      }
    } catch {
      // The loop goes on, unless the answer is done.
    }
    await sleep(1000)
  }
}
