// The API key, where the gateway wants one. It is kept for this tab alone.
import { announce } from "./words.js";

const $ = (id) => document.getElementById(id);
let goOn = () => {};
let key = "";
try { key = sessionStorage.getItem("key") ?? ""; } catch { /* this browser keeps nothing for pages */ }

export const keyHeader = () => (key ? { "X-API-Key": key } : {});

// Forget the key that was sent with this header, unless another was given meanwhile.
export function forgetKey(header) {
  if (header["X-API-Key"] === key) keep("");
}

// Show the form, and call `then` with each key that is given.
export function askForKey(then) {
  goOn = then;
  $("key-form").hidden = false;
  $("key").focus();
}

export function hideKeyForm() {
  $("key-form").hidden = true;
}

function keep(text) {
  key = text;
  try { text ? sessionStorage.setItem("key", text) : sessionStorage.removeItem("key"); } catch { /* then this page alone has it */ }
}

$("key-form").querySelector("button").disabled = false; // without this script it would be sent to nowhere
$("key-form").addEventListener("submit", (event) => {
  event.preventDefault();
  const text = $("key").value.trim();
  const says = $("problem").firstElementChild;
  if (!text) return announce(says, "There is no key yet: enter one.");
  if (!/^[\x21-\x7e]+$/.test(text)) // no header could carry it
    return announce(says, "This is no key: keys are letters, digits and signs of ASCII, without a space. Copy it again.");
  keep(text);
  $("key").value = "";
  goOn();
});
