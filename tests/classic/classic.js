// A page of the former platform, as a server sees it: written anew from what was observed of lib/disk.mjs, lib/socket.mjs
// and lib/udp.mjs, with the faults that a server must not provoke: each frame is parsed unguarded, an answer without
// `state: "Ready"` is waited for in vain, every address is made `wss:` or `https:`.

import { geckos } from "/geckos.js";

export class Page {
  log = []; // what the piece was told: [id, type, content]
  udp = []; // what came by UDP: [type, content]
  ran = []; // what was loaded anew: code that was pushed, or pieces
  connections = 0;

  constructor(handle, piece) {
    this.handle = handle;
    this.load(piece);
  }

  /** A piece is loaded: both wires of the one before are cut, and the session is asked for anew. */
  async load(piece) {
    this.leave();
    this.piece = piece;
    const session = await this.#session(piece);
    const url = new URL(session.url);
    const udp = new URL(session.udp);
    this.#signal(`https://${udp.hostname}`, udp.port); // a little before the other, in the same turn
    this.#connect(`wss://${url.host}${url.pathname}`, 1000);
  }

  async #session(slug) {
    const answer = await fetch(`/session/${slug}?` + new URLSearchParams({ service: undefined }));
    if (answer.status !== 200 && answer.status !== 304) throw new Error(await answer.text());
    const session = await answer.json();
    if (session.state !== "Ready") await new Promise(() => {}); // an EventSource that never says a word
    return session;
  }

  leave() {
    clearInterval(this.alive);
    this.left = true;
    this.socket?.close();
    this.channel?.close();
    this.socket = this.channel = this.id = undefined;
    this.queue = [];
    this.open = false;
  }

  // --- WebSocket -----------------------------------------------------------------------------------------------------

  send(type, content) {
    const message = JSON.stringify({ type, content });
    if (this.socket?.readyState === WebSocket.OPEN) this.socket.send(message);
    else this.queue.push(message);
  }

  #connect(url, wait) {
    this.left = false;
    const socket = (this.socket = new WebSocket(url));
    socket.onopen = () => {
      wait = 1;
      this.connections++;
      for (const message of this.queue.splice(0)) socket.send(message);
      if (this.handle) {
        this.send("location:broadcast", { handle: this.handle, slug: this.piece });
        this.alive = setInterval(() => this.send("location:broadcast", { handle: this.handle, slug: "*keep-alive*" }), 2500);
      }
      if (this.codeChannel) this.send("code-channel:sub", this.codeChannel);
    };
    socket.onmessage = ({ data }) => {
      const { id, type, content } = JSON.parse(data);
      if (this.socket === socket) this.#receive(id, type, content);
    };
    socket.onclose = () => {
      if (this.socket !== socket) return;
      clearInterval(this.alive);
      setTimeout(() => this.socket === socket && this.#connect(url, Math.min(2 * wait, 32000)), wait);
    };
  }

  #receive(id, type, content) {
    if (type === "connected") {
      const { playerCount } = JSON.parse(content);
      this.id = id;
      this.players = playerCount;
    } else if (type === "joined") this.text = JSON.parse(content).text;
    else if (type === "left") this.players = (typeof content === "string" ? JSON.parse(content) : content).count;
    else if (type === "reload") this.ran.push((typeof content === "string" ? JSON.parse(content) : content).piece);
    else if (type === "code") {
      const { source } = JSON.parse(content);
      if (id === "development") this.ran.push(source);
    } else this.log.push([id, type, content]);
  }

  watch(channel) {
    this.codeChannel = channel;
    this.send("code-channel:sub", channel);
  }

  // --- UDP -----------------------------------------------------------------------------------------------------------

  emit(type, content) {
    this.channel.emit(type, JSON.stringify(content));
  }

  #signal(url, port) {
    const channel = (this.channel = geckos({ url, port, iceServers: [] }));
    channel.onConnect((error) => {
      if (this.channel !== channel) return;
      if (error) throw new Error(error.message);
      this.open = true;
      if (this.handle) this.emit("udp:identity", { user: { sub: "someone" }, handle: this.handle });
      for (const type of ["tv", "fairy:point", "1v1:move"])
        channel.on(type, (content) => this.udp.push([type, JSON.parse(content)]));
    });
  }
}
