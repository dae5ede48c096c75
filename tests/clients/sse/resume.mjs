// Clients of other projects resume without loss: after a cut, after a cut before the first event, after a cut inside an
// event, and after a proper end. resume.mjs javascript|python|go, or the names of clients.

import { execFileSync, spawn } from 'node:child_process'
import { once } from 'node:events'
import { mkdtempSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { createInterface } from 'node:readline'
import { fileURLToPath } from 'node:url'
import { check, cuttingProxy, gateway, Inbox, remove, tick, unique, within } from '../support.mjs'

const here = fileURLToPath(new URL('.', import.meta.url))
// Almost the largest event of a gateway with its usual settings. The buffers of some clients are smaller.
const LARGE = 'x'.repeat(65_000)
const BAD_GATEWAY = 'HTTP/1.1 502 Bad Gateway\r\nContent-Length: 0\r\nConnection: close\r\n\r\n'

// Clients that go on after an answer other than 200, as of a balancer.
const PERSISTENT = [
  'reconnecting-eventsource', 'eventsource-client', 'launchdarkly-eventsource', '@microsoft/fetch-event-source',
  'httpx-sse', 'sseclient-py', 'aiohttp-sse-client', 'r3labs/sse',
]

const LANGUAGES = {
  javascript: {
    command: (client) => [process.execPath, join(here, 'follow.mjs'), client],
    clients: [
      'eventsource',
      'eventsource 5',
      'event-source-polyfill',
      'reconnecting-eventsource',
      'eventsource-client',
      'launchdarkly-eventsource',
      'extended-eventsource',
      '@microsoft/fetch-event-source',
    ],
  },
  python: {
    command: (client) => [join(here, '../.venv/bin/python'), join(here, 'follow.py'), client],
    clients: ['httpx-sse', 'sseclient-py', 'aiohttp-sse-client'],
  },
  go: {
    command: (client) => [join(buildGo(), 'follow'), client],
    clients: ['tmaxmax/go-sse', 'r3labs/sse'],
  },
}

let goFolder
function buildGo() {
  if (!goFolder) {
    goFolder = mkdtempSync(join(tmpdir(), 'roomcast-go-'))
    execFileSync('go', ['build', '-o', join(goFolder, 'follow'), '.'], { cwd: join(here, 'go'), stdio: 'inherit' })
  }
  return goFolder
}

/** Runs a client. Its events and the openings of its streams arrive in two inboxes. */
function follow([program, ...given], url) {
  const child = spawn(program, [...given, url], { stdio: ['ignore', 'pipe', 'inherit'] })
  const [events, openings] = [new Inbox(), new Inbox()]
  createInterface({ input: child.stdout }).on('line', (line) => {
    const event = JSON.parse(line)
    if (event.type === 'stream.open') openings.push(event)
    else if (event.type !== 'stream.end') events.push(event)
  })
  return { child, events, openings }
}

async function resumes(client, command) {
  const proxy = await cuttingProxy(gateway)
  const room = unique('resume')
  const { child, events, openings } = follow(command, `${proxy.url}/v1/rooms/${room}/stream?subscriber=ann`)
  const is = async (what, expected) => {
    check(`${client}: ${what}`, await events.take(expected.length, `${client}: ${what}`), expected)
  }
  try {
    await openings.take(1, `${client}: stream.open`)
    proxy.cut()
    const first = [await tick(room, 1), await tick(room, 2)]
    proxy.mend()
    await is('gets what was published during a cut before its first event', first)

    await is('gets a large event', [await tick(room, LARGE)])

    proxy.cut()
    const missed = [await tick(room, 3), await tick(room, 4), await tick(room, 5)]
    proxy.mend()
    await is('gets what was published during a cut', missed)

    proxy.tearNextAnswer()
    await is('gets an event whole that was cut in two', [await tick(room, LARGE)])

    await remove(room, 'ann')
    await is('gets what was published after a proper end', [await tick(room, 6), await tick(room, 7)])

    if (PERSISTENT.includes(client)) {
      proxy.cut(BAD_GATEWAY)
      const refused = [await tick(room, 8)]
      await within(`${client}: a request during the outage`, proxy.answered())
      proxy.mend()
      await is('gets what was published while a balancer answered 502', refused)
    }

    await is('gets nothing twice', [await tick(room, 9)])
    if (LANGUAGES.python.clients.includes(client)) {
      const exited = once(child, 'exit')
      await remove(room, 'ann', '?deny_seconds=60')
      check(`${client}: stops for good when it is told to`, await within(`${client}: the exit`, exited), [0, null])
    }
  } finally {
    child.kill()
    proxy.close()
  }
}

const wanted = process.argv.slice(2)
const running = Object.entries(LANGUAGES).flatMap(([language, { command, clients }]) =>
  clients
    .filter((client) => wanted.includes(language) || wanted.includes(client))
    .map((client) => resumes(client, command(client))),
)
const failed = (await Promise.allSettled(running)).filter(({ status }) => status === 'rejected')
if (goFolder) rmSync(goFolder, { recursive: true })
for (const { reason } of failed) console.error(reason.message)
check('all clients resume', [running.length > 0, failed.length], [true, 0])
