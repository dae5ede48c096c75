// The code of docs/shared-values.md and of the README, as it is there: that for browsers in the consoles of two
// windows of Chromium, one of which is cut off for a while, and the server's in Python. The hashes have the pages'
// names, so the script needs a gateway for itself.

import { spawn } from 'node:child_process'
import { readFileSync } from 'node:fs'
import { createInterface } from 'node:readline'
import { launchChromium } from './chromium.mjs'
import { check, cuttingProxy, gateway, within } from './support.mjs'

const DOCUMENTED = 'http://127.0.0.1:8080'

/** The code blocks of a page in a language. */
function blocks(page, language) {
  const text = readFileSync(new URL(`../../${page}`, import.meta.url), 'utf8')
  const found = [...text.matchAll(/^```(\w+)\n(.*?)^```$/gms)]
  return found.filter((block) => block[1] === language).map((block) => block[2])
}

/** A page of the gateway, and the console of its developer tools, which allows `await` outside of functions. */
async function openWindow(browser, url) {
  const page = await browser.newPage()
  await page.goto(`${url}/livez`)
  const tools = await page.context().newCDPSession(page)
  const paste = async (expression) => {
    const options = { expression, replMode: true, awaitPromise: true, returnByValue: true, userGesture: true }
    const { result, exceptionDetails } = await within('end of a block', tools.send('Runtime.evaluate', options))
    if (exceptionDetails) throw new Error(`${exceptionDetails.exception?.description}, in:\n${expression}`)
    return result.value
  }
  const shows = (what, value) =>
    within(what, paste(`await new Promise((resolve) => {
      const look = () => (${value}) ? resolve(true) : setTimeout(look, 20)
      look()
    })`)).then((shown) => check(what, shown))
  return { page, paste, shows }
}

async function set(path, value) {
  const response = await fetch(`${gateway}/v1/hashes/${path}`, { method: 'PUT', body: value })
  check(`${path} is set to ${value}`, response.ok)
}

const patch = (hash, fields) =>
  fetch(`${gateway}/v1/hashes/${hash}`, {
    method: 'PATCH',
    headers: { 'Content-Type': 'application/json' },
    body: JSON.stringify(fields),
  })

const remove = (hash) => fetch(`${gateway}/v1/hashes/${hash}`, { method: 'DELETE' })

async function theReadme(windows) {
  const [lamp, ...others] = blocks('README.md', 'js')
  check('the README has one block of JavaScript', others, [])
  await set('lamp/fields/colour', 'green')
  const shown = 'document.body.style.background'
  for (const { paste, shows } of windows) {
    await paste(lamp)
    await shows('the lamp is green', `${shown} === 'green'`)
  }
  await windows[0].page.mouse.click(200, 200)
  for (const { shows } of windows) await shows('a click turns the lamp to gold', `${shown} === 'gold'`)
}

async function thePage(windows, proxy) {
  const code = blocks('docs/shared-values.md', 'js')
  check('the page has two functions and four programs', code.length, 6)
  const [first, second] = windows
  await set('flags/fields/checkout', 'off')
  // A snapshot of several parts.
  await patch('flags', Object.fromEntries(Array.from({ length: 40 }, (_, n) => [`filler-${n}`, 'x'.repeat(5000)])))
  for (const { paste, shows } of windows) {
    for (const block of code) await paste(block)
    await shows('the counter begins at 0', `button.textContent === 'Yes: 0'`)
    await paste(`const counts = []; watch('flags', (fields) => counts.push(Object.keys(fields).length))`)
    await shows('a snapshot of several parts is shown as a whole', `counts.join() === '41'`)
  }

  for (const { page } of windows) await page.click('button')
  for (const { shows } of windows) await shows('both windows have counted', `button.textContent === 'Yes: 2'`)

  const lines = `[...board.children].map((line) => line.textContent).join()`
  await patch('status', { search: 'up', mail: 'slow' })
  for (const { shows } of windows) await shows('the board has both services', `${lines} === 'mail: slow,search: up'`)
  await patch('status', { api: 'up', search: null })
  for (const { shows } of windows) await shows('a service has left', `${lines} === 'api: up,mail: slow'`)

  const names = Array.from({ length: 20 }, (_, n) => `guest-${n}`)
  const invitations = names.map((name, n) => windows[n % 2].paste(`(await invite('${name}')).status`))
  const statuses = await Promise.all(invitations)
  check('each invitation is written', statuses.every((status) => [200, 201].includes(status)))
  const guests = names.sort().join(', ')
  for (const { shows } of windows) {
    await shows('every guest is invited', `document.title.split(', ').sort().join(', ') === '${guests}'`)
  }

  const isOn = `document.body.classList.contains('new-checkout')`
  await set('flags/fields/checkout', 'on')
  for (const { shows } of windows) await shows('the flag is on', isOn)

  // The second window is cut off. What changes meanwhile reaches it later, a write of its own included.
  proxy.cut()
  const invited = second.paste(`(await invite('late')).status`).catch((error) => error)
  await second.page.click('button')
  await set('flags/fields/checkout', 'off')
  await patch('status', { mail: null })
  await first.shows('the first window has lost the line', `${lines} === 'api: up'`)
  check('a window without a connection still shows the old value', await second.paste(isOn))
  check('reading fails without a connection', (await invited) instanceof Error)
  proxy.mend()
  await second.shows('the flag is off', `!${isOn}`)
  await second.shows('the line is lost', `${lines} === 'api: up'`)
  for (const { shows } of windows) await shows('the vote is counted once', `button.textContent === 'Yes: 3'`)

  await remove('status')
  for (const { shows } of windows) await shows('the board is empty', `${lines} === ''`)
}

/** The server prints the flag whenever it has changed for it. */
async function theServer() {
  const [server, ...others] = blocks('docs/shared-values.md', 'py')
  check('the page has one server', others, [])
  const proxy = await cuttingProxy(gateway)
  const print = [
    'flag = None',
    'while True:',
    '    if flag != (flag := is_on("checkout")): print("on" if flag else "off", flush=True)',
    '    time.sleep(0.02)',
  ]
  await set('flags/fields/checkout', 'on')
  const running = spawn('python3', ['-c', `${server.replace(DOCUMENTED, proxy.url)}\n${print.join('\n')}\n`])
  process.on('exit', () => running.kill())
  running.stderr.pipe(process.stderr)
  const lines = createInterface({ input: running.stdout })[Symbol.asyncIterator]()
  const prints = async (what, expected) => {
    let line
    do line = (await within(what, lines.next())).value
    while (line?.startsWith('no flags: '))
    check(what, line, expected)
  }
  await prints('before its first connection the server has the default', 'off')
  await prints('the server has the flag', 'on')
  await patch('flags', { checkout: null })
  await prints('a flag that is removed is its default', 'off')
  await set('flags/fields/checkout', 'on')
  await prints('the flag is set again', 'on')
  proxy.cut()
  await prints('a server that is cut off has the default', 'off')
  proxy.mend()
  await prints('it connects again by itself', 'on')
  await remove('flags')
  await prints('flags that are deleted are their defaults', 'off')
  running.kill()
  proxy.close()
}

await Promise.all(['lamp', 'votes', 'status', 'party', 'flags'].map(remove))
const proxy = await cuttingProxy(gateway)
const browser = await launchChromium()
await theReadme([await openWindow(browser, gateway), await openWindow(browser, gateway)])
await thePage([await openWindow(browser, gateway), await openWindow(browser, proxy.url)], proxy)
await browser.close()
proxy.close()
await theServer()
