// The hooks for React, in a component in Chromium.

import { build } from 'esbuild'
import { connect } from '../../../clients/js/roomcast.js'
import { launchChromium } from '../chromium.mjs'
import { check, gateway, unique, within } from '../support.mjs'

const [room, hash] = [unique('room'), unique('hash')]
const application = `
  import React, { useState } from 'react'
  import { createRoot } from 'react-dom/client'
  import { connect } from '../../../clients/js/roomcast.js'
  import { useHash, useRoom } from '../../../clients/js/react.js'

  const client = connect()
  function App() {
    const [said, setSaid] = useState([])
    const onEvent = ({ data }) => setSaid((said) => [...said, data])
    const { state, members } = useRoom(client, '${room}', { onEvent, onGap() {}, presence: true, subscriber: 'ann' })
    const { values, hash } = useHash(client, '${hash}')
    const shown = [state, said.join(), [...members.keys()].join(), values.get('colour')].join(' ')
    return React.createElement('button', { onClick: () => hash.set('colour', 'red') }, shown)
  }
  createRoot(document.body).render(React.createElement(App))`
const { outputFiles } = await build({
  stdin: { contents: application, resolveDir: import.meta.dirname },
  nodePaths: [new URL('../node_modules', import.meta.url).pathname],
  bundle: true, write: false, define: { 'process.env.NODE_ENV': '"production"' },
})
const browser = await launchChromium()
const page = await (await browser.newContext({ bypassCSP: true })).newPage()
const errors = []
page.on('pageerror', (error) => errors.push(error.message))
await page.goto(`${gateway}/livez`)
await page.evaluate(outputFiles[0].text)
const shows = async (text) => {
  const isShown = page.waitForFunction((text) => document.body.textContent === text, text)
  await within(`"${text}" on the page`, isShown).catch(async (error) => {
    throw new Error(`${error.message}, but "${await page.textContent('body')}"; ${errors}`)
  })
  check(`the page shows "${text}"`, true)
}
await shows('open  ann ')
const client = connect({ url: gateway })
await client.publish(room, 'hello')
const writer = client.watch(hash)
await writer.ready
await writer.set('colour', 'green')
await shows('open hello ann green')
await page.click('button')
await shows('open hello ann red')
check('without errors', errors, [])
await browser.close()
process.exit(0)
