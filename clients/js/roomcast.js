// Roomcast's client for browsers and Node: streams of rooms and hashes that resume by themselves, publishing, and watched
// hashes. Types and documentation are in roomcast.d.ts.

const sleep = (ms, signal) =>
  new Promise((resolve) => {
    const timer = setTimeout(resolve, ms)
    signal?.addEventListener('abort', () => (clearTimeout(timer), resolve()), { once: true })
  })

/** How often a stream looks at the clock, in milliseconds. */
const TICK = 1000

/** A pause before the nth attempt in a row: one to two times the base, doubled with each attempt, up to 30 s. */
const backOff = (base, attempt) => Math.min(base * 2 ** attempt, 30_000) * (1 + Math.random())

/** An idempotency key. `crypto.randomUUID` is for HTTPS alone. */
const randomKey = () => [...crypto.getRandomValues(new Uint32Array(4))].join('-')

/** The time in `Retry-After`, in milliseconds. */
const retryAfter = (response) => 1000 * (+response.headers.get('retry-after') || 0)

export class RoomcastError extends Error {
  constructor(message, problem = {}) {
    super(message)
    this.name = 'RoomcastError'
    this.status = problem.status
    this.code = problem.code
    this.problem = problem
  }
}

/** The error of a response that is not a success. */
async function failure(response) {
  const text = await response.text().catch(() => '')
  let problem
  try {
    problem = JSON.parse(text)
  } catch {
    problem = { detail: text.slice(0, 200) }
  }
  return new RoomcastError(problem.detail || `HTTP status ${response.status}`, { status: response.status, ...problem })
}

/**
 * Splits an event stream (HTML, section 9.2.6) into blocks. Returns a function that takes text as it arrives, and calls
 * `onBlock` with each whole block.
 */
export function eventStreamParser(onBlock) {
  let rest = ''
  let isFirst = true
  let block = { event: '', data: undefined, id: undefined }
  let id = ''
  return (text) => {
    rest += text
    if (isFirst && rest) {
      isFirst = false
      if (rest[0] === '\uFEFF') rest = rest.slice(1)
    }
    let start = 0
    for (;;) {
      const found = /[\r\n]/g
      found.lastIndex = start
      const end = found.exec(rest)?.index
      // A CR at the end may be the first half of a CRLF.
      if (end === undefined || (rest[end] === '\r' && end + 1 === rest.length)) break
      const line = rest.slice(start, end)
      start = end + (rest.startsWith('\r\n', end) ? 2 : 1)
      if (line) {
        const [, name, value] = /^([^:]*)(?:: ?)?(.*)$/s.exec(line)
        if (name === 'data') block.data = block.data === undefined ? value : `${block.data}\n${value}`
        else if (name === 'event') block.event = value
        else if (name === 'id' && !value.includes('\0')) id = value
        else if (name === 'retry' && /^\d+$/.test(value)) block.retry = +value
      } else {
        onBlock({ ...block, event: block.event || 'message', id })
        block = { event: '', data: undefined }
      }
    }
    rest = rest.slice(start)
  }
}

/** Calls `wake` where a stream may be dead: the page was woken up, or the network is back. */
function onWake(wake) {
  const page = globalThis.document
  const seen = () => page.visibilityState === 'visible' && wake()
  const back = () => wake(true)
  globalThis.addEventListener?.('online', back)
  globalThis.addEventListener?.('pageshow', seen)
  page?.addEventListener('visibilitychange', seen)
  return () => {
    globalThis.removeEventListener?.('online', back)
    globalThis.removeEventListener?.('pageshow', seen)
    page?.removeEventListener('visibilitychange', seen)
  }
}

/** One stream over HTTP, with all its connections. Calls `onBlock` with each block, and `onEnd` once at its end. */
class Connection {
  constructor(client, path, position, { onBlock, onState, onEnd }) {
    Object.assign(this, { client, path, position, onBlock, onState, onEnd })
    this.heartbeat = 15_000
    this.retry = 2000
    this.stopped = new AbortController()
    this.stopWaking = onWake((isOnline) => this.check(isOnline))
    this.ticked = Date.now()
    this.timer = setInterval(() => this.tick(), TICK)
    this.run().then((end) => this.stop(end), (error) => this.stop({ error }))
  }

  stop(end) {
    if (this.stopped.signal.aborted) return
    this.stopped.abort()
    this.attempt?.abort()
    this.wakeUp?.abort()
    this.stopWaking()
    clearInterval(this.timer)
    if (end) this.onEnd(end)
  }

  /** Timers stand still while the machine sleeps, and slow down in a hidden page, so the clock decides. */
  tick() {
    const now = Date.now()
    if (now - this.ticked > 10 * TICK) this.check()
    else if (now > Math.min(this.deadline, this.renewAt ?? Infinity)) this.attempt?.abort()
    this.ticked = now
  }

  /** After a pause of the page or the network: waits no longer, and gives up a connection that may be dead. */
  check(isOnline) {
    this.wakeUp?.abort()
    if (!isOnline && Date.now() <= this.deadline) return
    this.isWoken = true
    this.attempt?.abort()
  }

  /** The stream says something at least once an interval. After two without a word it is dead. */
  heard() {
    this.deadline = Date.now() + 2 * this.heartbeat
  }

  async run() {
    let failures = 0
    let renew = false // whether the last token is no good any more
    let wasRefused = false
    for (;;) {
      this.attempt = new AbortController()
      this.renewAt = this.end = this.openedAt = undefined
      this.isWoken = false
      this.deadline = Infinity
      let pause = 0
      let error
      try {
        const headers = await this.client.authorize({ Accept: 'text/event-stream' }, renew)
        // Only now, since a user may have had to log in.
        this.heard()
        this.start = this.position
        if (this.start) headers['Last-Event-ID'] = this.start
        const init = { headers, cache: 'no-store', signal: this.attempt.signal }
        const response = await this.client.fetch(this.client.url + this.path, init)
        if (response.status === 204) return { reason: 'ended' }
        if ((response.status === 401 || response.status === 403) && this.client.token && !wasRefused) {
          response.body?.cancel()
          renew = wasRefused = true
          continue
        }
        pause = retryAfter(response)
        if (!response.ok) throw await failure(response)
        await this.read(response.body)
      } catch (caught) {
        error = caught
        if (error.status < 500 && error.status !== 429) throw error
      }
      if (this.stopped.signal.aborted) return
      if (this.openedAt) {
        failures = 0
        renew = wasRefused = false
      }
      renew ||= this.end?.reason === 'token_expired' || this.renewAt <= Date.now()
      if (this.end?.reconnect === 'never' && !(renew && this.client.token)) return this.end
      const wasLong = Date.now() - this.openedAt > 1000
      if (this.isWoken || (wasLong && (renew || this.end?.reconnect === 'now'))) continue
      this.onState('waiting', this.end ?? { error })
      this.wakeUp = new AbortController()
      await sleep(pause || backOff(this.end ? this.retry : this.retry / 2, failures++), this.wakeUp.signal)
      if (this.stopped.signal.aborted) return
    }
  }

  async read(body) {
    const decoder = new TextDecoder('utf-8', { ignoreBOM: true })
    const parse = eventStreamParser((block) => {
      if (this.attempt.signal.aborted || this.end) return
      const data = block.data && JSON.parse(block.data)
      // That of an end for good is a day.
      if (block.retry && data?.reconnect !== 'never') this.retry = block.retry
      if (block.id) this.position = block.id
      if (block.event === 'stream.end') {
        this.end = data
        return
      }
      if (block.event === 'stream.open') {
        this.openedAt = Date.now()
        this.heartbeat = 1000 * (data.heartbeat_seconds ?? 15)
        // A stream whose token ends is opened anew with the next one shortly before. Where little time is left, the gateway
        // ends it: the clock may be wrong, or the callback gives an old token, and would be asked again and again.
        const left = Date.parse(data.expires_at) - this.openedAt
        if (this.client.token && left > 5000) this.renewAt = this.openedAt + left - Math.min(30_000, left / 5)
        this.onState('open', data)
      }
      if (data) this.onBlock(block.event, data, this.position)
    })
    const reader = body.getReader()
    for (;;) {
      const { done, value } = await reader.read()
      if (done) return
      this.heard()
      parse(decoder.decode(value, { stream: true }))
    }
  }
}

/**
 * One connection for all tabs of an origin that want the same stream. The tab that holds a lock leads: it has the
 * connection, and sends what comes to the others over a channel. Terms number the leaders, so that nobody listens to one
 * that was frozen and does not know yet that it has lost the lock.
 *
 * A tab follows a connection only if that began where the tab is, or before: it leaves out what it has had. Otherwise it
 * greets with its position, and the leader reads the stream again from there.
 */
class SharedConnection {
  constructor(client, path, stream, callbacks) {
    Object.assign(this, { client, path, stream, ...callbacks })
    this.name = `roomcast ${client.url} ${path} ${stream.options.shared}`
    this.id = Math.random()
    this.term = this.greetings = 0
    this.resign()
    this.stopped = new AbortController()
    this.channel = new BroadcastChannel(this.name)
    this.channel.onmessage = ({ data }) => this.receive(data)
    this.stopWaking = onWake(() => this.isLeader || this.greet())
    this.lead()
    this.greet()
  }

  stop(end) {
    if (this.stopped.signal.aborted) return
    this.stopped.abort()
    this.stopWaking()
    this.resign()
    clearTimeout(this.timer)
    this.channel.close()
    this.release?.()
    if (end) this.onEnd(end)
  }

  resign() {
    this.isLeader = this.isFollowing = false
    clearInterval(this.beat)
    this.connection?.stop()
    this.connection = this.opened = undefined
  }

  post(message) {
    if (!this.stopped.signal.aborted) this.channel.postMessage({ term: this.term, ...message })
  }

  /** Passes on a block to the other tabs. */
  pass(...block) {
    this.post({ block, start: this.connection?.start })
  }

  /** Waits for the lock, or takes it from a tab that is frozen. */
  lead(steal) {
    let isLost = false
    const hold = async () => {
      // What the last leader has sent comes first.
      await sleep(100)
      if (isLost || this.stopped.signal.aborted) return
      clearTimeout(this.timer)
      this.isLeader = true
      this.term = Math.max(Date.now(), this.term + 1) + Math.random()
      this.beat = setInterval(() => this.post(), 5000)
      this.post()
      this.open(this.stream.position)
      await new Promise((resolve) => (this.release = resolve))
    }
    navigator.locks.request(this.name, steal ? { steal } : { signal: this.stopped.signal }, hold).catch((error) => {
      // There are no locks for a page in a sandbox, which has no other tabs either.
      if (error.name !== 'AbortError') return hold()
      // Another tab has taken it. A tab that took it itself still waits in the line.
      isLost = true
      if (this.stopped.signal.aborted) return
      this.resign()
      if (!steal) this.lead()
      this.greet()
    })
  }

  /** Reads the stream from a position. */
  open(position) {
    this.connection?.stop()
    const connection = new Connection(this.client, this.path, position, {
      onBlock: (...block) => {
        this.pass(...block)
        // The events before this tab's position were for another one. Those after it must not be left out.
        if (block[0] === 'stream.open' && !this.covers(block[1], connection.start)) this.open(this.stream.position)
        else this.onBlock(...block)
      },
      onState: (state, detail) => {
        if (state === 'open') this.opened = detail
        else this.post({ isWaiting: true })
        this.onState(state, detail)
      },
      onEnd: async (end) => {
        // A leader that was frozen learns first that it was superseded, and then that it has lost the lock.
        await sleep(100)
        if (this.connection !== connection) return
        // An error, or the end of a token, is this tab's own.
        if (end.reason && !end.reason.startsWith('token')) this.post({ end })
        this.stop(end)
      },
    })
    this.connection = connection
  }

  /** Whether a connection that began there has all that this tab has not had. */
  covers({ rooms }, start) {
    const { position, seen, hashes } = this.stream
    if (!position || position === start) return true
    // Changes of a hash have no ids. A tab that is not where the leader is takes the hashes from it.
    if (hashes.size && !this.isLeader) return false
    return Object.entries(rooms).every(([room, { position }]) => !isAfter(position, seen[room]))
  }

  greet() {
    const { position, seen, options } = this.stream
    this.greetedAt = Date.now()
    this.greetings++
    this.post({ greets: this.id, position, seen, isNew: !position && !!(options.recent || options.from), isLate: this.greetings > 3 })
    this.expect(3000)
  }

  /** Lets a tab follow, which has had these events. */
  welcome({ greets: to, position, seen, isNew, isLate }) {
    const state = this.stream.state()
    const isBehind = (one, other) => Object.entries(other).some(([room, id]) => isAfter(id, one[room]))
    // Before the stream has opened, or has come to where the tab is, it has to ask again.
    if (!this.opened || (isBehind(state.seen, seen) && !isLate)) return this.post()
    if (isNew || (position && (isLate || isBehind(seen, state.seen)))) {
      this.open(position)
      this.post({ to })
    } else {
      this.post({ to, opened: this.opened, state })
    }
  }

  /** If the leader says nothing for so long, it is frozen. Not all tabs take the lock at one time. */
  expect(ms) {
    clearTimeout(this.timer)
    this.timer = setTimeout(() => this.isLeader || this.lead(true), ms * (1 + Math.random()))
  }

  receive(message) {
    const { greets, to, term, block, start, end, isWaiting, opened, state } = message
    if (greets) return this.isLeader && this.welcome(message)
    if (this.isLeader || term < this.term) return
    this.term = term
    this.expect(60_000)
    if (end) return this.stop(end)
    if (to === this.id) {
      this.isFollowing = true
      this.greetings = 0
      if (!state) return
      this.stream.take(state.position, state.seen)
      this.onState('open', opened)
      for (const block of state.snapshots) this.onBlock(...block)
      return
    }
    const isOpen = block?.[0] === 'stream.open'
    if (isOpen && this.isFollowing && !this.covers(block[1], start)) this.isFollowing = false
    if (!this.isFollowing) {
      if (isOpen || Date.now() - this.greetedAt > 1000) this.greet()
      return
    }
    if (isOpen) this.onState('open', block[1])
    if (block) this.onBlock(...block)
    if (isWaiting) this.onState('waiting', {})
  }
}

/** Whether an event id comes after another one. */
function isAfter(id, other) {
  if (!other) return true
  const [a, b] = [id, other].map((text) => text.match(/\d+/g).map(BigInt))
  return a[0] === b[0] ? a[1] > b[1] : a[0] > b[0]
}

/** Calls a function of the application. What it throws is the application's, and must not end the stream. */
function call(callback, ...values) {
  try {
    callback?.(...values)
  } catch (error) {
    queueMicrotask(() => {
      throw error
    })
  }
}

const canShare = () => globalThis.navigator?.locks && globalThis.BroadcastChannel && globalThis.document

/** A stream of rooms and hashes. */
export class Stream {
  constructor(client, options) {
    if (typeof options.onGap !== 'function') {
      throw new TypeError('a stream needs onGap: it is called where events may be missing, and has to load the state anew')
    }
    if (options.resume && options.hashes?.length) {
      throw new TypeError('resume is for streams of rooms alone: what a hash has is not kept over page loads')
    }
    this.client = client
    this.options = options
    this.members = {}
    this.hashes = new Map()
    const { rooms = [], hashes = [], events = [], fields = [], subscriber, presence, recent, from, info, resume, heartbeat } = options
    const query = new URLSearchParams()
    const all = { room: rooms, hash: hashes, event: events, field: fields, subscriber, presence, recent, from, heartbeat }
    for (const [name, values] of Object.entries({ ...all, info: info && JSON.stringify(info) })) {
      for (const value of [values ?? []].flat()) query.append(name, value)
    }
    for (const hash of hashes) this.hashes.set(hash, new Hash(this, hash))
    for (const room of presence ? rooms : []) this.members[room] = new Map()
    this.store = resume && (options.store ?? globalThis.sessionStorage)
    this.key = `roomcast ${client.url} ${resume}`
    const saved = JSON.parse(this.store?.getItem(this.key) ?? 'null')
    this.position = saved?.position ?? options.after
    this.seen = saved?.seen ?? {}
    const path = `/v1/stream?${query}`
    const callbacks = {
      onBlock: (...block) => this.receive(...block),
      onState: (state, detail) => call(options.onState, state, detail),
      onEnd: (end) => call(options.onEnd, end),
    }
    this.connection =
      options.shared && canShare()
        ? new SharedConnection(client, path, this, callbacks)
        : new Connection(client, path, this.position, callbacks)
  }

  close() {
    this.connection.stop()
  }

  take(position, seen) {
    this.position = position
    Object.assign(this.seen, seen)
    call(() => this.store?.setItem(this.key, JSON.stringify({ position, seen: this.seen })))
  }

  /** What another tab needs to go on from here. */
  state() {
    const snapshots = [...this.hashes.values()].flatMap((hash) => hash.snapshots())
    for (const room of Object.keys(this.members)) snapshots.push(this.memberList(room))
    return { position: this.position, seen: this.seen, snapshots }
  }

  memberList(room) {
    return ['presence.list', { room, members: [...this.members[room].values()] }]
  }

  receive(event, data, position) {
    const { onGap, onEvent } = this.options
    const { seen } = this
    const { room, hash, id } = data
    if (event === 'stream.open') {
      for (const [name, { position }] of Object.entries(data.rooms)) {
        if (isAfter(position, seen[name])) seen[name] = position
      }
    }
    // Where tabs share a connection, it may begin before what this tab has had. The rest of it is left out.
    if (event === 'stream.gap') {
      if (!room || isAfter(data.to, seen[room]) || !isAfter(seen[room], data.from)) {
        if (room) seen[room] = data.to
        call(onGap, data)
      }
    }
    if (event === 'stream.open' || event === 'stream.gap') {
      // Of tabs, the leading one does it for all.
      if (this.connection.isLeader !== false) for (const name of room ? [room] : Object.keys(this.members)) this.loadMembers(name)
    } else if (event === 'presence.list') {
      this.setMembers(room, data.members)
    } else if (hash) {
      this.hashes.get(hash)?.apply(event, data)
    } else if (id && isAfter(id, seen[room])) {
      seen[room] = id
      if (event.startsWith('presence.')) this.changeMembers(room, event, data.data)
      else call(onEvent, data)
    }
    if (position) this.take(position)
  }

  /** Reads the list of members. What the stream says meanwhile is applied after it. */
  async loadMembers(room) {
    const members = this.members[room]
    if (!members) return
    const changes = (members.changes = [])
    const list = []
    try {
      for (let path = `/v1/rooms/${room}/subscribers?limit=1000`; path; ) {
        const response = await this.client.get(path)
        list.push(...(await response.json()).subscribers)
        path = /<([^>]*)>; *rel="next"/.exec(response.headers.get('link'))?.[1]
      }
    } catch (error) {
      call(this.options.onState, 'waiting', { error })
      await sleep(2000)
      if (members.changes === changes && !this.connection.stopped.signal.aborted) this.loadMembers(room)
      return
    }
    if (members.changes !== changes) return
    members.changes = undefined
    this.setMembers(room, list)
    for (const change of changes) this.changeMembers(room, ...change)
    this.connection.pass?.(...this.memberList(room))
  }

  setMembers(room, list) {
    const members = this.members[room]
    members.clear()
    for (const member of list) members.set(member.subscriber, member)
    call(this.options.onMembers, room, members)
  }

  changeMembers(room, event, { members: changed }) {
    const members = this.members[room]
    if (!members) return
    members.changes?.push([event, { members: changed }])
    for (const member of changed) {
      if (event === 'presence.join') members.set(member.subscriber, member)
      else members.delete(member.subscriber)
    }
    call(this.options.onMembers, room, members)
  }
}

const decode = ({ value, value_base64 }) =>
  value ?? Uint8Array.from(atob(value_base64), (character) => character.charCodeAt(0))

/** A hash as it is now. `values` is a Map of its fields. */
export class Hash {
  constructor(stream, name) {
    this.stream = stream
    this.name = name
    this.values = new Map()
    this.etags = new Map()
    this.ready = new Promise((resolve) => (this.resolve = resolve))
  }

  close() {
    this.stream.close()
  }

  /** What there is, and the parts of a snapshot that is not whole yet. */
  snapshots() {
    const fields = {}
    for (const [field, value] of this.values) fields[field] = { value, etag: this.etags.get(field) }
    const block = (fields, last) => ['hash.snapshot', { hash: this.name, fields, part: 0, last }]
    return [...(this.isReady ? [block(fields, true)] : []), ...(this.parts ? [block(Object.fromEntries(this.parts), false)] : [])]
  }

  apply(event, { fields, part, last, by }) {
    if (event === 'hash.snapshot') {
      if (part === 0) this.parts = []
      this.parts?.push(...Object.entries(fields))
      if (!last || !this.parts) return
      this.values.clear()
      this.etags.clear()
      fields = Object.fromEntries(this.parts)
      this.parts = undefined
    }
    if (event === 'hash.clear') {
      fields = [...this.values.keys()]
    }
    if (Array.isArray(fields)) {
      for (const field of fields) [this.values, this.etags].forEach((map) => map.delete(field))
    } else {
      for (const [field, tagged] of Object.entries(fields)) {
        this.values.set(field, tagged.value instanceof Uint8Array ? tagged.value : decode(tagged))
        this.etags.set(field, tagged.etag)
      }
      fields = Object.keys(fields)
    }
    this.isReady = true
    this.resolve(this)
    call(this.stream.options.onChange, { hash: this, event, fields, by })
  }

  /** Sends a write that holds only if the field is as it was seen here. */
  async write(method, field, body, { force, ifMatch, key = randomKey() } = {}) {
    const etag = ifMatch ?? this.etags.get(field)
    const condition = force ? {} : etag ? { 'If-Match': etag } : { 'If-None-Match': '*' }
    const headers = { 'Content-Type': 'application/octet-stream', 'Idempotency-Key': key, ...condition }
    const path = `/v1/hashes/${this.name}/fields/${encodeURIComponent(field)}`
    return this.stream.client.repeat(path, { method, body, headers })
  }

  set(field, value, options) {
    return this.write('PUT', field, value, options)
  }

  delete(field, options) {
    return this.write('DELETE', field, undefined, options)
  }

  /** Sets a field to what a function makes of its value, again if another write came between. */
  async update(field, change) {
    for (;;) {
      const seen = this.etags.get(field)
      const value = change(this.values.get(field))
      try {
        return await this.set(field, value)
      } catch (error) {
        if (error.status !== 412) throw error
        // The stream brings the value that was there.
        const began = Date.now()
        while (this.etags.get(field) === seen) {
          if (Date.now() - began > 10_000) throw error
          await sleep(20)
        }
      }
    }
  }
}

class Client {
  constructor({ url = globalThis.location?.origin, token, fetch = (...values) => globalThis.fetch(...values) } = {}) {
    this.url = String(url).replace(/\/$/, '')
    this.token = token
    this.fetch = fetch
  }

  /** Adds a token to headers, a new one if the last one is no good any more. */
  async authorize(headers, renew) {
    const token = await this.token?.({ renew })
    return { ...headers, ...(token && { Authorization: `Bearer ${token}` }) }
  }

  /** Sends a request with a token. */
  async request(path, init = {}, renew = false) {
    return this.fetch(this.url + path, { ...init, headers: await this.authorize(init.headers, renew) })
  }

  async get(path) {
    const response = await this.request(path, { signal: AbortSignal.timeout(30_000) })
    if (!response.ok) throw await failure(response)
    return response
  }

  /** Sends a write with an idempotency key until its outcome is known, for half a minute. */
  async repeat(path, init) {
    const end = Date.now() + 30_000
    for (let attempt = 0, renew = false; ; attempt++) {
      let response, error
      try {
        const headers = await this.authorize(init.headers, renew)
        response = await this.fetch(this.url + path, { ...init, headers, signal: AbortSignal.timeout(10_000) })
        if (response.ok) return response.status === 204 ? undefined : await response.json()
        error = await failure(response)
      } catch (caught) {
        error = caught
        response = undefined
      }
      if (response?.status === 401 && this.token && !renew) {
        renew = true
        continue
      }
      const pause = (response && retryAfter(response)) || backOff(200, attempt)
      if ((response && response.status < 500 && response.status !== 429) || Date.now() + pause > end) throw error
      await sleep(pause)
    }
  }

  publish(room, data, { event, final, except, key = randomKey() } = {}) {
    return this.repeat(`/v1/rooms/${room}/events`, {
      method: 'POST',
      headers: { 'Content-Type': 'application/json', 'Idempotency-Key': key },
      body: JSON.stringify({ event, data, except, final }),
    })
  }

  async events(room, { after, before, limit } = {}) {
    const query = new URLSearchParams(Object.entries({ after, before, limit }).filter(([, value]) => value !== undefined))
    return (await this.get(`/v1/rooms/${room}/events?${query}`)).json()
  }

  stream(options) {
    return new Stream(this, options)
  }

  watch(name, options = {}) {
    // A snapshot follows each gap, so what the hash has is true again.
    return this.stream({ onGap() {}, ...options, hashes: [name] }).hashes.get(name)
  }
}

/** A gateway. */
export function connect(options) {
  return new Client(options)
}
