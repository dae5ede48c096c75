// Chromium's own EventSource, on a page of the gateway's origin and on a page of another site.

import { once } from 'node:events'
import http from 'node:http'
import { pipeline } from 'node:stream'
import { launchChromium, openPage, watchPost } from './chromium.mjs'
import { check, cuttingProxy, gateway, idsByRoom, opening, publish, tick, unique, within } from './support.mjs'

/** Serves an empty page and, like a reverse proxy that keeps `Host`, the gateway's API under the same origin. */
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
  check('the first id of a fresh stream is its position', joined, {
    id: joined.rooms[room].position,
    rooms: { [room]: { position: joined.id, resume: 'fresh' } },
  })

  proxy.cut()
  const first = [await tick(room, 1), await tick(room, 2)]
  proxy.mend()
  const rejoined = await opening(inbox)
  check(
    'after a cut before its first event, the stream resumes where it joined',
    [rejoined.id, rejoined.rooms[room].resume],
    [joined.id, 'complete'],
  )
  check('it receives the events published meanwhile', await inbox.take(2, 'missed events'), first)

  const published = await page.evaluate(async (room) => {
    const headers = { 'Content-Type': 'application/json' }
    const body = '{"event":"tick","data":{"n":12345678901234567890.10}}'
    const response = await fetch(`/v1/rooms/${room}/events`, { method: 'POST', headers, body })
    return { status: response.status, ...(await response.json()) }
  }, room)
  check('the page publishes with fetch', published.status, 201)
  const own = { type: 'tick', id: published.id, data: '{"n":12345678901234567890.10}' }
  check('the page receives its own event', await inbox.take(1, 'own event'), [own])

  proxy.cut()
  const missed = []
  for (let n = 3; n < 23; n++) missed.push(await tick(room, n))
  proxy.mend()
  const resumed = await opening(inbox)
  check(
    'after another cut, the stream resumes after its last event',
    [resumed.id, resumed.rooms[room].resume],
    [own.id, 'complete'],
  )
  check('it receives the missed events once and in order', await inbox.take(20, 'missed events'), missed)

  const text = ' two\nlines '
  const textId = await publish(room, text, { type: 'text/plain' })
  check('it receives nothing twice', await inbox.take(1, 'next event'), [{ type: 'message', id: textId, data: text }])
}

async function onePageSeveralRooms({ listen }, proxy) {
  const [a, b] = ['a', 'b'].map(unique)
  const inbox = await listen(`/v1/stream?room=${a}&room=${b}`)
  await opening(inbox)

  const id = await publish(a, '{"event":"tick","data":1}')
  const [{ data }] = await inbox.take(1, 'event of the first room')
  const envelope = JSON.parse(data)
  check(
    'a stream of several rooms delivers an event in an envelope',
    [envelope.room, envelope.id, envelope.event, envelope.data],
    [a, id, 'tick', 1],
  )

  proxy.cut()
  const missed = [[], []]
  for (let n = 0; n < 5; n++) {
    missed[0].push(await publish(a, `{"data":${n}}`))
    missed[1].push(await publish(b, `{"data":${n}}`))
  }
  proxy.mend()
  const { rooms } = await opening(inbox)
  check('after a cut, the stream resumes both rooms', [rooms[a].resume, rooms[b].resume], ['complete', 'complete'])
  const replayed = await inbox.take(10, 'missed events')
  check('it receives the missed events of each room once and in order', idsByRoom(replayed, [a, b]), missed)

  const liveId = await publish(b, '{"data":"live"}')
  const [live] = await inbox.take(1, 'live event')
  check('it then receives live events', JSON.parse(live.data).id, liveId)
}

async function presenceAndRemovalReachAPage({ listen }) {
  const room = unique('presence')
  const stream = `/v1/rooms/${room}/stream?presence=true&subscriber=`
  const presenceEvent = async (inbox, what) => {
    const [{ type, data }] = await inbox.take(1, what)
    return [type, JSON.parse(data).members.map(({ subscriber }) => subscriber)]
  }
  const ann = await listen(`${stream}ann`)
  await opening(ann)
  check('a page receives its own join', await presenceEvent(ann, 'own join'), ['presence.join', ['ann']])
  const bob = await listen(`${stream}bob`)
  await opening(bob)
  check(
    'it receives the join of another subscriber',
    await presenceEvent(ann, 'join of another subscriber'),
    ['presence.join', ['bob']],
  )
  check('that subscriber receives its own join too', await presenceEvent(bob, 'own join'), ['presence.join', ['bob']])

  const removal = `${gateway}/v1/rooms/${room}/subscribers/bob?deny_seconds=600`
  const answer = await within('removal', fetch(removal, { method: 'DELETE' }))
  check('a removal is answered with 204', answer.status, 204)
  const [end] = await bob.take(1, 'end of the removed stream')
  check(
    'the removed subscriber receives the end of its stream',
    [end.type, JSON.parse(end.data)],
    ['stream.end', { reason: 'removed', reconnect: 'never' }],
  )
  // The EventSource itself comes back after a day.
  const again = await listen(`${stream}bob`)
  const [closed] = await again.take(1, 'end of a further stream')
  check('an EventSource that comes back stops for good', closed, { type: 'closed' })
  check(
    'the other subscriber receives its leave',
    await presenceEvent(ann, 'leave of the removed subscriber'),
    ['presence.leave', ['bob']],
  )
}

/** What a page of another site could try while an open gateway runs on the reader's machine. */
async function aPageOfAnotherSiteIsRefused({ page, listen }) {
  const room = unique('cross-site')
  // The same gateway. For the browser, `localhost` and `127.0.0.1` are two sites.
  const otherSite = `http://localhost:${new URL(gateway).port}`
  const events = `${otherSite}/v1/rooms/${room}/events`

  // `no-cors` sends without a preflight request, and hides the answer from the page. The browser's tools still see
  // it.
  const watched = await watchPost(page, events)
  const attempt = (url) =>
    fetch(url, { method: 'POST', mode: 'no-cors', body: 'forged' }).then(() => 'answered', () => 'blocked')
  check(
    'a blind request of another site gets no answer',
    await within('attempt', page.evaluate(attempt, events)),
    'blocked',
  )
  check('a publish from another site is refused', await within('answer to the other site', watched.status), 403)

  const readable = await page.evaluate(async (url) => {
    const headers = { 'Content-Type': 'application/json' }
    const attempts = [fetch(url, { method: 'POST', headers, body: '{"data":"forged"}' }), fetch(url)]
    return (await Promise.allSettled(attempts)).map(({ status }) => status)
  }, events)
  check('another site can neither publish JSON nor read the log', readable, ['rejected', 'rejected'])

  const inbox = await listen(`${otherSite}/v1/rooms/${room}/stream`)
  check(
    'another site can not open a stream',
    await inbox.take(1, 'end of the stream from another site'),
    [{ type: 'closed' }],
  )

  const id = await publish(room, '{"data":"own"}')
  const log = await (await within('log', fetch(`${gateway}/v1/rooms/${room}/events`))).json()
  check('nothing from another site was stored', log.events.map((event) => event.id), [id])
}

const server = await pageServer()
const proxy = await cuttingProxy(server.url)
const browser = await launchChromium()

const page = await openPage(browser, proxy.url)
await onePageOneRoom(page, proxy)
await onePageSeveralRooms(page, proxy)
await presenceAndRemovalReachAPage(page)
await aPageOfAnotherSiteIsRefused(page)

await browser.close()
proxy.close()
server.close()
