// A relay as its users write it on @geckos.io/server: what one says goes to the others.
import { createServer } from "node:http";
import geckos from "@geckos.io/server";

const port = Number(process.argv[2]);
const http = createServer((request, response) => response.end("geckos"));
const io = geckos({ bindAddress: "127.0.0.1", cors: { origin: "*" } });

io.addServer(http);
io.onConnection((channel) => {
  channel.on("1v1:move", (data) => channel.broadcast.emit("1v1:move", data));
});
http.listen(port, "127.0.0.1");
