// Chromium's own EventSource, on a page of the gateway's origin and on a page of another one.

import { once } from 'node:events'
import http from 'node:http'
import { pipeline } from 'node:stream'
import { launchChromium, openPage, watchPost } from './chromium.mjs'
import { check, cuttingProxy, gateway, idsByRoom, opening, publish, tick, unique, within } from './support.mjs'

/** Serves an empty page, and the gateway's API under the same origin as a reverse proxy would (`Host` is kept). */
async function pageServer() {
  const server = http.createServer((request, response) => {
    if (!request.url.startsWith('/v1/')) {
      return response.setHeader('Content-Type', 'text/html').end('<!doctype html><title>rooms</title>')
    }
    const { method, headers } = request
    const forwarded = http.request(gateway + request.url, { method, headers }, (answer) => {
      response.writeHead(answer.statusCode, answer.headers)
      pipeline(answer, response, () => {})
    })
    pipeline(request, forwarded, (error) => error && response.destroy())
    response.on('close', () => forwarded.destroy())
  })
  server.listen(0, '127.0.0.1')
  await once(server, 'listening')
  return { url: `http://127.0.0.1:${server.address().port}`, close: () => server.close() }
}

async function onePageOneRoom({ page, listen }, proxy) {
  const room = unique('browser')
  const inbox = await listen(`/v1/rooms/${room}/stream`)
  const joined = await opening(inbox)
  check('a fresh stream says its position in its first id', joined, {
    id: joined.rooms[room].position,
    rooms: { [room]: { position: joined.id, resume: 'fresh' } },
  })

  proxy.cut()
  const first = [await tick(room, 1), await tick(room, 2)]
  proxy.mend()
  const rejoined = await opening(inbox)
  check('dropped before its first event, it resumes where it joined', [rejoined.id, rejoined.rooms[room].resume], [joined.id, 'complete'])
  check('and gets what was published meanwhile', await inbox.take(2, 'missed events'), first)

  const published = await page.evaluate(async (room) => {
    const headers = { 'Content-Type': 'application/json' }
    const body = '{"event":"tick","data":{"n":12345678901234567890.10}}'
    const response = await fetch(`/v1/rooms/${room}/events`, { method: 'POST', headers, body })
    return { status: response.status, ...(await response.json()) }
  }, room)
  check('the page publishes with fetch', published.status, 201)
  const own = { type: 'tick', id: published.id, data: '{"n":12345678901234567890.10}' }
  check('and hears its own event', await inbox.take(1, 'own event'), [own])

  proxy.cut()
  const missed = []
  for (let n = 3; n < 23; n++) missed.push(await tick(room, n))
  proxy.mend()
  const resumed = await opening(inbox)
  check('dropped again, it resumes after its last event', [resumed.id, resumed.rooms[room].resume], [own.id, 'complete'])
  check('and gets what it missed, once and in order', await inbox.take(20, 'missed events'), missed)

  const text = ' two\nlines '
  const textId = await publish(room, text, { type: 'text/plain' })
  check('and nothing comes twice', await inbox.take(1, 'next event'), [{ type: 'message', id: textId, data: text }])
}

async function onePageSeveralRooms({ listen }, proxy) {
  const [a, b] = ['a', 'b'].map(unique)
  const inbox = await listen(`/v1/stream?room=${a}&room=${b}`)
  await opening(inbox)

  const id = await publish(a, '{"event":"tick","data":1}')
  const [{ data }] = await inbox.take(1, 'event of the first room')
  const envelope = JSON.parse(data)
  check('an event of several rooms comes in an envelope', [envelope.room, envelope.id, envelope.event, envelope.data], [a, id, 'tick', 1])

  proxy.cut()
  const missed = [[], []]
  for (let n = 0; n < 5; n++) {
    missed[0].push(await publish(a, `{"data":${n}}`))
    missed[1].push(await publish(b, `{"data":${n}}`))
  }
  proxy.mend()
  const { rooms } = await opening(inbox)
  check('dropped, it resumes both rooms', [rooms[a].resume, rooms[b].resume], ['complete', 'complete'])
  const replayed = await inbox.take(10, 'missed events')
  check('and gets what each room has missed, once and in order', idsByRoom(replayed, [a, b]), missed)

  const liveId = await publish(b, '{"data":"live"}')
  const [live] = await inbox.take(1, 'live event')
  check('and goes on live', JSON.parse(live.data).id, liveId)
}

async function aPageSeesWhoIsThereAndIsRemoved({ listen }) {
  const room = unique('who')
  const stream = `/v1/rooms/${room}/stream?presence=true&subscriber=`
  const told = async (inbox, what) => {
    const [{ type, data }] = await inbox.take(1, what)
    return [type, JSON.parse(data).members.map(({ subscriber }) => subscriber)]
  }
  const ann = await listen(`${stream}ann`)
  await opening(ann)
  check('a page hears that it has come', await told(ann, 'own coming'), ['presence.join', ['ann']])
  const bob = await listen(`${stream}bob`)
  await opening(bob)
  check('and who else comes', await told(ann, 'coming of another'), ['presence.join', ['bob']])
  check('who hears the same', await told(bob, 'own coming'), ['presence.join', ['bob']])

  const removal = `${gateway}/v1/rooms/${room}/subscribers/bob?deny_seconds=600`
  const answer = await within('removal', fetch(removal, { method: 'DELETE' }))
  check('one can be removed', answer.status, 204)
  const [end, closed] = await bob.take(2, 'end of the removed stream')
  check('and is told so', [end.type, JSON.parse(end.data)], ['stream.end', { reason: 'removed', reconnect: 'never' }])
  check('and its EventSource gives up when it comes back', closed, { type: 'closed' })
  check('the others hear that it has gone', await told(ann, 'going of another'), ['presence.leave', ['bob']])
}

/** What any web page could try, while its reader has an open gateway running on the same machine. */
async function aForeignPageIsRefused({ page, listen }) {
  const room = unique('foreign')
  // The same gateway, but for the browser `localhost` and `127.0.0.1` are two sites.
  const foreign = `http://localhost:${new URL(gateway).port}`
  const events = `${foreign}/v1/rooms/${room}/events`

  // `no-cors` sends without asking first, and the gateway's answer is kept from the page; the browser's tools still see it.
  const watched = await watchPost(page, events)
  const attempt = (url) => fetch(url, { method: 'POST', mode: 'no-cors', body: 'forged' }).then(() => 'answered', () => 'blocked')
  check('what a foreign page sends blindly is answered with nothing', await within('attempt', page.evaluate(attempt, events)), 'blocked')
  check('a publish from a foreign page is refused', await within('answer to the foreign page', watched.status), 403)

  const readable = await page.evaluate(async (url) => {
    const headers = { 'Content-Type': 'application/json' }
    const attempts = [fetch(url, { method: 'POST', headers, body: '{"data":"forged"}' }), fetch(url)]
    return (await Promise.allSettled(attempts)).map(({ status }) => status)
  }, events)
  check('it can neither publish JSON nor read the log', readable, ['rejected', 'rejected'])

  const inbox = await listen(`${foreign}/v1/rooms/${room}/stream`)
  check('nor open a stream', await inbox.take(1, 'end of the foreign stream'), [{ type: 'closed' }])

  const id = await publish(room, '{"data":"own"}')
  const log = await (await within('log', fetch(`${gateway}/v1/rooms/${room}/events`))).json()
  check('and nothing of it was stored', log.events.map((event) => event.id), [id])
}

const server = await pageServer()
const proxy = await cuttingProxy(server.url)
const browser = await launchChromium()

const page = await openPage(browser, proxy.url)
await onePageOneRoom(page, proxy)
await onePageSeveralRooms(page, proxy)
await aPageSeesWhoIsThereAndIsRemoved(page)
await aForeignPageIsRefused(page)

await browser.close()
proxy.close()
server.close()
