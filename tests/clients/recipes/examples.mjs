// Each example application, started as its README says, in two windows of Chromium.

import { launchChromium } from '../chromium.mjs'
import { check } from '../support.mjs'
import { clients, copyOf, eventually, freePort, start, startGateway } from './support.mjs'

const python = `${clients}.venv/bin/python`
const browser = await launchChromium()
const text = (page, selector) => page.evaluate((selector) => document.querySelector(selector).innerText, selector)
const open = async (url) => {
  const page = await browser.newPage()
  await page.goto(url)
  await eventually(`an open stream on ${url}`, async () => (await text(page, '#state')) === 'open')
  return page
}

const APPLICATIONS = {
  express: ['node', () => ['server.mjs']],
  fastapi: [python, (port) => ['-m', 'uvicorn', 'app:app', '--port', port]],
}
for (const [name, [program, parameters]] of Object.entries(APPLICATIONS)) {
  const port = String(await freePort())
  const site = `http://127.0.0.1:${port}`
  const gateway = await startGateway(['--cors-origin', site])
  const env = { ROOMCAST_URL: gateway.url, PORT: port }
  await start(program, parameters(port), { env, cwd: copyOf(name) })
  const ann = await open(`${site}/?user=ann`)
  const bob = await open(`${site}/?user=bob`)
  await ann.fill('#text', 'hello <bob>')
  await ann.click('button')
  await bob.fill('#text', 'hello ann')
  await bob.click('button')
  for (const page of [ann, bob, await open(`${site}/?user=cleo`)]) {
    const notes = await eventually('both notes', async () => {
      const lines = (await text(page, '#notes')).split('\n')
      return lines.length === 2 && lines
    })
    check(`${name}: both notes are shown`, notes.sort(), ['ann: hello <bob>', 'bob: hello ann'])
  }
  const answer = await fetch(`${site}/notes`, { method: 'POST', headers: { 'Content-Type': 'application/json' }, body: '{"user":"x","text":""}' })
  check(`${name}: an empty note is refused`, answer.status >= 400 && answer.status < 500)
}

const port = String(await freePort())
const site = `http://127.0.0.1:${port}`
const gateway = await startGateway(['--cors-origin', site], { ROOMCAST_JWT_HS256_SECRET: undefined })
await start(python, ['-u', '-m', 'http.server', port, '--bind', '127.0.0.1'], { cwd: copyOf('static') })
const [one, two] = [await open(`${site}/?gateway=${gateway.url}`), await open(`${site}/?gateway=${gateway.url}`)]
await one.click('#lamp')
await eventually('a lamp that is on', async () => (await text(two, '#lamp')) === 'on')
await two.click('#lamp')
await eventually('a lamp that is off', async () => (await text(one, '#lamp')) === 'off')
check('static: each window switches the lamp', true)
process.exit(0)
