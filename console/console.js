// The console: rooms, shared values, and who is connected. Everything goes through the gateway's API, as any other page's
// requests would.

import { connect, RoomcastError } from '/roomcast.js'

const MAX_EVENTS = 500 // lines on the page
const TOKEN = 'roomcast console token'

const at = (selector) => document.querySelector(selector)
const copy = (name) => at(`template#${name}`).content.firstElementChild.cloneNode(true)
const origin = location.origin

/** Whether the person has no token, and does not want to be asked again. */
let isDeclined = false

const client = connect({
  token: ({ renew }) => (renew && !isDeclined ? askForToken() : (sessionStorage.getItem(TOKEN) ?? undefined)),
})

/** Sends a request. Returns the JSON of the answer. */
async function ask(path, init = {}) {
  let response = await client.request(path, init)
  if (response.status === 401) response = await client.request(path, init, true)
  const answer = await response.json().catch(() => undefined)
  if (!response.ok && path !== '/healthz') {
    throw new RoomcastError(answer?.detail ?? `HTTP status ${response.status}`, answer ?? { status: response.status })
  }
  return answer
}

// --- The token ---------------------------------------------------------------------------------------------

let asking

/** Asks for a token, once for all who want one at a time. */
function askForToken() {
  const dialog = at('#ask')
  asking ??= new Promise((resolve) => {
    dialog.onclose = () => {
      asking = undefined
      isDeclined = dialog.returnValue !== 'use'
      if (dialog.returnValue === 'none') sessionStorage.removeItem(TOKEN)
      if (!isDeclined) sessionStorage.setItem(TOKEN, at('#ask textarea').value.trim())
      at('#ask textarea').value = ''
      resolve(sessionStorage.getItem(TOKEN) ?? undefined)
    }
    dialog.returnValue = '' // Escape leaves it, and the token, as they are
    dialog.showModal()
  })
  return asking
}

at('#token').onclick = async () => {
  await askForToken()
  follow()
  refresh()
}

// --- Rooms -------------------------------------------------------------------------------------------------

const rooms = new Set()
let stream

let turns = 0

/**
 * Opens a stream of all joined rooms, which goes on where the last one was. Without the permission to see members, it is
 * opened without them. A room that is refused is not joined, and the others go on.
 */
async function follow({ joining } = {}) {
  const turn = ++turns
  const seen = await Promise.all([...rooms].map(maySeeMembers))
  if (turn !== turns) return
  const presence = seen.every(Boolean)
  const after = stream?.position
  stream?.close()
  stream = undefined
  showState('')
  if (rooms.size === 0) return
  let isOpen = false
  stream = client.stream({
    rooms: [...rooms],
    after,
    subscriber: subscriber(),
    presence,
    onEvent: showEvent,
    onGap: showGap,
    onMembers: showMembers,
    onState: (state) => {
      isOpen ||= state === 'open'
      showState(state)
    },
    onEnd: ({ reason, error }) => {
      if (error && !isOpen && joining !== undefined) {
        rooms.delete(joining)
        showRooms()
        follow()
        return report(at('#refused'), () => Promise.reject(error))
      }
      showState('ended', reason ?? error.message)
    },
  })
}

/** Asks for the list, since a stream that is refused would ask for another token. */
const maySeeMembers = (room) =>
  client.request(`/v1/rooms/${encodeURIComponent(room)}/subscribers?limit=1`).then(
    ({ status }) => status !== 403 && status !== 400,
    () => true,
  )

const subscriber = () => at('#join [name=subscriber]').value.trim() || undefined

function showState(state, detail) {
  const words = { open: 'live', waiting: 'reconnecting…', ended: `ended: ${detail}` }
  at('#state').className = state
  at('#state').textContent = words[state] ?? ''
}

at('#join').onsubmit = (event) => {
  event.preventDefault()
  const room = at('#join [name=room]').value.trim()
  const joining = rooms.has(room) ? undefined : room
  at('#refused').textContent = ''
  rooms.add(room)
  showRooms(room)
  follow({ joining })
}

function showRooms(selected) {
  const items = [...rooms].map((room) => {
    const item = copy('joined-room')
    item.dataset.room = room
    item.querySelector('.room').textContent = room
    item.querySelector('.leave').setAttribute('aria-label', `Leave ${room}`)
    item.querySelector('.leave').onclick = () => {
      rooms.delete(room)
      showRooms()
      follow()
    }
    return item
  })
  at('#joined').replaceChildren(...items)
  const select = at('#publish select')
  const chosen = selected ?? select.value
  const named = encodeURIComponent(chosen && rooms.has(chosen) ? chosen : 'lobby')
  at('#curl-event').textContent = `curl -d 'hello' ${origin}/v1/rooms/${named}/events`
  select.replaceChildren(...[...rooms].map((room) => new Option(room, room, false, room === chosen)))
}

function showMembers(room, members) {
  const item = [...at('#joined').children].find((item) => item.dataset.room === room)
  const names = [...members.keys()].sort().join(', ')
  if (item) item.querySelector('.members').textContent = members.size ? `${members.size} here: ${names}` : ''
}

function addLine(item) {
  at('#no-events').hidden = true
  const [log, events] = [at('#log'), at('#events')]
  const isAtEnd = log.scrollTop + log.clientHeight >= log.scrollHeight - 8
  events.append(item)
  if (events.childElementCount > MAX_EVENTS) events.firstElementChild.remove()
  if (isAtEnd) log.scrollTop = log.scrollHeight
}

function showEvent({ room, id, event, data, published_at, final }) {
  const item = copy('event')
  item.querySelector('time').textContent = new Date(published_at).toLocaleTimeString()
  item.querySelector('.room').textContent = room
  item.querySelector('.name').textContent = [event, final && '(the last one)'].filter(Boolean).join(' ')
  item.querySelector('.data').textContent = typeof data === 'string' ? data : JSON.stringify(data)
  item.querySelector('.id').textContent = id
  addLine(item)
}

function showGap({ room, hash, from, to, reason }) {
  const item = copy('event')
  item.className = 'gap'
  item.querySelector('time').textContent = new Date().toLocaleTimeString()
  item.querySelector('.room').textContent = room ?? hash
  item.querySelector('.name').textContent = 'gap'
  item.querySelector('.data').textContent = `Events after ${from}, up to ${to}, may be missing: ${reason}.`
  addLine(item)
}

/** What a person has typed: JSON if it is some, else text. */
function parseData(text) {
  try {
    return JSON.parse(text)
  } catch {
    return text
  }
}

at('#publish').onsubmit = async (submitted) => {
  submitted.preventDefault()
  const { room, event, data } = Object.fromEntries(new FormData(submitted.target))
  await report(at('#publish .result'), async () => {
    const { id } = await client.publish(room, parseData(data), { event: event || undefined })
    return `stored as ${id}`
  })
}

at('#publish textarea').onkeydown = (pressed) => {
  if (pressed.key === 'Enter' && (pressed.ctrlKey || pressed.metaKey)) at('#publish').requestSubmit()
}

/** Says how something went. */
async function report(place, act) {
  place.classList.remove('bad')
  try {
    place.textContent = (await act()) ?? ''
  } catch (error) {
    place.classList.add('bad')
    place.textContent = error.message
  }
}

// --- Shared values -----------------------------------------------------------------------------------------

let hash

at('#watch').onsubmit = (event) => {
  event.preventDefault()
  hash?.close()
  const name = at('#watch [name=hash]').value.trim()
  at('#hash').hidden = false
  at('#hash-title').textContent = name
  at('#fields').replaceChildren()
  at('#conflict').textContent = ''
  at('#curl-field').textContent = `curl -X PUT -d green ${origin}/v1/hashes/${encodeURIComponent(name)}/fields/colour`
  hash = client.watch(name, {
    onChange: ({ hash: changed, event, fields }) => changed === hash && showFields(event === 'hash.snapshot' ? [] : fields),
    onEnd: ({ reason, error }) => (at('#conflict').textContent = `The hash is not watched any more: ${reason ?? error.message}`),
  })
}

const isText = (value) => typeof value === 'string'

/** Shows the fields. What a person is typing stays, and is compared with what the field has when it is saved. */
function showFields(changed) {
  const list = at('#fields')
  at('#no-fields').hidden = hash.values.size > 0
  const items = new Map([...list.children].map((item) => [item.dataset.field, item]))
  for (const [field, item] of items) {
    if (!hash.values.has(field)) item.remove()
  }
  const sorted = [...hash.values].sort(([a], [b]) => (a < b ? -1 : 1))
  for (const [index, [field, value]] of sorted.entries()) {
    const item = items.get(field) ?? newField(field)
    const input = item.querySelector('input')
    const text = isText(value) ? value : `${value.length} bytes that are no text`
    if (input.value === item.dataset.seen || !item.isConnected) input.value = text
    item.dataset.seen = text
    input.disabled = !isText(value)
    // An item that is moved would lose the focus.
    if (list.children[index] !== item) list.insertBefore(item, list.children[index] ?? null)
    item.classList.toggle('changed', changed.includes(field))
  }
}

function newField(field) {
  const item = copy('field')
  item.dataset.field = field
  item.querySelector('.name').textContent = field
  const [save, remove] = item.querySelectorAll('button')
  save.setAttribute('aria-label', `Save ${field}`)
  remove.setAttribute('aria-label', `Delete ${field}`)
  // The value on which a write depends is the one that was shown when the person began to type.
  let seen
  item.querySelector('input').oninput = () => (seen ??= hash.etags.get(field))
  item.querySelector('form').onsubmit = (event) => {
    event.preventDefault()
    const { value } = item.querySelector('input')
    write(field, value, (value, options) => hash.set(field, value, options), seen)
    seen = undefined
  }
  remove.onclick = () => write(field, undefined, (_, options) => hash.delete(field, options))
  return item
}

/** Writes on condition that nobody else has, and says what is there if somebody has. */
async function write(field, value, act, seen) {
  const place = at('#conflict')
  place.textContent = ''
  try {
    await act(value, seen && { ifMatch: seen })
    const item = [...at('#fields').children].find((item) => item.dataset.field === field)
    if (item && value !== undefined) item.dataset.seen = value
  } catch (error) {
    if (error.status !== 412) return void (place.textContent = error.message)
    const present = error.problem.present
    const shown = present === undefined ? 'something else' : (present.value ?? (present.value_base64 ? 'bytes' : 'nothing'))
    const overwrite = document.createElement('button')
    overwrite.type = 'button'
    overwrite.textContent = 'Overwrite'
    overwrite.onclick = () => report(place, () => act(value, { force: true }).then(() => ''))
    place.replaceChildren(`Somebody else has changed ${field} meanwhile: it is “${shown}” now. `, overwrite)
  }
}

at('#add').onsubmit = (event) => {
  event.preventDefault()
  const { field, value } = Object.fromEntries(new FormData(event.target))
  write(field, value, (value, options) => hash.set(field, value, options))
  event.target.reset()
}

// --- The gateway -------------------------------------------------------------------------------------------

async function showHealth() {
  const place = at('#health')
  try {
    const health = await ask('/healthz')
    place.className = health.status === 'ok' ? 'ok' : 'bad'
    const broker = health.broker === 'redis' ? 'Redis' : 'embedded broker'
    place.textContent = `${health.status}, replica ${health.replica}, ${broker}`
    const details = Object.entries(health).flatMap(([name, value]) => {
      const [term, description] = [document.createElement('dt'), document.createElement('dd')]
      term.textContent = name.replaceAll('_', ' ')
      description.textContent = typeof value === 'object' ? JSON.stringify(value) : value
      return [term, description]
    })
    at('#details').replaceChildren(...details)
  } catch {
    place.className = 'bad'
    place.textContent = 'the gateway does not answer'
  }
}

/** Shows a list, or why it can't be shown. */
async function showList(place, path, member, line) {
  const items = await ask(path).then(
    (answer) => answer[member].map(line),
    (error) => [[error.message, '']],
  )
  const lines = (items.length ? items : [['None.', '']]).map((texts) => {
    const item = document.createElement('li')
    for (const text of texts) item.append(Object.assign(document.createElement('span'), { textContent: text }))
    return item
  })
  at(place).replaceChildren(...lines)
}

async function refresh() {
  const count = (number, noun) => `${number} ${noun}${number === 1 ? '' : 's'}`
  await showHealth()
  await showList('#rooms', '/v1/rooms?limit=100', 'rooms', ({ room, subscribers }) => [room, count(subscribers, 'subscriber')])
  await showList('#replicas', '/v1/replicas', 'replicas', ({ replica, version, streams }) => [
    `${replica} (${version})`,
    count(streams, 'stream'),
  ])
}

at('#refresh').onclick = refresh
setInterval(() => document.visibilityState === 'visible' && !asking && refresh(), 10_000)
showRooms()
refresh()
