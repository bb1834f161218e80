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

// What came of a picture, to be heard.
export function outcome({ name, answer, note }) {
  if (!answer) return `${name}: ${note}`;
  const [kind, badge] = certainty(answer);
  const doubt = kind === "unknown" ? "nothing is known of its certainty" : badge;
  return `${name}: ${answer.label}, ${percent(answer.confidence)} confident, ${doubt}.`;
}

export function times({ fetch, decode, model }) {
  return `${fetch} ms to receive, ${decode} ms to decode, ${model} ms in the model`;
}

// What the gateway says of a problem. Its words are for programs too, so some are others for people at a page.
export function said(answer, withKey) {
  if (answer?.code === "unauthorized")
    return withKey ? "This key is not known here. Ask whoever runs this service." : "This service wants a key. Ask whoever runs it.";
  if (answer?.code === "unsupported_image") return "A picture of this kind cannot be opened here. Save it as JPEG or PNG, and send that.";
  return [answer?.detail, answer?.title].find((text) => text && typeof text === "string");
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

// Put a text where a screen reader hears it, even if it is the one that it heard last.
export function announce(element, text) {
  element.textContent = text && element.textContent === text ? `${text}\u00a0` : text;
}
