// One request to the gateway: a picture to be classified, or what it is instead. What it answers, or a Problem.
import { forgetKey, keyHeader } from "./key.js";
import { said, unsaid } from "./words.js";

const LONGEST = 120_000; // ms that one answer may take: the gateway gives up much earlier
const FORM = 1000; // bytes that a form has beside the picture
const MOST_BYTES = Number(document.body.dataset.maxBytes) - FORM; // of one picture
const UNCHANGING = [400, 413, 415, 422]; // the same picture would get the same answer again

// retryAfter in seconds, 0: it makes no sense; gone: nobody answered; isFinal: asking again would change nothing
export class Problem extends Error {
  constructor(message, { status = 0, code = "", retryAfter = 0, gone = false } = {}) {
    super(message);
    const isFinal = UNCHANGING.includes(status) && code !== "fetch_failed";
    Object.assign(this, { status, retryAfter, gone, isFinal });
  }
}

// The heat map is asked for where there is a picture to lay it over.
export async function predict(picture, signal) {
  return checked(await ask(picture.file ? "/predict?heatmap=1" : "/predict", picture, signal), isPrediction);
}

export async function correct(picture, label) {
  return checked(await ask(`/feedback?label=${encodeURIComponent(label)}`, picture), ({ label }) => isText(label));
}

// Is there a gateway to ask?
export async function isThere() {
  try { return (await fetch("/healthz", { signal: AbortSignal.timeout(5000) })).ok; } catch { return false; }
}

async function ask(address, picture, signal) {
  const size = picture.file?.size ?? 0;
  if (size > MOST_BYTES) throw new Problem(`The picture has ${bytes(size)}, and at most ${bytes(MOST_BYTES)} are taken; send a smaller one.`, { status: 413 });
  const key = keyHeader();
  const request = { method: "POST", signal: limited(signal), ...bodyOf(picture, key) };
  let response, text;
  try {
    response = await fetch(address, request);
    text = await response.text();
  } catch (error) {
    if (signal?.aborted) throw error;
    throw await explainSilence();
  }
  const answer = parse(text);
  if (response.ok) return answer;
  if (response.status === 401) forgetKey(key);
  const seconds = Number(response.headers.get("Retry-After"));
  const retryAfter = [429, 503].includes(response.status) && seconds > 0 ? seconds : 0;
  const words = said(answer, Object.keys(key).length > 0) || unsaid(response);
  throw new Problem(words, { status: response.status, code: answer?.code, retryAfter });
}

function bodyOf(picture, key) {
  if (!picture.file) return { headers: { "Content-Type": "application/json", ...key }, body: JSON.stringify({ url: picture.url }) };
  const body = new FormData();
  body.append("file", picture.file, picture.name.split("/").pop());
  return { headers: key, body };
}

// A browser of before 2024 has no AbortSignal.any: there a picture waits until it is cancelled.
function limited(signal) {
  if (!signal) return AbortSignal.timeout(LONGEST);
  return AbortSignal.any ? AbortSignal.any([signal, AbortSignal.timeout(LONGEST)]) : signal;
}

const bytes = (count) => `${count.toLocaleString("en")} bytes`;

// Of something in between, such as nginx, the text is no JSON.
function parse(text) {
  try { return JSON.parse(text); } catch { return null; }
}

// Something else may answer at this address, so a card is filled with nothing but a whole answer.
function checked(answer, isWhole) {
  if (answer && isWhole(answer)) return answer;
  throw new Problem("The answer is not one of a Loupe gateway.");
}

const isText = (value) => typeof value === "string";
const areNumbers = (values) => values.every(Number.isFinite);

function isPrediction({ label, confidence, certain, scores, heatmap, model, timings_ms: times }) {
  return isText(label) && Number.isFinite(confidence) && [true, false, null].includes(certain)
    && scores instanceof Object && areNumbers(Object.values(scores)) && (!heatmap || isText(heatmap))
    && isText(model?.name) && Number.isFinite(model.version) && areNumbers([times?.fetch, times?.decode, times?.model]);
}

// A browser does not say why there was no answer. Is the gateway gone, or only this picture's file?
async function explainSilence() {
  if (await isThere()) return new Problem("It could not be sent. Is the file still there, and as it was? Choose it again.");
  return new Problem(
    navigator.onLine
      ? "The gateway does not answer. Is it still running? What is answered is kept, the rest waits."
      : "The network is gone. What is answered is kept, the rest waits.",
    { gone: true },
  );
}
