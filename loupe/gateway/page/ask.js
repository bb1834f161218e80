// One request to the gateway: a picture to be classified, or what it is instead. What it answers, or a Problem.
import { keyHeader } from "./key.js";
import { unsaid } from "./words.js";

const LONGEST = 120_000; // ms that one answer may take: the gateway gives up much earlier
const MOST_BYTES = Number(document.body.dataset.maxBytes); // of one request

export class Problem extends Error {
  constructor(message, { status = 0, retryAfter = 0, gone = false } = {}) {
    super(message);
    Object.assign(this, { status, retryAfter, gone }); // retryAfter in seconds, 0: it makes no sense; gone: nobody answered
  }
}

// The heat map is asked for where there is a picture to lay it over.
export function predict(picture, signal) {
  return ask(picture.file ? "/predict?heatmap=1" : "/predict", picture, signal);
}

export function correct(picture, label) {
  return ask(`/feedback?label=${encodeURIComponent(label)}`, picture);
}

async function ask(address, picture, signal) {
  const size = picture.file?.size ?? 0;
  if (size > MOST_BYTES) throw new Problem(`The picture has ${megabytes(size)}, and at most ${megabytes(MOST_BYTES)} are taken; send a smaller one.`);
  let response, text;
  try {
    const limit = AbortSignal.timeout(LONGEST);
    response = await fetch(address, { method: "POST", signal: signal ? AbortSignal.any([signal, limit]) : limit, ...bodyOf(picture) });
    text = await response.text();
  } catch (error) {
    if (signal?.aborted) throw error;
    throw await explainSilence();
  }
  const answer = parse(text);
  if (response.ok && answer) return answer;
  const seconds = Number(response.headers.get("Retry-After"));
  const retryAfter = [429, 503].includes(response.status) && seconds > 0 ? seconds : 0;
  throw new Problem(answer?.detail || answer?.title || unsaid(response), { status: response.status, retryAfter });
}

function bodyOf(picture) {
  if (!picture.file) return { headers: { "Content-Type": "application/json", ...keyHeader() }, body: JSON.stringify({ url: picture.url }) };
  const body = new FormData();
  body.append("file", picture.file, picture.name.split("/").pop());
  return { headers: keyHeader(), body };
}

const megabytes = (bytes) => `${(bytes / 1e6).toFixed(1)} MB`;

// Of something in between, such as nginx, the text is no JSON.
function parse(text) {
  try { return JSON.parse(text); } catch { return null; }
}

// A browser does not say why there was no answer. Is the gateway gone, or only this picture's file?
async function explainSilence() {
  try {
    if ((await fetch("/healthz", { signal: AbortSignal.timeout(5000) })).ok)
      return new Problem("It could not be sent. Is the file still there, and as it was? Choose it again.");
  } catch { /* gone */ }
  return new Problem(
    navigator.onLine
      ? "The gateway does not answer. Is it still running? What is answered is kept, the rest waits."
      : "The network is gone. What is answered is kept, the rest waits.",
    { gone: true },
  );
}
