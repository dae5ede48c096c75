// For the tests of the browser module in Chromium: tokens, waits, and tabs that tell what their streams tell.

import { createHmac } from 'node:crypto'
import { within } from '../support.mjs'

export const SECRET = 'a-secret-of-this-script-alone-0123456789'

const encode = (value) => Buffer.from(JSON.stringify(value)).toString('base64url')

/** A token that is valid for so many seconds. */
export function token(seconds) {
  const exp = Math.floor(Date.now() / 1000) + seconds
  const grants = { publish: ['*'], subscribe: ['*'], read: ['*'], write: ['*'], presence: ['*'], admin: true }
  const text = `${encode({ alg: 'HS256', typ: 'JWT' })}.${encode({ sub: 'ann', exp, roomcast: grants })}`
  return `${text}.${createHmac('sha256', SECRET).update(text).digest('base64url')}`
}

export const pause = (ms) => new Promise((resolve) => setTimeout(resolve, ms))

export async function eventually(what, look) {
  await within(what, (async () => {
    while (!(await look())) await pause(50)
  })())
}

export const numbers = (count) => Array.from({ length: count }, (_, index) => index)

/** A page on which `window.received` has what a stream tells. `options` are those of the stream. */
export async function openTab(context, url, { giveToken = () => token(600), ...options }) {
  const page = await context.newPage()
  const errors = []
  page.on('pageerror', (error) => errors.push(error.message))
  const start = async () => {
    await page.goto(`${url}/livez`)
    await page.evaluate(async (options) => {
      const { connect } = await import('/roomcast.js')
      window.received = []
      window.told = []
      window.states = []
      window.client = connect({ token: ({ renew }) => window.giveToken(renew) })
      await new Promise((resolve) => {
        window.stream = window.client.stream({
          ...options,
          onEvent: ({ data }) => window.received.push(data),
          onGap: (gap) => window.told.push(['gap', gap.reason]),
          onEnd: ({ reason, error }) => window.told.push(['end', reason ?? error.code]),
          onState: (state) => {
            window.states.push(state)
            if (state === 'open') resolve()
          },
        })
      })
    }, options)
  }
  await page.exposeFunction('giveToken', giveToken)
  await start()
  const received = () => page.evaluate(() => window.received)
  const told = () => page.evaluate(() => window.told)
  return { page, errors, start, received, told }
}
