// The console and the page of the API in Chromium: on an open gateway, on one that needs a token (CLOSED_URL, TOKEN, and
// LIMITED_TOKEN, which does not show members), on a wide and on a narrow screen, light and dark. PICTURE names a file for the
// picture of the README, SCREENSHOTS a folder for one of each view.

import { readFileSync } from 'node:fs'
import { createRequire } from 'node:module'
import { connect } from '../../clients/js/roomcast.js'
import { launchChromium } from './chromium.mjs'
import { check, cuttingProxy, gateway, unique, within } from './support.mjs'

const axe = readFileSync(createRequire(import.meta.url).resolve('axe-core/axe.min.js'), 'utf8')
const { CLOSED_URL, LIMITED_TOKEN, PICTURE, SCREENSHOTS, TOKEN } = process.env
const WIDE = { viewport: { width: 1200, height: 850 } }
const PHONE = { viewport: { width: 360, height: 740 }, colorScheme: 'dark', hasTouch: true }

const browser = await launchChromium()

/** Opens a page of the gateway. `faults` has what must not happen on it. */
async function open(url, options, context) {
  context ??= await browser.newContext(options)
  const page = await context.newPage()
  page.setDefaultTimeout(30_000)
  const faults = []
  page.on('pageerror', (error) => faults.push(error.message))
  // Refusals and cuts that the test causes are told in the browser's console, too.
  page.on('console', (line) => line.type() === 'error' && !/Failed to load|net::/.test(line.text()) && faults.push(line.text()))
  page.on('request', (request) => {
    if (new URL(request.url()).origin !== new URL(url).origin && !request.url().startsWith('data:')) faults.push(request.url())
  })
  await page.goto(url)
  return { page, context, faults }
}

/** What axe-core finds, in the page's own world, which its policy does not reach. */
async function violations(page) {
  const tools = await page.context().newCDPSession(page)
  const evaluate = async (expression) =>
    (await tools.send('Runtime.evaluate', { expression, awaitPromise: true, returnByValue: true })).result.value
  await evaluate(axe)
  return evaluate(`axe.run().then(({ violations }) =>
    violations.map(({ id, nodes }) => id + ': ' + nodes.map(({ target }) => target).join(' ')))`)
}

const shows = (what, page, selector, text) =>
  within(what, page.locator(selector, { hasText: text }).first().waitFor()).then(() => check(what, true))

const screenshot = (page, name) => SCREENSHOTS && page.screenshot({ path: `${SCREENSHOTS}/${name}.png`, fullPage: true })

/** The controls that are shown, and those that the tabulator key reaches. */
async function tabStops(page) {
  const all = await page.evaluate(() => {
    const shown = [...document.querySelectorAll('a, button, input, select, textarea')].filter((item) => item.checkVisibility())
    shown.forEach((item, index) => (item.dataset.index = index))
    return shown.map((item) => item.dataset.index)
  })
  const reached = new Set()
  for (let presses = 0; presses < 3 * all.length && reached.size < all.length; presses++) {
    await page.keyboard.press('Tab')
    const index = await page.evaluate(() => document.activeElement.dataset.index)
    if (index !== undefined) reached.add(index)
  }
  return [all, [...reached].sort((a, b) => a - b)]
}

async function join(page, room, name) {
  await page.fill('#join [name=room]', room)
  await page.fill('#join [name=subscriber]', name)
  await page.press('#join [name=subscriber]', 'Enter')
  await page.waitForSelector('#state.open')
}

async function publish(page, name, data) {
  await page.fill('#publish [name=event]', name)
  await page.fill('#publish textarea', data)
  await page.press('#publish textarea', 'Control+Enter')
}

async function roomsAreFollowed() {
  const [room, other] = [unique('lobby'), unique('news')]
  const proxy = await cuttingProxy(gateway)
  const { page, context, faults } = await open(proxy.url, WIDE)
  await shows('the health of the gateway is shown', page, '#health.ok', 'ok')
  await shows('a line for the shell is shown', page, '#curl-event', 'curl -d')
  check('nothing is wrong with an empty console', await violations(page), [])
  const [all, reached] = await tabStops(page)
  check('the keyboard reaches all that can be used', reached, all)
  await join(page, room, 'ann')
  await shows('who is there is shown', page, '.members', '1 here: ann')
  await publish(page, 'said', '{"text":"hello"}')
  await shows('JSON is shown as it was published', page, '#events .data', '{"text":"hello"}')
  await publish(page, '', 'plain words')
  await shows('text is text', page, '#events .data', 'plain words')
  await shows('the id is told', page, '#publish .result', 'stored as')

  const second = await open(gateway, WIDE)
  await join(second.page, room, 'bob')
  await shows('who comes is shown', page, '.members', '2 here: ann, bob')
  await publish(second.page, 'said', 'from bob')
  await shows('what others publish is shown', page, '#events .data', 'from bob')
  await join(page, other, 'ann')
  await publish(second.page, 'said', 'while ann joined another room')
  await shows('joining another room misses nothing', page, '#events .data', 'while ann joined another room')
  await second.context.close()
  await shows('who leaves is off the list', page, '.members', '1 here: ann')

  // Events that are gone when the page is back.
  const client = connect({ url: gateway })
  proxy.cut()
  await page.waitForSelector('#state.waiting')
  await client.publish(room, 'gone')
  await client.request(`/v1/rooms/${room}/events`, { method: 'DELETE' })
  await client.publish(room, 'after the gap')
  proxy.mend()
  await shows('a gap is shown', page, '#events .gap', 'may be missing')
  await shows('and what comes after it', page, '#events .data', 'after the gap')
  const lines = await page.locator('#events .data').allTextContents()
  check('nothing is shown twice', lines.length, new Set(lines).size)

  // Counts are some seconds old; the list is asked for every ten.
  await shows('rooms with subscribers are listed', page, '#rooms', room)
  await shows('replicas are listed', page, '#replicas', 'stream')
  check('nothing is wrong with a full console', await violations(page), [])
  await screenshot(page, 'rooms')
  await page.getByRole('button', { name: `Leave ${other}` }).click()
  check('a room can be left', await page.locator('#joined li').count(), 1)
  await page.fill('#join [name=room]', 'no name')
  await page.press('#join [name=room]', 'Enter')
  await shows('why a room is refused is said', page, '#refused', 'not a valid name')
  check('nothing is wrong with a refusal', await violations(page), [])
  check('it is not joined', await page.locator('#joined .room').allTextContents(), [room])
  await page.waitForSelector('#state.open')
  await publish(page, '', 'the other room goes on')
  await shows('the other room goes on', page, '#events .data', 'the other room goes on')
  check('no error, no breach of the policy, nothing from elsewhere', faults, [])
  await context.close()
  proxy.close()
}

async function valuesAreShared() {
  const name = unique('lamp')
  const [first, second] = [await open(gateway, WIDE), await open(gateway, WIDE)]
  for (const { page } of [first, second]) {
    await page.fill('#watch [name=hash]', name)
    await page.press('#watch [name=hash]', 'Enter')
  }
  await shows('a line for the shell is shown', first.page, '#curl-field', `/v1/hashes/${name}/fields/colour`)
  await first.page.locator('#no-fields').waitFor()
  await first.page.fill('#add [name=field]', 'colour')
  await first.page.fill('#add [name=value]', 'green')
  await first.page.press('#add [name=value]', 'Enter')
  const field = (page) => page.getByLabel('colour', { exact: true })
  const has = (what, { page }, value) =>
    within(what, page.waitForFunction((value) => document.querySelector('#fields input')?.value === value, value)).then(() =>
      check(what, true),
    )
  await has('a new field is seen in the other tab', second, 'green')
  await field(first.page).fill('red')
  await field(second.page).fill('blue')
  await field(first.page).press('Enter')
  await field(second.page).press('Enter')
  await shows('a value that has changed meanwhile is a conflict', second.page, '#conflict', 'it is “red” now')
  check('nothing is wrong with a conflict', await violations(second.page), [])
  await screenshot(second.page, 'conflict')
  check('what was typed is still there', await field(second.page).inputValue(), 'blue')
  await second.page.getByRole('button', { name: 'Overwrite' }).click()
  await has('it can be overwritten', first, 'blue')
  await field(first.page).fill('white')
  await field(first.page).press('Enter')
  await has('the next write holds', second, 'white')
  await first.page.getByRole('button', { name: 'Delete colour' }).click()
  await within('the field to be gone', second.page.locator('#no-fields').waitFor())
  check('a deleted field is gone in the other tab', await second.page.locator('#fields li').count(), 0)
  check('no error, no breach of the policy, nothing from elsewhere', [first.faults, second.faults], [[], []])
  await Promise.all([first.context.close(), second.context.close()])
}

async function aPhoneAndTheDark() {
  const { page, context, faults } = await open(gateway, PHONE)
  await join(page, unique('phone'), 'ann')
  await publish(page, 'said', `{"text":"${'long '.repeat(30)}${'x'.repeat(200)}"}`)
  await page.waitForSelector('#events li')
  await page.click('#watch button')
  await page.waitForSelector('#hash:not([hidden])')
  check('a phone shows it without scrolling sideways', await page.evaluate(() => document.documentElement.scrollWidth), 360)
  check('nothing is wrong with it in the dark', await violations(page), [])
  check('no error, no breach of the policy, nothing from elsewhere', faults, [])
  await screenshot(page, 'phone')
  await context.close()
}

async function aTokenIsAskedFor() {
  const { page, context, faults } = await open(CLOSED_URL, WIDE)
  await within('the question', page.locator('#ask[open]').waitFor())
  check('nothing is wrong with the question for a token', await violations(page), [])
  await screenshot(page, 'token')
  await page.getByRole('button', { name: 'Without a token' }).click()
  await shows('without a token the lists say why they are empty', page, '#replicas', 'token')
  const refreshed = page.waitForResponse((response) => response.url().endsWith('/v1/replicas'))
  await page.click('#refresh')
  await within('the answer to a refresh', refreshed)
  check('who has declined is not asked again', await page.locator('#ask[open]').count(), 0)
  await page.click('#token')
  await page.fill('#ask textarea', LIMITED_TOKEN)
  await page.getByRole('button', { name: 'Use it' }).click()
  await join(page, unique('closed'), 'bob')
  await publish(page, '', 'with a limited token')
  await shows('without the permission to see members the room is shown', page, '#events .data', 'with a limited token')
  await shows('what the token does not allow is said', page, '#replicas', 'does not grant admin')
  await page.click('#token')
  await page.keyboard.press('Escape')
  const kept = await page.evaluate(() => Object.values(sessionStorage))
  check('Escape keeps the token', kept.includes(LIMITED_TOKEN))
  await page.click('#token')
  await page.fill('#ask textarea', TOKEN)
  await page.getByRole('button', { name: 'Use it' }).click()
  await join(page, unique('closed'), 'ann')
  await publish(page, '', 'with a token')
  await shows('with a token everything works', page, '#events .data', 'with a token')
  await page.click('#refresh')
  await shows('replicas are listed with admin', page, '#replicas', 'stream')
  const [session, local] = await page.evaluate(() => [Object.values(sessionStorage), Object.values(localStorage)])
  check('the token is kept in this tab alone', [session.includes(TOKEN), local, await context.cookies()], [true, [], []])
  check('no error, no breach of the policy, nothing from elsewhere', faults, [])
  await context.close()
}

async function theApiHasAPage() {
  const { page, context, faults } = await open(`${CLOSED_URL}/docs`, WIDE)
  await shows('the routes are shown', page, '.opblock-summary', '/v1/rooms/{room}/events')
  await page.getByRole('button', { name: 'Authorize' }).first().click()
  await page.locator('.auth-container input').first().fill(TOKEN)
  await page.locator('.auth-btn-wrapper .authorize').first().click()
  await page.locator('.btn-done').first().click()
  await page.locator('#operations-Presence-listReplicas .opblock-summary-control').click()
  await page.locator('#operations-Presence-listReplicas .execute').click()
  await shows('a request with a token can be tried', page, '.live-responses-table .response-col_status', '200')
  check('no error, no breach of the policy, nothing from elsewhere', faults, [])
  await screenshot(page, 'docs')
  await context.close()
}

async function aPicture() {
  const { page, context } = await open(gateway, { viewport: { width: 1200, height: 800 }, deviceScaleFactor: 1 })
  const client = connect({ url: gateway })
  await join(page, 'lobby', 'ann')
  const bob = client.stream({ rooms: ['lobby'], subscriber: 'bob', onGap() {} })
  await shows('two are there', page, '.members', 'ann, bob')
  for (const [event, data] of [
    ['said', { text: 'Who is on call tonight?' }],
    ['said', { text: 'Me, until six.', mood: '☕' }],
    ['deploy', 'v1.4.2 is out'],
  ]) {
    await client.publish('lobby', data, { event })
  }
  await page.click('#watch button')
  const lamp = await client.watch('lamp').ready
  for (const [field, value] of [['brightness', '80'], ['colour', 'green'], ['room', 'lobby']]) await lamp.set(field, value)
  await shows('the fields are there', page, '#fields', 'room')
  await shows('the room is listed', page, '#rooms', '2 subscribers')
  await page.screenshot({ path: PICTURE })
  bob.close()
  lamp.close()
  await context.close()
}

await roomsAreFollowed()
await valuesAreShared()
await aPhoneAndTheDark()
await aTokenIsAskedFor()
await theApiHasAPage()
if (PICTURE) await aPicture()
await browser.close()
process.exit(0)
