// The page at /model where the gateway wants a key: no header goes with an address that is opened, so the page asks for
// itself, with the key that this tab has or is given.
import { askForKey, keyHeader } from "./key.js";

async function open() {
  let answer;
  try {
    answer = await fetch(location.pathname, { headers: { Accept: "text/html", ...keyHeader() } });
  } catch {
    document.querySelector("#problem p").textContent = "The gateway does not answer. Is it still running?";
    return;
  }
  const page = new DOMParser().parseFromString(await answer.text(), "text/html"); // runs no script of it
  if (answer.ok) document.querySelector("main").replaceWith(page.querySelector("main"));
  else document.querySelector("#problem p").textContent = page.querySelector("#problem p")?.textContent ?? `The answer was ${answer.status}.`;
}

askForKey(open);
if (keyHeader()["X-API-Key"]) open();
