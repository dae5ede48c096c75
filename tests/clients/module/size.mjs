// The browser module, minified and compressed, is small.

import { gzipSync } from 'node:zlib'
import { readFileSync } from 'node:fs'
import { transformSync } from 'esbuild'
import { check } from '../support.mjs'

const source = readFileSync(new URL('../../../clients/js/roomcast.js', import.meta.url), 'utf8')
const { code } = transformSync(source, { minify: true, format: 'esm' })
const size = gzipSync(code, { level: 9 }).length
console.log(`${size} bytes`)
check('the module has at most 6 KiB, minified and compressed', size <= 6 * 1024)
