// An unmodified geckos.io client in Node on a net that loses datagrams, for tests/geckos/lossy.py.
//
//     node lossy.mjs FOLDER-WITH-NODE_MODULES URL PORT AUTHORIZATION MOVES
//
// Sends so many moves, one every 5 ms, and says in one line of JSON what it has heard.

import { createRequire } from "node:module";
import { pathToFileURL } from "node:url";

const [folder, url, port, authorization, moves] = process.argv.slice(2);
const { resolve } = createRequire(pathToFileURL(folder + "/"));
const load = (name) => import(pathToFileURL(resolve(name)));

const { RTCPeerConnection, RTCSessionDescription, RTCIceCandidate } = await load("node-datachannel/polyfill");
Object.assign(globalThis, { RTCPeerConnection, RTCSessionDescription, RTCIceCandidate });
const { geckos } = await load("geckos-3.1.0");

const heard = { snapshot: [], number: [] };
const channel = geckos({ url, port: Number(port), authorization });
channel.onConnect((error) => {
  if (error) throw error;
  for (const [name, list] of Object.entries(heard)) channel.on(name, (content) => list.push(content));
  channel.on("end", () => {
    process.stdout.write(JSON.stringify(heard) + "\n", () => process.exit(0));
  });
  let sent = 0;
  const timer = setInterval(() => {
    if (sent < moves) return channel.emit("move", ++sent);
    clearInterval(timer);
    channel.emit("moved", null, { reliable: true, interval: 20 });
  }, 5);
});
