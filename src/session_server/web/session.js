/**
 * session.js: the browser client of a session server. No build step, no dependencies.
 *
 *     import { session } from "/session.js";
 *     const room = await session("field", { name: "ada" });
 *     room.on("move", ([x, y], { from }) => draw(from, x, y));
 *     room.send("move", [0.2, 0.7], { reliable: false });
 *
 * What pages may call is described in session.d.ts, what travels in docs/reference/wire.md. The parts, from the bottom
 * up: frames, Listeners, Clock, People, Outbox, Timers, WebSocketLink and DataChannelLink (one wire each), Trust, and
 * Room, which outlives its links.
 */

/** @import { Events, Link, Listener, Meta, Options, Person, Room as PublicRoom } from "./session.js" */
/** @typedef {{type: string, content: any, from: number, reliable: boolean, n?: number}} Message */
/** @typedef {string | Uint8Array<ArrayBuffer>} Frame */
/** @typedef {{resolve: (answer: any) => void, reject: (error: Error) => void, frame: Frame, timer: number}} Ask */

const SUBPROTOCOL = "session.v1";
const OWN = "session:"; // begins the types of the library; never a peer's

const HEARTBEAT = 5_000; // ms between two pings
const MISSED = 2; // heartbeats without a byte in return, after which a link is dead
const PATIENCE = 10_000; // ms: for one attempt to connect, and for a first join that nobody answers
const RETRY_FIRST = 250; // ms, the most that the first delay may be
const RETRY_MOST = 10_000; // ms, the same of the later ones
const BACKLOG_MESSAGES = 256;
const BACKLOG_BYTES = 1024 * 1024;
const SLICE_MESSAGES = 60; // of a backlog at a time: 120 per second is what a server takes by default
const SLICE_BYTES = 64 * 1024;
const SLICE_EVERY = 500; // ms
const CONGESTED = 64 * 1024; // bytes unsent in the socket, above which unreliable messages are shed
const SIDE_WITHIN = 3_000; // ms for a data channel to open
const SIDE_AGAIN = 30_000; // ms until the next attempt, and until a link that went silent is trusted again
const DOUBT_AFTER = 250; // ms without an acknowledgement (or 4 × rtt): from here on, both links
const DEMOTE_AFTER = 2_000; // ms: from here on, the WebSocket alone
const PROBE_EVERY = 1_000; // ms without a message either way, after which a probe keeps the judgement fresh
const NUMBERED = 4_096; // senders and types whose last number is remembered
const LISTED = 200; // people; a server lists no more, it only counts them
const SAMPLES = 8; // of the clock: 40 s of heartbeats
const DRIFT = 1; // s; samples further apart than that were not taken of the same clock

// After any other close code the server has made up its mind (wire.md, "Close codes"). It sends neither 1005 nor 1006,
// 1014 and 1015: they are what a browser or a proxy says of a connection that just ended.
const COMES_BACK = new Set([1001, 1005, 1006, 1012, 1013, 1014, 1015]);

/** @type {typeof import("./session.js").session} */
export function session(slugOrUrl, options = {}) {
  return new Promise((resolve, reject) => {
    options.signal?.throwIfAborted(); // what is thrown in here rejects the promise
    new Room(sessionUrl(slugOrUrl), options, resolve, reject);
  });
}

/** @param {string | undefined} slugOrUrl */
function sessionUrl(slugOrUrl) {
  const slug = slugOrUrl ?? decodeURIComponent(location.pathname.slice(1));
  const isUrl = /^(https?|wss?):\/\//i.test(slug);
  const path = "/session/" + slug;
  const url = new URL(isUrl ? slug : path.split("/").map(encodeURIComponent).join("/"), import.meta.url);
  // A URL resolves "." and "..", encoded ones too: it would lead to another room.
  if (!slug || (!isUrl && decodeURIComponent(url.pathname) !== path)) {
    throw new TypeError(`slug is '${slug}', expected a name without empty, '.' and '..' segments`);
  }
  url.protocol = url.protocol.replace("http", "ws");
  url.hash = ""; // a WebSocket would refuse it
  return url;
}

class SessionError extends Error {
  /** @param {string} message @param {number | string} code @param {string} [reason] */
  constructor(message, code, reason = message) {
    super(message);
    Object.assign(this, { name: "SessionError", code, reason });
  }
}

// --- frames ----------------------------------------------------------------------------------------------------------

const encoder = new TextEncoder();
const decoder = new TextDecoder("utf-8", { fatal: true, ignoreBOM: true });

/** @param {any} type */
function checkType(type) {
  if (typeof type !== "string" || !type) throw new TypeError(`type is ${brief(type)}, expected a non-empty string`);
  const size = encoder.encode(type).length;
  if (size > 255) throw new TypeError(`type of ${size} bytes, expected at most 255`);
  if (type.startsWith(OWN)) throw new TypeError(`type is '${type}', expected none that begins with '${OWN}'`);
}

/** Content as JSON, undefined if there is none. @param {string} type @param {any} content */
function jsonOf(type, content) {
  if (content === undefined) return undefined;
  let json;
  try {
    json = JSON.stringify(content);
  } catch (cause) {
    throw new TypeError(`content of '${type}' is not JSON: ${/** @type {Error} */ (cause).message}`, { cause });
  }
  // JSON has no functions and no NaN: the one would be lost, and the other become null.
  if (json === undefined || (json === "null" && content !== null)) {
    throw new TypeError(`content of '${type}' is ${brief(content)}, expected JSON or bytes`);
  }
  return wellFormed(json);
}

/** @param {any} value */
const brief = (value) => (/string|number/.test(typeof value) ? `'${value}'` : `of type ${typeof value}`);

/**
 * Half of a surrogate pair (text that was cut within an emoji) is not Unicode, and the server would refuse it. It is
 * replaced, as WebSocket.send does with plain text. JSON.stringify writes it, and nothing else, as an escape `\ud…`.
 * @param {string} json
 */
function wellFormed(json) {
  if (!json.includes("\\ud")) return json;
  return json.replace(/\\\\|\\ud[89a-f][0-9a-f]{2}/g, (found) => (found === "\\\\" ? found : "\ufffd"));
}

/** @param {string} type @param {string} [json] @param {boolean} [reliable] @param {number} [n] its number, if it has one */
function textFrame(type, json, reliable = true, n) {
  const content = json === undefined ? "" : `,"content":${json}`;
  const number = n === undefined ? "" : `,"n":${n}`;
  return `{"type":${wellFormed(JSON.stringify(type))}${content}${reliable ? "" : ',"reliable":false'}${number}}`;
}

/**
 * 1 byte kind, 1 byte length of the type, the type, 4 bytes sender (the server's to fill in), 4 bytes number if the
 * kind is 3, payload.
 * @param {string} type @param {ArrayBuffer | ArrayBufferView} content @param {boolean} reliable @param {number} [n]
 */
function binaryFrame(type, content, reliable, n) {
  const [buffer, start] = ArrayBuffer.isView(content) ? [content.buffer, content.byteOffset] : [content, 0];
  const name = encoder.encode(type);
  const body = 2 + name.length + (n === undefined ? 4 : 8);
  const frame = new Uint8Array(body + content.byteLength);
  frame.set([reliable ? 1 : n === undefined ? 2 : 3, name.length]);
  frame.set(name, 2);
  if (n !== undefined) new DataView(frame.buffer).setUint32(body - 4, n);
  frame.set(new Uint8Array(buffer, start, content.byteLength), body);
  return frame;
}

/** @param {any} content @returns {content is ArrayBuffer | ArrayBufferView} */
const isBytes = (content) => content instanceof ArrayBuffer || ArrayBuffer.isView(content);

/** A frame of the server, or null: a bad one is passed over. @param {string | ArrayBuffer} data */
function parse(data) {
  try {
    return typeof data === "string" ? parseText(data) : parseBinary(data);
  } catch {
    return null;
  }
}

/** @param {string} data @returns {Message | null} */
function parseText(data) {
  const { type, content, id, reliable, n } = JSON.parse(data);
  return typeof type === "string" ? { type, content, from: countOr(id, 0), reliable: reliable !== false, n } : null;
}

/** @param {ArrayBuffer} data @returns {Message | null} */
function parseBinary(data) {
  const bytes = new Uint8Array(data);
  const end = 2 + bytes[1]; // of the type
  const body = end + (bytes[0] === 3 ? 8 : 4);
  if (!(bytes[0] >= 1 && bytes[0] <= 3) || end === 2 || bytes.length < body) return null;
  const type = decoder.decode(bytes.subarray(2, end));
  if (type.startsWith(OWN)) return null; // these travel as text only
  // A copy, so that content.buffer holds nothing else and is aligned for a Float32Array.
  const content = bytes.slice(body);
  const view = new DataView(data);
  const n = bytes[0] === 3 ? view.getUint32(end + 4) : undefined;
  return { type, content, from: view.getUint32(end), reliable: bytes[0] === 1, n };
}

// Contents of control messages are a stranger's. These make something usable of whatever is in them.

/** @param {any} value @param {number} otherwise @returns {number} */
const countOr = (value, otherwise) => (Number.isSafeInteger(value) && value >= 0 ? value : otherwise);

/** @param {any} value @param {string} otherwise @returns {string} */
const textOr = (value, otherwise) => (typeof value === "string" ? value : otherwise);

/** @param {any} value @returns {any} */
const fields = (value) => (typeof value === "object" && value !== null ? value : {});

/** @param {any} value @returns {any[]} */
const list = (value) => (Array.isArray(value) ? value : []);

// --- the parts -------------------------------------------------------------------------------------------------------

/** Who wants to hear what. One listener's exception is reported, and stops no other. */
class Listeners {
  /** @type {Map<string, Map<Listener<any>, boolean>>} type → listener → whether it hears one message only */
  #byType = new Map();

  /** @param {string} type @param {Listener<any>} fn @param {boolean} once */
  add(type, fn, once) {
    if (typeof fn !== "function") throw new TypeError(`listener of '${type}' is ${brief(fn)}, expected a function`);
    this.#byType.set(type, (this.#byType.get(type) ?? new Map()).set(fn, once));
    return () => this.remove(type, fn);
  }

  /** @param {string} type @param {Listener<any>} fn */
  remove(type, fn) {
    const listeners = this.#byType.get(type);
    if (listeners?.delete(fn) && listeners.size === 0) this.#byType.delete(type);
  }

  /** @param {Meta} meta @param {any} content @param {string} [type] @returns {boolean} whether there were any */
  emit(meta, content, type = meta.type) {
    const listeners = this.#byType.get(type) ?? new Map();
    const all = [...listeners]; // as of now: a listener may add and remove some
    for (const [fn, once] of all) {
      if (!listeners.has(fn)) continue;
      if (once) this.remove(type, fn);
      try {
        fn(content, meta);
      } catch (error) {
        report(error);
      }
    }
    return all.length > 0;
  }
}

/** @param {any} error */
const report = (error) => (globalThis.reportError ?? console.error)(error);

/** The server's clock, by the `time` in its answers: of the last ones the quickest is the most exact. */
class Clock {
  /** @type {{offset: number, rtt: number}[]} s */
  #samples = [];
  #best = { offset: 0, rtt: Infinity };
  #shown = -Infinity;

  /** @param {any} time the server's, in an answer that is here now @param {number} rtt in seconds */
  add(time, rtt) {
    if (!Number.isFinite(time) || !(rtt >= 0)) return;
    const sample = { offset: time + rtt / 2 - seconds(), rtt };
    if (Math.abs(sample.offset - this.#best.offset) > (rtt + this.#best.rtt) / 2 + DRIFT) {
      // Another server's clock; or ours stood still, as it does while the computer sleeps.
      this.#samples = [];
      this.#shown = -Infinity;
    }
    this.#samples = [...this.#samples, sample].slice(-SAMPLES);
    this.#best = this.#samples.reduce((best, other) => (other.rtt < best.rtt ? other : best));
  }

  /** Never goes backwards, unless the room has moved to a server with another clock. */
  get time() {
    return (this.#shown = Math.max(this.#shown, seconds() + this.#best.offset));
  }
}

const seconds = () => performance.now() / 1000;

/** The people in the room, as far as the server lists them. */
class People {
  /** @type {Map<number, Person>} */
  #byId = new Map();
  /** @type {readonly Person[]} */
  list = Object.freeze([]);
  count = 0;

  /** The whole list of a welcome. @param {any} entries @param {any} count */
  replace(entries, count) {
    const here = new Set(list(entries).map((one) => fields(one).id));
    return this.apply({ joins: entries, leaves: [...this.#byId.keys()].filter((id) => !here.has(id)), count });
  }

  /** Gives what is new to *us*: a diff may repeat what the welcome said. @param {any} diff */
  apply(diff) {
    const leaves = list(diff.leaves).filter((id) => this.#byId.delete(id));
    /** @type {Person[]} */
    const entries = [...list(diff.joins), ...list(diff.updates)].filter((one) => countOr(fields(one).id, 0));
    const joins = entries.filter(({ id }) => !this.#byId.has(id));
    const updates = entries.filter(({ id }) => this.#byId.has(id));
    for (const one of entries) this.#byId.set(one.id, Object.freeze(one));
    this.count = countOr(diff.count, this.#byId.size);
    if (this.count > LISTED) this.#byId.clear(); // it would only grow old
    this.list = Object.freeze([...this.#byId.values()]);
    return { joins, leaves, updates, count: this.count };
  }
}

/**
 * The reliable messages that the server may not have. Both sides count them, so that after a drop neither must guess
 * (wire.md, "Resume"): those in `#waiting` have surely not arrived, of those in `#sent` we do not know.
 */
class Outbox {
  /** @type {Frame[]} */
  #waiting = [];
  /** @type {Frame[]} */
  #sent = [];
  #taken = 0; // by the server from this seat, before #sent[0]

  /** @param {Frame} frame @param {boolean} goes at once: then its size is between the author and the server */
  add(frame, goes) {
    if (!(goes && this.isEmpty) && !fits([...this.#waiting, frame])) {
      const seen = `${this.#waiting.length} messages of ${sizeOf(this.#waiting)} bytes wait for the connection`;
      throw new SessionError(`${seen}, expected at most ${BACKLOG_MESSAGES} of ${BACKLOG_BYTES} bytes`, "full");
    }
    this.#waiting.push(frame);
  }

  /** Takes back what has not been sent. @param {Frame} frame */
  remove(frame) { this.#waiting = this.#waiting.filter((other) => other !== frame); }

  /** The next one to send. It is kept until the server has it, or there is no room for it. @returns {Frame} */
  next() {
    const frame = /** @type {Frame} */ (this.#waiting.shift());
    this.#sent.push(frame);
    while (!fits(this.#sent)) this.cover(this.#taken + 1);
    return frame;
  }

  /** The server has so many. @param {number} taken */
  cover(taken) {
    this.#taken += this.#sent.splice(0, Math.max(0, taken - this.#taken)).length;
  }

  /**
   * At the welcome of another link. On our old seat, `taken` says exactly what never arrived: it is sent again, first.
   * On a new seat it says nothing of the old one, where all that was sent may well have arrived and been acted on.
   * Sent again it could happen twice; not sent again it is lost at worst, and the page can see that its seat is new.
   * @param {number} taken @param {boolean} sameSeat @returns {boolean} whether nothing was lost on the way up
   */
  rejoin(taken, sameSeat) {
    const complete = sameSeat && taken >= this.#taken; // less: some were forgotten for want of room
    this.cover(taken);
    if (sameSeat) this.#waiting.unshift(...this.#sent);
    this.#sent = [];
    this.#taken = taken;
    return complete;
  }

  /** @param {Frame} frame */
  isWaiting(frame) { return this.#waiting.includes(frame); }
  get isEmpty() { return this.#waiting.length === 0; }

  /** Time to ask what the server has, before there is no room for more. */
  get isHalfFull() {
    return this.#sent.length > BACKLOG_MESSAGES / 2 || sizeOf(this.#sent) > BACKLOG_BYTES / 2;
  }
}

/** @param {Frame[]} frames in bytes, if the text is ASCII */
const sizeOf = (frames) => frames.reduce((sum, { length }) => sum + length, 0);

/** @param {Frame[]} frames */
const fits = (frames) => frames.length <= BACKLOG_MESSAGES && sizeOf(frames) <= BACKLOG_BYTES;

/** Timers with names, so that none is started twice and all can be stopped. */
class Timers {
  /** @type {Map<string, number>} */
  #running = new Map();

  /** @param {string} name @param {number} ms @param {() => void} fn */
  start(name, ms, fn) {
    this.stop(name);
    this.#running.set(name, setTimeout(() => (this.#running.delete(name), fn()), ms));
  }

  /** @param {string[]} names default: all */
  stop(...names) {
    for (const name of names.length ? names : [...this.#running.keys()]) {
      clearTimeout(this.#running.get(name));
      this.#running.delete(name);
    }
  }

  /** @param {string} name */
  runs(name) { return this.#running.has(name); }
}

/**
 * Whether an unreliable link is alive, judged by acknowledgements alone: a data channel can die while it says "open".
 * The server judges its own direction in the same way (trust.py). Times are those of performance.now(), ms.
 */
class Trust {
  #sent = 0; // messages, ever
  #sentAt = 0; // the last one
  #sentByAck = 0; // when the last acknowledgement came
  #acked = 0; // of them, as it said
  #sentLately = 0;
  #ackedLately = 0;
  #waitsSince = -1; // when the first message after it was sent; -1: there was none
  #isProven = false;
  #rejectedUntil = 0;
  loss = 0; // share, smoothed
  heardAt = 0; // when the last message came on this link

  /** @param {number} now */
  sent(now) {
    this.#sent++;
    this.#sentAt = now;
    if (this.#waitsSince < 0) this.#waitsSince = now;
  }

  /** The server has received so many messages in all. @param {number} received */
  acked(received) {
    if (!(received > this.#acked && received <= this.#sent)) return;
    // Of late, each acknowledgement counting a fifth less than the next. Not share by share: what comes with the next
    // one instead would count as lost, and never as found.
    this.#sentLately += this.#sent - this.#sentByAck - 0.2 * this.#sentLately;
    this.#ackedLately += received - this.#acked - 0.2 * this.#ackedLately;
    this.loss = this.#sentLately ? Math.max(0, 1 - this.#ackedLately / this.#sentLately) : 0;
    this.#acked = received;
    this.#sentByAck = this.#sent;
    this.#isProven = performance.now() >= this.#rejectedUntil; // else it is of a time before the doubt
    this.#waitsSince = -1; // what is under way may be lost, and that is no sign of death: the next one counts
  }

  /** @param {number} now @param {number} rtt @returns {"reliable" | "both" | "unreliable"} the links to send on */
  route(now, rtt) {
    if (now < this.#rejectedUntil) return "reliable";
    const silent = this.#waitsSince < 0 ? 0 : now - this.#waitsSince;
    if (silent >= DEMOTE_AFTER) {
      this.#rejectedUntil = now + SIDE_AGAIN;
      this.#isProven = false;
      this.#waitsSince = -1;
      return "reliable";
    }
    return !this.#isProven || silent >= Math.max(DOUBT_AFTER, 4 * rtt) ? "both" : "unreliable";
  }

  /** A proven link is not asked while it speaks: the server sends that way only as long as our acknowledgements, those
   * of SCTP, reach it. @param {number} now */
  wantsProbe(now) {
    const since = this.#isProven ? Math.max(this.#sentAt, this.heardAt) : this.#sentAt;
    return now >= this.#rejectedUntil && now - since >= PROBE_EVERY;
  }
}

/** The wire for what may be lost: a WebRTC data channel, signalled by the WebSocket that it belongs to. */
class DataChannelLink {
  kind = /** @type {const} */ ("datachannel");
  trust = new Trust();
  #connection = new RTCPeerConnection();
  #channel = /** @type {RTCDataChannel | null} */ (null);

  /**
   * @param {string} offer SDP
   * @param {{answered: (sdp: string) => void, arrived: (link: DataChannelLink, data: string | ArrayBuffer) => void,
   *   ended: (link: DataChannelLink) => unknown}} room the first and the last may still come after `close`
   */
  constructor(offer, room) {
    const connection = this.#connection;
    connection.ondatachannel = ({ channel }) => {
      channel.binaryType = "arraybuffer";
      channel.onmessage = ({ data }) => room.arrived(this, data);
      channel.onclose = () => room.ended(this);
      this.#channel = channel;
    };
    // "disconnected" may pass; only these two do not.
    connection.onconnectionstatechange = () =>
      /failed|closed/.test(connection.connectionState) && room.ended(this);
    this.#answer(offer).then(room.answered, () => room.ended(this));
  }

  /** @param {string} offer */
  async #answer(offer) {
    await this.#connection.setRemoteDescription({ type: "offer", sdp: offer });
    await this.#connection.setLocalDescription();
    return this.#connection.localDescription?.sdp ?? "";
  }

  get isOpen() { return this.#channel?.readyState === "open"; }

  /** Drops it rather than queueing it: what is late is of no use. @param {Frame} frame */
  send(frame) {
    if (!this.#channel || this.#channel.readyState !== "open" || this.#channel.bufferedAmount > CONGESTED) return;
    try {
      this.#channel.send(/** @type {any} */ (frame));
      this.trust.sent(performance.now());
    } catch {
      // Larger than the peer takes: the WebSocket is there for it, as soon as nothing is acknowledged.
    }
  }

  close() {
    this.#connection.ondatachannel = this.#connection.onconnectionstatechange = null;
    if (this.#channel) this.#channel.onmessage = this.#channel.onclose = null;
    this.#connection.close();
  }
}

/** One reliable wire to the server. */
class WebSocketLink {
  kind = /** @type {const} */ ("websocket");
  rtt = /** @type {number | null} */ (null); // ms
  missed = 0; // heartbeats since the last byte came
  #socket;

  /**
   * @param {URL} url
   * @param {{opened: (link: WebSocketLink) => void, arrived: (link: WebSocketLink, data: string | ArrayBuffer) => void,
   *   ended: (code: number, reason: string) => void}} room none of the three is called after `detach` or `close`
   */
  constructor(url, room) {
    this.#socket = new WebSocket(url, SUBPROTOCOL);
    this.#socket.binaryType = "arraybuffer";
    this.#socket.onopen = () => room.opened(this);
    this.#socket.onmessage = ({ data }) => room.arrived(this, data);
    this.#socket.onclose = ({ code, reason }) => room.ended(code, reason);
  }

  /** Does nothing on a socket that has ended. @param {Frame} frame */
  send(frame) { this.#socket.send(frame); }
  get isCongested() { return this.#socket.bufferedAmount > CONGESTED; }

  detach() {
    this.#socket.onopen = this.#socket.onmessage = this.#socket.onclose = null;
  }

  close() {
    this.detach();
    this.#socket.close(1000);
  }
}

// --- the room --------------------------------------------------------------------------------------------------------

/** @implements {PublicRoom<any>} */
class Room {
  id = 0; // none yet
  slug;

  #url;
  #options;
  #resolve;
  #reject;
  #listeners = new Listeners();
  #people = new People();
  #clock = new Clock();
  #outbox = new Outbox();
  #timers = new Timers();
  #over = new AbortController(); // aborted at the end, which also takes our listeners off the window

  #link = /** @type {WebSocketLink | null} */ (null);
  #stale = /** @type {WebSocketLink | null} */ (null); // dead, but not closed: see #giveUp
  #side = /** @type {DataChannelLink | null} */ (null); // for what may be lost
  #offer = ""; // of the last welcome: what a side link is made of
  #numbers = /** @type {Map<string, number>} */ (new Map()); // type → last number, of ours that may be lost
  #heard = /** @type {Map<string, number>} */ (new Map()); // sender and type → last number, of others'
  #isJoined = false; // #link has had its welcome
  #attempt = 0; // to know an outdated one
  #failures = 0; // attempts in a row, for the back-off
  #joinSent = 0; // s, our clock
  #awaitsPong = false;

  #resume = /** @type {string | undefined} */ (undefined); // token for the next resume
  #epoch = /** @type {any} */ (undefined);
  #host = /** @type {any} */ (null); // id
  #received = 0; // reliable messages, by this seat
  #asks = /** @type {Map<number, Ask>} */ (new Map());
  #lastAsk = 0;

  /** @param {URL} url @param {Options} options @param {(room: any) => void} resolve @param {(why: any) => void} reject */
  constructor(url, options, resolve, reject) {
    jsonOf("session:join", [options.name, options.data]); // throws now rather than later
    this.slug = decodeURIComponent(url.pathname.replace(/^\/session\//, ""));
    this.#url = url;
    this.#options = options;
    this.#resolve = resolve; // called at each welcome, and #reject at the end:
    this.#reject = reject; // a promise hears only the first of them
    this.#watchPage();
    this.#connect();
  }

  // What pages use

  get isHost() { return this.#host === this.id; }
  get time() { return this.#clock.time; }
  get presence() { return this.#people.list; }
  get count() { return this.#people.count; }

  /** @returns {readonly Link[]} */
  get links() {
    if (!this.#link || !this.#isJoined) return [];
    const { kind, rtt } = this.#link;
    if (!this.#side?.isOpen) return [{ kind, rtt }];
    const { kind: sideKind, trust } = this.#side;
    const active = this.#route() !== "reliable";
    return [{ kind, rtt }, { kind: sideKind, rtt, loss: trust.loss, active }];
  }

  /** @param {string} type @param {Listener<any>} fn */
  on(type, fn) { return this.#listeners.add(type, fn, false); }
  /** @param {string} type @param {Listener<any>} fn */
  once(type, fn) { return this.#listeners.add(type, fn, true); }
  /** @param {string} type @param {Listener<any>} fn */
  off(type, fn) { this.#listeners.remove(type, fn); }

  /** @param {string} type @param {any} [content] @param {{reliable?: boolean}} [how] */
  send(type, content, { reliable = true } = {}) {
    checkType(type);
    const n = reliable ? undefined : this.#number(type);
    const frame = isBytes(content)
      ? binaryFrame(type, content, reliable, n)
      : textFrame(type, jsonOf(type, content), reliable, n);
    if (reliable) this.#submit(frame);
    else this.#sendUnreliable(frame);
  }

  /** @param {Frame} frame */
  #sendUnreliable(frame) {
    if (!this.#link || !this.#isJoined) return;
    const route = this.#route();
    if (route !== "reliable") this.#side?.send(frame);
    if (route !== "unreliable" && !this.#link.isCongested) this.#link.send(frame);
  }

  /** Where what may be lost is sent now. */
  #route() {
    if (!this.#side?.isOpen) return "reliable";
    return this.#side.trust.route(performance.now(), this.#link?.rtt ?? 0);
  }

  /** What may go on two links carries a number, so that the second copy is known. @param {string} type */
  #number(type) {
    if (!this.#side) return undefined;
    const n = (this.#numbers.get(type) ?? 0) + 1;
    this.#numbers.set(type, n);
    return n;
  }

  /** @param {string} type @param {any} [content] @param {{timeout?: number}} [how] @returns {Promise<any>} */
  ask(type, content, { timeout = 10_000 } = {}) {
    return new Promise((resolve, reject) => {
      checkType(type);
      if (isBytes(content)) throw new TypeError(`content of ask '${type}' is bytes, expected JSON`);
      const ask = ++this.#lastAsk;
      const inner = textFrame(type, jsonOf(type, content)).slice(1); // type and content, to stand beside the number
      const frame = this.#submit(textFrame("session:ask", `{"ask":${ask},${inner}`));
      const timer = setTimeout(() => {
        this.#outbox.remove(frame); // nobody waits for the answer any more
        this.#settle(ask, new SessionError(`no answer to '${type}' within ${timeout} ms`, "timeout"));
      }, Math.min(timeout, 2 ** 31 - 1)); // a browser's timer can count no further
      this.#asks.set(ask, { resolve, reject, frame, timer });
    });
  }

  leave() {
    this.#sayGoodbye();
    this.#finish(1000, "left");
  }

  // Connecting: #connect, #open, #welcome; then by #ended or #giveUp to #drop, #retry and #connect again

  async #connect() {
    const attempt = ++this.#attempt;
    this.#timers.stop("retry");
    this.#timers.start("attempt", PATIENCE, () => this.#giveUp("no answer"));
    if (!this.id && !this.#timers.runs("patience")) this.#timers.start("patience", PATIENCE, () => this.#unheard());
    try {
      const { token } = this.#options;
      const proof = typeof token === "function" ? await token() : token;
      if (attempt === this.#attempt) this.#open(proof);
    } catch (error) {
      if (attempt !== this.#attempt) return;
      if (!this.id) return this.#finish(1000, "could not start", error);
      report(error);
      this.#giveUp("no token");
    }
  }

  /** @param {string | undefined} token */
  #open(token) {
    this.#link = new WebSocketLink(this.#url, {
      opened: (link) => {
        const { name, data } = this.#options;
        const received = this.#resume && this.#received;
        const net = new URLSearchParams(globalThis.location?.search).get("net") ?? undefined; // in development only
        const json = JSON.stringify({ name, data, token, resume: this.#resume, received, net });
        link.send(textFrame("session:join", wellFormed(json)));
        this.#joinSent = seconds();
      },
      arrived: (link, data) => this.#arrived(link, data),
      ended: (code, reason) => this.#ended(code, reason),
    });
  }

  /** @param {any} welcome */
  #welcome(welcome) {
    const [id, seq] = [countOr(welcome.id, 0), countOr(welcome.seq, 0)];
    if (this.#isJoined || !id) return;
    this.#timers.stop("attempt", "patience");
    this.#stale?.close();
    this.#stale = null;
    const isFirst = !this.id;
    // A server that was restarted counts from anew, so the id alone does not tell whose seat it is.
    const sameSeat = !!this.#resume && id === this.id && welcome.epoch === this.#epoch && seq >= this.#received;
    const complete = this.#outbox.rejoin(countOr(welcome.received, 0), sameSeat);
    if (!sameSeat) this.#refuseLostAsks();

    this.id = id;
    this.slug = textOr(welcome.room, this.slug);
    this.#resume = textOr(welcome.resume, "") || undefined;
    this.#epoch = welcome.epoch;
    this.#host = welcome.host;
    this.#received = seq;
    this.#clock.add(welcome.time, seconds() - this.#joinSent);
    const diff = this.#people.replace(welcome.presence, welcome.count);
    this.#isJoined = true;

    this.#beat();
    this.#heard.clear();
    this.#offer = textOr(welcome.offer, "");
    this.#openSide();
    this.#pump(); // before what a listener may send
    if (isFirst) return this.#resolve(this);
    this.#emit("session:resume", { recovered: welcome.recovered === true && complete });
    this.#emit("session:presence", diff);
  }

  /** @param {number} code @param {string} reason */
  #ended(code, reason) {
    if (code !== 1006) this.#timers.stop("patience"); // somebody did answer: the room is full, or being restarted
    if (COMES_BACK.has(code)) this.#drop(code, reason);
    else this.#finish(code, reason);
  }

  /**
   * The link is dead, though its socket does not know. If it were closed now, the server might yet hear of it, as a
   * farewell, and give our seat up before we are back. So a link that holds the seat is closed after the resume.
   * @param {string} reason
   */
  #giveUp(reason) {
    this.#link?.detach();
    if (this.#isJoined) this.#stale = this.#link;
    else this.#link?.close();
    this.#drop(1006, reason);
  }

  /** @param {number} code @param {string} reason */
  #drop(code, reason) {
    const wasJoined = this.#isJoined;
    this.#unlink();
    this.#retry();
    if (wasJoined) this.#emit("session:drop", { code, reason });
  }

  #unlink() {
    this.#attempt++;
    this.#closeSide();
    this.#link = null;
    this.#isJoined = false;
    this.#timers.stop("attempt", "retry", "beat", "slice");
  }

  /** Full jitter: those that were dropped together do not come back together. */
  #retry() {
    const most = Math.min(RETRY_MOST, RETRY_FIRST * 2 ** this.#failures++);
    // Offline, the event "online" will wake us. Until then we still try at times, as no network is needed to reach a
    // server on this very computer.
    const delay = isOffline() ? RETRY_MOST : Math.random() * most;
    this.#timers.start("retry", delay, () => this.#connect());
  }

  /** A first join that nobody answers. Why a connection cannot be made, a browser does not tell a page. */
  #unheard() {
    const why = isOffline() ? "this computer is offline" : "it is down, has no such session or refuses this page";
    const reason = `no answer from ${this.#url.href} for ${PATIENCE / 1000} s: ${why}`;
    this.#finish(1006, reason, new SessionError(reason, "unreachable"));
  }

  /**
   * The end, whatever the state.
   * @param {number} code @param {string} reason @param {any} [error] for a join that is not done yet
   */
  #finish(code, reason, error) {
    if (this.#over.signal.aborted) return;
    this.#over.abort();
    this.#link?.close();
    this.#stale?.close();
    this.#unlink();
    this.#timers.stop();
    const message = `the session is closed: ${reason || "no reason given"} (${code})`;
    for (const ask of this.#asks.keys()) this.#settle(ask, new SessionError(message, "closed", reason));
    this.#reject(error ?? new SessionError(message, code, reason));
    this.#emit("session:close", { code, reason });
  }

  #sayGoodbye() {
    if (this.#isJoined) this.#link?.send(textFrame("session:leave"));
  }

  #watchPage() {
    const { signal } = this.#over;
    /** @param {string} type @param {(event: any) => void} fn */
    const listen = (type, fn) => globalThis.addEventListener?.(type, fn, { signal }); // there is none in Node
    listen("online", () => this.#timers.runs("retry") && this.#connect());
    listen("pagehide", () => this.#hide());
    listen("pageshow", ({ persisted }) => persisted && !this.#link && this.#connect());
    const stop = this.#options.signal;
    stop?.addEventListener("abort", () => (this.#sayGoodbye(), this.#finish(1000, "left", stop.reason)), { signal });
  }

  /** The page goes; perhaps into the browser's cache of pages, from which it comes back as it was (`pageshow`). */
  #hide() {
    const wasJoined = this.#isJoined;
    this.#sayGoodbye();
    this.#link?.close();
    this.#unlink();
    this.#timers.stop();
    this.#resume = undefined;
    if (wasJoined) this.#emit("session:drop", { code: 1000, reason: "page hidden" });
  }

  // The side link. Whatever happens to it, the page notices nothing but a longer way.

  #openSide() {
    if (!this.#offer || typeof RTCPeerConnection === "undefined") return;
    const link = this.#link;
    try {
      this.#side = new DataChannelLink(this.#offer, {
        answered: (sdp) => link?.send(textFrame("session:answer", JSON.stringify({ sdp }))),
        arrived: (side, data) => this.#arrivedAside(side, data),
        ended: (side) => side === this.#side && this.#endSide(),
      });
    } catch {
      return; // the constructor throws where a policy forbids it, or the page has too many
    }
    this.#timers.start("side", SIDE_WITHIN, () => (this.#side?.isOpen ? this.#watchSide() : this.#endSide()));
  }

  #closeSide() {
    this.#timers.stop("side", "look");
    this.#side?.close();
    this.#side = null;
  }

  /** It could not be made, or has ended: without it for a while. */
  #endSide() {
    this.#closeSide();
    this.#timers.start("side", SIDE_AGAIN, () => this.#openSide());
  }

  /** A probe where nothing came or left for a while: so it is known to live before it is needed. */
  #watchSide() {
    const now = performance.now();
    if (this.#side?.trust.wantsProbe(now)) this.#side.send(textFrame("session:probe", undefined, false));
    this.#timers.start("look", PROBE_EVERY, () => this.#watchSide());
  }

  /** @param {DataChannelLink} side @param {string | ArrayBuffer} data */
  #arrivedAside(side, data) {
    side.trust.heardAt = performance.now();
    const message = parse(data);
    if (message && !message.type.startsWith(OWN)) this.#deliver({ ...message, reliable: false });
  }

  // Sending

  /** @param {Frame} frame reliable */
  #submit(frame) {
    if (this.#over.signal.aborted) throw new SessionError("the session is closed", "closed");
    this.#outbox.add(frame, this.#isJoined);
    this.#pump();
    return frame;
  }

  /** Sends what waits: as a rule one message; after a resume all that gathered, in slices below the server's limits. */
  #pump() {
    if (!this.#link || !this.#isJoined || this.#timers.runs("slice")) return;
    for (let n = 0, bytes = 0; n < SLICE_MESSAGES && bytes < SLICE_BYTES && !this.#outbox.isEmpty; n++) {
      const frame = this.#outbox.next();
      this.#link.send(frame);
      bytes += frame.length;
    }
    if (!this.#outbox.isEmpty) this.#timers.start("slice", SLICE_EVERY, () => this.#pump());
    if (this.#outbox.isHalfFull && !this.#awaitsPong) this.#ping();
  }

  /**
   * At the welcome and every 5 s. Counts the heartbeats that got no byte in return, not the seconds: a background tab's
   * timers fire once a minute and those of a sleeping computer not at all, and yet the connection may be well.
   */
  #beat() {
    if (!this.#link) return;
    if (this.#link.missed++ >= MISSED) return this.#giveUp("no sign of life");
    this.#ping();
    this.#timers.start("beat", HEARTBEAT, () => {
      this.#failures = 0; // a link that lives so long is no mere attempt
      this.#beat();
    });
  }

  #ping() {
    this.#awaitsPong = true;
    this.#link?.send(textFrame("session:ping", JSON.stringify({ t: performance.now() })));
  }

  // Receiving: nothing in here throws, whatever comes

  /** @param {WebSocketLink} link @param {string | ArrayBuffer} data */
  #arrived(link, data) {
    link.missed = 0;
    const message = parse(data);
    if (!message) return;
    if (message.type.startsWith(OWN)) return this.#control(link, message.type, fields(message.content));
    if (!this.#isJoined) return;
    if (message.reliable) this.#received++;
    this.#deliver(message);
  }

  /** @param {Message} message */
  #deliver({ content, n, ...meta }) {
    if (!meta.reliable && !this.#isNews(meta, n)) return;
    this.#listeners.emit(Object.freeze(meta), content);
    if (meta.type !== "*") this.#listeners.emit(meta, content, "*");
  }

  /** Not the second copy of a message on two links, nor one that a later one has overtaken. @param {Meta} meta @param {any} n */
  #isNews({ type, from }, n) {
    if (typeof n !== "number") return true;
    const key = `${from} ${type}`;
    if (n <= (this.#heard.get(key) ?? -1)) return false;
    this.#heard.set(key, n);
    if (this.#heard.size > NUMBERED) this.#heard.delete(this.#heard.keys().next().value ?? "");
    return true;
  }

  /** @param {WebSocketLink} link @param {string} type @param {any} content */
  #control(link, type, content) {
    if (type === "session:welcome") this.#welcome(content);
    else if (type === "session:error") this.#hearError(content);
    else if (!this.#isJoined) return;
    else if (type === "session:presence") this.#hearPresence(content);
    else if (type === "session:reply") this.#hearReply(content);
    else if (type === "session:pong") this.#hearPong(link, content);
    else if (type === "session:ack") this.#side?.trust.acked(countOr(content.received, 0));
    else if (type === "session:reload") this.#hearReload(content);
    else if (type === "session:fault") this.#hearFault(content);
    // Any other is a newer server's, which can do without our answer.
  }

  /** @param {any} content */
  #hearError({ code, reason, type }) {
    if (type === "session:answer") return; // no data channel, then, which is no fault of the page
    const content = { code: textOr(code, "failed"), reason: textOr(reason, "no reason given"), type };
    const heard = this.#emit("session:error", content);
    if (!heard) console.warn(`session.js: ${content.code}: ${content.reason}`);
  }

  /** This page was edited. @param {any} content */
  #hearReload({ piece }) {
    const heard = this.#emit("session:reload", { piece: textOr(piece, "") });
    if (!heard) globalThis.location?.reload();
  }

  /** The room's code was edited, and is wrong, or right again. Development only. @param {any} content */
  #hearFault({ error }) {
    const line = typeof error === "string" ? error : null;
    if (line !== null) console.error(`session.js: ${line}`);
    const heard = this.#emit("session:fault", { error: line });
    if (heard || !globalThis.document) return;
    import(new URL("session-dev.js", import.meta.url).href).then(({ show }) => show(line), console.warn);
  }

  /** @param {any} diff */
  #hearPresence(diff) {
    if ("host" in diff) this.#host = diff.host;
    this.#emit("session:presence", this.#people.apply(diff));
  }

  /** @param {any} content */
  #hearReply({ ask, content, error }) {
    if (error === undefined) return this.#settle(ask, content);
    const { code, reason } = fields(error);
    this.#settle(ask, new SessionError(textOr(reason, "no reason given"), textOr(code, "failed")));
  }

  /** @param {WebSocketLink} link @param {any} content */
  #hearPong(link, { t, time, received }) {
    this.#awaitsPong = false;
    const rtt = typeof t === "number" ? performance.now() - t : -1;
    if (rtt >= 0) link.rtt = rtt;
    this.#clock.add(time, rtt / 1000);
    this.#outbox.cover(countOr(received, 0));
  }

  /** Ends an ask, unless it has ended. @param {number} number @param {any} answer an Error refuses it */
  #settle(number, answer) {
    const ask = this.#asks.get(number);
    if (!ask) return;
    this.#asks.delete(number);
    clearTimeout(ask.timer);
    if (answer instanceof Error) ask.reject(answer);
    else ask.resolve(answer);
  }

  /** What the old seat asked, nobody answers on the new one. What still waits goes out, and may be answered. */
  #refuseLostAsks() {
    for (const [number, { frame }] of this.#asks) {
      if (this.#outbox.isWaiting(frame)) continue;
      this.#settle(number, new SessionError("the seat was lost before the answer came", "lost"));
    }
  }

  /** @template {keyof Events} T @param {T} type @param {Events[T]} content */
  #emit(type, content) {
    return this.#listeners.emit(Object.freeze({ from: 0, reliable: true, type }), content);
  }
}

const isOffline = () => globalThis.navigator?.onLine === false;
