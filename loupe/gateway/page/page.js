// The page at /: pictures come in (ways.js, camera.js), are put on the list (visit.js, a card.js each), and are asked
// for a few at a time (queue.js, ask.js).
import { predict } from "./ask.js";
import { offerCamera } from "./camera.js";
import { askForKey, hideKeyForm } from "./key.js";
import { Queue } from "./queue.js";
import { Visit } from "./visit.js";
import { listenForPictures } from "./ways.js";

const $ = (id) => document.getElementById(id);

const visit = new Visit({ again: (pictures) => queue.add(pictures), cancel: (pictures) => queue.cancel(pictures) });
const queue = new Queue({ ask: predict, changed: (picture) => visit.changed(picture), held: showHold });

// Show why nothing is asked for just now; null: it is again.
function showHold(problem) {
  const needsKey = problem?.status === 401;
  if (needsKey) askForKey(() => { $("visit-title").focus(); queue.goOn(); });
  else hideKeyForm();
  $("go-on").hidden = needsKey || !problem;
  tell(problem ? problem.message : "");
}

function tell(text) {
  $("problem").hidden = !text;
  $("problem").firstElementChild.textContent = text;
}

listenForPictures((pictures, leftOut = "") => {
  const tooMany = visit.room() < pictures.length;
  const taken = visit.add(pictures.slice(0, visit.room()));
  if (!queue.isHeld) {
    $("go-on").hidden = true;
    tell([leftOut, tooMany && visit.full(pictures.length - taken.length)].filter(Boolean).join(" "));
  }
  queue.add(taken);
});
offerCamera((picture) => queue.add(visit.add([picture])));

$("go-on").addEventListener("click", () => { queue.goOn(); $("visit-title").focus(); });
window.addEventListener("online", () => queue.goOn());
for (const place of document.querySelectorAll(".origin")) place.textContent = location.origin;
