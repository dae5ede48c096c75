// The code of the recipes, in Chromium, Node and Python.

import { spawn } from 'node:child_process'
import { writeFileSync } from 'node:fs'
import path from 'node:path'
import { pathToFileURL } from 'node:url'
import { report } from '../../../examples/recipes/dashboard/service.mjs'
import { launchChromium } from '../chromium.mjs'
import { check } from '../support.mjs'
import { clients, copyOf, eventually, examples, freePort, sign, startGateway, startSite } from './support.mjs'

const gateway = await startGateway(['--presence-grace', '1s'])
const site = await startSite(`${examples}/recipes`, [gateway.url], {
  '/token': (query) => {
    const all = { subscribe: ['*'], publish: ['chat.*'], presence: ['*'], read: ['*'] }
    return sign(query.get('user'), all)
  },
})
const token = sign('server', { publish: ['*'], subscribe: ['*'], read: ['*'], write: ['*'] })
const headers = { Authorization: `Bearer ${token}` }
const browser = await launchChromium()
const context = await browser.newContext()

/** Opens a page that has the module of a recipe as `recipe`, and `token` for a user. */
async function open(recipe, user = 'ann', from = site) {
  const page = await context.newPage()
  await page.goto(`${from}/blank.html`)
  await page.evaluate(async ([recipe, user]) => {
    globalThis.recipe = await import(`/${recipe}/page.mjs`)
    globalThis.token = async () => (await fetch(`/token?user=${user}`)).json()
    globalThis.seen = []
  }, [recipe, user])
  return page
}
const until = (what, page, is, ...parameters) => eventually(what, () => page.evaluate(is, ...parameters))

async function chat() {
  const join = (page, user) =>
    page.evaluate((user) => {
      globalThis.chat = recipe.openChat({
        room: 'chat.lobby',
        user,
        token,
        onMessage: (id, { user, text }) => seen.push(`${user}: ${text}`),
        onMembers: (users) => (globalThis.users = [...users].sort().join()),
        onGap: () => seen.push('gap'),
      })
    }, user)
  const [ann, bob] = [await open('chat', 'ann'), await open('chat', 'bob')]
  await join(ann, 'ann')
  await join(bob, 'bob')
  for (const page of [ann, bob]) await until('two members', page, () => globalThis.users === 'ann,bob')
  await ann.evaluate(() => chat.say('hello'))
  await until('a message', bob, () => seen.join() === 'ann: hello')
  await bob.evaluate(() => chat.leave())
  await until('one member', ann, () => globalThis.users === 'ann')
  check('chat: members and messages are shown', true)
}

async function dashboard() {
  const page = await open('dashboard')
  await page.evaluate(() => {
    globalThis.table = document.body.appendChild(document.createElement('table'))
    recipe.showFigures({ hash: 'figures', token, table })
  })
  await until('an open stream', page, () => table.ariaBusy === 'false')
  const told = { gateway: gateway.url, token, hash: 'figures' }
  await report({ ...told, figures: { orders: '7', load: '0.4' } })
  await until('two rows', page, () => table.innerText.split(/\s+/).join() === 'load,0.4,orders,7')
  await report({ ...told, figures: { orders: '8', load: null } })
  await until('one row', page, () => table.innerText.split(/\s+/).join() === 'orders,8')
  check('dashboard: the table is the hash', true)
}

/** Runs Python code with the modules of a recipe. */
function python(recipe, code) {
  const options = { cwd: path.join(examples, 'recipes', recipe), stdio: ['pipe', 'pipe', 'inherit'] }
  const child = spawn(`${clients}.venv/bin/python`, ['-B', '-c', code, gateway.url, token], options)
  process.on('exit', () => child.kill('SIGKILL'))
  let printed = ''
  child.stdout.on('data', (text) => (printed += text))
  return { prints: (text) => eventually(`"${text}" from ${recipe}`, () => printed.includes(text)), child }
}

async function job() {
  const page = await open('job')
  await page.evaluate(() => {
    globalThis.bar = document.body.appendChild(document.createElement('progress'))
    const onDone = () => (globalThis.isDone = true)
    recipe.showProgress({ room: 'job.7', token, bar, load: async () => ({ done: 0, of: 1 }), onDone })
  })
  const run = 'import sys, worker; worker.run(*sys.argv[1:], "job.7", [lambda: None] * 5); print("done")'
  await python('job', run).prints('done')
  await until('the end of the job', page, () => globalThis.isDone && bar.value === 5 && bar.max === 5)
  check('job: the bar is full at the end', true)
}

/** The same behind an nginx that buffers every answer. */
async function bufferedJob() {
  const port = await freePort()
  const folder = copyOf('recipes/job')
  const temporary = ['client_body', 'proxy', 'fastcgi', 'uwsgi', 'scgi'].map((kind) => `${kind}_temp_path ${folder}/${kind};`)
  writeFileSync(`${folder}/nginx.conf`, `daemon off; master_process off; pid ${folder}/pid; error_log ${folder}/log;
    events {}
    http {
      access_log off; ${temporary.join(' ')}
      server {
        listen 127.0.0.1:${port};
        proxy_buffering on;
        proxy_ignore_headers X-Accel-Buffering;
        location / { proxy_pass ${site}; }
        location /v1/ { proxy_pass ${gateway.url}; }
      }
    }`)
  const nginx = spawn('nginx', ['-c', `${folder}/nginx.conf`, '-e', `${folder}/log`], { stdio: 'ignore' })
  process.on('exit', () => nginx.kill('SIGKILL'))
  const behind = `http://127.0.0.1:${port}`
  await eventually('nginx', async () => (await fetch(`${behind}/blank.html`).catch(() => ({}))).ok)
  const page = await open('job', 'ann', behind)
  await page.evaluate(() => {
    globalThis.bar = document.body.appendChild(document.createElement('progress'))
    const onDone = () => (globalThis.isDone = true)
    recipe.showProgress({ room: 'job.8', token, bar, load: async () => ({ done: 0, of: 1 }), onDone })
  })
  const run = (room, steps) =>
    `import sys, worker; worker.run(*sys.argv[1:], "${room}", [sys.stdin.readline] * ${steps}); print("done")`
  const worker = python('job', run('job.8', 3))
  for (const done of [1, 2]) {
    worker.child.stdin.write('\n')
    await until(`step ${done}`, page, (done) => bar.value === done && bar.max === 3, done)
  }
  worker.child.stdin.write('\n')
  await until('the end of the job', page, () => globalThis.isDone && bar.value === 3)
  const polls = () => performance.getEntriesByType('resource').filter(({ name }) => name.includes('wait=25')).length
  check('job: the page has polled', (await page.evaluate(polls)) > 0)
  check('job: each step is shown behind a proxy that buffers', true)
}

async function notifications() {
  const { notify, tokenFor } = await import(pathToFileURL(path.join(copyOf('recipes/notifications'), 'server.mjs')))
  const bobs = tokenFor('bob')
  const refused = await fetch(`${gateway.url}/v1/rooms/user.ann/events`, { headers: { Authorization: `Bearer ${bobs}` } })
  check('notifications: nobody reads those of others', refused.status, 403)
  const pages = [await open('notifications'), await open('notifications')]
  for (const page of pages) {
    await page.evaluate(() => {
      const onNotification = (id, data) => seen.push(data.text)
      globalThis.stream = recipe.followNotifications({ user: 'ann', token, onNotification, onGap: () => seen.push('gap') })
    })
    await until('a stream', page, () => stream.position !== undefined)
  }
  await notify(gateway.url, ['ann', 'bob'], { text: 'hi' }, 'n-1')
  await notify(gateway.url, ['ann', 'bob'], { text: 'hi' }, 'n-1')
  await notify(gateway.url, ['ann'], { text: 'you' }, 'n-2')
  for (const page of pages) {
    await until('both notifications', page, () => seen.at(-1) === 'you')
    check('notifications: each once, in each tab', await page.evaluate(() => seen), ['hi', 'you'])
  }
}

async function cache() {
  const service = python('cache', `
import sys, time, cache, writer
gateway, token = sys.argv[1:]
stored = {"a": 1}
loads = []
def load(key):
    loads.append(key)
    return stored[key]
kept = cache.Cache(gateway, "cache.products", token, load)
while not kept.is_following: time.sleep(0.01)
assert [kept.get("a") for _ in range(3)] == [1, 1, 1] and loads == ["a"], loads
stored["a"] = 2
writer.invalidate(gateway, "cache.products", token, "a")
while kept.get("a") == 1: time.sleep(0.01)
assert kept.get("a") == 2 and loads == ["a", "a"], loads
print("invalidated", flush=True)
sys.stdin.readline()
stored["a"] = 3
while kept.get("a") == 2: time.sleep(0.01)
print("dropped", flush=True)
`)
  await service.prints('invalidated')
  // Its stream ends: everything is dropped.
  const admin = { Authorization: `Bearer ${sign('admin', { admin: true })}` }
  await fetch(`${gateway.url}/v1/users/server/streams`, { method: 'DELETE', headers: admin })
  service.child.stdin.write('\n')
  await service.prints('dropped')
  check('cache: entries are dropped when they change, and all when the stream is lost', true)
}

async function flag() {
  const page = await open('flag')
  await page.evaluate(() => {
    const defaults = { search: 'on', beta: 'off' }
    globalThis.flags = recipe.flags({ hash: 'flags', token, defaults })
  })
  const isOn = (name) => page.evaluate((name) => flags.isOn(name), name)
  check('flag: the default holds', [await isOn('search'), await isOn('beta')], [true, false])
  const field = `${gateway.url}/v1/hashes/flags/fields/beta`
  const set = await fetch(field, { method: 'PUT', headers: { ...headers, 'Content-Type': 'text/plain' }, body: 'on' })
  check('flag: it is set', set.ok)
  await until('the flag', page, () => flags.isOn('beta'))
  check('flag: pages see it', true)
}

for (const recipe of [chat, dashboard, job, bufferedJob, notifications, flag, cache]) await recipe()
process.exit(0)
