// Tokens of each language are accepted, and a page with EventSource renews them: docs/signing.md.

import { execFile, spawnSync } from 'node:child_process'
import { promisify } from 'node:util'
import { launchChromium } from '../chromium.mjs'
import { check, Inbox } from '../support.mjs'
import { clients, copyOf, sign, startGateway, startSite } from './support.mjs'

const run = promisify(execFile)
const { url: gateway } = await startGateway(['--jwt-skew', '0s'])
const folder = copyOf('signing')

const publish = (token, room, data) => fetch(`${gateway}/v1/rooms/${room}/events`, {
  method: 'POST',
  headers: { Authorization: `Bearer ${token}`, 'Content-Type': 'text/plain' },
  body: data,
})

const LANGUAGES = {
  node: ['node', [`${folder}/sign.mjs`, 'ann']],
  python: [`${clients}.venv/bin/python`, [`${folder}/sign.py`, 'ann']],
  go: ['go', ['run', '.', 'ann'], { cwd: `${folder}/go` }],
  php: ['php', [`${folder}/sign.php`, 'ann']],
}
for (const [language, [program, parameters, options]] of Object.entries(LANGUAGES)) {
  if (spawnSync(program, [language === 'go' ? 'version' : '--version']).error) {
    console.log(`not run: no ${program}`)
    continue
  }
  const token = (await run(program, parameters, options)).stdout.trim()
  const headers = { Authorization: `Bearer ${token}` }
  check(`${language} may publish`, (await publish(token, 'chat.lobby', 'hello')).status, 201)
  check(`${language} may not publish elsewhere`, (await publish(token, 'user.ann', 'hello')).status, 403)
  check(`${language} may read`, (await fetch(`${gateway}/v1/rooms/user.ann/events`, { headers })).status, 200)
}

// A page with tokens of 3 s, whose first one has expired already.
const inbox = new Inbox()
let given = 0
const site = await startSite(folder, [gateway], {
  '/token': () => sign('ann', { subscribe: ['chat.*'] }, given++ === 0 ? -5 : 3),
})
const browser = await launchChromium()
const page = await browser.newPage()
await page.exposeFunction('receive', (event) => inbox.push(event))
await page.goto(`${site}/blank.html`)
await page.evaluate(async () => {
  const { follow } = await import('/follow.mjs')
  let kept
  const token = async (renew) => (kept = renew || !kept ? await (await fetch('/token')).json() : kept)
  const tell = (kind) => (value) => receive([kind, value])
  follow({ gateway: '', room: 'chat.renewed', token, onEvent: tell('event'), onGap: tell('gap'), onEnd: tell('end') })
})
const writer = sign('writer', { publish: ['*'] })
const sent = []
while (given < 5) {
  const text = `event ${sent.length}`
  await publish(writer, 'chat.renewed', text)
  // Those before the first stream is open are not for it.
  if (given > 1 || sent.length) sent.push(text)
  await new Promise((resolve) => setTimeout(resolve, 50))
}
const last = `event ${sent.length}`
await publish(writer, 'chat.renewed', last)
sent.push(last)
const seen = []
while (seen.at(-1)?.[1] !== last) seen.push(...(await inbox.take(1, 'the last event')))
const first = sent.indexOf(seen[0][1])
check('a page whose token has expired opens its stream', first >= 0)
check('nothing is missing or twice over renewals', seen, sent.slice(first).map((text) => ['event', text]))
await browser.close()
process.exit(0)
