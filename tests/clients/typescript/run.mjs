// Generates a client from the OpenAPI document, compiles it together with its use, and runs both.
//   node typescript/run.mjs hey_api | orval | openapi_typescript

import { execFileSync } from 'node:child_process'
import { copyFileSync, mkdirSync, mkdtempSync, rmSync, writeFileSync } from 'node:fs'
import { createRequire } from 'node:module'
import { join } from 'node:path'
import { fileURLToPath, pathToFileURL } from 'node:url'
import { check, cuttingProxy, gateway, unique, within } from '../support.mjs'

const COMPILE_MS = 120_000

const here = fileURLToPath(new URL('.', import.meta.url))
const document = process.env.ROOMCAST_OPENAPI ?? join(here, '../../../openapi/openapi.json')

/** Each writes a client below a folder. */
const generators = {
  async hey_api(folder) {
    const { createClient } = await import('@hey-api/openapi-ts')
    const imports = { module: { extension: '.js' } } // as Node resolves them
    await createClient({ input: document, output: { path: folder, ...imports }, logs: { level: 'silent', file: false } })
  },
  async orval(folder) {
    const { generate } = await import('orval')
    const output = { target: join(folder, 'api.ts'), client: 'fetch', baseUrl: gateway, urlEncodeParameters: true }
    await generate({ input: document, output }, here)
  },
  async openapi_typescript(folder) {
    const { default: openapiTS, astToString } = await import('openapi-typescript')
    writeFileSync(join(folder, 'schema.ts'), astToString(await openapiTS(pathToFileURL(document))))
  },
}

const name = process.argv[2]
check('the argument names a generator', name in generators)

// A folder for each run, since runs may overlap. A failed run leaves it behind for inspection.
const folder = mkdtempSync(join(here, 'generated-'))
const client = join(folder, 'client')
mkdirSync(client)
await generators[name](client)
for (const [from, to] of [[`use_${name}.ts`, 'use_client.ts'], ['tsconfig.json', 'tsconfig.json']]) {
  copyFileSync(join(here, from), join(folder, to))
}
check('a client can be generated from the document', true)

const compiler = createRequire(import.meta.url).resolve('typescript/bin/tsc')
execFileSync(process.execPath, [compiler, '--project', folder], { stdio: 'inherit', timeout: COMPILE_MS })
check('the client and its use compile', true)

const proxy = await cuttingProxy(gateway)
const { useClient } = await import(join(folder, 'compiled/use_client.js'))
await useClient({ gateway, proxy, check, unique, within })
proxy.close()
rmSync(folder, { recursive: true })
