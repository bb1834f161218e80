// A picture's card: its preview with the heat map, what the model says of it, or why there is no answer.
import { curl, python } from "./calls.js";
import { fillCorrection, isOffered } from "./correct.js";
import { certainty, percent, times } from "./words.js";

const FEW = 3; // labels shown at first
const STATES = { waiting: "Waits for its turn.", asking: "Is asked for …", cancelled: "Cancelled.", answered: "" };

// Make the card of `picture`. again(picture) and cancel(picture) are called when its buttons are pressed.
export function makeCard(picture, { again, cancel }) {
  const item = document.getElementById("card").content.firstElementChild.cloneNode(true);
  const $ = (selector) => item.querySelector(selector);
  const heading = $("h3");
  heading.id = `picture-${picture.id}`;
  heading.firstElementChild.textContent = picture.name;
  $(".scores").setAttribute("aria-label", `Labels of ${picture.name}`); // it gets the focus once all are shown
  $("article").setAttribute("aria-labelledby", heading.id);
  for (const control of item.querySelectorAll("button, summary, input")) control.setAttribute("aria-describedby", heading.id);
  $("figcaption").textContent = picture.url ? "A picture given by its address is not shown: this page asks no other server." : "";
  $(".again").addEventListener("click", () => again(picture));
  $(".cancel").addEventListener("click", () => cancel(picture));
  $(".all").addEventListener("click", () => { showScores(item, picture, Infinity); focusOn($(".scores")); });
  $(".call").addEventListener("toggle", () => fillOnce($(".call"), () => fillCall($(".call"), picture)));
  $(".correct").addEventListener("toggle", () => fillOnce($(".correct"), () => fillCorrection($(".correct"), picture)));
  return item;
}

// Show the preview; null: the browser knows none.
export function showPreview(item, url, name) {
  const preview = item.querySelector(".preview");
  if (url) Object.assign(preview, { src: url, alt: name, hidden: false });
  else item.querySelector("figcaption").textContent = "No preview: this browser does not show such files.";
  showHeat(item);
}

// Show the state that the picture is in.
export function showState(item, picture) {
  const $ = (selector) => item.querySelector(selector);
  const isAnswered = picture.state === "answered";
  const hasFocus = $(".ways").contains(document.activeElement);
  item.className = `card ${picture.state}`;
  $(".state").textContent = picture.note || STATES[picture.state];
  $(".cancel").hidden = !["waiting", "asking"].includes(picture.state);
  $(".again").hidden = !canBeAskedAgain(picture);
  $(".call").hidden = Boolean(picture.isUnsaved); // there is no file to name
  if (isAnswered) showAnswer(item, picture);
  if (hasFocus) focusOn($(".ways button:not([hidden])") ?? $("h3"));
}

export const canBeAskedAgain = ({ state, isFinal }) => state === "cancelled" || (state === "failed" && !isFinal);

function showAnswer(item, picture) {
  const $ = (selector) => item.querySelector(selector);
  const { answer } = picture;
  const [kind, badge, doubt] = certainty(answer);
  $(".label").firstElementChild.textContent = answer.label;
  $(".confidence").textContent = `${percent(answer.confidence)} confident`;
  $(".badge").textContent = badge;
  $(".badge").className = `badge ${kind}`;
  $(".doubt").textContent = doubt;
  $(".doubt").hidden = !doubt;
  $(".about").textContent = `${answer.model.name}, version ${answer.model.version} · ${times(answer.timings_ms)}`;
  for (const part of [".label", ".note", ".scores", ".about"]) $(part).hidden = false;
  $(".correct").hidden = !isOffered() || Object.keys(answer.scores).length < 2;
  if (answer.heatmap) $(".heat").src = answer.heatmap;
  showScores(item, picture, FEW);
  showHeat(item);
}

function showScores(item, { answer }, most) {
  const scores = Object.entries(answer.scores);
  item.querySelector(".scores").replaceChildren(...scores.slice(0, most).map(([label, score]) => {
    const row = document.createElement("li");
    const bar = Object.assign(document.createElement("progress"), { value: score });
    bar.setAttribute("aria-hidden", "true"); // the text says the same
    row.append(Object.assign(document.createElement("bdi"), { textContent: label }), percent(score), bar);
    return row;
  }));
  const all = item.querySelector(".all");
  all.hidden = scores.length <= most;
  all.textContent = `Show all ${scores.length}`;
}

// The heat map lies over a picture, so it needs one.
function showHeat(item) {
  const heat = item.querySelector(".heat");
  const isShown = Boolean(heat.getAttribute("src")) && !item.querySelector(".preview").hidden;
  heat.hidden = !isShown;
  item.querySelector(".heat-switch").hidden = !isShown;
}

function fillCall(details, picture) {
  for (const [title, text] of [["From a terminal", curl(picture)], ["From Python", python(picture)]]) {
    const code = document.createElement("pre");
    code.tabIndex = 0; // what can be scrolled can be reached by keyboard
    code.append(Object.assign(document.createElement("code"), { textContent: text }));
    details.append(Object.assign(document.createElement("p"), { className: "small soft", textContent: title }), code);
  }
}

function fillOnce(details, fill) {
  if (details.open && details.children.length === 1) fill();
}

// A button that goes away when it is pressed hands its focus on.
function focusOn(element) {
  if (element.tabIndex < 0) element.tabIndex = -1; // what is no control can be reached by script alone
  element.focus();
}
