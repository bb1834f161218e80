// The page at /: pictures come in (ways.js, camera.js), are put on the list (visit.js, a card.js each), and are asked
// for a few at a time (queue.js, ask.js).
import { isThere, predict } from "./ask.js";
import { offerCamera } from "./camera.js";
import { askForKey, hideKeyForm } from "./key.js";
import { Queue } from "./queue.js";
import { Visit } from "./visit.js";
import { listenForPictures } from "./ways.js";
import { announce } from "./words.js";

const LOOK_EVERY = 4000; // ms, for a gateway that is gone
const $ = (id) => document.getElementById(id);
let hold = ""; // why nothing is asked for
let mistake = ""; // what was wrong with what came in last
let looking = 0; // a timer

const visit = new Visit({ again: (pictures) => queue.add(pictures), cancel: (pictures) => queue.cancel(pictures) });
const queue = new Queue({ ask: predict, changed: (picture) => visit.changed(picture), held: showHold });

// Show why nothing is asked for just now; null: it is again.
function showHold(problem) {
  const needsKey = problem?.status === 401;
  if (needsKey) {
    $("camera").close(); // nothing behind it can be reached
    askForKey(() => { $("visit-title").focus(); queue.goOn(); });
  } else hideKeyForm();
  $("go-on").hidden = needsKey || !problem;
  clearInterval(looking);
  if (problem?.gone) looking = setInterval(async () => { if (await isThere() && queue.isHeld) queue.goOn(); }, LOOK_EVERY);
  hold = problem ? problem.message : "";
  tell();
}

function tell() {
  const text = [hold, mistake].filter(Boolean).join(" ");
  $("problem").hidden = !text;
  announce($("problem").firstElementChild, text);
}

// Put pictures on the list, as far as there is room, and return how many were.
function take(pictures, leftOut = "") {
  const taken = visit.add(pictures.slice(0, visit.room()));
  const noRoom = pictures.length - taken.length;
  mistake = [leftOut, noRoom && visit.full(noRoom)].filter(Boolean).join(" ");
  tell();
  queue.add(taken);
  return taken.length;
}

listenForPictures(take);
offerCamera((picture) => take([picture]) > 0);

$("go-on").addEventListener("click", () => { queue.goOn(); $("visit-title").focus(); });
window.addEventListener("online", () => queue.goOn());
for (const place of document.querySelectorAll(".origin")) place.textContent = location.origin;

// All of the page is here now: its buttons do something, and the warning that they do not is wrong.
for (const button of $("form").querySelectorAll("button:disabled")) button.disabled = false;
$("not-loaded").remove();
