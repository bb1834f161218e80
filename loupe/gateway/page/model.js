// The page at /model where the gateway wants a key: no header goes with an address that is opened, so the page asks for
// itself, with the key that this tab has or is given.
import { askForKey, forgetKey, keyHeader } from "./key.js";

const says = document.querySelector("#problem p");

async function open() {
  const key = keyHeader();
  says.textContent = "The model is asked for …"; // so that what follows is heard, even if it was said before
  let answer, text;
  try {
    answer = await fetch(location.pathname, { headers: { Accept: "text/html", ...key } });
    text = await answer.text();
  } catch {
    says.textContent = "The gateway does not answer. Is it still running?";
    return;
  }
  if (answer.status === 401) forgetKey(key);
  const page = new DOMParser().parseFromString(text, "text/html"); // runs no script of it
  const main = page.querySelector("main");
  if (answer.ok && main) show(main);
  else says.textContent = page.querySelector("#problem p")?.textContent ?? `The answer was ${answer.status}.`;
}

// The form goes away, so its focus goes to the heading, which is read then.
function show(main) {
  document.querySelector("main").replaceWith(main);
  const heading = main.querySelector("h2");
  heading.tabIndex = -1;
  heading.focus();
}

askForKey(open);
if (keyHeader()["X-API-Key"]) open();
