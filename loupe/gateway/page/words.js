// What the page says of answers and of errors, in words.

// No score is ever quite 0 or 1, so none is shown as that.
export function percent(share) {
  if (share > 0.999) return "> 99.9 %";
  if (share < 0.001) return "< 0.1 %";
  return `${(share * 100).toFixed(1)} %`;
}

// How far an answer can be trusted: a class of the badge, its text, and a sentence that explains it.
export function certainty({ certain, reason }) {
  if (certain === null) return ["unknown", "certainty unknown", "This model has nothing to judge by how certain its answers are."];
  if (certain) return ["yes", "certain", ""];
  if (reason === "unfamiliar") return ["no", "like nothing the model knows", "The picture is unlike those it was trained on, so its label says little."];
  return ["no", "not certain", "It is less confident than an answer has to be to count as certain."];
}

export function times({ fetch, decode, model }) {
  return `${fetch} ms to receive, ${decode} ms to decode, ${model} ms in the model`;
}

// What stands between this page and the gateway has no words of its own for people.
export function unsaid(response) {
  if (response.status === 429) return "Too many requests; try again in a moment.";
  if (response.status === 413) return "The picture is too large for this service; send a smaller one.";
  return `The answer was ${response.status} ${response.statusText}`.trim() + ", and not the gateway's own; try again in a moment.";
}

export function plural(count, one, many = `${one}s`) {
  return `${count.toLocaleString("en")} ${count === 1 ? one : many}`;
}
