// Compiles types.ts with the types of the browser module.

import { spawnSync } from 'node:child_process'
import { createRequire } from 'node:module'

const compiler = createRequire(import.meta.url).resolve('typescript/bin/tsc')
const options = ['--noEmit', '--strict', '--target', 'es2022', '--module', 'nodenext', '--moduleResolution', 'nodenext']
const { status } = spawnSync(process.execPath, [compiler, ...options, 'types.ts'], { cwd: import.meta.dirname, stdio: 'inherit' })
process.exit(status ?? 1)
