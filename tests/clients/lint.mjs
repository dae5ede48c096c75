// Lints the OpenAPI documents with redocly and spectral. A warning is a failure.

import { execFileSync } from 'node:child_process'
import { mkdtempSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { fileURLToPath } from 'node:url'

const LINT_MS = 120_000

const here = fileURLToPath(new URL('.', import.meta.url))
const document = (version) => join(here, `../../openapi/openapi${version}.json`)
const run = (program, ...options) =>
  execFileSync(join(here, 'node_modules/.bin', program), options, { cwd: here, stdio: 'inherit', timeout: LINT_MS })

const documents = ['-3.0', '', '-3.2'].map(document)
run('redocly', 'lint', '--extends', 'recommended-strict', '--format', 'stylish', ...documents)
console.log('ok - redocly finds nothing')

const folder = mkdtempSync(join(tmpdir(), 'spectral-'))
const ruleset = join(folder, 'ruleset.json')
writeFileSync(ruleset, JSON.stringify({ extends: ['spectral:oas'] }))
// spectral knows no OpenAPI 3.2.
run('spectral', 'lint', '--ruleset', ruleset, '--fail-severity', 'hint', ...documents.slice(0, 2))
console.log('ok - spectral finds nothing')
rmSync(folder, { recursive: true })
