// An unmodified geckos.io client in Node, with node-datachannel below it, for tests/test_geckos_clients.py.
//
//     node node.mjs FOLDER-WITH-NODE_MODULES URL PORT AUTHORIZATION
//
// Says on stdout what happens, one JSON object a line: connected, each message, closed.

import { createRequire } from "node:module";
import { pathToFileURL } from "node:url";

const [folder, url, port, authorization] = process.argv.slice(2);
const { resolve } = createRequire(pathToFileURL(folder + "/"));
const load = (name) => import(pathToFileURL(resolve(name)));
const say = (what) => process.stdout.write(JSON.stringify(what) + "\n");

const { RTCPeerConnection, RTCSessionDescription, RTCIceCandidate } = await load("node-datachannel/polyfill");
Object.assign(globalThis, { RTCPeerConnection, RTCSessionDescription, RTCIceCandidate });
const { geckos } = await load("geckos-3.1.0");

const channel = geckos({ url, port: Number(port), authorization });
channel.onConnect((error) => {
  say({ connected: error ? { name: error.name, status: error.status } : true });
  if (error) process.exit(1);
  channel.on("hello", (content) => say({ hello: content }));
  channel.on("pong", (content) => say({ pong: content }));
  channel.onRaw((data) => say({ raw: typeof data === "string" ? data : [...new Uint8Array(data)] }));
  channel.onDisconnect(() => say({ disconnected: true }));
  channel.emit("ping", { n: 1 });
  channel.emit("ping", { n: 2 }, { reliable: true, interval: 10, runs: 3 });
  channel.raw.emit("plain");
  channel.raw.emit(new Uint8Array([1, 2, 3]));
});

process.stdin.once("data", () => {
  channel.close();
  setTimeout(() => process.exit(0), 100); // the request that says so is on its way
});
