// Generates a client from the OpenAPI document with @hey-api/openapi-ts, compiles it together with its use, and
// runs both.

import { execFileSync } from 'node:child_process'
import { copyFileSync, mkdtempSync, rmSync } from 'node:fs'
import { createRequire } from 'node:module'
import { join } from 'node:path'
import { fileURLToPath } from 'node:url'
import { createClient } from '@hey-api/openapi-ts'
import { check, cuttingProxy, gateway, unique, within } from '../support.mjs'

const COMPILE_MS = 120_000

const here = fileURLToPath(new URL('.', import.meta.url))
const input = process.env.ROOMCAST_OPENAPI ?? join(here, '../../../openapi/openapi.json')

// A folder for each run, since runs may overlap. A failed run leaves it behind for inspection.
const folder = mkdtempSync(join(here, 'generated-'))
const imports = { module: { extension: '.js' } } // as Node resolves them
await createClient({ input, output: { path: join(folder, 'client'), ...imports }, logs: { level: 'silent', file: false } })
for (const file of ['use_client.ts', 'tsconfig.json']) copyFileSync(join(here, file), join(folder, file))
check('a client can be generated from the document', true)

const compiler = createRequire(import.meta.url).resolve('typescript/bin/tsc')
execFileSync(process.execPath, [compiler, '--project', folder], { stdio: 'inherit', timeout: COMPILE_MS })
check('the client and its use compile', true)

const proxy = await cuttingProxy(gateway)
const { useClient } = await import(join(folder, 'compiled/use_client.js'))
await useClient({ gateway, proxy, check, unique, within })
proxy.close()
rmSync(folder, { recursive: true })
