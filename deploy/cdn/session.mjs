// GET /session/{slug} at a CDN (Netlify: netlify/functions/session.mjs), for a site whose session server is elsewhere.
// It says what the server itself would say, and is tested with the same vectors: tests/vectors/discovery.json.

const environment = globalThis.process?.env ?? {};
const settings = {
  publicUrl: environment.SESSION_SERVER_PUBLIC_URL, // the one variable that says which server pages go to
  localName: environment.SESSION_SERVER_LOCAL_NAME,
  isolateClassic: /^(1|true|yes|on)$/i.test(environment.SESSION_SERVER_ISOLATE_CLASSIC),
  development: environment.NETLIFY_DEV === "true", // set by `netlify dev`
  port: 8889, // of the session server in development
};
const oldUrl = environment.SESSION_SERVER_OLD_URL;
const oldPieces = new Set(environment.SESSION_SERVER_OLD_PIECES?.match(/\S+/g)); // these stay at oldUrl for now
const headers = { "Access-Control-Allow-Origin": "*", "Cache-Control": "no-store" };

const CONTROL = /[\p{Cc}\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069]/u;

export const config = { path: "/session/*" };

export default function session(request) {
  const { protocol, hostname, host, pathname, search } = new URL(request.url);
  const { development, publicUrl, port } = settings;
  if (!publicUrl && !development) return refusal(500, "SESSION_SERVER_PUBLIC_URL is not set");
  try {
    const told = development // the page is on another port of the same machine
      ? discover(settings, "https", `${hostname}:${port}`, pathname + search)
      : discover(settings, protocol.slice(0, -1), host, pathname + search);
    const stays = !development && oldPieces.has(told.room.split(/[~:]/)[0]);
    const answer = stays ? { url: oldUrl, udp: oldUrl } : told;
    return Response.json({ ...answer, state: "Ready" }, { headers });
  } catch (error) {
    return refusal(400, error.message);
  }
}

function refusal(status, line) {
  return new Response(line + "\n", { status, headers }); // pages take a text for an error
}

export function discover(settings, scheme, host, target) {
  const [path, query] = target.split(/\?(.*)/s);
  const slug = slugFromPath(path.replace("/session/", ""));
  const base = baseUrl(settings, scheme, host, new URLSearchParams(query).get("forceProduction") === "1");
  const own = "/session/" + encodeURIComponent(slug).replace(/%(2F|3A|40|24|26|2B|2C|3B|3D)/g, decodeURIComponent);
  const url = settings.isolateClassic ? base + own : base;
  return { url, udp: url, session: base.replace("http", "ws") + own, room: slug };
}

function baseUrl({ publicUrl, localName, development, port = 8889 }, scheme, host, forceProduction) {
  if (!/^([\w.-]{1,253}|\[[\da-f:.]{2,45}\])(:\d{1,5})?$/i.test(host)) throw new Error("Host header is no host name");
  if (publicUrl && (forceProduction || !development)) return publicUrl.replace(/\/+$/, "");
  const name = host.replace(/:\d+$/, "");
  if (name === (localName ?? "local.aesthetic.computer")) return `https://session.${name}`;
  const codespace = /^([a-z\d-]+)-\d+(\.(?:preview\.)?app\.github\.dev)$/.exec(name);
  return codespace ? `https://${codespace[1]}-${port}${codespace[2]}` : `${scheme}://${host}`;
}

function slugFromPath(encoded) {
  let slug;
  try {
    slug = decodeURIComponent(encoded).normalize("NFC");
  } catch {
    throw new Error("slug is not percent-encoded UTF-8");
  }
  const { length } = [...slug]; // characters, not UTF-16 units
  if (length < 1 || length > 128) throw new Error(`slug has ${length} characters, expected 1 to 128`);
  if (CONTROL.test(slug)) throw new Error("slug has a control character");
  if (slug.split("/").some((part) => part === "" || part === "..")) throw new Error("slug has an empty or .. segment");
  return slug;
}
