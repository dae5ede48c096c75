// The browser module in Firefox: two tabs that share a stream, whose connections are cut. Firefox gets the page from a proxy
// to the gateway, and the page tells the proxy what it has received.

import { spawn } from 'node:child_process'
import { mkdtempSync, rmSync } from 'node:fs'
import http from 'node:http'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { connect } from '../../../clients/js/roomcast.js'
import { check, gateway, unique, within } from '../support.mjs'

const [room, hash] = [unique('room'), unique('hash')]
const PAGE = `<!doctype html><script type="module">
  import { connect } from '/roomcast.js'
  const received = { events: [], told: [] }
  const tell = (what) => fetch('/told/' + what + location.search, { method: 'POST', body: JSON.stringify(received) })
  const client = connect()
  const stream = client.stream({
    rooms: ['${room}'], hashes: ['${hash}'], shared: true,
    onEvent: async ({ data }) => {
      received.events.push(data)
      if (data !== 'last') return
      // Rooms and hashes have no order among each other.
      while (!stream.hashes.get('${hash}').values.has('colour')) await new Promise((resolve) => setTimeout(resolve, 20))
      received.colour = stream.hashes.get('${hash}').values.get('colour')
      await stream.hashes.get('${hash}').update('tabs', (tabs) => String(Number(tabs ?? 0) + 1))
      tell('end')
    },
    onGap: ({ reason }) => received.told.push(reason),
    onEnd: ({ reason, error }) => received.told.push(reason ?? String(error)),
  })
  await stream.hashes.get('${hash}').ready
  tell('ready')
</script>`

const told = new Map()
const waiting = new Map()
const hasTold = (what, ms) =>
  within(what, new Promise((resolve) => (told.has(what) ? resolve(told.get(what)) : waiting.set(what, resolve))), ms)
const streams = new Set()
const server = http.createServer((request, response) => {
  const { pathname, search } = new URL(request.url, 'http://proxy')
  if (pathname === '/page') return response.setHeader('Content-Type', 'text/html').end(PAGE)
  if (pathname.startsWith('/told/')) {
    let text = ''
    request.on('data', (data) => (text += data))
    request.on('end', () => {
      const what = pathname.slice(6) + search
      told.set(what, JSON.parse(text))
      waiting.get(what)?.(told.get(what))
      response.end()
    })
    return
  }
  const { method, headers } = request
  const far = http.request(gateway + request.url, { method, headers }, (answer) => {
    response.writeHead(answer.statusCode, answer.headers)
    answer.pipe(response)
    if (answer.headers['content-type']?.startsWith('text/event-stream')) {
      streams.add(response)
      response.on('close', () => (streams.delete(response), far.destroy()))
    }
  })
  far.on('error', () => response.destroy())
  request.pipe(far)
})
await new Promise((resolve) => server.listen(0, '127.0.0.1', resolve))
const url = (tab) => `http://127.0.0.1:${server.address().port}/page?${tab}`

const profile = mkdtempSync(join(tmpdir(), 'roomcast-firefox-'))
const options = ['--headless', '--no-remote', '--profile', profile, url(1), url(2)]
const firefox = spawn('firefox-esr', options, { stdio: 'ignore', env: { ...process.env, HOME: profile } })
const gone = new Promise((resolve) => firefox.on('exit', resolve))
process.on('exit', () => {
  firefox.kill('SIGKILL')
  rmSync(profile, { recursive: true, force: true, maxRetries: 10 })
})
try {
  // Firefox makes a profile first, which takes long on a busy machine.
  await Promise.all([hasTold('ready?1', 120_000), hasTold('ready?2', 120_000)])
  const client = connect({ url: gateway })
  const subscribers = async () => (await (await client.request(`/v1/rooms/${room}`)).json()).subscribers
  await within('one stream for two tabs', (async () => {
    // The count is some seconds old.
    while ((await subscribers()) !== 1) await new Promise((resolve) => setTimeout(resolve, 50))
  })())
  const expected = []
  const lamp = await client.watch(hash).ready
  for (let number = 0; number < 30; number++) {
    if (number % 10 === 5) for (const stream of streams) stream.destroy()
    if (number === 20) await lamp.set('colour', 'green')
    await client.publish(room, number)
    expected.push(number)
  }
  await client.publish(room, 'last')
  for (const tab of [1, 2]) {
    const { events, told, colour } = await hasTold(`end?${tab}`)
    check(`the tab ${tab} has each event once`, events, [...expected, 'last'])
    check(`the tab ${tab} has the value, and is told of nothing else`, [colour, told], ['green', []])
  }
  const sum = await (await client.request(`/v1/hashes/${hash}/fields/tabs`)).json()
  check('both have written', sum.value, '2')
} finally {
  firefox.kill('SIGKILL')
  await gone
}
process.exit(0)
